"""The tables of the report on photographs, from results that are kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sca_hf.captioning import UNSURE

from .data import SETS
from .words import says


Results = Sequence[Mapping[str, Any]]
Region = Mapping[str, Any]
Row = list[float | None]
SIZES = ("small", "medium", "large")
PROMPTS = {"box": "box", "jittered": "jittered box", "point": "deepest point"}
SHAPES = {
    "touched": "filling the box",
    "filled": "filling it, by pixel centers",
    "ellipse": "ellipse within the box",
}
MASK_COLUMNS = ("all", *SIZES, *SETS)
WORD_COLUMNS = (
    "all",
    "medium + large",
    "large",
    "not person",
    "not person, medium + large",
    "macro recall",
    "litter",
    "unsure",
    "right where sure",
)
ANYTHING_COLUMNS = ("recall, all", "medium + large", "large", "precision", "regions a picture", "CPU s a picture")


def regions_of(results: Results) -> list[Region]:
    """Returns all regions, each with its set in `of`."""
    return [{**region, "of": result["of"]} for result in results for region in result["regions"]]


def mean(values: Iterable[float]) -> float | None:
    """Returns the mean, None of nothing."""
    values = list(values)
    return fmean(values) if values else None


def mask_row(regions: Sequence[Region], kind: str) -> Row:
    """Returns mean IoU of all, per size and per set; kind: of `PROMPTS` or `SHAPES`."""
    chosen: list[Callable[[Region], bool]] = [lambda region: True]
    chosen += [lambda region, size=size: region["size"] == size for size in SIZES]
    chosen += [lambda region, name=name: region["of"] == name for name in SETS]
    return [mean(region["iou"][kind] for region in regions if keep(region)) for keep in chosen]


def word_row(regions: Sequence[Region], kind: str, always: str | None = None) -> Row:
    """Returns how often captions say the category, see `WORD_COLUMNS`; all but litter are of COCO's pictures.

    Args:
        kind: of prompt, "box" or "point".
        always: score this caption in place of the model's.
    """
    told = [
        {**region, "right": says(always or region["caption"][kind], region["category"])}
        for region in regions
        if always is not None or region["caption"].get(kind) is not None
    ]
    coco = [region for region in told if not region["of"].startswith("taco")]
    by_name: dict[str, list[bool]] = defaultdict(list)
    for region in coco:
        by_name[region["category"]].append(region["right"])
    big = [region for region in coco if region["size"] != "small"]
    parts = [
        coco,
        big,
        [region for region in coco if region["size"] == "large"],
        [region for region in coco if region["category"] != "person"],
        [region for region in big if region["category"] != "person"],
    ]
    row: Row = [mean(region["right"] for region in part) for part in parts]
    row.append(mean(fmean(right) for right in by_name.values()))
    row.append(mean(region["right"] for region in told if region["of"].startswith("taco")))
    judged = [region for region in coco if always is None and region["confidence"][kind] is not None]
    row.append(mean(region["confidence"][kind] < UNSURE for region in judged))
    row.append(mean(region["right"] for region in judged if region["confidence"][kind] >= UNSURE))
    return row


def commonest(regions: Sequence[Region]) -> str:
    """Returns the category that COCO's regions have more often than others."""
    return Counter(region["category"] for region in regions if not region["of"].startswith("taco")).most_common(1)[0][
        0
    ]


def anything_row(results: Results) -> Row:
    """Returns recall of true objects and precision in anything mode, see `ANYTHING_COLUMNS`."""
    told = [result for result in results if "anything" in result]
    seen = [
        (region["size"], region["id"] in result["anything"]["matched"])
        for result in told
        for region in result["regions"]
    ]
    found = sum(result["anything"]["found"] for result in told)
    return [
        mean(hit for _, hit in seen),
        mean(hit for size, hit in seen if size != "small"),
        mean(hit for size, hit in seen if size == "large"),
        sum(len(result["anything"]["matched"]) for result in told) / found if found else None,
        found / len(told) if told else None,
        mean(result["anything"]["cpu"] for result in told),
    ]


def mask_table(results: Mapping[str, Results]) -> dict[str, Row]:
    """Returns the rows of both shapes and of every model's prompts."""
    first = regions_of(next(iter(results.values())))
    rows = {name: mask_row(first, kind) for kind, name in SHAPES.items()}
    for model, found in results.items():
        rows |= {f"{model}, {name}": mask_row(regions_of(found), kind) for kind, name in PROMPTS.items()}
    return rows


def word_table(results: Mapping[str, Results]) -> dict[str, Row]:
    """Returns the rows of the commonest name and of every model's boxes and points."""
    first = regions_of(next(iter(results.values())))
    rows = {}
    if any(not region["of"].startswith("taco") for region in first):
        rows[f'always "{commonest(first)}"'] = word_row(first, "box", commonest(first))
    for model, found in results.items():
        rows |= {f"{model}, {PROMPTS[kind]}": word_row(regions_of(found), kind) for kind in ("box", "point")}
    return rows


def anything_table(results: Mapping[str, Results]) -> dict[str, Row]:
    """Returns a row for every model that was measured in anything mode."""
    return {model: anything_row(found) for model, found in results.items() if any("anything" in r for r in found)}


def averaged(tables: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Returns the mean over seeds of tables with the same columns; a row counts where it is there."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {
        name: [
            mean(value for value in column if value is not None)
            for column in zip(*(table[name] for table in tables if name in table), strict=True)
        ]
        for name in names
    }


def markdown(title: str, columns: Sequence[str], rows: Mapping[str, Row]) -> str:
    """Returns a table in Markdown, three decimals."""
    lines = [f"| {title} | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join('-' if value is None else f'{value:.3f}' for value in row)} |")
    return "\n".join(lines)


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Returns CPU seconds and megabytes of every model as a table in Markdown."""
    lines = ["| model | CPU s a picture | CPU s a region | weights, MB | all files, MB |", "| --- " * 5 + "|"]
    for name, cost in costs.items():
        sizes = [f"{cost[key] / 1e6:.1f}" if cost[key] else "-" for key in ("weights", "whole")]
        lines.append(f"| {name} | {cost['picture']:.3f} | {cost['region']:.4f} | {' | '.join(sizes)} |")
    return "\n".join(lines)
