"""The ways to show a region: one list of kinds, for training, prediction, evaluation and reports.

| kind | what is shown |
|---|---|
| `box` | the region's box |
| `jittered_box` | the box with each edge moved by a normal number |
| `center_point` | the middle of the box |
| `mask_center_point` | the middle of the largest square that fits into the mask |
| `point` | a random pixel of the mask, off its border where the mask has an inside |
| `points` | 2 to 5 as for `point`, and points outside the region if that is asked for |
| `random_point_in_box` | a point drawn uniformly from the box |
| `random_point_in_mask` | a random pixel of the mask that the captioner itself finds by the box |
| `annotated_points` | the points that the data set has, inside and outside |
| `mask` | the mask |

What a region lacks is an error where `strict` is asked for, as prediction does. Else `point` and `points` take one of
the annotated points inside, or a place in the middle half of the box; `mask_center_point` takes the middle of the box;
`annotated_points` and `mask` take the box.

All coordinates are pixels of the original image, x to the right, y down, the first pixel's center at (0.5, 0.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..processing.masks_sca import mask_extent
from .region import RegionRecordError, region_mask


# What can be drawn from a record alone.
_POINT_KINDS = ("point", "points", "center_point", "mask_center_point", "random_point_in_box", "annotated_points")
DRAWN_KINDS = ("box", "jittered_box", *_POINT_KINDS, "mask")
# `random_point_in_mask` needs a captioner that finds masks.
PROMPT_KINDS = (*DRAWN_KINDS, "random_point_in_mask")
# How many points inside the kind "points" draws.
_FEWEST_POINTS, _MOST_POINTS = 2, 5
# Points outside lie near: at most this fraction of the box's sides away from it.
_NEAR = 0.25


@dataclass
class PromptSource:
    """What is known of one region of an image, its mask decoded when it is first looked at.

    Args:
        region: of a record, see `sca_hf.data.region`.
        size: (width, height) of the image.
        where: names the region in errors.
    """

    region: Mapping[str, Any]
    size: tuple[int, int]
    where: str

    @cached_property
    def box(self) -> np.ndarray:
        """(4,) float64 xyxy, without the pixel by which annotations may reach outside the image."""
        return np.asarray(self.region["box"], np.float64).clip(0, np.tile(self.size, 2))

    @cached_property
    def mask(self) -> np.ndarray | None:
        """(height, width) bool, or None."""
        mask = region_mask(self.region, self.size, self.where)
        if mask is not None and not mask.any():
            raise RegionRecordError(f"{self.where}: the mask is empty; give None if there is none.")
        return mask

    @cached_property
    def own_points(self) -> np.ndarray:
        """(n, 2) the region's own points inside."""
        pairs = zip(self.region.get("points") or (), self.region.get("labels") or (), strict=True)
        return np.array([point for point, label in pairs if label == 1], np.float64).reshape(-1, 2)

    @cached_property
    def bounds(self) -> tuple[slice, slice]:
        """The rows and columns that hold the mask."""
        assert self.mask is not None
        left, top, right, bottom = mask_extent(self.mask)
        return slice(top, bottom), slice(left, right)


def draw_prompt(
    kind: str,
    source: PromptSource,
    rng: np.random.Generator,
    box_jitter: float = 0.1,
    outside_points: int = 0,
    strict: bool = False,
) -> dict[str, Any]:
    """Draws the prompt of one region as arguments of the processor.

    Args:
        kind: One of `DRAWN_KINDS`, see this module's table.
        source: The region.
        rng: The generator of whatever is random.
        box_jitter: The standard deviation of each edge of a jittered box, as a fraction of the box's side.
        outside_points: How many points outside `points` draws at most; they lie in or near the box, but not in the
            mask, or, without a mask, near the box.
        strict: Whether to raise where the region has no mask or no points and the kind is about them.
    """
    if kind not in DRAWN_KINDS:
        raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(DRAWN_KINDS)}.")
    if strict:
        _check_present(kind, source)
    if kind == "mask" and source.mask is not None:
        return {"input_masks": source.mask}
    if kind == "annotated_points" and source.region.get("points") and source.region.get("labels"):
        points = [list(point) for point in source.region["points"]]
        return {"input_points": points, "input_labels": list(source.region["labels"])}
    if kind == "jittered_box":
        return {"input_boxes": _jittered(source, rng, box_jitter).tolist()}
    if kind in ("box", "mask", "annotated_points"):
        return {"input_boxes": source.box.tolist()}
    if kind == "points":
        inside = _inside(source, int(rng.integers(_FEWEST_POINTS, _MOST_POINTS + 1)), rng)
        outside = _outside(source, int(rng.integers(outside_points + 1)), rng) if outside_points else inside[:0]
        labels = [1] * len(inside) + [0] * len(outside)
        return {"input_points": np.concatenate([inside, outside]).tolist(), "input_labels": labels}
    return {"input_points": [_single_point(kind, source, rng).tolist()], "input_labels": [1]}


