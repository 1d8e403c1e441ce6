"""Scores anything mode on unseen `scenes`: which objects are found, and whether their captions are right.

    python -m experiments.sca_tiny.anything_report --model MODEL --output FILE.md

Writes its table between the marks of a Markdown file, or a file of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sca_hf.data.scenes import Scene, scenes
from sca_hf.processing.masks_sca import decode_rle

from .scenes_report import ALWAYS, RegionResult, caption_scores, mask_iou


MATCH_IOU = 0.5
MARK = "<!-- anything-report -->"


def match_regions(records: Sequence[dict[str, Any]], scene: Scene) -> list[tuple[int, int, float]]:
    """Pairs regions with objects, best IoU first, each once: (record, object, IoU), IoU at least 0.5."""
    masks = [decode_rle(record["segmentation"]) for record in records]
    pairs = [
        (mask_iou(mask, scene.mask(index)), place, index)
        for place, mask in enumerate(masks)
        for index in range(len(scene.objects))
    ]
    taken: tuple[set[int], set[int]] = (set(), set())
    matched = []
    for iou, place, index in sorted(pairs, reverse=True):
        if iou >= MATCH_IOU and place not in taken[0] and index not in taken[1]:
            taken[0].add(place)
            taken[1].add(index)
            matched.append((place, index, iou))
    return matched


def score_anything(model: Any, processor: Any, count: int, split: str = "test", start: int = 0) -> dict[str, Any]:
    """Captions everything in `count` scenes of a split and scores it; fractions of 1."""
    found = objects = regions = 0
    results: list[RegionResult] = []
    for scene in scenes(split, count, start):
        records = processor.caption_anything(model, scene.to_pil())
        matched = match_regions(records, scene)
        found, objects, regions = found + len(matched), objects + len(scene.objects), regions + len(records)
        results += [RegionResult(scene.objects[i], records[place]["caption"], iou) for place, i, iou in matched]
    scores = caption_scores(results)
    words = {name: scores[name] for name in (*ALWAYS, "size", "relation")}
    return {
        "scenes": count,
        "objects": objects,
        "regions": regions,
        "recall": round(found / objects, 4),
        "precision": round(found / max(regions, 1), 4),
        "mask_iou": scores["mask_iou"],
        **words,
    }


def markdown(report: dict[str, Any], command: str) -> str:
    """The scores as a table, with the command that made them."""
    rows = [
        ("objects found (mask IoU at least 0.5)", f"{100 * report['recall']:.1f} % of {report['objects']}"),
        ("regions that are an object", f"{100 * report['precision']:.1f} % of {report['regions']}"),
        ("mean mask IoU of those", f"{report['mask_iou']:.3f}"),
    ]
    rows += [
        (f"{name} right in their captions", f"{100 * report[name]:.1f} %") for name in (*ALWAYS, "size", "relation")
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"On {report['scenes']} test scenes, by `{command}`:\n\n| | |\n|---|---|\n{table}\n"


def write(path: Path, text: str) -> None:
    """Puts the text between two marks of a file that has them, else replaces the file."""
    marked = f"{MARK}\n{text}{MARK}\n"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    if MARK in before:
        head, _, rest = before.partition(MARK)
        tail = rest.partition(MARK)[2] if MARK in rest else rest
        marked = head + marked.rstrip("\n") + tail
    path.write_text(marked, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    from sca_hf.captioning import load

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or repository of the model (default: the bundled one)")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    parser.add_argument("--scenes", type=int, default=200, help="number of test scenes")
    options = parser.parse_args(arguments)
    report = score_anything(*load(options.model), options.scenes)
    chosen = f" --model {options.model}" if options.model else ""
    command = f"python -m experiments.sca_tiny.anything_report{chosen} --output {options.output}"
    text = markdown(report, command)
    write(options.output, text)
    print(text)


if __name__ == "__main__":
    main()
