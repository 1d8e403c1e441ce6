"""Prompts of regions: validated in pixels of the original image, laid out in the frame of the model.

Any sensible nesting that a user writes is first brought to one list of regions per image.

Frames. A user gives pixels of the original image (for a file with an EXIF rotation: of the upright image), the origin
in the top left corner, so that a box around the whole image is `[0, 0, width, height]`. The model takes pixels of the
resized image, whose longest side is the side of the square that it is padded to. Shapes: B images, R regions per image
(of the image with the most regions), P points per region (of the region with the most points), K masks in all.
"""

import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from .images_sca import is_picture
from .masks_sca import mask_logits, to_numpy


logger = logging.get_logger(__name__)
POINT_PADDING = -10

# Rounding to float32 moves a coordinate of a 16 000 pixel image by up to 1e-3: as far as that beyond the edge, a
# coordinate is taken as the edge itself. Anything farther out is an error, never clipped.
EDGE_TOLERANCE = 1e-3
# Sides of an image, in pixels, from which on nobody means a box, or points, within its very first pixel.
_BOX_AS_FRACTIONS, _POINTS_AS_FRACTIONS = 8, 64


def build_prompts(
    sizes: Sequence[tuple[int, int]],
    resized: Sequence[tuple[int, int]],
    frame_size: int,
    mask_size: int,
    input_points: Any = None,
    input_labels: Any = None,
    input_boxes: Any = None,
    input_masks: Any = None,
) -> dict[str, np.ndarray]:
    """Validate the prompts of a batch and lay them out as the model takes them.

    Args:
        sizes: per image (height, width) of the original.
        resized: per image (height, width) of the model's input, before padding.
        frame_size: side of the square that images are padded to, pixels of the resized image.
        mask_size: side of the model's low-resolution masks.
        input_points: [image][region][point][x, y], pixels of the original.
        input_labels: [image][region][point], 1 inside, 0 outside; 1 where None.
        input_boxes: [image][region][x1, y1, x2, y2], pixels of the original.
        input_masks: [image][region] of masks, see [`mask_logits`].
            With no prompt of any kind, each image gets one box around the whole of it.

    Returns:
        `input_points` (B, R, P, 2) and `input_boxes` (B, R, 4) float32, pixels of the resized image; `input_labels`
        (B, R, P); `input_masks` (K, mask_size, mask_size) logits and `mask_index` (B, R), -1 for none; `region_mask`
        (B, R); `prompt_layout` (B, R), see [`pack_layout`]. Unused slots are zero, labels `POINT_PADDING`.
    """
    if all(prompt is None for prompt in (input_points, input_labels, input_boxes, input_masks)):
        input_boxes = [[[0, 0, width, height]] for height, width in sizes]
    by_kind, counts = _nest_prompts(len(sizes), input_points, input_labels, input_boxes, input_masks)
    scale = np.array([(rw / w, rh / h) for (h, w), (rh, rw) in zip(sizes, resized, strict=True)])  # (B, 2) x, y
    region_mask = np.arange(max(counts)) < np.array(counts)[:, None]  # (B, R)
    points, labels, num_points = _lay_out_points(
        by_kind["input_points"], by_kind["input_labels"], sizes, scale, counts
    )
    boxes, has_box = _lay_out_boxes(by_kind["input_boxes"], sizes, scale, region_mask.shape)
    masks, mask_index = _lay_out_masks(
        by_kind["input_masks"], sizes, resized, frame_size, mask_size, region_mask.shape
    )
    layout = pack_layout(num_points, mask_index >= 0, has_box)
    without = np.argwhere(region_mask & (layout == 0))
    if len(without):
        image, region = without[0]
        raise ValueError(
            f"image {image}, region {region} has no prompt; give it a box, points or a mask, or leave the region out."
        )
    return {
        "input_points": points,
        "input_labels": labels,
        "input_boxes": boxes,
        "input_masks": masks,
        "mask_index": mask_index,
        "region_mask": region_mask,
        "prompt_layout": layout,
    }


def pack_layout(num_points: np.ndarray, has_mask: np.ndarray, has_box: np.ndarray) -> np.ndarray:
    """Write which prompts each region has as one integer: points from the third bit on, then mask, then box.

    Regions of one layout run together, without padding; the model's `read_layout` takes it apart.
    """
    return (num_points.astype(np.int64) << 2) | (has_mask.astype(np.int64) << 1) | has_box.astype(np.int64)


