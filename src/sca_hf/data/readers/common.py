"""What the readers share: JSON in pieces, paths that are not trusted, sizes of pictures, names, boxes; and `scenes`.

Frame of reference: pixels of the original image as it is seen, that is turned upright by its EXIF orientation.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar
from urllib.parse import unquote, urlsplit

from ...files import inside, is_special, leads_out, read_json, text_encoding
from ..region import RegionRecordError, category_text, naming
from ..scene_details import record_with_lengths
from ..scene_languages import scene_languages, with_languages
from ..scenes import scenes


Clip = Literal["rounding", "image"]
Crowd = Literal["skip", "keep"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Names of pictures that Pillow may not know: they are read, or named as what cannot be read, but not passed over.
_OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".jfif")
# What files of pictures begin with, whatever their name: JPEG, PNG, GIF, WebP, HEIC and AVIF.
_BEGINNINGS = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|GIF8|RIFF....WEBP|....ftyp(?:hei|hev|mif|msf|avi)", re.DOTALL)
_SPACE = re.compile(r"\s*")
_DELIMITERS = tuple(" \t\r\n,]}")
_BLOCK = 1 << 20
# What is not UTF-8 makes the row bad that it stands in, not the file.
_BYTES = "surrogateescape"
read_annotations = partial(read_json, errors=_BYTES)
Record = dict[str, Any] | RegionRecordError
_Read = TypeVar("_Read")


def read_json_list(path: str | Path) -> Iterator[Any]:
    """Yields the items of a JSON list one by one, so that a file of any size takes little memory."""
    with Path(path).open(encoding=text_encoding(path), errors=_BYTES) as file:
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


def attempt(where: str, read: Callable[..., _Read], *arguments: Any) -> _Read | RegionRecordError:
    """Returns what a reader makes of one row, or the error that names it, whatever is wrong with the row."""
    try:
        with naming(where):
            return read(*arguments)
    except RegionRecordError as error:
        return error


def may_be_picture(path: Path) -> bool:
    """Whether a file is one of a picture by its suffix, or, without one that tells, by its first bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *_OTHER_SUFFIXES):
        return True
    try:
        with path.open("rb") as file:
            return _BEGINNINGS.match(file.read(12)) is not None
    except OSError:
        return False


def rows_by_id(rows: Any, key: str = "id") -> dict[Any, Mapping[str, Any]]:
    """Returns rows by their ids; one whose id is not a number or a text can be referred to by none."""
    return {row[key]: row for row in rows if has_id(row, key)}


def has_id(row: Any, key: str = "id") -> bool:
    """Whether a row is an object whose id is a number or a text."""
    return isinstance(row, Mapping) and isinstance(row.get(key), int | str) and not isinstance(row[key], bool)


def files_below(folder: Path, suffixes: str | tuple[str, ...], deep: bool = True) -> list[Path]:
    """Returns the files of a folder by their suffixes, in order; refuses pipes, devices and links that lead out.

    Names that begin with a dot are what file systems leave behind.
    """
    found = sorted(path for path in (folder.rglob("*") if deep else folder.iterdir()) if not path.name.startswith("."))
    found = [path for path in found if path.name.lower().endswith(suffixes) and not path.is_dir()]
    if bad := next((path for path in found if is_special(path) or leads_out(folder, path)), None):
        raise ValueError(f"{bad} is not a regular file, or a link that leads out of {folder}: remove it.")
    return found


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


