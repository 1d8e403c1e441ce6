"""Prompts as they are written on a command line or in a file, turned into what the processor takes.

All coordinates are pixels of the original image, boxes xyxy.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .processing.masks_sca import decode_rle


_PROMPT_KEYS = ("box", "points", "labels", "mask")
# What a region record says beside its prompts; see data/region.py.
_OTHER_KEYS = ("region_id", "captions", "category")


@dataclass
class RegionPrompt:
    """The prompts of one region; at least one kind.

    Attributes:
        box: xyxy or None.
        points: pairs (x, y).
        labels: 1 inside, 0 outside, one per point.
        mask: (height, width) bool or None.
    """

    box: list[float] | None = None
    points: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask: np.ndarray | None = None

    def describe(self) -> str:
        """A few words for a table: `box 10,20,80,90 + 2 points`."""
        words = []
        if self.box is not None:
            words.append("box " + ",".join(f"{value:g}" for value in self.box))
        if len(self.points) == 1:
            words.append("point " + ",".join(f"{value:g}" for value in self.points[0]))
        elif self.points:
            words.append(f"{len(self.points)} points")
        if self.mask is not None:
            words.append("mask")
        return " + ".join(words) or "whole image"

    def to_json(self) -> dict[str, Any]:
        """The prompts without the pixels of a mask; an empty dict stands for the whole image."""
        values: dict[str, Any] = {} if self.box is None else {"box": self.box}
        if self.points:
            values |= {"points": self.points, "labels": self.labels}
        return values | ({"mask": True} if self.mask is not None else {})


def parse_prompt(kind: str, text: str, regions: list[RegionPrompt]) -> None:
    """Adds one `--box` or `--point` to the regions so far.

    A box, or a point inside, begins a new region. What follows in the same argument after a `;` are more points of
    that region. A point outside (label 0) that stands alone belongs to the region before it.
    """
    where = f"--{kind} {text}"
    first, *rest = text.split(";")
    region = RegionPrompt()
    if kind == "box":
        region.box = _numbers(first, where, (4,), "x1,y1,x2,y2")
    elif _add_point(region, first, where) == 0 and not rest:
        if not regions:
            raise ValueError(f"{where}: a point outside needs a region before it to be left out of.")
        region = regions.pop()
        _add_point(region, first, where)
    for point in rest:
        _add_point(region, point, where)
    regions.append(region)


def read_mask_file(path: str | Path) -> np.ndarray:
    """Reads a mask of the whole image, (height, width) bool.

    A picture (white or any index but 0 is the region), an array in .npy, or a COCO RLE in .json.
    """
    path = Path(path)
    try:
        if path.suffix == ".json":
            return decode_rle(json.loads(path.read_text(encoding="utf-8")), str(path))
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as picture:
                indexed = picture.mode in ("P", "1", "L", "I", "I;16", "F")
                array = np.asarray(picture if indexed else picture.convert("L"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if array.ndim != 2:
        raise ValueError(f"{path} has shape {array.shape}, a mask is (height, width).")
    # A gray picture has soft edges; a picture of labels or 0 and 1 has not.
    soft = array.dtype == np.uint8 and array.max(initial=0) == 255
    return array > 127 if soft else array != 0


def read_regions_file(path: str | Path) -> dict[str | None, list[RegionPrompt]]:
    """Reads the prompts of a JSON file.

    The file holds a list of regions, each `{"box": [x1, y1, x2, y2], "points": [[x, y], ...], "labels": [1, 0, ...],
    "mask": RLE or file name}` with at least one of box, points and mask; or a region record, whose `regions` is such a
    list; or an object from image names to such lists.

    Returns:
        Image name -> its regions; the key None stands for every image.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if isinstance(content, Mapping) and "regions" in content:
        content = content["regions"]
    if isinstance(content, list):
        return {None: _regions(content, path, "regions")}
    if isinstance(content, Mapping) and all(isinstance(value, list) for value in content.values()):
        return {name: _regions(value, path, name) for name, value in content.items()}
    raise ValueError(f"{path} must hold a list of regions, or an object from image names to such lists.")


def processor_arguments(prompts: Sequence[Sequence[RegionPrompt]]) -> dict[str, Any]:
    """The prompts of several images as keyword arguments of `ScaProcessor`; an image without any is one whole box."""
    kinds: dict[str, list[list[Any]]] = {
        "input_boxes": [[region.box for region in regions] for regions in prompts],
        "input_points": [[region.points or None for region in regions] for regions in prompts],
        "input_labels": [[region.labels or None for region in regions] for regions in prompts],
        "input_masks": [[region.mask for region in regions] for regions in prompts],
    }
    return {
        name: values
        for name, values in kinds.items()
        if any(value is not None for regions in values for value in regions)
    }


def _regions(values: list[Any], path: Path, name: str) -> list[RegionPrompt]:
    return [_region(value, path, f"{path}, {name}[{index}]") for index, value in enumerate(values)]


def _region(value: Any, path: Path, where: str) -> RegionPrompt:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {value!r}, expected an object with box, points or mask.")
    if unknown := sorted(set(value) - {*_PROMPT_KEYS, *_OTHER_KEYS}):
        raise ValueError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(_PROMPT_KEYS)}.")
    region = RegionPrompt()
    if value.get("box") is not None:
        region.box = _number_list(value["box"], 4, f"{where}.box")
    points, labels = value.get("points") or [], value.get("labels")
    if not isinstance(points, list):
        raise ValueError(f"{where}.points is {points!r}, expected a list of pairs.")
    region.points = [_number_list(point, 2, f"{where}.points") for point in points]
    region.labels = [1] * len(points) if labels is None else list(labels)
    if len(region.labels) != len(region.points) or not set(region.labels) <= {0, 1}:
        raise ValueError(f"{where}.labels is {labels}, expected 1 or 0 for each of {len(points)} point(s).")
    mask = value.get("mask")
    if isinstance(mask, str):
        region.mask = read_mask_file(path.parent / mask)
    elif mask is not None:
        region.mask = decode_rle(mask, f"{where}.mask")
    if region.box is None and not region.points and region.mask is None:
        raise ValueError(f"{where} has no prompt; give it a box, points or a mask.")
    return region


def _add_point(region: RegionPrompt, text: str, where: str) -> int:
    values = _numbers(text, where, (2, 3), "x,y or x,y,label")
    label = values[2] if len(values) == 3 else 1
    if label not in (0, 1):
        raise ValueError(f"{where}: the label of a point is 1 (inside) or 0 (outside), not {label:g}.")
    region.points.append(values[:2])
    region.labels.append(int(label))
    return int(label)


def _numbers(text: str, where: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{where}: expected numbers as {form}.") from None
    if len(values) not in counts:
        raise ValueError(f"{where}: expected {form}, got {len(values)} number(s).")
    return values


def _number_list(value: Any, length: int, where: str) -> list[float]:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) != length:
        raise ValueError(f"{where} is {value!r}, expected {length} numbers.")
    return [float(v) for v in value]
