"""Images in any form a user has them, brought to upright 8-bit RGB."""

import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from transformers import image_utils
from transformers.utils import is_torchvision_available


# Far above any SAM. Settings come from a repository, and every image would be resized to what they say: to 200 MB.
_MAX_SIDE = 4096
# How far floats in 0..1 may lie outside: resizing with a bicubic or Lanczos filter goes beyond bright and dark edges.
_OVERSHOOT = 0.1
# Floats whose largest value is between may be meant as either.
_DARKEST = 2.0
# How long a server may be silent; in all, it may take ten times as long, for a file of any camera.
URL_SECONDS = 30.0
_MAX_FILE = 1 << 27
_Read = TypeVar("_Read")


def as_images(
    images: Any, input_data_format: str | None = None, timeout: float | None = URL_SECONDS
) -> list[Image.Image]:
    """Read one image or several.

    Args:
        images: a PIL image, an array or tensor (2 to 4 axes; 4 are a batch), a path, URL, data URI or base64 string,
            the bytes of a file, an open file, or `{"bytes": ..., "path": ...}` as `datasets` has it undecoded; or a
            list, tuple or column of those. Transparency is dropped, as the library does. Arrays hold 8-bit values,
            16-bit values, or floats in 0..1 or 0..255. Floats up to 0.1 outside 0..1, as resizing leaves them, are
            clipped; where the largest is between 1.1 and 2, they may be meant as either and are refused.
        input_data_format: `"channels_first"` or `"channels_last"` for arrays; by default the axis of 1, 3 or 4
            channels (of two such axes, the last for numpy and the first for torch).
        timeout: seconds that the server of a URL may be silent, and a tenth of what it may take; None waits forever.

    Returns:
        RGB images, turned upright by their EXIF orientation.
    """
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        images = list(images)
    elif not isinstance(images, Sequence) or isinstance(images, (str, bytes, bytearray, memoryview)):
        images = [images]
    if len(images) == 0:
        raise ValueError("images is an empty list; give at least one image.")
    return [_as_image(image, index, input_data_format, timeout) for index, image in enumerate(images)]


def as_image(image: Any) -> Image.Image:
    """Read the one image of a call that takes no more, in any form of [`as_images`]."""
    images = as_images(image)
    if len(images) > 1:
        raise ValueError(f"expected one image, got {len(images)}; call it once per image.")
    return images[0]


def open_picture(source: Any, timeout: float | None = URL_SECONDS) -> Image.Image:
    """Open a picture, upright by its EXIF orientation, in the mode that it is stored in.

    Args:
        source: as [`as_images`] takes it, arrays excepted.
        timeout: seconds that the server of a URL may be silent; None waits forever.
    """
    if isinstance(source, Mapping):
        if not {"bytes", "path"} & source.keys() or not source.keys() <= {"bytes", "path"}:
            raise TypeError(f'a picture as a dict has "bytes" or "path", this one has {sorted(map(str, source))}')
        # A path and nothing else: a string of a data set opens no address.
        source = Path(source.get("path") or "") if source.get("bytes") is None else source["bytes"]
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        source = _fetch(source, timeout)
    elif isinstance(source, str) and (
        source.startswith("data:image/") or (not os.path.isfile(source) and len(source) > 255)
    ):
        return image_utils.load_image(source)  # base64: longer than any file's name
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if not isinstance(source, Image.Image):
        source = Image.open(source)
    return ImageOps.exif_transpose(source)


def check_size(size: tuple[int, int], resized: tuple[int, int], index: int) -> None:
    """Refuse an image without pixels, or so narrow that nothing is left of its short side after resizing."""
    if min(size) < 1:
        raise ValueError(f"image {index} has no pixels: its size is {size[1]} x {size[0]} (width x height).")
    if min(resized) < 1:
        raise ValueError(
            f"image {index} of {size[1]} x {size[0]} pixels (width x height) is too narrow: resized to "
            f"{max(resized)} pixels on its long side, its short side would have none. Crop it first."
        )


