"""A region prompt as JSON: one rule for the command line, the HTTP interface, the page and the endpoint handler.

    {"box": [x1, y1, x2, y2], "points": [[x, y], ...], "labels": [1, 0, ...],
     "mask": {"size": [height, width], "counts": ...}, "category": "dog", ...}

Coordinates are pixels of the original, upright image. At least one of box, points and mask; several go together.

- A key whose value is null counts as left out, and so do `points: []` and, without points, `labels: []`.
- `box`: four finite numbers with x1 < x2 and y1 < y2, inside the image. Strings, true and false are not numbers.
- A box, or points, within the first pixel of the image are refused: they look like fractions of its sides.
- `points`: pairs of finite numbers inside the image, at most `MAX_POINTS`. `labels`: 1 (inside the region) or 0
  (outside) for each point, all 1 where left out; labels without points are refused.
- Only points outside, with neither box nor mask, are refused. Told what a thing is not, SAM segments exactly that: of
  12 objects of `scenes`, pointed at with label 0 alone, sca-tiny masked the very object 9 times.
- `mask`: a COCO RLE of exactly the image's size, which is compared before anything is decoded, with at least one
  pixel. A command line also takes the name of a file, see `prompt_arguments.py`.
- A key that looks like one of these four (`bbox`, `point`, `Mask`, `input_boxes`) is refused with the right name.
- All other keys are the caller's own, with any JSON value, and come back in the region's record as they were. Where
  records use a name themselves (`ANSWER_KEYS`), the caller's value comes back in the record's `input`.

Errors begin with the place, for instance `regions[3].points[1]`.
"""

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .masks_sca import decode_rle
from .prompts_sca import EDGE_TOLERANCE, check_boxes, fractions_fault, points_as_fractions


# Points of one region.
MAX_POINTS = 256
# One region's own keys, their bytes as JSON, and how deep their values may nest.
_MAX_KEYS, _MAX_EXTRA, _MAX_DEPTH = 256, 1 << 16, 32
# What records call their own, in every door.
ANSWER_KEYS = (
    "image",
    "region",
    "caption",
    "score",
    "confidence",
    "iou",
    "box",
    "mask",
    "masks",
    "prompt",
    "input",
    "object_score",
)
# The prompts, and what is easily written in place of them.
_FORMS = {
    "box": "[x1, y1, x2, y2]",
    "points": "[[x, y], ...]",
    "labels": "[1, 0, ...], 1 inside and 0 outside",
    "mask": '{"size": [height, width], "counts": ...}',
}
_ALIASES = {
    "box": ("boxes", "bbox", "bboxes", "boundingbox", "xyxy"),
    "points": ("point", "pointcoords", "coords", "clicks"),
    "labels": ("label", "pointlabels"),
    "mask": ("masks", "segmentation", "rle"),
}


def _schema(description: str, kind: str = "array", **rule: Any) -> dict[str, Any]:
    return {"type": [kind, "null"], "description": description, **rule}


_NUMBERS = {"type": "array", "items": {"type": "number"}}
_PAIR = {"minItems": 2, "maxItems": 2}
_WHOLE_NUMBERS = {"type": "array", "items": {"type": "integer"}}
_RLE = {"size": {**_WHOLE_NUMBERS, **_PAIR}, "counts": {"anyOf": [{"type": "string"}, _WHOLE_NUMBERS]}}
# The rule as JSON schema, as far as a schema can say it.
REGION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": (
        "Where one region is: at least one of box, points and mask. Other keys are your own and come back in the "
        "region's answer; those that share a name with its fields ({', '.join(ANSWER_KEYS)}) in its `input`."
    ),
    "properties": {
        "box": _schema(
            f"{_FORMS['box']} in pixels of the upright picture", items={"type": "number"}, minItems=4, maxItems=4
        ),
        "points": _schema(_FORMS["points"], items={**_NUMBERS, **_PAIR}, maxItems=MAX_POINTS),
        "labels": _schema(f"{_FORMS['labels']}, one per point; 1 by default", items={"enum": [0, 1]}),
        "mask": _schema(
            "COCO RLE of the picture's size (height, width), compressed or not",
            "object",
            properties=_RLE,
            required=["size", "counts"],
            additionalProperties=False,
        ),
    },
    "examples": [{"box": [31, 25, 99, 103]}, {"points": [[80, 61], [12, 9]], "labels": [1, 0], "category": "dog"}],
}


