"""`sca-hf report`: a page on what systems say of the same regions."""

import argparse
from pathlib import Path
from typing import Any

from .evaluate import add_scoring, bootstrap, inputs_of_scoring, measured_on, names, scoring_tools, with_metrics
from .parsing import command, look, natural, notice, prepare, quiet


_REPORT_HELP = """\
write a page with scores, breakdowns and example regions

Each PREDS holds one system's predictions for the same regions. DIR gets report.html, one self-contained page, and
report.md: scores with intervals, differences from the first system, scores by size and by category, the worst and
best regions by the first metric of the first system (by accuracy and the recall of their class where all references
are class names) and some random ones with all captions side by side, and the scores as a block for the metadata of a
model card. Pictures come from --data, the set that was predicted on.

$METRICS"""
_REPORT_EXAMPLE = """\
example:
  sca-hf report ours.jsonl baseline.jsonl --data scenes:split=test,count=100 --output report
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "report", run, with_metrics(_REPORT_HELP), _REPORT_EXAMPLE)
    declared.add_argument("predictions", nargs="+", metavar="PREDS", help="prediction files")
    declared.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    declared.add_argument("--data", metavar="SPEC", help="data set with the pictures, a spec as for sca-hf data check")
    declared.add_argument("--title", default="Region captions", help="(default: %(default)s)")
    declared.add_argument(
        "--examples", type=natural, default=8, metavar="N", help="regions of each kind (%(default)s)"
    )
    declared.add_argument(
        "--categories", type=natural, default=20, metavar="N", help="rows of the table (%(default)s)"
    )
    add_scoring(declared)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to write to.")
    reads = [*inputs_of_scoring(options, *options.predictions), options.data]
    prepare([folder / "report.html", folder / "report.md"], reads, inside=False)
    notice(options, f"reading {', '.join(options.predictions)}")
    quiet()
    from ..evaluation.report import build_contents, write_report
    from ..evaluation.scoring import score_file

    how, tools = bootstrap(options), scoring_tools(options)
    files = [score_file(path, names(options), tools, how, options.protocol) for path in options.predictions]
    contents = build_contents(files, how, options.examples, options.categories, options.seed, options.title)
    contents.data, contents.command = options.data, options.line
    for file in files:
        print(measured_on(file))
    page, text = write_report(contents, folder, options.data)
    look(page, text)
    for note in contents.notes:
        print(note)
    print(f"page: {page}\ntext: {text}")
