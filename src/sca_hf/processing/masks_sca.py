"""Masks as prompts, low-resolution logits in the frame of the model, and COCO RLE, which is read and written here."""

from typing import Any

import numpy as np
from PIL import Image


# The logit of a cell that lies wholly in the mask; wholly outside it is the negative of it.
MASK_LOGIT = 10.0


def mask_logits(
    mask: Any, size: tuple[int, int], resized: tuple[int, int], frame_size: int, mask_size: int, where: str = "mask"
) -> np.ndarray:
    """Turn one mask into the low-resolution logits that SAM takes as a prompt.

    Args:
        mask: what [`read_mask`] takes, of the size of the image or of another size of the same shape. Or logits of
            the padded square frame as they are: floats, exactly (mask_size, mask_size).
        size: (height, width) of the original image.
        resized: (height, width) of the model's input, before padding.
        frame_size: side of the square that images are padded to, pixels of the resized image.
        mask_size: side of the low-resolution masks.
        where: what to call the mask in an error.

    Returns:
        (mask_size, mask_size) float32: `(2 p - 1) * MASK_LOGIT`, p the fraction of the cell that the mask covers;
        padding is not covered.
    """
    array = _as_array(mask, where)
    if array.dtype.kind == "f" and array.shape == (mask_size, mask_size):
        return _check_logits(array, size[0] == size[1], where)
    covered = mask_coverage(array, size, resized, frame_size, mask_size, where)
    return ((2 * covered - 1) * MASK_LOGIT).astype(np.float32)


def mask_coverage(
    mask: Any, size: tuple[int, int], resized: tuple[int, int], frame_size: int, mask_size: int, where: str = "mask"
) -> np.ndarray:
    """Return the fraction of each low-resolution cell that one mask covers: (mask_size, mask_size) float64 in [0, 1].

    It takes what [`mask_logits`] takes, logits excepted.
    """
    # Before it is decoded, where its size is told: a few characters may claim any.
    rle = isinstance(mask, dict) and not mask.keys() & {"bytes", "path"}
    array = None if rle else read_mask(mask, where)
    height, width = rle_size(mask, where) if array is None else array.shape
    if abs(height - width * size[0] / size[1]) >= 1 and abs(width - height * size[1] / size[0]) >= 1:
        raise ValueError(
            f"{where}: the mask is {width} x {height} pixels (width x height), the image {size[1]} x {size[0]}; give "
            "a mask of the image's size, or a scaled one of the same shape."
        )
    array = read_mask(mask, where) if array is None else array
    return _share(_share(array, resized[0], frame_size, mask_size).T, resized[1], frame_size, mask_size).T


def read_mask(mask: Any, where: str = "mask") -> np.ndarray:
    """Read one mask in any form that an image may have, or as COCO RLE.

    Two values, one of them 0, are a mask, whatever the other is. Shades are cut at half: floats in 0..1, and gray
    levels of 8 or 16 bits if most of them are near black or white, as in a JPEG file or with soft edges. What may be
    labels, a photograph or a cut-out is refused.

    Args:
        mask: an array or tensor of two axes, or three with 1, 3 or 4 channels; a PIL image, path, URL, the bytes of a
            file, an open file, `{"bytes": ..., "path": ...}`; or an RLE dict.
        where: what to call the mask in an error.

    Returns:
        (height, width) bool, with at least one pixel in the mask.
    """
    return _as_binary(_as_array(mask, where), where)