class RegionLimitError(ValueError):
    """More regions, or more pixels of masks, than are taken at once."""


@dataclass
class RegionPrompt:
    """Where one region is: at least one of box, points and mask, in pixels of the original image.

    Attributes:
        box: xyxy, or None.
        points: pairs (x, y).
        labels: 1 inside, 0 outside, one per point.
        mask: (height, width) bool, or None.
        rle: the mask as COCO RLE, in place of `mask`, until [`RegionPrompt.on_image`] decodes it.
        extra: the caller's own keys.
        place: what errors call the region.
    """

    box: list[float] | None = None
    points: list[list[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    mask: np.ndarray | None = None
    rle: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    place: str = field(default="the region", compare=False)

    @property
    def has_mask(self) -> bool:
        """Whether there is a mask, decoded or not."""
        return self.mask is not None or self.rle is not None

    def on_image(self, size: tuple[int, int], shown_size: tuple[int, int] | None = None) -> "RegionPrompt":
        """Check the prompt against its image and return it with its mask decoded.

        Args:
            size: (height, width) of the original image.
            shown_size: (height, width) at which a page shows the image; a mask may be painted at this size too.
        """
        if self.box is not None:
            check_boxes(np.array([self.box], np.float64), size, [self.place])
        for index, (x, y) in enumerate(self.points):
            inside = (-EDGE_TOLERANCE <= x <= size[1] + EDGE_TOLERANCE) and (
                -EDGE_TOLERANCE <= y <= size[0] + EDGE_TOLERANCE
            )
            if not inside:  # NaN, which a command line may hold, fails as well
                raise ValueError(
                    f"{self.place}: point {index}, [{x:g}, {y:g}], lies outside the image of {size[1]} x {size[0]} "
                    "pixels (width x height); give pixels of the original image."
                )
        if points_as_fractions(self.points, size):
            raise ValueError(f"{self.place}: point 0 {fractions_fault(size)}.")
        if self.points and not any(self.labels) and self.box is None and not self.has_mask:
            raise ValueError(
                f"{self.place} has only points outside (label 0); add a point inside (label 1), a box or a mask."
            )
        if self.rle is None:
            return self
        return replace(self, mask=_decode_mask(self.rle, size, shown_size or size, f"{self.place}.mask"), rle=None)

    def describe(self) -> str:
        """A few words for a table: `box 10,20,80,90 + 2 points`."""
        words = []
        if self.box is not None:
            words.append("box " + ",".join(f"{value:g}" for value in self.box))
        if len(self.points) == 1:
            words.append("point " + ",".join(f"{value:g}" for value in self.points[0]))
        elif self.points:
            words.append(f"{len(self.points)} points")
        if self.has_mask:
            words.append("mask")
        return " + ".join(words) or "whole image"

    def to_json(self) -> dict[str, Any]:
        """The prompts without the pixels of a mask; an empty dict stands for the whole image."""
        values: dict[str, Any] = {} if self.box is None else {"box": self.box}
        if self.points:
            values |= {"points": self.points, "labels": self.labels}
        return values | ({"mask": True} if self.has_mask else {})

    def with_extra(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of this region with the caller's own keys, `input` holding those whose names are taken."""
        taken = {name: value for name, value in self.extra.items() if name in ANSWER_KEYS}
        free = {name: value for name, value in self.extra.items() if name not in ANSWER_KEYS}
        return {**record, **free, **({"input": taken} if taken else {})}


def read_regions(
    values: Any,
    size: tuple[int, int],
    *,
    place: str = "regions",
    max_regions: int | None = None,
    max_mask_pixels: int | None = None,
    shown_size: tuple[int, int] | None = None,
) -> list[RegionPrompt]:
    """Read the regions of one image from JSON, with every check that its size allows.

    Args:
        values: a list of region objects.
        size: (height, width) of the original image.
        place: what errors call the list.
        max_regions: the most that are taken.
        max_mask_pixels: the most pixels of the masks of all regions together.
        shown_size: see [`RegionPrompt.on_image`].

    Returns:
        The regions in their order, masks decoded.

    Raises:
        RegionLimitError: there are too many.
        ValueError: something else is wrong; the text says where, and what is expected.
    """
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"{place} is {_short(values)}, expected a list of regions.")
    if not values:
        raise ValueError(f"{place} is empty; give at least one region.")
    if max_regions is not None and len(values) > max_regions:
        raise RegionLimitError(f"{place} has {len(values)} regions; the limit is {max_regions}.")
    regions = [parse_region(value, f"{place}[{index}]") for index, value in enumerate(values)]
    pixels = sum(region.has_mask for region in regions) * size[0] * size[1]
    if max_mask_pixels is not None and pixels > max_mask_pixels:
        raise RegionLimitError(f"{place} has masks with {pixels} pixels in total; the limit is {max_mask_pixels}.")
    return [region.on_image(size, shown_size) for region in regions]


def parse_region(
    value: Any, place: str = "region", read_mask: Callable[[str], np.ndarray] | None = None
) -> RegionPrompt:
    """Read one region from JSON, with every check that needs no image; [`RegionPrompt.on_image`] has the others.

    Args:
        value: the region object.
        place: what errors call it.
        read_mask: reads a mask that is given as the name of a file; without it, names are refused.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place} is {_short(value)}, expected an object with box, points or mask.")
    extra = {name: item for name, item in value.items() if name not in _FORMS}
    _check_extra(extra, place)
    box, points, mask = (value.get(name) for name in ("box", "points", "mask"))
    points = [] if points is None else points
    if not isinstance(points, (list, tuple)):
        raise ValueError(f"{place}.points is {_short(points)}, expected a list of points {_FORMS['points']}.")
    if len(points) > MAX_POINTS:
        raise ValueError(f"{place} has {len(points)} points; the limit is {MAX_POINTS}.")
    region = RegionPrompt(extra=extra, place=place)
    if box is not None:
        region.box = _numbers(box, 4, f"{place}.box", f"four finite numbers {_FORMS['box']}")
    region.points = [
        _numbers(point, 2, f"{place}.points[{index}]", "two finite numbers [x, y]")
        for index, point in enumerate(points)
    ]
    region.labels = _labels(value.get("labels"), len(points), place)
    if isinstance(mask, str) and read_mask is not None:
        region.mask = read_mask(mask)
        if not region.mask.any():
            raise ValueError(f"{place}.mask is empty; give a mask with at least one pixel.")
    elif mask is not None:
        region.rle = _rle(mask, f"{place}.mask")
    if region.box is None and not region.points and not region.has_mask:
        raise ValueError(f"{place} has no prompt; give it a box, points or a mask.")
    return region


def processor_arguments(prompts: Sequence[Sequence[RegionPrompt]]) -> dict[str, Any]:
    """Return the prompts of several images as arguments of `ScaProcessor`; an image without any is one whole box."""
    kinds: dict[str, list[list[Any]]] = {
        "input_boxes": [[region.box for region in regions] for regions in prompts],
        "input_points": [[region.points or None for region in regions] for regions in prompts],
        "input_labels": [[region.labels or None for region in regions] for regions in prompts],
        "input_masks": [[r.rle if r.mask is None else r.mask for r in regions] for regions in prompts],
    }
    return {
        name: values
        for name, values in kinds.items()
        if any(value is not None for regions in values for value in regions)
    }


def _check_extra(extra: dict[str, Any], place: str) -> None:
    """Refuse keys that look like a prompt's, and values that no record could carry."""
    if len(extra) > _MAX_KEYS:
        raise ValueError(f"{place} has {len(extra)} custom keys; the limit is {_MAX_KEYS}.")
    for name in extra:
        if meant := _meant(str(name)):
            raise ValueError(
                f"{place} has the key {_short(name)}, which looks like `{meant}`; write `{meant}`: {_FORMS[meant]}, "
                "or rename your own key."
            )
    try:
        # A lone surrogate is text that no file and no answer can hold.
        size = len(json.dumps(extra, ensure_ascii=False, allow_nan=False).encode("utf-8"))
        deep = _depth(extra) > _MAX_DEPTH
    except RecursionError:
        size, deep = 0, True
    except (TypeError, ValueError):
        raise ValueError(
            f"{place} has a custom key whose value is not JSON (NaN, infinity or an unpaired surrogate); use null or "
            "a text instead."
        ) from None
    if size > _MAX_EXTRA:
        raise ValueError(f"{place} has custom keys of {size} bytes; the limit is {_MAX_EXTRA}.")
    if deep:
        raise ValueError(f"{place} has a custom key nested deeper than {_MAX_DEPTH} levels; flatten it.")


def _meant(name: str) -> str | None:
    """Return the prompt that a key was probably meant to be, None for a key of the caller's own."""
    word = re.sub(r"[^a-z]", "", name.lower()).removeprefix("input").removeprefix("prompt").removesuffix("prompt")
    for known, others in _ALIASES.items():
        if word in (known, *others) or (len(word) == len(known) and sorted(word) == sorted(known)):
            return known
    # An id of a prompt is not a prompt.
    close = [] if name.endswith("_id") else difflib.get_close_matches(word, _FORMS, 1, 0.8)
    return close[0] if close else None


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return 1 + max(map(_depth, inner), default=0)


def _numbers(value: Any, count: int, place: str, form: str) -> list[float]:
    if isinstance(value, (list, tuple)) and len(value) == count and all(map(_is_number, value)):
        return [float(number) for number in value]
    raise ValueError(f"{place} is {_short(value)}, expected {form}.")


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number above every float
        return False


def _labels(labels: Any, count: int, place: str) -> list[int]:
    if labels is None:
        return [1] * count
    good = isinstance(labels, (list, tuple)) and all(_is_number(label) and label in (0, 1) for label in labels)
    if not good or len(labels) != count:
        if not count:
            raise ValueError(f"{place} has labels without points; add the points, or remove the labels.")
        raise ValueError(
            f"{place}.labels is {_short(labels)}, expected 1 (inside) or 0 (outside) for each of {count} point(s)."
        )
    return [int(label) for label in labels]


def _rle(mask: Any, place: str) -> dict[str, Any]:
    """Return an RLE whose form is right; whether its counts fit its size shows when it is decoded."""
    if isinstance(mask, dict) and mask.keys() == {"size", "counts"}:
        size, counts = mask["size"], mask["counts"]
        whole = isinstance(size, (list, tuple)) and len(size) == 2 and all(type(side) is int for side in size)
        if whole and (isinstance(counts, str) or (isinstance(counts, list) and all(type(n) is int for n in counts))):
            return {"size": list(size), "counts": counts}
    raise ValueError(f"{place} is {_short(mask)}, expected a COCO RLE {_FORMS['mask']}.")


def _decode_mask(rle: dict[str, Any], size: tuple[int, int], shown_size: tuple[int, int], place: str) -> np.ndarray:
    # The size is looked at first: a few characters may claim any.
    if tuple(rle["size"]) not in (tuple(size), tuple(shown_size)):
        raise ValueError(
            f"{place} has the size {rle['size']}, the image {list(size)} (height, width); give the mask of this image."
        )
    mask = decode_rle(rle, place)
    if not mask.any():
        raise ValueError(f"{place} is empty; give a mask with at least one pixel.")
    return mask


def _short(value: Any) -> str:
    """Write a value for an error: what is huge is not written out first."""
    text = _REPR.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 3, 60


__all__ = ["ANSWER_KEYS", "MAX_POINTS", "REGION_SCHEMA", "RegionPrompt", "processor_arguments", "read_regions"]