def check_sizes(original_sizes: Any) -> list[tuple[int, int]]:
    """Return (height, width) of each image as integers, or refuse what is something else."""
    try:
        sizes = np.asarray(original_sizes.tolist() if hasattr(original_sizes, "tolist") else list(original_sizes))
    except ValueError as error:
        raise ValueError("original_sizes: expected (height, width) per image.") from error
    if sizes.ndim != 2 or sizes.shape[1] != 2 or len(sizes) == 0 or sizes.dtype.kind not in "iu":
        raise ValueError(f"original_sizes: expected integers (height, width) per image, got {original_sizes!r}.")
    return [(int(height), int(width)) for height, width in sizes]


def stretches(size: Any) -> bool:
    """Whether images are brought to a square without regard to their shape: a size of height and width says so."""
    return _edge(size, "height") is not None


def square_side(size: Any, name: str | None = None) -> int:
    """Return the side of the square that a size stands for, in any of the library's forms.

    Args:
        size: a longest edge, a height and width, or a number.
        name: what errors call it.
    """
    edge = "height" if stretches(size) else "longest_edge"
    side = size if isinstance(size, int) else _edge(size, edge)
    name = name or edge
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"the image processor's sizes need a {name}, got {size}.")
    if stretches(size) and _edge(size, "width") != side:
        raise ValueError(f"the image processor's size is {size}, but only squares are supported.")
    if side > _MAX_SIDE:
        raise ValueError(f"the image processor's {name} is {side}; the limit is {_MAX_SIDE} pixels.")
    return side


def _edge(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)


def check_image_processor(image_processor: Any) -> None:
    """Refuse numbers that no picture survives: those of an image processor come from a repository."""
    square_side(image_processor.size)
    for name in ("pad_size", "mask_pad_size"):
        for side in dict(getattr(image_processor, name, None) or {}).values():
            square_side(side, name)
    for name, positive in (("rescale_factor", True), ("image_mean", False), ("image_std", True)):
        given = getattr(image_processor, name, None)
        values = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
        for value in values:
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or (positive and value <= 0):
                raise ValueError(
                    f"the image processor's {name} is {given!r}, expected {'positive' if positive else 'finite'} "
                    "numbers."
                )


def build_image_processor(frame: Any, given: Any = None) -> Any:
    """Build the library's image processor of a segmenter, of the backend that is installed.

    Args:
        frame: the [`ImageFrame`] of the segmenter's configuration.
        given: one to take in its place, if it fits.
    """
    if given is not None:
        if square_side(given.size) != frame.side:
            raise ValueError(f"the image processor gives {given.size}, but the model takes {frame.side} pixels.")
        return given
    backend, square = "" if is_torchvision_available() else "Pil", {"height": frame.side, "width": frame.side}
    colors = {"image_mean": list(frame.image_mean), "image_std": list(frame.image_std)}
    if frame.resize == "stretch":
        # Those of SAM 2 and 3 need torchvision; this one gives the same.
        return getattr(transformers, f"ViTImageProcessor{backend}")(size=square, do_convert_rgb=True, **colors)
    return getattr(transformers, f"SamImageProcessor{backend}")(
        size={"longest_edge": frame.side},
        pad_size=square,
        mask_size={"longest_edge": frame.mask_side},
        mask_pad_size={"height": frame.mask_side, "width": frame.mask_side},
        **colors,
    )


def _as_image(image: Any, index: int, input_data_format: str | None, timeout: float | None) -> Image.Image:
    if isinstance(image, (list, tuple)):
        # Some pipelines hand over one list per image.
        if len(image) != 1:
            raise ValueError(f"image {index} is a list of {len(image)} images; give one image per entry.")
        image = image[0]
    if isinstance(image, (np.ndarray, torch.Tensor)):
        return _from_array(image, index, input_data_format)
    return read_picture(image, f"image {index}", lambda: _to_rgb(open_picture(image, timeout)))