def _as_array(mask: Any, where: str) -> np.ndarray:
    """Return the values of a mask, (height, width)."""
    if isinstance(mask, dict) and not mask.keys() & {"bytes", "path"}:
        return decode_rle(mask, where)
    from .images_sca import is_picture, open_picture, read_picture  # imports torch, which masks as RLE do without

    if is_picture(mask):
        array = read_picture(mask, where, lambda: _picture_values(open_picture(mask)))
    elif isinstance(mask, np.ndarray) or hasattr(mask, "detach"):
        array = to_numpy(mask, where)
    else:
        raise TypeError(
            f"{where}: expected an array, a picture (PIL image, path, bytes) or a COCO RLE dict, got "
            f"{type(mask).__name__}."
        )
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4) and array.size:
        array = _without_channels(array, where)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind == "O":
        raise ValueError(f"{where}: a mask has two axes (height, width), got an array of shape {array.shape}.")
    return array


def _picture_values(picture: Image.Image) -> np.ndarray:
    """Values of a picture's pixels: of a palette the colors if they are black and white, else the indices."""
    if picture.mode == "P":
        colors = np.asarray(picture.convert("RGB"))
        black_and_white = colors.any() and np.isin(colors, (0, 255)).all() and (colors == colors[..., :1]).all()
        return colors if black_and_white else np.asarray(picture)
    if picture.mode in ("1", "L", "I", "F") or picture.mode.startswith("I;16"):
        return np.asarray(picture)
    return np.asarray(picture.convert("RGBA" if "A" in picture.mode.upper() else "RGB"))


def _without_channels(array: np.ndarray, where: str) -> np.ndarray:
    """Return (height, width) of a mask with channels that say no more than one of them would."""
    if array.shape[-1] == 4:
        if (array[..., 3] != array[..., 3].max()).any() or not array[..., 3].any():
            raise ValueError(
                f"{where}: the mask has both transparency and colors; pass the one that is the mask, for instance "
                "picture.getchannel('A')."
            )
        array = array[..., :3]
    low, high = np.asarray(array.min(-1)), np.asarray(array.max(-1))
    if array.dtype.kind == "b" or array.shape[-1] == 1:
        return high
    # A JPEG file rounds its colors.
    if ((high - low) <= (8 if high.max() > 1 else 8 / 255)).all():
        return array[..., 1]
    drawn = array[high > 0]
    if (drawn == drawn[0]).all():
        return np.asarray(high > 0)  # one color on black
    raise ValueError(
        f"{where}: the mask is a color picture; pass one region of it as bool, for instance (picture == "
        "color).all(-1)."
    )


def _check_logits(logits: np.ndarray, square: bool, where: str) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise ValueError(f"{where}: the logits have values that are not finite.")
    if square and logits.any() and logits.min() >= 0 and logits.max() <= 1:
        raise ValueError(
            f"{where}: floats from 0 to 1 of {' x '.join(map(str, logits.shape))} cells could be logits or a mask of "
            "the image; for a mask pass bool (mask > 0.5)."
        )
    return logits.astype(np.float32)


def _as_binary(mask: np.ndarray, where: str) -> np.ndarray:
    if mask.dtype.kind != "b":
        low, top = mask.min(), mask.max()
        if not np.isfinite([low, top]).all():
            raise ValueError(f"{where}: the mask has values that are not finite.")
        if mask.dtype.kind == "f" and low >= 0 and top <= 1:
            mask = mask > 0.5
        elif low >= 0 and (low == 0 or top in (1, 255)) and ((mask == 0) | (mask == top)).all():
            mask = mask != 0
        elif low >= 0 and _is_gray(mask, top):
            mask = mask > (127 if top <= 255 else 32767)
        elif mask.dtype.kind == "f":
            raise ValueError(
                f"{where}: a float mask must be within 0 to 1, got {low:g} to {top:g}; for logits of the image's "
                "size pass bool (mask > 0)."
            )
        else:
            raise ValueError(
                f"{where}: an integer mask must be {{0, 1}} or {{0, 255}}, got {low} to {top}; pass one region as "
                "bool: (mask == label) for labels, (mask > 127) for gray levels."
            )
    if not mask.any():
        raise ValueError(f"{where}: the mask is empty; give a mask with at least one pixel, or None.")
    return mask