def _nest_prompts(
    num_images: int, input_points: Any, input_labels: Any, input_boxes: Any, input_masks: Any
) -> tuple[dict[str, list[Any]], list[int]]:
    """Return each kind of prompt per image, and the number of regions of each image."""
    if input_labels is not None and input_points is None:
        raise ValueError("input_labels were given without input_points; labels belong to points.")
    flat_labels = input_labels is not None and num_images == 1 and depth_of(input_labels, "input_labels") == 1
    by_kind = {
        "input_points": nest(input_points, "input_points", num_images, one_region=flat_labels),
        "input_labels": nest(input_labels, "input_labels", num_images),
        "input_boxes": nest(input_boxes, "input_boxes", num_images),
        "input_masks": nest(input_masks, "input_masks", num_images),
    }
    counts = count_regions(by_kind, num_images)
    if not any(counts):
        raise ValueError("no image has a region; give at least one prompt, or no prompt argument for whole images.")
    return by_kind, counts


def resized_size(size: tuple[int, int], side: int, stretch: bool = False) -> tuple[int, int]:
    """Return (height, width) after resizing the longest edge, rounded as SAM's image processor does, or both edges."""
    if stretch:
        return side, side
    scale = side / max(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def _lay_out_boxes(
    by_image: list[Any], sizes: Sequence[tuple[int, int]], scale: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (B, R, 4) in the resized frame and whether there is one (B, R) int64."""
    boxes, has_box = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int64)
    for image, regions in enumerate(by_image):
        if regions is None or len(regions) == 0:
            continue
        index = np.array([i for i, region in enumerate(regions) if region is not None], np.int64)
        rows = [regions[i] for i in index]
        values = _table(rows, index, 4, f"input_boxes: image {image}", "a box [x1, y1, x2, y2]")
        values = check_boxes(values, sizes[image], [f"input_boxes: image {image}, region {i}" for i in index])
        boxes[image, index] = values * np.tile(scale[image], 2)
        has_box[image, index] = 1
    return boxes, has_box


def _lay_out_points(
    points_by_image: list[Any],
    labels_by_image: list[Any],
    sizes: Sequence[tuple[int, int]],
    scale: np.ndarray,
    counts: list[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return points (B, R, P, 2) in the resized frame, labels (B, R, P) and the number of points (B, R)."""
    shape = (len(counts), max(counts))
    num_points = np.zeros(shape, np.int64)
    flat: list[tuple[np.ndarray, np.ndarray]] = []
    for image, regions in enumerate(points_by_image):
        labels = labels_by_image[image]
        if regions is None or len(regions) == 0:
            if labels is not None and len(labels):
                raise ValueError(f"input_labels: image {image} has labels but no points.")
            flat.append((np.zeros((0, 2)), np.zeros(0, np.int64)))
            continue
        values = [_region_points(region, image, i) for i, region in enumerate(regions)]
        num_points[image, : len(values)] = [len(value) for value in values]
        joined = np.concatenate(values)
        where = (image, np.repeat(np.arange(len(values)), num_points[image, : len(values)]))
        flat.append(
            (
                check_points(joined, sizes[image], *where),
                _region_labels(labels, num_points[image, : len(values)], image),
            )
        )
    points = np.zeros((*shape, num_points.max(), 2), np.float32)
    labels_out = np.full(points.shape[:3], POINT_PADDING, np.int64)
    used = np.arange(points.shape[2]) < num_points[..., None]  # (B, R, P)
    # Row-major over images, regions and points: the order in which `flat` was joined.
    points[used] = np.concatenate([values * scale[image] for image, (values, _) in enumerate(flat)])
    labels_out[used] = np.concatenate([values for _, values in flat])
    return points, labels_out, num_points


def _lay_out_masks(
    by_image: list[Any],
    sizes: Sequence[tuple[int, int]],
    resized: Sequence[tuple[int, int]],
    frame_size: int,
    mask_size: int,
    shape: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits (K, mask_size, mask_size) of all mask prompts and their place (B, R), -1 for none."""
    masks: list[np.ndarray] = []
    mask_index = np.full(shape, -1, np.int64)
    for image, regions in enumerate(by_image):
        for region, mask in enumerate(regions if regions is not None else []):
            if mask is not None:
                mask_index[image, region] = len(masks)
                where = f"input_masks: image {image}, region {region}"
                masks.append(mask_logits(mask, sizes[image], resized[image], frame_size, mask_size, where))
    return np.stack(masks) if masks else np.zeros((0, mask_size, mask_size), np.float32), mask_index


def check_boxes(boxes: np.ndarray, size: tuple[int, int], where: Sequence[str]) -> np.ndarray:
    """Refuse boxes that are not finite, inverted, outside the image, without area, or in fractions of its sides.

    Args:
        boxes: (N, 4) xyxy float64, pixels of the original image.
        size: (height, width) of that image.
        where: N names of the boxes, for the error.

    Returns:
        The boxes, coordinates within `EDGE_TOLERANCE` beyond an edge set to the edge.
    """
    limit = np.array([size[1], size[0], size[1], size[0]], np.float64)
    _refuse(~np.isfinite(boxes).all(1), boxes, where, "box", "is not finite; give four finite numbers")
    inverted = (boxes[:, :2] > boxes[:, 2:]).any(1)
    _refuse(
        inverted, boxes, where, "box", "is inverted; give [x1, y1, x2, y2] with x1 < x2 and y1 < y2 (not x, y, w, h)"
    )
    outside = ((boxes < -EDGE_TOLERANCE) | (boxes > limit + EDGE_TOLERANCE)).any(1)
    fix = f"reaches outside {_bounds(size)}; give pixels of the original image, or clip it first"
    _refuse(outside, boxes, where, "box", fix, size)
    boxes = np.clip(boxes, 0, limit)
    if min(size) >= _BOX_AS_FRACTIONS and len(boxes) and boxes.max() <= 1:
        # [0, 0, 1, 1] may be meant.
        _refuse((boxes % 1 != 0).any(1), boxes, where, "box", fractions_fault(size))
        logger.warning(f"{where[0]}: box {_show(boxes[0])} {fractions_fault(size)}.")
    # float32 is what the model sees.
    flat = (boxes[:, :2].astype(np.float32) >= boxes[:, 2:].astype(np.float32)).any(1)
    _refuse(flat, boxes, where, "box", "has no area; give a box with x1 < x2 and y1 < y2")
    return boxes


def check_points(points: np.ndarray, size: tuple[int, int], image: int, region: np.ndarray) -> np.ndarray:
    """Refuse points that are not finite, outside the image, or in fractions of its sides.

    Args:
        points: (N, 2) x, y float64, pixels of the original image; both edges of the image are legal.
        size: (height, width) of that image.
        image: its index, for the error.
        region: (N,) index of each point's region, for the error.

    Returns:
        The points, coordinates within `EDGE_TOLERANCE` beyond an edge set to the edge.
    """
    limit = np.array([size[1], size[0]], np.float64)
    finite = np.isfinite(points).all(1)
    outside = finite & ((points < -EDGE_TOLERANCE) | (points > limit + EDGE_TOLERANCE)).any(1)
    where = [f"input_points: image {image}, region {index}" for index in region]
    _refuse(~finite, points, where, "point", "is not finite; give two finite numbers")
    fix = f"lies outside {_bounds(size)}; give pixels of the original image"
    _refuse(outside, points, where, "point", fix, size)
    points = np.clip(points, 0, limit)
    if points_as_fractions(points, size):
        if (points != points[0]).any():
            _refuse(np.ones(1, bool), points, where, "point", fractions_fault(size))
        # A single one may be meant: training draws points anywhere in a region.
        logger.warning(f"{where[0]}: point {_show(points[0])} {fractions_fault(size)}.")
    return points


def points_as_fractions(points: Any, size: tuple[int, int]) -> bool:
    """Whether all points (N, 2) of an image lie within its first pixel, but not all of them on its corners."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    within = min(size) >= _POINTS_AS_FRACTIONS and len(points) > 0 and points.min() >= 0 and points.max() <= 1
    return bool(within and (points % 1 != 0).any())


def fractions_fault(size: tuple[int, int]) -> str:
    """Say of a prompt in the first pixel of an image, (height, width), that its numbers may be fractions."""
    return (
        f"lies within the first pixel of {_bounds(size)}: these look like fractions of the sides (0 to 1); pass "
        "pixels: "
        f"x times {size[1]}, y times {size[0]}"
    )


def _bounds(size: tuple[int, int]) -> str:
    return f"the image of {size[1]} x {size[0]} pixels (width x height)"


def _region_points(region: Any, image: int, index: int) -> np.ndarray:
    """Return the points (P, 2) of one region; P is 0 where it has none."""
    if region is None or len(region) == 0:
        return np.zeros((0, 2))
    where = f"input_points: image {image}, region {index}"
    return _table(region, range(len(region)), 2, where, "a point [x, y]", "point")


def _region_labels(labels: Any, num_points: np.ndarray, image: int) -> np.ndarray:
    """Return the labels (N,) of all points of an image, 1 where none were given."""
    if labels is None or len(labels) == 0:
        return np.ones(num_points.sum(), np.int64)
    return np.concatenate(
        [
            np.ones(count, np.int64) if region is None else _check_labels(region, count, image, i)
            for i, (region, count) in enumerate(zip(labels, num_points, strict=True))
        ]
    )


def _check_labels(region: Any, count: int, image: int, index: int) -> np.ndarray:
    where = f"input_labels: image {image}, region {index}"
    try:
        labels = np.asarray(region, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: cannot read {_show(region)} as labels; {expected('input_labels')}.") from error
    if labels.shape != (count,):
        raise ValueError(f"{where}: {labels.size} label(s) for {count} point(s); give one label per point.")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"{where}: labels {_show(region)}; a label is 1 (inside) or 0 (outside).")
    return labels.astype(np.int64)


def _table(rows: Any, index: Any, width: int, where: str, what: str, level: str = "region") -> np.ndarray:
    """Return rows of `width` numbers as one float64 array, or say which row is something else."""
    try:
        table = np.asarray(rows, np.float64)
        if table.shape == (len(rows), width):
            return table
    except (TypeError, ValueError, OverflowError):
        pass
    for i, row in zip(index, rows, strict=True):
        try:
            good = np.asarray(row, np.float64).shape == (width,)
        except (TypeError, ValueError, OverflowError):
            good = False
        if not good:
            raise ValueError(f"{where}, {level} {i}: {_show(row)} is not {what}: {width} finite numbers.")
    return np.asarray([np.asarray(row, np.float64) for row in rows]).reshape(-1, width)


def _refuse(
    bad: Any, values: np.ndarray, where: Sequence[str], what: str, fault: str, size: tuple[int, int] | None = None
) -> None:
    """Raise for the first of `values` that is `bad`, (N,) bool; the fault says what to give instead.

    With the (height, width) of the image, also say where x and y exchanged would make all values fit.
    """
    if bad.any():
        first = int(np.argmax(bad))
        fits = (values >= 0).all() and size is not None and (values <= np.resize(size, values.shape[1])).all()
        hint = " (it would fit with x and y swapped: x comes first, not the row)" if fits else ""
        raise ValueError(f"{where[first]}: {what} {_show(values[first])} {fault}{hint}.")


def _show(value: Any) -> str:
    """Write a value for an error message: short, numbers without noise."""
    if isinstance(value, (list, tuple, np.ndarray)) and np.ndim(np.asarray(value, object)) == 1 and len(value) <= 8:
        return "[" + ", ".join(f"{v:g}" if isinstance(v, (float, np.floating)) else repr(v) for v in value) + "]"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# What a complete argument looks like; shown in every error about nesting.
NESTING = {
    "input_points": "[image][region][point][x, y]",
    "input_labels": "[image][region][point]",
    "input_boxes": "[image][region][x1, y1, x2, y2]",
    "input_masks": "[image][region] of masks",
    "captions": "[image][region] of strings",
    "task": "one name, [image] of names, or [image][region] of names",
    "length": "one for all, [image] of lengths, or [image][region] of lengths",
    "language": "one for all, [image] of languages, or [image][region] of languages",
}
_FULL_DEPTH = {"input_points": 4, "input_labels": 3, "input_boxes": 3, "input_masks": 2, "captions": 2}
_TEXTS = ("captions", "task")
_MAX_DEPTH = 8


def expected(name: str) -> str:
    """Say which nesting `name` wants; the end of an error message."""
    return f"expected nesting: {NESTING[name]} (for a single image the outer level can be omitted)"


def nest(value: Any, name: str, num_images: int, one_region: bool = False) -> list[Any]:
    """Bring one prompt argument to its full nesting and return what it holds per image.

    Args:
        value: what the user passed: nested lists or tuples, arrays or tensors, at any level.
        name: the argument, a key of `NESTING`.
        num_images: how many images the call has. For one image, levels in front may be missing.
        one_region: a flat list of points is known to be one region (its labels are a flat list, too).

    Returns:
        Per image None (the image has none of this kind), or a list or array of regions; a region is None, or a list
        or array of numbers (for `input_masks` and `captions`: whatever was given).
    """
    if value is None:
        return [None] * num_images
    value, depth, known = _measure(value, name, 0)
    full = _FULL_DEPTH[name]
    if not known and depth <= full:
        # Only empty lists and Nones: they say nothing of their depth, so the length has to.
        depth = full - 1 if num_images == 1 and len(value) != 1 else full
    if depth > full or (depth < full and num_images != 1):
        raise ValueError(f"{name} is nested {depth} deep for {num_images} image(s); {expected(name)}.")
    if name == "input_points" and depth == 2 and len(value) > 1 and not one_region:
        raise ValueError(
            f"{name} is a flat list of {len(value)} points: it could be one region of {len(value)} points or "
            f"{len(value)} regions of one point. Write [[...]] around it for one region; {expected(name)}."
        )
    several = depth == full and num_images == 1 and len(value) > 1
    if several and name == "input_masks" and all(one is None or _has_channel(one) for one in value):
        value = [[None if one is None else one[0] for one in value]]
    for _ in range(full - depth):
        value = value[None] if isinstance(value, np.ndarray) else [value]
    if len(value) != num_images:
        raise ValueError(
            f"{name} is given for {len(value)} image(s), but the call has {num_images}; {expected(name)}."
        )
    return list(value)


def depth_of(value: Any, name: str) -> int:
    """Return how deep an argument is nested (a lower bound where it holds only empty lists and Nones)."""
    return _measure(value, name, 0)[1] if value is not None else 0


def count_regions(by_kind: dict[str, list[Any]], num_images: int) -> list[int]:
    """Return the number of regions of each image, which every kind of prompt has to agree on."""
    counts = []
    for image in range(num_images):
        lengths = {
            name: len(images[image])
            for name, images in by_kind.items()
            if images[image] is not None and len(images[image])
        }
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} in {name}" for name, length in lengths.items())
            raise ValueError(
                f"image {image}: the kinds of prompt disagree about the number of regions ({listed}). Give every "
                "kind one entry per region, None if the region has no prompt of that kind."
            )
        counts.append(next(iter(lengths.values()), 0))
    return counts


def _measure(value: Any, name: str, level: int) -> tuple[Any, int, bool]:
    """Return the value with arrays as numpy, its depth, and whether the depth is certain."""
    if level > _MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {_MAX_DEPTH} deep; {expected(name)}.")
    if value is None:
        return None, 0, False
    if _is_leaf(value, name):
        return value, 0, True
    if name in _TEXTS and isinstance(value, np.ndarray) and value.dtype.kind in "UO":
        return _measure(value.tolist(), name, level + 1)
    if name not in _TEXTS and isinstance(value, (np.ndarray, torch.Tensor)):
        value = to_numpy(value, name)
        if value.dtype.kind == "O":
            return _measure(value.tolist(), name, level + 1)
        depth = value.ndim - _mask_axes(value, level) if name == "input_masks" else value.ndim
        if depth < 0:
            raise ValueError(f"{name}: a mask has two axes, got an array of shape {value.shape}; {expected(name)}.")
        return (value, depth, True) if value.shape != (0,) else ([], 1, False)
    if isinstance(value, (list, tuple)):
        return _measure_list(value, name, level)
    raise TypeError(f"{name}: cannot use a {type(value).__name__}; {expected(name)}.")


def _mask_axes(array: np.ndarray, level: int) -> int:
    """How many axes of an array are those of one mask: two, and one of channels."""
    channels_last = array.ndim > 2 and array.shape[-1] in (1, 3, 4) and min(array.shape[-3:-1]) > 4
    # Below images and regions there is nothing that a first axis of 1 could count.
    return 3 if channels_last or (level == 2 and array.ndim == 3 and _has_channel(array)) else 2


def _has_channel(mask: Any) -> bool:
    """Whether the first axis of an array may be that of a single channel."""
    return isinstance(mask, np.ndarray) and len(mask) == 1


def _measure_list(value: Iterable[Any], name: str, level: int) -> tuple[list[Any], int, bool]:
    children = [_measure(child, name, level + 1) for child in value]
    certain = {depth for _, depth, known in children if known}
    at_least = max((depth for _, depth, known in children if not known), default=0)
    if len(certain) > 1 or (certain and at_least > max(certain)):
        depths = [depth for _, depth, known in children if known or depth]
        odd = next(i for i, depth in enumerate(depths) if depth != depths[0])
        raise ValueError(
            f"{name} mixes nesting depths: on level {level}, one entry is {depths[0]} deep and another is "
            f"{depths[odd]} deep; {expected(name)}."
        )
    return [child for child, _, _ in children], 1 + max(certain | {at_least}), bool(certain)


def _is_leaf(value: Any, name: str) -> bool:
    if name in _TEXTS:
        return isinstance(value, str)
    if name == "input_masks":
        return is_picture(value)
    return isinstance(value, numbers.Real) or (isinstance(value, np.generic) and value.dtype.kind in "biuf")
