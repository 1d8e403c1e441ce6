"""Picture files, checked where that is cheap: size and orientation from a file's head, completeness from its end.

Frame of reference of all records: pixels of the picture as it is seen, that is turned upright by its EXIF orientation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from ..processing.masks_sca import decode_rle, encode_rle
from .region import RegionRecordError


# Where Pillow keeps what may tell an orientation, once it has read a file's head.
_ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
# What the last bytes of a complete file hold; some cameras and tools write more behind it.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b";"}
_TAIL = 64
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


def read_head(picture: Path | BytesIO) -> PictureHead:
    """Reads a file's head and its last bytes; the whole of it only where its end is not as its format has it.

    Raises:
        RegionRecordError: the picture cannot be read, or is cut short.
    """
    where = f"{picture}: " if isinstance(picture, Path) else ""
    try:
        with picture.open("rb") if isinstance(picture, Path) else picture as file, Image.open(file) as image:
            told = image.format == "JPEG" or any(key in image.info for key in _ORIENTATION_KEYS)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if told else 1
            head = PictureHead(image.size, orientation if orientation in range(1, 9) else 1)
            if not _is_complete(file, image.format or ""):
                image.load()
    except Exception as error:  # noqa: BLE001, decoders raise whatever they like on a damaged file
        raise RegionRecordError(f"{where}the picture cannot be read: {error}") from None
    return head


def image_size(picture: Path | BytesIO) -> Size:
    """Returns width and height of a picture turned upright; reads no more than the file's head and end."""
    return read_head(picture).size


def _is_complete(file: BinaryIO, format: str) -> bool:
    """Whether a file ends as its format has it; True of formats without such an end. Keeps its position."""
    if format not in _ENDS and format != "WEBP":
        return True
    place = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(4 if format == "WEBP" else max(0, length - _TAIL))
    read = file.read(4 if format == "WEBP" else _TAIL)
    file.seek(place)
    if format == "WEBP":
        return int.from_bytes(read, "little") + 8 <= length
    return _ENDS[format] in read


def check_picture(record: Mapping[str, Any], decode: bool = False) -> dict[str, Any]:
    """Compares a record's size with its picture's; a record in stored, not upright pixels is turned upright.

    Which frame the regions are in is decided by the size that comes with them: that of the stored pixels says that
    they are, unless a box lies outside of those and all lie inside the upright picture.

    Args:
        record: as a reader yields it; pictures that are no files, and files that are missing, are left to others.
        decode: decode the whole picture too.

    Raises:
        RegionRecordError: the picture cannot be read, or has another size.
    """
    record = dict(record)
    measured = record.pop("measured", False)
    file, where = _file(record.get("image")), f"{record.get('source')}, image {record.get('image_id')}"
    if file is None or (measured and not decode):
        return record
    try:
        head = read_head(BytesIO(file) if isinstance(file, bytes) else file)
        if decode:
            _decode(file)
    except RegionRecordError as error:
        raise RegionRecordError(f"{where}: {error}") from None
    told = (record.get("width"), record.get("height"))
    if told == head.size:
        return record
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


def _file(image: Any) -> Path | bytes | None:
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return image["bytes"]
        image = image.get("path")
    return Path(image) if isinstance(image, str | os.PathLike) and os.path.isfile(image) else None


def _decode(file: Path | bytes) -> None:
    """Decodes a picture, a JPEG at an eighth of its size, which reads all of the file in less time."""
    try:
        with Image.open(BytesIO(file) if isinstance(file, bytes) else file) as image:
            image.draft("L", (1, 1))
            image.load()
    except Exception as error:  # noqa: BLE001, as above
        where = f"{file}: " if isinstance(file, Path) else ""
        raise RegionRecordError(f"{where}the picture cannot be read: {error}") from None


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
