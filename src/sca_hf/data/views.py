"""A view of a picture: what part of it is seen where, and how regions move with it.

All coordinates are floats in pixels, x to the right, y down, pixel edges at whole numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..processing.masks_sca import encode_rle, mask_extent
from .region import region_mask


# How much larger a square around a small region may show it.
_MAX_ENLARGED = 4


@dataclass(frozen=True)
class View:
    """An affine view of a picture.

    Args:
        picture: (width, height) of the picture.
        matrix: (2, 3) from the picture's x, y, 1 to the view's x, y.
        size: (width, height) of the view.
        shown: (width, height) of the picture's canvas in the view, from its top left corner; what is beyond is
            padding.
        upright: no angle but mirroring, so that rows stay rows.
    """

    picture: tuple[int, int]
    matrix: np.ndarray
    size: tuple[int, int]
    shown: tuple[int, int]
    upright: bool

    @classmethod
    def whole(cls, size: tuple[int, int], mirrored: bool, angle: float, longest: int) -> View:
        """The whole picture of `size` (width, height), shrunk to `longest` pixels at most."""
        matrix, canvas = _turned(size, mirrored, angle)
        factor = min(1.0, longest / max(canvas))
        matrix, inside = _resized(matrix, canvas, factor)
        return cls(size, matrix, inside, inside, angle == 0)

    @classmethod
    def cut(cls, size: tuple[int, int], mirrored: bool, angle: float, side: int, scale: float, place: float) -> View:
        """A square of `side` pixels of the picture at `scale`, see `Augmentation`; `place` in [0, 1] says where."""
        matrix, canvas = _turned(size, mirrored, angle)
        matrix, resized = _resized(matrix, canvas, scale * side / max(size))
        offset = [round(max(0, length - side) * place) for length in resized]
        matrix[:, 2] -= offset
        return cls(size, matrix, (side, side), (min(resized[0], side), min(resized[1], side)), angle == 0)

    @classmethod
    def around(
        cls,
        size: tuple[int, int],
        mirrored: bool,
        angle: float,
        side: int,
        box: Any,
        context: float,
        place: Any,
    ) -> View:
        """A square of `side` pixels that holds a box of the picture, xyxy, and what is around it.

        Args:
            context: how wide the square is, in longer sides of the box; it is no wider than the picture is long.
            place: (2,) in [0, 1], where in the square the box lies.
        """
        matrix, canvas = _turned(size, mirrored, angle)
        moved = cls(size, matrix, size, size, angle == 0).box(box)
        wide = max(context * float((moved[2:] - moved[:2]).max()), side / _MAX_ENLARGED)
        matrix, resized = _resized(matrix, canvas, side / min(wide, max(canvas)))
        moved = cls(size, matrix, resized, resized, angle == 0).box(box)
        free = np.maximum(np.array(resized) - side, 0)
        low, high = (moved[2:] - side).clip(0, free), moved[:2].clip(0, free)
        offset = np.round(low + (high - low) * place)
        matrix[:, 2] -= offset
        shown = np.minimum(resized - offset, side).astype(int)
        return cls(size, matrix, (side, side), (int(shown[0]), int(shown[1])), angle == 0)

    @property
    def unchanged(self) -> bool:
        """Whether everything stays where it was."""
        return self.size == self.picture and np.array_equal(self.matrix, np.eye(2, 3))

    @property
    def factor(self) -> float:
        """How much longer lengths are in the view."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix[:, :2]))))

    def points(self, points: Any) -> np.ndarray:
        """Moves points (n, 2) into the view."""
        return np.asarray(points, np.float64).reshape(-1, 2) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def box(self, box: Any) -> np.ndarray:
        """Moves a box, xyxy, into the view, beyond its edges where it lies there.

        A turned box has the bounds of the ellipse within it: those of its corners are too wide for most things.
        """
        x0, y0, x1, y1 = np.asarray(box, np.float64)
        half = np.array([x1 - x0, y1 - y0]) / 2
        extent = np.sqrt(self.matrix[:, :2] ** 2 @ half**2)
        center = self.points([[(x0 + x1) / 2, (y0 + y1) / 2]])[0]
        return np.concatenate([center - extent, center + extent])

    def mask(self, mask: np.ndarray) -> _MovedMask:
        """Resamples a mask (height, width) bool into the view."""
        if not mask.any():
            return _MovedMask(np.zeros((0, 0), bool), (0, 0), self.size)
        left, top, right, bottom = mask_extent(mask)
        # One pixel around it, in which the resampling fades out.
        part = np.pad(mask[top:bottom, left:right], 1).astype(np.uint8) * 255
        corners = self.points([[x, y] for x in (left - 1, right + 1) for y in (top - 1, bottom + 1)])
        x0, y0 = np.floor(corners.min(0)).astype(int).clip(0, self.shown)
        x1, y1 = np.ceil(corners.max(0)).astype(int).clip(0, self.shown)
        if x1 <= x0 or y1 <= y0:
            return _MovedMask(np.zeros((0, 0), bool), (0, 0), self.size)
        matrix = self.matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ (left - 1, top - 1) - (x0, y0)
        seen = _resample(Image.fromarray(part), matrix, (int(x1 - x0), int(y1 - y0)), self.factor, 0)
        return _MovedMask(np.asarray(seen) > 127, (int(x0), int(y0)), self.size)


