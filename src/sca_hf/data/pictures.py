"""Picture files, checked where that is cheap: size and orientation from a file's head, completeness from its end.

Frame of reference of all records: pixels of the picture as it is seen, that is turned upright by its EXIF orientation.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..processing.masks_sca import decode_rle, encode_rle
from .region import RegionRecordError


# Where Pillow keeps what may tell an orientation, once it has read a file's head.
_ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# What the last bytes of a complete file hold; some cameras and tools write more behind it.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_TAIL = 64
# What is read of a head at a time, in bytes.
_BLOCK = 4096
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


def read_head(picture: str | Path | bytes) -> PictureHead:
    """Reads a file's head and its last bytes; the whole of it only where its end is not as its format has it.

    Raises:
        FileNotFoundError: there is no such file.
        RegionRecordError: the picture cannot be read, or is cut short.
    """
    try:
        with BytesIO(picture) if isinstance(picture, bytes) else open(picture, "rb", buffering=0) as file:
            return _quick_head(file) or _pillow_head(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001, decoders raise whatever they like on a damaged file
        raise _unreadable(picture, error) from None


def _unreadable(picture: str | Path | bytes, error: Exception) -> RegionRecordError:
    where = "" if isinstance(picture, bytes) else f"{picture}: "
    # Pillow's own text shows an open file.
    why = "it is not in a format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
    return RegionRecordError(f"{where}the picture cannot be read: {why}")


def image_size(picture: str | Path | bytes) -> Size:
    """Returns width and height of a picture turned upright; reads no more than the file's head and end."""
    try:
        return read_head(picture).size
    except FileNotFoundError:
        raise RegionRecordError(f"{picture!s}: the picture cannot be read: there is no such file") from None


def _pillow_head(file: Any) -> PictureHead:
    """Has Pillow read a head, and all of a file that does not end as its format has it."""
    file.seek(0)
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


def _quick_head(file: Any) -> PictureHead | None:
    """Reads the head of a common JPEG or PNG in a fraction of Pillow's time; None where there is more to it."""
    start = file.read(_BLOCK)
    if start.startswith(b"\xff\xd8\xff"):
        head = _jpeg_head(file, start)
    elif start.startswith(b"\x89PNG\r\n\x1a\n"):
        head = _png_head(start)
    else:
        return None
    # Pillow refuses pictures that are too large, and says why.
    if head is None or head.stored[0] * head.stored[1] > (Image.MAX_IMAGE_PIXELS or math.inf) or not all(head.stored):
        return None
    return head if _is_complete(file, "PNG" if start[1:4] == b"PNG" else "JPEG") else None


def _jpeg_head(file: Any, block: bytes) -> PictureHead | None:
    """Walks along a JPEG's segments up to the one with its size; `block` is the file's beginning."""
    base, place, orientation = 0, 2, 1
    while True:
        if place + 10 > len(block):
            base, place = base + place, 0
            file.seek(base)
            block = file.read(_BLOCK)
            if len(block) < 10:
                return None
        mark, length = block[place + 1], int.from_bytes(block[place + 2 : place + 4])
        if block[place] != 0xFF or length < 2:
            return None
        if mark in (0xC0, 0xC1, 0xC2):  # what Pillow decodes too, of 8 bits
            height, width = (int.from_bytes(block[at : at + 2]) for at in (place + 5, place + 7))
            return PictureHead((width, height), orientation) if block[place + 4] == 8 else None
        if mark == 0xE1:  # EXIF, or XMP, which may say an orientation too
            if place + 2 + length > len(block):
                base, place = base + place, 0
                file.seek(base)
                block = file.read(max(_BLOCK, length + 12))
            found = _exif_orientation(block[place + 4 : place + 2 + length])
            if found is None:
                return None
            orientation = found
        elif not 0xE0 <= mark <= 0xEF and mark not in (0xDB, 0xC4, 0xDD, 0xFE):
            return None
        place += 2 + length


def _exif_orientation(segment: bytes) -> int | None:
    """Returns the orientation that an EXIF segment of a JPEG tells, 1 to 8; None where Pillow should look."""
    order = {b"II": "little", b"MM": "big"}.get(segment[6:8])
    if not segment.startswith(b"Exif\0\0") or order is None:
        return None

    def number(at: int, count: int) -> int:
        return int.from_bytes(segment[6 + at : 6 + at + count], order)  # type: ignore[arg-type]

    first = number(4, 4)
    for entry in range(number(first, 2)):
        at = first + 2 + 12 * entry
        if number(at, 2) == ExifTags.Base.Orientation:
            return value if number(at + 2, 2) == 3 and (value := number(at + 8, 2)) in range(1, 9) else None
    return None


def _png_head(start: bytes) -> PictureHead | None:
    """Walks along a PNG's chunks up to the pixels; None where one may tell an orientation."""
    size = (int.from_bytes(start[16:20]), int.from_bytes(start[20:24]))
    place = 8
    while place + 8 <= len(start):
        kind = start[place + 4 : place + 8]
        if kind == b"IDAT":
            return PictureHead(size)
        if kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
            return None
        place += 12 + int.from_bytes(start[place : place + 4])
    return None


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
            "nothing is left of its short side where the long one is shrunk; crop it first"
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
            f"{told[0]} x {told[1]}; put the picture that was annotated in its place, or correct the size"
        )
    if any(isinstance(region, Mapping) and region.get("clipped") for region in record.get("regions", ())):
        raise RegionRecordError(
            f"{where}: the annotations give the stored size {told[0]} x {told[1]} of a picture that EXIF turns, and "
            'boxes reach out of it; read it with clip="rounding", which decides the frame by the boxes'
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
    frame = "upright, as boxes outside of that size show" if upright else "the stored ones"
    note = f"annotations give the stored size of pictures that EXIF turns: their pixels are taken as {frame}"
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