def _is_gray(mask: np.ndarray, top: Any) -> bool:
    """Whether values are shades of black and white, and neither labels nor a photograph."""
    if top > 65535:
        return False
    levels = np.bincount((mask.astype(np.int64) >> (8 if top > 255 else 0)).reshape(-1), minlength=256)
    ends = levels[:64].sum() + levels[192:].sum()
    # Labels are small numbers, with 255 for what has none; shades go up to white.
    return bool(levels[192:].any() and levels[64:255].any() and 2 * ends >= mask.size)


def _share(values: np.ndarray, resized: int, frame_size: int, cells: int) -> np.ndarray:
    """Average along the first axis over equal cells of the padded frame, exactly: (pixels, n) -> (cells, n).

    A cell takes each pixel by the part of it that lies inside the cell, so no size needs to divide another.
    """
    pixels = len(values)
    total = np.zeros((pixels + 1, values.shape[1]), np.float64 if values.dtype.kind == "f" else np.int32)
    np.cumsum(values, axis=0, out=total[1:])
    # Borders of the cells in pixels of the mask; the image ends where the padding begins.
    borders = np.minimum(np.arange(cells + 1) * (frame_size / cells), resized) * (pixels / resized)
    below = np.minimum(borders.astype(np.int64), pixels - 1)
    part = (borders - below)[:, None]
    sums = total[below] * (1 - part) + total[below + 1] * part  # (cells + 1, n)
    return np.diff(sums, axis=0) * (resized / pixels * cells / frame_size)


# A few characters of RLE may claim any size; Pillow opens no larger picture. Its mask takes 180 MB and half a second.
_MAX_PIXELS = 2 * 89_478_485


def mask_extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box of a mask's pixels: xyxy, far edges exclusive. The mask (height, width) is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_rle(mask: Any) -> dict[str, Any]:
    """Encode a mask as compressed COCO RLE, byte for byte as pycocotools does.

    Args:
        mask: (height, width) bool, or numbers of which all but 0 are in the mask.

    Returns:
        `{"size": [height, width], "counts": str}`, ready for JSON.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask: expected two axes (height, width), got an array of shape {mask.shape}.")
    return {"size": list(mask.shape), "counts": _compress(_run_lengths(mask.astype(bool, copy=False)))}


def rle_size(rle: dict[str, Any], where: str = "mask", size: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return (height, width) of a COCO RLE without decoding it, or refuse it.

    Args:
        rle: `{"size": [height, width], "counts": ...}`.
        where: what to call it in an error.
        size: (height, width) that it must have, those of its picture; without it any up to Pillow's largest picture.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        whole = list(rle["size"]) == [height, width]
    except (KeyError, TypeError, ValueError, OverflowError):
        whole = False
    if not whole or not 0 < height * width <= _MAX_PIXELS or height < 0:
        raise ValueError(
            f"{where}: an RLE is a dict with size [height, width], of at most {_MAX_PIXELS} pixels, and counts, got "
            f"{_short(rle)}."
        )
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"{where} is of size [{height}, {width}], expected [height, width] = {list(size)}")
    # A run has at least one pixel, but for the first; long ones take more than one character.
    if isinstance(counts, (str, bytes, list, tuple)) and len(counts) > 2 * (height * width + 2):
        raise ValueError(f"{where} has {len(counts)} counts, more than a mask of its size can need.")
    return height, width


def decode_rle(rle: dict[str, Any], where: str = "mask", size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a COCO RLE, compressed (a string or bytes) or not (a list of counts).

    Args:
        rle: `{"size": [height, width], "counts": ...}`.
        where: what to call it in an error.
        size: (height, width) that it must have, which is compared before anything is decoded.

    Returns:
        (height, width) bool.
    """
    runs = _runs(rle, where, size)
    values = np.arange(len(runs)) % 2 == 1  # runs alternate, outside first
    return np.repeat(values, runs).reshape(*map(int, rle["size"][::-1])).T