@dataclass(frozen=True)
class _MovedMask:
    """A mask in a view of `size` (width, height): all of it lies in `part` (bool), whose corner is at x, y."""

    part: np.ndarray
    corner: tuple[int, int]
    size: tuple[int, int]

    def box(self) -> np.ndarray:
        """Its box along pixel edges; the mask is not empty."""
        return np.array(mask_extent(self.part), np.float64) + np.tile(self.corner, 2)

    def array(self) -> np.ndarray:
        """The whole mask, (height, width) bool."""
        whole = np.zeros(self.size, bool).T  # column by column, as RLE runs
        (x, y), (height, width) = self.corner, self.part.shape
        whole[y : y + height, x : x + width] = self.part
        return whole


def picture_view(
    image: Image.Image,
    view: View,
    padding: tuple[int, int, int],
    recolored: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> Image.Image:
    """Returns an RGB picture as the view shows it; `recolored` changes the picture, not its padding."""
    if view.upright:
        seen = recolored(_resize_part(image, view))
        if view.shown == view.size:
            return seen
        canvas = Image.new("RGB", view.size, padding)
        canvas.paste(seen)
        return canvas
    return _resample(image, view.matrix, view.size, view.factor, padding, recolored)


def moved_region(region: Mapping[str, Any], view: View, min_visible: float) -> dict[str, Any] | None:
    """Moves a region of a record into the view; None where less than `min_visible` of its area is to be seen.

    Its box is the moved one, cut off at the edges; where the view is turned or the region cut off, that of its mask.
    A mask stays what it was, RLE or bool. Points that lie outside the view, or inside points outside the new mask, are
    left out.
    """
    if view.unchanged:
        return dict(region)
    limit = np.tile(view.shown, 2)
    whole = view.box(region["box"])
    box = whole.clip(0, limit)
    cut = bool((np.abs(box - whole) > 1e-6).any())
    sides, old_sides = box[2:] - box[:2], whole[2:] - whole[:2]
    if (sides < 1).any():
        return None
    visible = float(np.prod(sides) / np.prod(old_sides))
    old, seen = region_mask(region, view.picture, f"region {region.get('region_id', '?')}"), None
    if old is not None:
        seen = view.mask(old)
        area = int(np.count_nonzero(seen.part))
        if not area:
            return None
        if cut or not view.upright:
            visible = min(1.0, area / (np.count_nonzero(old) * view.factor**2))
            box = seen.box()
    if visible < min_visible or (box[2:] - box[:2] < 1).any():
        return None
    mask = None if seen is None else seen.array()
    points, labels = _moved_points(region, view, mask)
    if mask is not None and isinstance(region["mask"], Mapping):
        return {**region, "box": box.tolist(), "mask": encode_rle(mask), "points": points, "labels": labels}
    return {**region, "box": box.tolist(), "mask": mask, "points": points, "labels": labels}


def _moved_points(
    region: Mapping[str, Any], view: View, mask: np.ndarray | None
) -> tuple[list[list[float]] | None, list[int] | None]:
    if region.get("points") is None:
        return None, None
    points, labels = view.points(region["points"]), np.asarray(region["labels"], np.int64)
    kept = ((points >= 0) & (points < view.shown)).all(1)
    if mask is not None:
        x, y = points.clip(0, np.array(view.size) - 1).astype(int).T
        kept &= (labels == 0) | mask[y, x]
    return points[kept].tolist(), labels[kept].tolist()


def _turned(size: tuple[int, int], mirrored: bool, angle: float) -> tuple[np.ndarray, tuple[float, float]]:
    """Mirrors a picture of `size` and turns it by `angle` degrees onto a canvas that holds it: matrix, canvas size."""
    width, height = size
    matrix = np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0]]) if mirrored else np.eye(2, 3)
    if not angle:
        return matrix, (width, height)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = np.array([[cos, -sin], [sin, cos]])
    canvas = np.abs(turn) @ (width, height)
    matrix = turn @ matrix
    matrix[:, 2] += canvas / 2 - turn @ (width / 2, height / 2)
    return matrix, (float(canvas[0]), float(canvas[1]))


def _resized(matrix: np.ndarray, canvas: tuple[float, float], factor: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Resizes a canvas to whole pixels: the new matrix and size."""
    size = tuple(max(1, round(length * factor)) for length in canvas)
    return np.array([[size[0] / canvas[0]], [size[1] / canvas[1]]]) * matrix, (size[0], size[1])


def _resize_part(image: Image.Image, view: View) -> Image.Image:
    """Cuts what an upright view shows out of the picture and resizes it as inference does, in one step."""
    mirrored = view.matrix[0, 0] < 0
    scale = np.abs(np.diag(view.matrix))
    corners = (np.array([[0, 0], view.shown]) - view.matrix[:, 2]) / np.diag(view.matrix)
    left, top = corners.min(0).clip(0)
    right, bottom = np.minimum(corners.max(0), image.size)
    box = (float(left), float(top), float(right), float(bottom))
    gap = 2.0 if scale.min() < 0.5 else None
    seen = image.resize(view.shown, Image.Resampling.BILINEAR, box, reducing_gap=gap)
    return seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else seen


def _resample(
    image: Image.Image,
    matrix: np.ndarray,
    size: tuple[int, int],
    factor: float,
    fill: int | tuple[int, int, int],
    changed: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> Image.Image:
    """Applies an affine matrix, averaging first where the picture shrinks so far that pixels would be skipped."""
    steps = max(1, int(1 / factor))
    matrix = matrix.copy()
    if steps > 1:
        image = image.reduce(steps)
        matrix[:, :2] *= steps
    inverse = np.linalg.inv(matrix[:, :2])
    shift = -inverse @ matrix[:, 2]
    coefficients = (*inverse[0], shift[0], *inverse[1], shift[1])
    return changed(image).transform(
        size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=fill
    )
