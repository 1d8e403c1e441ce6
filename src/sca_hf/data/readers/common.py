"""What the readers share: JSON in pieces, paths that are not trusted, sizes of pictures, names, boxes; and `scenes`.

Frame of reference: pixels of the original image as it is seen, that is turned upright by its EXIF orientation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO

from PIL import ExifTags, Image

from ..region import RegionRecordError, category_text
from ..scenes import SPLIT_STARTS, scenes


Clip = Literal["rounding", "image"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Where Pillow keeps what may tell an orientation, once it has read a file's head.
_ORIENTATION_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_SPACE = re.compile(r"\s*")
_DELIMITERS = tuple(" \t\r\n,]}")
_BLOCK = 1 << 20
Record = dict[str, Any] | RegionRecordError


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; errors name it."""
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            return json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def read_json_list(path: str | Path) -> Iterator[Any]:
    """Yields the items of a JSON list one by one, so that a file of any size takes little memory."""
    with Path(path).open(encoding="utf-8-sig") as file:
        text = _JsonText(file, str(path))
        if text.next_character() != "[":
            raise ValueError(f"{path}: expected a JSON list.")
        text.place += 1
        if text.next_character() == "]":
            return
        while True:
            yield text.item()
            mark = text.next_character()
            text.place += 1
            if mark == "]":
                return
            if mark != ",":
                raise ValueError(f"{path} is not JSON, or cut short: expected a comma or the end of the list.")


class _JsonText:
    """A window that moves along a file."""

    def __init__(self, file: TextIO, name: str) -> None:
        self.file, self.name, self.text, self.place = file, name, "", 0
        self.decode = json.JSONDecoder().raw_decode

    def next_character(self) -> str:
        """Returns the next character that is not white space, without taking it; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not self._grow():
                return ""

    def item(self) -> Any:
        """Takes one JSON value."""
        self.next_character()
        while True:
            try:
                item, end = self.decode(self.text, self.place)
            except (ValueError, RecursionError) as error:
                if not self._grow():
                    raise ValueError(f"{self.name} is not JSON, or cut short: {error}.") from None
                continue
            # A number may continue after the window: 0 and 0., the beginnings of 0.5, would both be read as 0.
            if self.text[end : end + 1] in _DELIMITERS or not self._grow():
                self.place = end
                return item

    def _grow(self) -> bool:
        rest = self.text[self.place :]
        # At least doubled, so that a long item is not tried too often.
        more = self.file.read(max(_BLOCK, len(rest)))
        self.text, self.place = rest + more, 0
        return bool(more)


def choice(value: str, name: str, options: Sequence[str]) -> None:
    """Raises unless an option of a reader has one of its values."""
    if value not in options:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(options)}.")


def inside(folder: Path, name: str) -> Path | None:
    """Joins a name that a file gave; None where it would lead out of the folder.

    Args:
        folder: where the name is looked for.
        name: a relative path, with / or \\ between its parts.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or ":" in parts[0] or "\0" in name:
        return None
    return folder.joinpath(*parts)


def spellings(name: str) -> list[str]:
    """Returns the names under which a picture may lie: as it is given, then with the suffixes that pictures have."""
    stem = name.rsplit(".", 1)[0] if name.lower().endswith(IMAGE_SUFFIXES) else name
    return [name, *(stem + suffix for suffix in IMAGE_SUFFIXES), *(stem + suffix.upper() for suffix in IMAGE_SUFFIXES)]


def find_file(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    """Returns the first of the names that is a file, in the first of the folders that has it."""
    names = list(names)
    for folder in folders:
        for name in names:
            path = inside(folder, name)
            if path is not None and path.is_file():
                return path
    return None


def image_size(picture: Path | BytesIO) -> tuple[int, int]:
    """Returns width and height of a picture turned upright; reads no more than the file's head."""
    try:
        with Image.open(picture) as image:
            width, height = image.size
            told = image.format == "JPEG" or any(key in image.info for key in _ORIENTATION_KEYS)
            turned = told and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception as error:  # noqa: BLE001, decoders raise whatever they like on a damaged file
        where = f"{picture}: " if isinstance(picture, Path) else ""
        raise RegionRecordError(f"{where}the picture cannot be read: {error}") from None
    return (height, width) if turned else (width, height)


def category_fields(name: str, task: str, names: Mapping[str, str] | None) -> dict[str, Any]:
    """Returns the text fields of a region of a category: its name is its caption where the task is "caption"."""
    text = category_text(name, names)
    return {"category": text, "captions": [text] if task == "caption" else []}


def region_fields(
    region_id: str, box: list[float], size: tuple[int, int], clip: Clip, **fields: Any
) -> dict[str, Any]:
    """Returns a region's row; its box is cut at the edge of the image.

    Args:
        region_id: unique in the data set.
        box: xyxy.
        size: width and height of the image.
        clip: "rounding" cuts what reaches out by at most one pixel, "image" whatever reaches out. A box of which
            nothing would be left stays, for the error to show it.
        fields: any other field of `Region`.
    """
    width, height = size
    cut = [min(max(box[0], 0.0), width), min(max(box[1], 0.0), height)]
    cut += [min(max(box[2], 0.0), width), min(max(box[3], 0.0), height)]
    allowed = clip == "image" or max(abs(a - b) for a, b in zip(box, cut, strict=True)) <= 1
    allowed = allowed and cut[0] < cut[2] and cut[1] < cut[3]
    row = {"region_id": region_id, "box": cut if allowed else box, "mask": None, "points": None, "labels": None}
    return {**row, **fields, **({"clipped": True} if allowed and cut != box else {})}


def read_scenes(split: str = "train", count: int = 1000, start: int = 0, task: str = "caption") -> Iterator[Record]:
    """Yields the records of `count` scenes; those without an object that can be described have no regions.

    Args:
        split: train, validation or test.
        count: How many scenes to render.
        start: The index of the first scene.
        task: "caption" for their free captions, "recognition" for texture, color and shape.
    """
    choice(split, "split", list(SPLIT_STARTS))
    for scene in scenes(split, count, start):
        yield {**scene.to_record(), "task": task}