def read_picture(source: Any, where: str, read: Callable[[], _Read]) -> _Read:
    """Return what `read` makes of a picture, or say which picture it is that cannot be read, and why."""
    if not is_picture(source):
        raise TypeError(
            f"{where}: cannot use a {type(source).__name__}; give a PIL image, an array, a path, a URL or bytes."
        )
    try:
        return read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: there is no file {_name(source)}.") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{where} ({_name(source)}) is larger than the limit of {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels that "
            f"protects against decompression bombs ({error}). If you trust it, raise PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    # Decoders raise whatever they like on a damaged file.
    except Exception as error:
        raise ValueError(f"{where} ({_name(source)}) cannot be read: {type(error).__name__}: {error}") from error


def is_picture(value: Any) -> bool:
    """Whether [`open_picture`] may open a value: a PIL image, a name, bytes, an open file or a dict of those."""
    kinds = (Image.Image, str, os.PathLike, bytes, bytearray, memoryview, Mapping)
    return isinstance(value, kinds) or hasattr(value, "read")


def _fetch(url: str, timeout: float | None) -> bytes:
    # By the library's own client; the library itself would take the page that says "not found" for the picture.
    content, end = bytearray(), math.inf if timeout is None else time.monotonic() + 10 * timeout
    with image_utils.httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as answer:
        if answer.is_error:
            raise ValueError(f"the server answered {answer.status_code} {answer.reason_phrase}")
        for part in answer.iter_bytes():
            content += part
            if len(content) > _MAX_FILE or time.monotonic() > end:
                raise ValueError(
                    f"the server sends more than {_MAX_FILE >> 20} MiB, or takes over ten times {timeout} s"
                )
    return bytes(content)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.width == 0 or image.height == 0:
        raise ValueError(f"it has no pixels, its size is {image.width} x {image.height}")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(np.asarray(image), "it")).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(array: np.ndarray | torch.Tensor, index: int, input_data_format: str | None) -> Image.Image:
    first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.dtype.is_floating_point else array).numpy()
    where = f"image {index}"
    if array.size == 0:
        raise ValueError(f"{where} has no pixels: its array has shape {array.shape}.")
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise ValueError(f"{where}: an image array has 2 or 3 axes, got shape {array.shape}.")
    if input_data_format is not None:
        first = str(getattr(input_data_format, "value", input_data_format)) in ("first", "channels_first")
    else:
        axes = (array.shape[0] in (1, 3, 4), array.shape[-1] in (1, 3, 4))
        first = axes[0] and (first or not axes[1])
    array = np.moveaxis(array, 0, -1) if first else array
    if array.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{where}: an image has 1, 3 or 4 channels, got an array of shape {array.shape}.")
    array = _to_uint8(array, where)
    # Alpha is dropped, not blended.
    return Image.fromarray(np.ascontiguousarray(array[..., :3] if array.shape[-1] > 1 else array.repeat(3, -1)))


def _to_uint8(array: np.ndarray, where: str) -> np.ndarray:
    """Bring pixel values to 8 bits: integers up to 255 or 65535, floats in 0..1 or 0..255."""
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where}: pixel values are numbers, got dtype {array.dtype}.")
    low, high = array.min(), array.max()
    is_float = array.dtype.kind == "f"
    if is_float and low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT:
        array, low, high = array.clip(0, 1), 0, 1
    if is_float and low >= 0 and 1 < high < _DARKEST:
        raise ValueError(
            f"{where} holds floats up to {high:g}, which may be meant in 0..1 or in 0..255: clip or scale them first."
        )
    if not (low >= 0 and high <= (255 if is_float else 65535)):  # NaN fails as well
        raise ValueError(
            f"{where} holds values from {low} to {high}; give 0..255, 16 bits or floats in 0..1, not normalized ones."
        )
    if array.dtype.kind == "b" or (is_float and high <= 1):
        array = array * 255.0
    elif array.dtype.kind in "iu" and high > 255:
        array = array >> 8
    return np.round(array).astype(np.uint8)


def _name(image: Any) -> str:
    if isinstance(image, Mapping):
        image = image.get("path") or image
    if isinstance(image, (str, Path)):
        text = str(image)
        return repr(text if len(text) <= 100 else text[:97] + "...")
    return f"a {type(image).__name__}"
