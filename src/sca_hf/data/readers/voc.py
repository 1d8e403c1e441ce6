"""Reads Pascal VOC: one XML file per image, as LabelImg, CVAT, Roboflow and many others write it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any, Literal
from xml.etree import ElementTree

from ..pictures import read_head
from ..region import RegionRecordError, category_text, naming
from .coco import mask_fields
from .common import (
    Clip,
    FolderIndex,
    Record,
    bounds,
    category_fields,
    files_below,
    find_file,
    image_fields,
    inside,
    read_degrees,
    read_lines,
    region_fields,
    rotated_corners,
    spellings,
)


_SizeRule = Literal["check", "picture", "scale"]
_NameRule = Literal["filename", "stem"]


def read_voc(
    root: str | Path,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    split: str | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    one_based: bool | None = None,
    difficult: bool = True,
    size: _SizeRule = "check",
    picture: _NameRule | None = None,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per XML file, in the order of their paths, or of the split's list.

    Args:
        root: the folder that holds the others.
        annotations: the XML files, in subfolders too (default: root/Annotations, else root).
        images: the pictures (default: root/JPEGImages, root/images, root/<the file's `folder`>, beside the XML, root).
        split: take the images that root/ImageSets/Main/<split>.txt lists (default: all).
        task: "caption" makes the class name the caption of its regions, "recognition" their category alone.
        names: words for class names.
        one_based: pixels count from 1 and the far edge is inside: 1,1,10,10 is the box 0,0,10,10. False: from 0, it
            stays 1,1,10,10. Default: from 1, unless a left or upper edge of 0 in any file shows the other.
        difficult: keep objects that are marked as difficult.
        size: what to do where the XML and the picture disagree on its size. "check": the image is an error. "picture":
            the boxes are in the picture's own pixels. "scale": the picture was resized, the boxes are scaled to it.
        picture: which picture to take where the XML's `filename` and the XML file's own name lead to two (default: the
            image is an error).
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    folder = _annotation_folder(Path(root), annotations)
    source = _VocFolder(Path(root), folder, Path(images) if images else None, picture)
    based, notes = source.counting(one_based)
    for path in source.files(split):
        try:
            with naming(str(path)):
                annotation = _parse(path)
                record = source.record(path, annotation, size)
        except RegionRecordError as error:
            yield error
            continue
        scale, extent = record.pop("scale"), (record["width"], record["height"])
        items = annotation.findall("object")
        left = [] if difficult else [item for item in items if _is_difficult(item)]
        gone = [category_text(_name(item), names) for item in left]
        for region_id, item in ((f"{record['image_id']}/{place}", item) for place, item in enumerate(items)):
            try:
                with naming(f"{path}, image {record['image_id']}, region {region_id}"):
                    if item not in left:
                        fields = {"clip": clip, **category_fields(_name(item), task, names), **_caption(item)}
                        fields |= _shape(item, based, scale, extent)
                        record["regions"].append(region_fields(region_id, size=extent, **fields))
            except RegionRecordError as error:
                record["regions"].append(error)
        yield {**record, "task": task, "left_out": {"difficult objects": gone} if gone else {}, "notes": notes}


def _annotation_folder(root: Path, annotations: str | Path | None) -> Path:
    folder = Path(annotations) if annotations else root / "Annotations"
    if not annotations and not folder.is_dir():
        folder = root
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a directory, expected the one with the XML files.")
    return folder


@dataclass
class _VocFolder:
    """Where XML files and pictures lie."""

    root: Path
    annotations: Path
    images: Path | None
    picture: _NameRule | None

    @cached_property
    def index(self) -> FolderIndex:
        """The pictures, by any spelling of their names."""
        return FolderIndex(self.images or self.root)

    def counting(self, one_based: bool | None) -> tuple[bool, list[str]]:
        """Whether pixels count from 1, as told or as the files show it, and what to say of it."""
        if one_based is not None:
            return one_based, []
        for path in self.files(None):
            with suppress(OSError):  # told when it is read
                if _ZERO.search(path.read_bytes()):
                    return False, [f"pixels are read as 0-based: {path} has an edge of 0"]
        return True, []

    def files(self, split: str | None) -> list[Path]:
        """The XML files, in order."""
        if split is None:
            found = files_below(self.annotations, ".xml")
            if not found:
                raise ValueError(f"{self.annotations} has no XML files; pass annotations=FOLDER.")
            return found
        listed = inside(self.root / "ImageSets" / "Main", f"{split}.txt")
        if listed is None or not listed.is_file():
            folder = self.root / "ImageSets" / "Main"
            there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "no lists"
            raise ValueError(f"split: there is no file {folder / f'{split}.txt'}; that folder has {there}.")
        rows = [line.split() for line in read_lines(listed)]
        # In the lists of one class a -1 behind the name says that the image has none of it.
        stems = [row[0] for row in rows if row and row[1:] != ["-1"]]
        paths = [inside(self.annotations, f"{stem}.xml") for stem in stems]
        for stem, path in zip(stems, paths, strict=True):
            if path is None:
                raise ValueError(f"{listed} names {stem!r}, which points outside {self.annotations}.")
        return [path for path in paths if path is not None]

    def record(self, path: Path, annotation: ElementTree.Element, rule: _SizeRule) -> dict[str, Any]:
        """Builds a record without regions; `scale` is the factor from the XML's pixels to the picture's, x and y."""
        image_id = path.relative_to(self.annotations).with_suffix("").as_posix()
        where = f"{path}, image {image_id}"
        image = self._find_picture(path, annotation, where)
        head, told = read_head(image), _told_size(annotation)
        actual, scale = head.size, (1.0, 1.0)
        stored = told is not None and told == head.stored and told != actual and rule == "check"
        if told is not None and stored:
            actual = told  # the loader turns what was annotated in stored pixels
        if told != actual and rule != "picture":
            known = told is not None and min(told) > 0
            stated = f"the XML says {told[0]} x {told[1]}" if told is not None else "the XML states no size"
            if rule == "check" or not known or told is None:
                remedy = 'size="picture" if its boxes are in the pixels of the picture'
                remedy += ', size="scale" if the picture was resized' if known else ""
                raise RegionRecordError(f"{where}: {stated}, the picture is {actual[0]} x {actual[1]}; say {remedy}")
            scale = (actual[0] / told[0], actual[1] / told[1])
        return image_fields(image, image_id, actual, path, regions=[], scale=scale, measured=not stored)

    def _find_picture(self, path: Path, annotation: ElementTree.Element, where: str) -> Path:
        # Of a path, as some tools write, only the name counts; a subfolder counts that the XML lies in as well.
        named = PureWindowsPath((annotation.findtext("filename") or "").strip()).name
        inner = PureWindowsPath((annotation.findtext("folder") or "").strip()).name
        below = path.parent.relative_to(self.annotations)
        folders = [self.images] if self.images else [self.root / "JPEGImages", self.root / "images"]
        folders = [folder / below for folder in folders] + folders if below.parts else folders
        more = inside(self.images or self.root, inner) if inner else None
        folders += [more] if more else []
        folders += [] if self.images else [path.parent, self.root]
        by_name = find_file(folders, spellings(named)) if named else None
        by_stem = find_file(folders, spellings(path.stem + (Path(named).suffix or ".jpg")))
        if by_name and by_stem and not by_name.samefile(by_stem) and self.picture is None:
            raise RegionRecordError(
                f"{where}: the XML's filename means {by_name}, its own name {by_stem}; "
                'choose with picture="filename" or picture="stem"'
            )
        found = (by_stem or by_name) if self.picture == "stem" else (by_name or by_stem)
        if found is None:  # under another spelling of its name
            tried = [*(spellings(named) if named else ()), *spellings(path.stem + ".jpg")]
            found = next((place for name in tried if (place := self.index.find(name))), None)
        if found is None:
            looked = ", ".join(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))
            raise RegionRecordError(
                f"{where}: there is no picture {named or path.stem!r} or {path.stem}.* in {looked}"
            )
        return found


# A left or upper edge of 0, which those who count from 1 do not have.
_ZERO = re.compile(rb"<[xy]min>\s*0+(?:\.0*)?\s*</")


class _PlainTree(ElementTree.TreeBuilder):
    """Builds elements, and refuses a document type: it alone can declare entities, which may grow without bound."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise RegionRecordError("it declares a document type, which no VOC file needs")


