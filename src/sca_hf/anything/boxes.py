"""Boxes from a detector's file, in the forms in which they are passed around."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..prompt_arguments import read_regions_file


Boxes = dict[str, list[list[float]]]


def read_boxes(path: str | Path, min_score: float = 0.0) -> Boxes:
    """Reads boxes by image name.

    Args:
        path: JSON; COCO's own form (`images`, `annotations`), COCO results (a list of `bbox` with `file_name`, or with
            an `image_id` that is an image's name with or without suffix), or an object from image names to lists of
            `{"box": [x1, y1, x2, y2]}`.
        min_score: boxes with a lower `score` are left out.

    Returns:
        Image name -> boxes xyxy, pixels of the upright original.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if isinstance(content, Mapping) and "annotations" in content:
        names = {image["id"]: str(image["file_name"]) for image in content.get("images", [])}
        return _coco_boxes(path, content["annotations"], names, min_score)
    if isinstance(content, list) and content and isinstance(content[0], Mapping) and "bbox" in content[0]:
        return _coco_boxes(path, content, {}, min_score)
    by_name = read_regions_file(path)
    if None in by_name:
        raise ValueError(f"{path} says not of which image its boxes are; give an object from image names to lists.")
    for name, regions in by_name.items():
        if any(region.box is None for region in regions):
            raise ValueError(f"{path}, {name}: every region needs a box.")
    return {str(name): [list(r.box) for r in regions if r.box is not None] for name, regions in by_name.items()}


def boxes_of(boxes: Boxes, name: str) -> list[list[float]] | None:
    """The boxes of an image by its whole name, its file name, or that without suffix; None where there are none."""
    path = Path(name)
    for key in (name, path.name, path.with_suffix("").as_posix(), path.stem):
        if key in boxes:
            return boxes[key]
    # COCO numbers its images, and pads the numbers in their names.
    return boxes.get(str(int(path.stem))) if path.stem.isdigit() else None


def _coco_boxes(path: Path, rows: Sequence[Any], names: dict[Any, str], min_score: float) -> Boxes:
    boxes: Boxes = {name: [] for name in names.values()}
    for number, row in enumerate(rows):
        try:
            x, y, width, height = (float(value) for value in row["bbox"])
            name = row.get("file_name") or (names[row["image_id"]] if names else str(row["image_id"]))
            score = float(row.get("score", 1.0))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, entry {number}: expected bbox [x, y, width, height] and image_id or file_name ({error})."
            ) from None
        if score >= min_score:
            boxes.setdefault(name, []).append([x, y, x + width, y + height])
    return boxes
