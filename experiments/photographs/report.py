"""Scores models on the photographs of the documented split and writes the tables of a page.

    python -m experiments.photographs.report --model runs/photographs/model --model sca-tiny \
        --output runs/photographs/report --page docs/photographs.md

Of every seed and in the mean: mask IoU from a box, a jittered box (each edge moved by a normal distribution of 10 % of
its side), and the deepest point of the true mask; per COCO size and set; beside shapes that need no model. Words: how
often a caption says the category or a synonym (words.py). Anything mode: objects found at IoU 0.5; photographs show
things that nobody annotated, so its precision is a lower bound. Cost: CPU seconds and bytes.

{seed} in a model's path is each seed in turn. Results are kept in the output folder, a file per model with a line per
picture: the same command resumes after a kill, and makes the tables again without running a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sca_hf.files import read_json, to_json, write_whole
from sca_hf.yaml_files import parse_yaml

from ..prompt_table import write_into
from . import data, tables
from .measure import Measurement, read_pictures


MARKS = ("<!-- photographs: made by experiments/photographs/report.py -->", "<!-- end of photographs -->")
_COST_PICTURES = 12


def report(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Measures what is missing; returns all figures, and the page's text."""
    folder = data.data_folder(options.data)
    generation = dict(_assignment(text) for text in options.generate)
    measured: dict[str, Measurement] = {}
    seeds: dict[int, dict[str, list[Any]]] = {}
    costs: dict[str, dict[str, float]] = {}
    for seed in options.seeds:
        records = read_pictures(folder, seed, options.split, options.sets)
        seeds[seed] = {}
        for given in options.model:
            label, source = _named(given, seed)
            if source not in measured:
                flags = (not options.no_anything, options.fresh)
                measured[source] = Measurement(source, options.output, generation, *flags)
            measured[source].run(records, f"{label}, seed {seed}")
            seeds[seed][label] = [measured[source].done[record["picture"]] for record in records]
            if label not in costs:
                costs[label] = _cost(measured[source], records, options.fresh)
    return _figures(seeds, costs), _page(seeds, costs, options)


def _cost(measurement: Measurement, records: Sequence[Any], fresh: bool) -> dict[str, float]:
    """The cost that was measured before, else that of a few pictures with several regions."""
    file = measurement.file.with_suffix(".cost.json")
    if fresh or not file.exists():
        several = [record for record in records if 4 <= len(record["regions"]) <= 12][:_COST_PICTURES]
        write_whole(file, to_json(measurement.cost(several or records[:_COST_PICTURES])))
    return read_json(file)


_KINDS = {
    "masks": ("mean mask IoU", tables.MASK_COLUMNS, tables.mask_table),
    "words": ("says the category", tables.WORD_COLUMNS, tables.word_table),
    "anything": ("anything mode", tables.ANYTHING_COLUMNS, tables.anything_table),
}


def _figures(seeds: dict[int, dict[str, list[Any]]], costs: dict[str, dict[str, float]]) -> dict[str, Any]:
    figures: dict[str, Any] = {"cost": costs}
    for kind, (_, columns, make) in _KINDS.items():
        by_seed = {str(seed): make(results) for seed, results in seeds.items()}
        by_seed["mean"] = tables.averaged([*by_seed.values()])
        figures[kind] = {
            name: {row: dict(zip(columns, values, strict=True)) for row, values in table.items()}
            for name, table in by_seed.items()
        }
    return figures


def _page(
    seeds: dict[int, dict[str, list[Any]]], costs: dict[str, dict[str, float]], options: argparse.Namespace
) -> str:
    counts = []
    for seed, results in seeds.items():
        found = next(iter(results.values()))
        regions = sum(len(result["regions"]) for result in found)
        counts.append(f"seed {seed}: {len(found)} pictures, {regions} masks")
    where = f"Side `{options.split}` of {', '.join(options.sets)} ({'; '.join(counts)})."
    parts, single = [where], []
    for title, columns, make in _KINDS.values():
        by_seed = {f"seed {seed}": make(results) for seed, results in seeds.items()}
        if not any(by_seed.values()):
            continue
        single += [tables.markdown(f"{title}, {name}", columns, table) for name, table in by_seed.items()]
        if len(by_seed) > 1:
            mean = tables.averaged([*by_seed.values()])
            parts.append(tables.markdown(f"{title}, mean of {len(by_seed)} seeds", columns, mean))
    parts.append(tables.cost_table(costs))
    if len(seeds) == 1:
        return "\n\n".join([*parts[:1], *single, *parts[1:]])
    return "\n\n".join([*parts, "<details><summary>Each seed</summary>", *single, "</details>"])


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--generate {text}: expected NAME=VALUE.")
    return name, parse_yaml(value)


def _named(given: str, seed: int) -> tuple[str, str]:
    """Label and place of a model, `LABEL=PLACE` or a place alone."""
    label, equals, source = given.partition("=")
    place = (source if equals else given).replace("{seed}", str(seed))
    return (label if equals else Path(given).name.replace("{seed}", "")), place


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True, help="[LABEL=]folder, repository id or sca-tiny")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the split (%(default)s)")
    parser.add_argument("--split", choices=[*data.SIDES, "all"], default="test", help="side to measure (%(default)s)")
    parser.add_argument("--sets", nargs="+", choices=data.SETS, default=list(data.SETS), help="(all)")
    parser.add_argument("--output", type=Path, required=True, help="folder of results and figures")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the tables into, between its marks")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--generate", nargs="*", default=[], metavar="NAME=VALUE", help="arguments of generate")
    parser.add_argument("--no-anything", action="store_true", help="leave out anything mode")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures, text = report(options)
    write_whole(options.output / f"{options.split}.json", to_json(figures))
    print(text)
    if options.page is not None:
        write_into(options.page, text, MARKS)


if __name__ == "__main__":
    main()