class FolderIndex:
    """Finds the files below a folder by names as tools write them.

    A name counts as it is given where that is a file. Else letters may be URL-encoded, composed or decomposed
    (Unicode's NFC and NFD), large or small, and of the two paths, the one that is asked for and the one of the file,
    one may have folders in front that the other has not; then only one file may fit.
    """

    def __init__(self, folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> None:
        self.folder, self.suffixes = folder, tuple(suffixes)
        # All names that will be asked for, where they are known: a file that may be that of two is not that of one.
        self.names: Sequence[str] = ()

    def find(self, name: str, whole: bool = False) -> Path | None:
        """Returns the file that a name means, None where there is none.

        Args:
            name: as a file gives it.
            whole: the folders in front must be the same.

        Raises:
            RegionRecordError: several files may be meant.
        """
        exact = inside(self.folder, name)
        if exact is not None and os.path.isfile(exact):
            return exact
        asked = name_parts(name)
        if not asked:
            return None
        fitting: dict[int, list[Path]] = {}
        for parts, path in self._files.get(asked[-1], ()):
            shared = min(len(parts), len(asked))
            if parts[-shared:] == asked[-shared:] and (not whole or len(parts) == len(asked)):
                fitting.setdefault(shared, []).append(path)
        shared = max(fitting, default=0)
        found = fitting.get(shared, [])
        if found and shared < len(asked) and self._ends[tuple(asked[-shared:])] > 1:
            raise RegionRecordError(
                f"{name!r} is not in {self.folder}, and {found[0].name} there may belong to another image"
            )
        if len(found) > 1:
            listed = ", ".join(str(path.relative_to(self.folder)) for path in sorted(found)[:5])
            raise RegionRecordError(
                f"{name!r} may be any of {listed} in {self.folder}; include the folder in the name"
            )
        return found[0] if found else None

    @cached_property
    def _ends(self) -> Counter[tuple[str, ...]]:
        """How many of the names end with the same parts, for names of several parts."""
        paths = {tuple(name_parts(name)) for name in self.names}
        return Counter(path[start:] for path in paths for start in range(1, len(path)))

    @cached_property
    def _files(self) -> dict[str, list[tuple[list[str], Path]]]:
        """Files by the last part of their paths."""
        files: dict[str, list[tuple[list[str], Path]]] = {}
        for folder, below, names in os.walk(self.folder):
            # What file systems leave behind.
            below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
            for name in names:
                if name.lower().endswith(self.suffixes) and not name.startswith("."):
                    path = Path(folder, name)
                    if is_special(path) or leads_out(self.folder, path):
                        continue
                    parts = name_parts(path.relative_to(self.folder).as_posix())
                    files.setdefault(parts[-1], []).append((parts, path))
        return files


def name_parts(name: str) -> list[str]:
    """Returns the parts of a path in one spelling, without what tools put in front: addresses, drives, `..`."""
    # Label Studio writes /data/local-files/?d=photos/1.jpg for a file on its disk.
    name = name.split("?d=", 1)[-1]
    name = urlsplit(name).path if "://" in name else name
    parts = unicodedata.normalize("NFC", unquote(name)).casefold().replace("\\", "/").split("/")
    return [part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[a-z]:", part)]


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file: UTF-8, or UTF-16 with its mark; errors name file, line and remedy."""
    content = path.read_bytes()
    try:
        # Not splitlines(), which takes rarer characters for ends of lines as well.
        return content.decode(text_encoding(path)).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: {content.splitlines()[line - 1][:60]!r} is not UTF-8; save the file as UTF-8, "
            "from a Windows code page for instance: iconv -f CP1252 -t UTF-8"
        ) from None


def rotated_corners(box: Sequence[float], degrees: float) -> list[float]:
    """Returns the corners x, y, x, y, ... of a box, xyxy, turned clockwise about its center."""
    x0, y0, x1, y1 = box
    x, y, cos, sin = (x0 + x1) / 2, (y0 + y1) / 2, math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = [(x0 - x, y0 - y), (x1 - x, y0 - y), (x1 - x, y1 - y), (x0 - x, y1 - y)]
    return [value for dx, dy in corners for value in (x + dx * cos - dy * sin, y + dx * sin + dy * cos)]


def read_degrees(given: Any) -> float:
    """Returns an angle in degrees from 0 to 360; what is not given, or empty, is 0."""
    try:
        return float(given or 0) % 360
    except (TypeError, ValueError):
        raise ValueError(f"its rotation is {given!r}, expected degrees") from None


def bounds(polygon: Sequence[float]) -> list[float]:
    """Returns the box, xyxy, around points x, y, x, y, ..."""
    return [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]


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


def image_fields(image: Any, image_id: Any, size: tuple[int, int], source: Any, **fields: Any) -> dict[str, Any]:
    """Returns an image's row.

    Args:
        image: a path, or a picture as `RegionRecord` has it.
        image_id: unique in the data set.
        size: width and height.
        source: what errors name.
        fields: any other field of `RegionRecord`, and what a reader may say to the loader.
    """
    image = str(image) if isinstance(image, Path) else image
    width, height = size
    row = {"image": image, "image_id": str(image_id), "width": width, "height": height, "source": str(source)}
    return {**row, **fields}


def read_scenes(
    split: str = "train",
    count: int = 1000,
    start: int = 0,
    task: str = "caption",
    lengths: bool = False,
    languages: str | Sequence[str] | None = None,
) -> Iterator[Record]:
    """Yields the records of `count` scenes; those without an object that can be described have no regions.

    Args:
        split: train, validation or test.
        count: How many scenes to render.
        start: The index of the first scene.
        task: "caption" for their free captions, "recognition" for texture, color and shape.
        lengths: whether each region also has short and detailed captions in English, and all say their length.
        languages: of the captions, as `["en", "de", "zh"]` or `"en+de+zh"`, and all say theirs; None: English.
    """
    spoken = None if languages is None else scene_languages(languages)
    for scene in scenes(split, count, start):
        record = record_with_lengths(scene) if lengths else scene.to_record()
        if spoken is not None:
            record = with_languages(record, scene.seed, [obj for obj in scene.objects if obj.describable], spoken)
        yield {**record, "task": task}