def _single_point(kind: str, source: PromptSource, rng: np.random.Generator) -> np.ndarray:
    """Returns x, y of a kind that shows one point."""
    low, high = source.box[:2], source.box[2:]
    if kind == "point":
        return _inside(source, 1, rng)[0]
    if kind == "random_point_in_box":
        return low + (high - low) * rng.random(2)
    if kind == "mask_center_point" and source.mask is not None:
        return mask_center(source)
    return (low + high) / 2


def _check_present(kind: str, source: PromptSource) -> None:
    no_mask = kind in ("mask", "mask_center_point", "point", "points") and source.mask is None
    if no_mask or (kind == "annotated_points" and not (source.region.get("points") and source.region.get("labels"))):
        raise RegionRecordError(
            f"{source.where} has no {'mask' if no_mask else 'points'}; prompt it by box, by center_point or by "
            "random_point_in_box."
        )


def mask_center(source: PromptSource) -> np.ndarray:
    """Returns x, y of the middle of the largest square that fits into the region's mask."""
    assert source.mask is not None
    mask = source.mask[source.bounds]
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    total[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1)

    def squares(side: int) -> np.ndarray:
        """The top left corners (n, 2), y and x, of the squares that fit."""
        counts = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
        return np.argwhere(counts == side * side)

    # A square that fits holds smaller ones that fit: halve the interval.
    fits, too_large = 1, min(mask.shape) + 1
    while too_large - fits > 1:
        side = (fits + too_large) // 2
        fits, too_large = (side, too_large) if len(squares(side)) else (fits, side)
    corners = squares(fits)
    y, x = corners[np.square(corners - corners.mean(0)).sum(1).argmin()] + fits / 2
    return np.array([source.bounds[1].start + x, source.bounds[0].start + y])


def _jittered(source: PromptSource, rng: np.random.Generator, box_jitter: float) -> np.ndarray:
    box = source.box
    moved = box + rng.normal(0, box_jitter, 4) * np.tile(box[2:] - box[:2], 2)
    moved = moved.clip(0, np.tile(source.size, 2))
    return moved if (moved[2:] - moved[:2] >= 1).all() else box


def _inside(source: PromptSource, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns (n, 2) points inside, as many as wanted; fewer where a mask or the region's own points are fewer."""
    if source.mask is not None:
        mask = source.mask[source.bounds]
        offset = source.bounds[1].start, source.bounds[0].start
        inner = _eroded(mask)
        return _random_pixels(inner if inner.any() else mask, wanted, rng) + offset
    if len(source.own_points):
        return rng.permutation(source.own_points)[:wanted]
    low, high = source.box[:2], source.box[2:]
    return low + (high - low) * rng.uniform(0.25, 0.75, (wanted, 2))


def _outside(source: PromptSource, wanted: int, rng: np.random.Generator) -> np.ndarray:
    margin = _NEAR * np.tile(source.box[2:] - source.box[:2], 2) * [-1, -1, 1, 1]
    left, top, right, bottom = (source.box + margin).clip(0, np.tile(source.size, 2))
    x0, y0, x1, y1 = int(left), int(top), int(np.ceil(right)), int(np.ceil(bottom))
    free = np.ones((y1 - y0, x1 - x0), bool)
    if source.mask is not None:
        free = ~source.mask[y0:y1, x0:x1]
    else:
        inner = source.box - [x0, y0, x0, y0]
        free[int(inner[1]) : int(np.ceil(inner[3])), int(inner[0]) : int(np.ceil(inner[2]))] = False
    return _random_pixels(free, wanted, rng) + (x0, y0)


def _random_pixels(mask: np.ndarray, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the centers (n, 2), x and y, of different pixels of a mask; n is less than wanted where it has less."""
    pixels = np.flatnonzero(mask)
    chosen = rng.choice(pixels, min(wanted, len(pixels)), replace=False)
    y, x = np.divmod(chosen, mask.shape[1])
    return np.stack([x, y], axis=1) + 0.5


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels whose four neighbours are in the mask too; outside the array nothing is."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner
