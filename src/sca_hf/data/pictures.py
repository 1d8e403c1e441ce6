"""Picture files, checked where that is cheap: size and orientation from a file's head, completeness from its end.

Frame of reference of all records: pixels of the picture as it is seen, that is turned upright by its EXIF orientation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..files import digest_of, is_special, leads_out
from ..processing.masks_sca import decode_rle, encode_rle
from .region import RegionRecordError


# Where Pillow keeps what may tell an orientation, once it has read a file's head.
_ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# What the last bytes of a complete file hold; some cameras and tools write more behind it.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_TAIL = 64
# How much longer the long side may be: shrunk to the 192 pixels of sca-tiny, the short one must be half a pixel.
_MAX_ASPECT = 384
Size = tuple[int, int]


@dataclass(frozen=True)
class PictureHead:
    """What the head of a picture's file says.

    Attributes:
        stored: width and height of the pixels as they are stored.
        orientation: of EXIF, 1 to 8: how the stored pixels are turned to be upright.
    """

    stored: Size
    orientation: int = 1

    @property
    def size(self) -> Size:
        """Width and height of the picture turned upright."""
        return self.stored[::-1] if self.orientation > 4 else self.stored


def picture_stamp(image: Any) -> str:
    """Returns what tells a picture from one that takes its place: a file's size and time, or a digest of the content.

    An address, or a place in an archive, is told by its name.

    Args:
        image: As a record has it: a path, bytes, a mapping of both, or a PIL picture.
    """
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    image = getattr(image, "filename", None) or image  # of a PIL picture that was opened from a file
    if isinstance(image, str | os.PathLike):
        try:
            status = os.stat(image)
        except (OSError, ValueError):
            return str(image)[:500]
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    return digest_of(image) if hasattr(image, "tobytes") else str(image)


def read_head(picture: str | Path | bytes) -> PictureHead:
    """Reads a file's head and its last bytes; the whole of it only where its end is not as its format has it.

    Raises:
        FileNotFoundError: there is no such file.
        RegionRecordError: the picture cannot be read, or is cut short.
    """
    try:
        if not isinstance(picture, bytes) and is_special(picture):
            raise ValueError("it is not a regular file")
        with BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb") as file:
            return _head(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001, decoders raise whatever they like on a damaged file
        raise _unreadable(picture, error) from None


def _unreadable(picture: str | Path | bytes, error: Exception) -> RegionRecordError:
    where = "" if isinstance(picture, bytes) else f"{picture}: "
    # Pillow's own text shows an open file.
    why = "Pillow does not know its format" if isinstance(error, UnidentifiedImageError) else error
    return RegionRecordError(f"{where}the picture cannot be read: {why}")


def image_size(picture: str | Path | bytes) -> Size:
    """Returns width and height of a picture turned upright; reads no more than the file's head and end."""
    try:
        return read_head(picture).size
    except FileNotFoundError:
        raise RegionRecordError(f"{picture!s}: the picture cannot be read: there is no such file") from None


def _head(file: Any) -> PictureHead:
    with Image.open(file) as image:
        told = image.format == "JPEG" or any(key in image.info for key in _ORIENTATION_KEYS)
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if told else 1
        place = file.tell()
        complete = _is_complete(file, image.format or "")
        file.seek(place)
        if not complete:
            image.load()
        return PictureHead(image.size, orientation if orientation in range(1, 9) else 1)


def _is_complete(file: Any, format: str) -> bool:
    """Whether a file ends as its format has it; True of formats without such an end."""
    if format not in _ENDS and format != "WEBP":
        return True
    length = file.seek(0, os.SEEK_END)
    if format == "WEBP":
        file.seek(4)
        return int.from_bytes(file.read(4), "little") + 8 <= length
    file.seek(max(0, length - _TAIL))
    end = file.read(_TAIL)
    return end.rstrip(b"\0").endswith(_ENDS[format]) if format == "GIF" else _ENDS[format] in end


def check_place(image: Path, folders: Iterable[Path]) -> None:
    """Refuses a picture that is no regular file, or a link that leads out of the folder that was named."""
    above = [folder for folder in folders if image.is_relative_to(folder)] or [image.parent]
    if is_special(image):
        raise RegionRecordError(f"{image} is not a regular file")
    if all(leads_out(folder, image) for folder in above):
        raise RegionRecordError(f"{image} is a link that leads out of {above[0]}: copy the picture there")