def tidy_rle(
    rle: dict[str, Any], where: str = "mask", size: tuple[int, int] | None = None
) -> tuple[dict[str, Any], list[int] | None]:
    """Check a COCO RLE, and write it as [`encode_rle`] would, without decoding it: at the cost of its counts alone.

    Args:
        rle, where, size: as for [`decode_rle`].

    Returns:
        The RLE, and the box of its pixels: xyxy, far edges exclusive; None where it covers none.
    """
    runs = _runs(rle, where, size)
    height, width = map(int, rle["size"])
    ends, inside = np.cumsum(runs), (np.arange(len(runs)) % 2 == 1) & (runs > 0)
    covered, first = inside[runs > 0], np.flatnonzero(np.diff(inside[runs > 0], prepend=not inside[runs > 0][0]))
    joined = np.add.reduceat(runs[runs > 0], first)
    tidy = np.concatenate([[0], joined]) if covered[0] else joined
    box = None
    if inside.any():
        start, last = (ends - runs)[inside], ends[inside] - 1
        across = bool((start // height != last // height).any())  # from one column to the next: it has every row
        rows = [0, height] if across else [int((start % height).min()), int((last % height).max()) + 1]
        box = [int(start.min() // height), rows[0], int(last.max() // height) + 1, rows[1]]
    return {"size": [height, width], "counts": _compress(tidy)}, box


def _runs(rle: dict[str, Any], where: str, size: tuple[int, int] | None) -> np.ndarray:
    height, width = rle_size(rle, where, size)
    counts = rle["counts"]
    if isinstance(counts, (str, bytes)):
        runs = _decompress(counts, where)
    else:
        try:
            runs = np.asarray(counts, np.int64).reshape(-1)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{where}: RLE counts are a string or a list of integers, got {_short(counts)}."
            ) from error
    # Each run by itself first: a sum may overflow.
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(
            f"{where}: the RLE counts cover {runs.sum()} pixels, its size [{height}, {width}] has {height * width}."
        )
    return runs


def _run_lengths(mask: np.ndarray) -> np.ndarray:
    """Return the lengths of the runs of a bool mask in column order, the first run outside (it may be 0)."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return np.concatenate([[0], runs]) if flat.size and flat[0] else runs


def _compress(runs: np.ndarray) -> str:
    """Write run lengths as COCO does: from the third on the difference to the one before the last, 5 bits a char."""
    values = runs.copy()
    values[3:] -= runs[1:-2]
    chars = []
    for value in values.tolist():
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            chars.append(bits + 48 + (0x20 if more else 0))
    return bytes(chars).decode("ascii")


def _decompress(counts: str | bytes, where: str) -> np.ndarray:
    runs: list[int] = []
    value = shift = 0
    for char in counts.encode("latin-1", "replace") if isinstance(counts, str) else counts:
        bits = char - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{where}: the RLE counts string is not COCO's compressed form, got {_short(counts)}.")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            # The first three counts stand as they are.
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or any(abs(run) >= 1 << 62 for run in runs):
        raise ValueError(f"{where}: the RLE counts string is cut short, got {_short(counts)}.")
    return np.array(runs, np.int64)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_numpy(value: Any, name: str) -> np.ndarray:
    """Turn a numpy or torch array into numpy, refusing dtypes that hold no plain numbers."""
    if hasattr(value, "detach"):  # a tensor; torch takes a second to import, and masks are read without it
        if value.is_sparse or value.is_complex() or value.is_quantized or value.device.type == "meta":
            raise TypeError(f"{name}: expected a dense tensor of plain numbers, got {value.dtype} on {value.device}.")
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds every half-precision number exactly.
        value = value.float().numpy() if value.dtype.is_floating_point and value.itemsize < 4 else value.numpy()
    if value.dtype.kind not in "biufO":
        raise TypeError(f"{name}: expected an array of numbers, got dtype {value.dtype}.")
    return value