def _parse(path: Path) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_PlainTree())
    try:
        annotation = ElementTree.parse(path, parser).getroot()
    except RegionRecordError as error:
        raise RegionRecordError(f"{path}: {error}") from None
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        raise RegionRecordError(f"{path} cannot be read as XML: {error}") from None
    if annotation is None or annotation.tag != "annotation":
        raise RegionRecordError(f"{path}: the outermost element is {annotation.tag!r}, expected 'annotation'")
    return annotation


def _told_size(annotation: ElementTree.Element) -> tuple[int, int] | None:
    try:
        return int(annotation.findtext("size/width", "")), int(annotation.findtext("size/height", ""))
    except ValueError:
        return None


def _shape(
    item: ElementTree.Element, one_based: bool, scale: tuple[float, float], size: tuple[int, int]
) -> dict[str, Any]:
    """Returns the box, xyxy with far edges exclusive, and the mask of an object, where it has polygons or is turned.

    size: width and height of the image.
    """
    shift = 1 if one_based else 0
    polygons = [
        [(value - shift) * scale[place % 2] for place, value in enumerate(_polygon(polygon))]
        for polygon in item.findall("polygon")
    ]
    if item.find("bndbox") is None and polygons:
        box = bounds([value for polygon in polygons for value in polygon])
    else:
        box = _box(item, one_based, scale)
        degrees = read_degrees(_attributes(item).get("rotation"))
        if degrees and not polygons:  # as CVAT has it
            polygons = [rotated_corners(box, degrees)]
            # Tools keep a box inside the picture, but not the corners that come of turning it.
            return {"box": bounds(polygons[0]), "clip": "image", **mask_fields(polygons, size)}
    return {"box": box, **(mask_fields(polygons, size) if polygons else {})}


