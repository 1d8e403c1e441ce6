"""Nesting of prompts: any sensible form a user writes, brought to one list of regions per image."""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


# What a complete argument looks like; shown in every error about nesting.
NESTING = {
    "input_points": "[image][region][point][x, y]",
    "input_labels": "[image][region][point]",
    "input_boxes": "[image][region][x1, y1, x2, y2]",
    "input_masks": "[image][region] of masks",
    "captions": "[image][region] of strings",
    "task": "one name, [image] of names, or [image][region] of names",
}
_FULL_DEPTH = {"input_points": 4, "input_labels": 3, "input_boxes": 3, "input_masks": 2, "captions": 2}
_TEXTS = ("captions", "task")
_MAX_DEPTH = 8


def expected(name: str) -> str:
    """Say which nesting `name` wants; the end of an error message."""
    return f"expected nesting: {NESTING[name]} (for a single image the outer level may be left out)"


def to_numpy(value: Any, name: str) -> np.ndarray:
    """Turn a numpy or torch array into numpy, refusing dtypes that hold no plain numbers."""
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_complex() or value.is_quantized or value.device.type == "meta":
            raise TypeError(f"{name}: expected a dense tensor of plain numbers, got {value.dtype} on {value.device}.")
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision number exactly.
        value = value.float().numpy() if value.dtype.is_floating_point and value.itemsize < 4 else value.numpy()
    if value.dtype.kind not in "biufO":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {value.dtype}.")
    return value


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
            told = ", ".join(f"{length} in {name}" for name, length in lengths.items())
            raise ValueError(
                f"image {image}: the kinds of prompt disagree about the number of regions ({told}). Give every kind "
                "one entry per region, None where the region has none of that kind."
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
        # A mask is a leaf of two axes.
        depth = value.ndim - 2 if name == "input_masks" else value.ndim
        if depth < 0:
            raise ValueError(f"{name}: a mask has two axes, got an array of shape {value.shape}; {expected(name)}.")
        return (value, depth, True) if value.shape != (0,) else ([], 1, False)
    if isinstance(value, (list, tuple)):
        return _measure_list(value, name, level)
    raise TypeError(f"{name}: cannot use a {type(value).__name__}; {expected(name)}.")


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
        return isinstance(value, dict) or hasattr(value, "getbands")
    return isinstance(value, numbers.Real) or (isinstance(value, np.generic) and value.dtype.kind in "biuf")
