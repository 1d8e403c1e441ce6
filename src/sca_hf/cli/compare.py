"""`sca-hf compare`: two files of predictions of the same regions, paired."""

import argparse
from typing import Any

from ..files import to_json, write_whole
from .evaluate import (
    add_scoring,
    align,
    bootstrap,
    inputs_of_scoring,
    measured_on,
    names,
    names_note,
    scoring_tools,
    span,
    with_metrics,
)
from .parsing import command, look, notice, prepare


_COMPARE_HELP = """\
compare two files of predictions of the same regions

Both are scored as by `sca-hf evaluate`. The difference is B - A; its interval and its p-value (two-sided, for no
difference) come from a paired bootstrap that draws the same regions for both. Regions are paired by id, or else by
image and region; a region that is missing in one file, or has other references there, is an error.

$METRICS"""
_COMPARE_EXAMPLE = """\
example:
  sca-hf compare baseline.jsonl ours.jsonl --metrics CIDEr-D METEOR --json difference.json
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "compare", run, with_metrics(_COMPARE_HELP), _COMPARE_EXAMPLE)
    declared.add_argument("first", metavar="A", help="file of predictions")
    declared.add_argument("second", metavar="B", help="a second file, of the same regions")
    add_scoring(declared)
    declared.add_argument("--json", metavar="OUT", help="write the comparison; - for the terminal")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    if options.resamples < 1:
        raise ValueError("--resamples is 0: a comparison needs draws.")
    prepare([options.json], inputs_of_scoring(options, options.first, options.second))
    notice(options, f"reading {options.first} and {options.second}")
    from ..evaluation.scoring import Bootstrap, compare_files, score_file, versions

    how, tools = bootstrap(options), scoring_tools(options)
    # Each file's own intervals are not asked for.
    once = Bootstrap(0, how.seed, how.level, how.by)
    files = [
        score_file(path, names(options), tools, once, options.protocol) for path in (options.first, options.second)
    ]
    compared = compare_files(files[0], files[1], how)
    results = {
        "n": len(files[0].records),
        "protocol": None if files[0].protocol is None else files[0].protocol.name,
        "command": options.line,
        "versions": versions(),
        "bootstrap": how.to_dict(),
        "a": options.first,
        "b": options.second,
        "metrics": {name: difference.to_dict() for name, difference in compared.items()},
    }
    if options.json == "-":
        print(to_json(results), end="")
        return
    print(f"A {measured_on(files[0])}\nB {measured_on(files[1])}")
    rows = [
        (name, f"{d.first:.4f}", f"{d.second:.4f}", f"{d.value:+.4f}", *span(d.interval), f"{d.p:.4f}")
        for name, d in compared.items()
    ]
    titles = ("metric", "A", "B", "B - A", f"{100 * how.level:g} % interval, by {how.by}", "p")
    print(align(rows, titles), *names_note(files[0]), sep="\n")
    if options.json:
        write_whole(options.json, to_json(results))
        look(options.json)
        print(f"comparison: {options.json}")