def _polygon(element: ElementTree.Element) -> list[float]:
    """Returns x, y, x, y, ... of Roboflow's x1, y1, x2, ..., or of LabelMe's points."""
    pairs = [(point.findtext("x"), point.findtext("y")) for point in element.findall("pt")]
    if not pairs:
        count = sum(1 for child in element if child.tag.startswith("x"))
        pairs = [(element.findtext(f"x{place}"), element.findtext(f"y{place}")) for place in range(1, count + 1)]
    try:
        return [float(value or "") for pair in pairs for value in pair]
    except ValueError:
        raise ValueError(f"its polygon holds {pairs!r}, expected numbers x1, y1, x2, y2, ...") from None


def _name(item: ElementTree.Element) -> str:
    return (item.findtext("name") or "").strip()


def _is_difficult(item: ElementTree.Element) -> bool:
    return (item.findtext("difficult") or "0").strip() not in ("0", "")


def _attributes(item: ElementTree.Element) -> dict[str, str]:
    """Returns what CVAT writes of an object beyond VOC."""
    found = item.findall("attributes/attribute")
    return {(each.findtext("name") or "").strip(): (each.findtext("value") or "").strip() for each in found}


def _caption(item: ElementTree.Element) -> dict[str, list[str]]:
    caption = _attributes(item).get("caption")
    return {"captions": [caption]} if caption else {}


def _box(item: ElementTree.Element, one_based: bool, scale: tuple[float, float]) -> list[float]:
    """Returns xyxy in pixels of the picture, far edges exclusive."""
    edges = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = item.findtext(f"bndbox/{name}")
        if text is None:
            raise ValueError(f"there is no bndbox/{name}")
        try:
            edges.append(float(text))
        except ValueError:
            raise ValueError(f"bndbox/{name} is {text!r}, expected a number") from None
    x0, y0, x1, y1 = edges
    # Counted from 1 this would be a single pixel; what it is, is a click without a drag.
    if one_based and 0 in (x0, y0):
        raise ValueError("an edge is 0, but one_based=True counts pixels from 1; omit it, or pass one_based=False")
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"bndbox {x0:g}, {y0:g}, {x1:g}, {y1:g} is empty, expected xmin < xmax and ymin < ymax")
    shift = 1 if one_based else 0
    return [(x0 - shift) * scale[0], (y0 - shift) * scale[1], x1 * scale[0], y1 * scale[1]]