def check_picture(record: Mapping[str, Any], decode: bool = False) -> dict[str, Any]:
    """Compares a record's size with its picture's; a record in stored, not upright pixels is turned upright.

    Which frame the regions are in is decided by the size that comes with them: that of the stored pixels says that
    they are, unless a box lies outside of those and all lie inside the upright picture.

    Args:
        record: as a reader yields it; pictures that are not files, and files that are missing, are left to others.
        decode: decode the whole picture too.

    Raises:
        RegionRecordError: the picture cannot be read, or has another size.
    """
    record = dict(record)
    measured = record.pop("measured", False)
    file = _file(record.get("image"))
    sides = sorted(side for side in (record.get("width"), record.get("height")) if isinstance(side, int))
    if len(sides) == 2 and 0 < sides[0] * _MAX_ASPECT < sides[1]:
        raise RegionRecordError(
            f"{_where(record)}: a picture of {record['width']} x {record['height']} is too narrow for a model: "
            "resizing would leave no pixels on its short side; crop it first"
        )
    if file is None or (measured and not decode):
        return record
    try:
        head = read_head(file)
        if decode:
            _decode(file)
    except FileNotFoundError:
        return record
    except RegionRecordError as error:
        raise RegionRecordError(f"{_where(record)}: {error}") from None
    told = (record.get("width"), record.get("height"))
    if told == head.size:
        return record
    where = _where(record)
    if told != head.stored:
        raise RegionRecordError(
            f"{where}: the upright picture is {head.size[0]} x {head.size[1]}, the annotations are of one of "
            f"{told[0]} x {told[1]}; use the picture that was annotated, or correct the size"
        )
    if any(isinstance(region, Mapping) and region.get("clipped") for region in record.get("regions", ())):
        raise RegionRecordError(
            f"{where}: the annotations give the stored size {told[0]} x {told[1]} of a picture that EXIF rotates, and "
            'boxes extend beyond it; read it with clip="rounding", which infers the frame from the boxes'
        )
    return _turned(record, head)


def _where(record: Mapping[str, Any]) -> str:
    return f"{record.get('source')}, image {record.get('image_id')}"


def _file(image: Any) -> str | bytes | None:
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return image["bytes"]
        image = image.get("path")
    return os.fspath(image) if isinstance(image, str | os.PathLike) else None


def _decode(file: str | bytes) -> None:
    """Decodes a picture, a JPEG at an eighth of its size, which reads all of the file in less time."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.draft("L", (1, 1))
            image.load()
    except Exception as error:  # noqa: BLE001, as above
        raise _unreadable(file, error) from None


def _turned(record: dict[str, Any], head: PictureHead) -> dict[str, Any]:
    regions = record.get("regions") or []
    boxes = [region["box"] for region in regions if isinstance(region, Mapping) and region.get("box")]
    upright = not _fit(boxes, head.stored) and _fit(boxes, head.size)
    frame = "upright, because boxes lie outside that size" if upright else "the stored ones"
    note = f"annotations give the stored size of pictures that EXIF rotates: their pixels are taken as {frame}"
    notes = [*record.get("notes", ()), note]
    if not upright:
        turned = [_turned_region(region, head) if isinstance(region, Mapping) else region for region in regions]
        record = {**record, "regions": turned}
    return {**record, "width": head.size[0], "height": head.size[1], "notes": notes}


def _fit(boxes: Sequence[Sequence[float]], size: Size) -> bool:
    return all(box[2] <= size[0] + 1 and box[3] <= size[1] + 1 for box in boxes)


def _turned_region(region: Mapping[str, Any], head: PictureHead) -> dict[str, Any]:
    """Moves a region from stored pixels into upright ones."""
    width, height = head.stored
    transpose, rotate, transverse, back = 5, 6, 7, 8
    moved = {
        transpose: lambda x, y: (y, x),
        rotate: lambda x, y: (height - y, x),
        transverse: lambda x, y: (height - y, width - x),
        back: lambda x, y: (y, width - x),
    }[head.orientation]
    turned = {
        transpose: lambda mask: mask.T,
        rotate: lambda mask: np.rot90(mask, -1),
        transverse: lambda mask: np.rot90(mask, 2).T,
        back: lambda mask: np.rot90(mask),
    }[head.orientation]
    x0, y0, x1, y1 = region["box"]
    (xa, ya), (xb, yb) = moved(x0, y0), moved(x1, y1)
    result = {**region, "box": [min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)]}
    if region.get("points"):
        result["points"] = [list(moved(*point)) for point in region["points"]]
    mask = region.get("mask")
    if mask is not None and list(mask["size"]) == [height, width]:  # another size is an error of its own
        result["mask"] = encode_rle(np.ascontiguousarray(turned(decode_rle(dict(mask), "mask"))))
    return result
