"""Reads COCO instances (boxes, polygons, run-length codes, crowds) and the sets that follow COCO's form.

Those are LVIS, COCO's photographs with masks of 1,203 categories, and the large sets of boxes only: Objects365
version 2 and V3Det.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...environment import install_command
from ...processing.masks_sca import rle_size, tidy_rle
from ..notes import NOTES
from ..region import RegionRecordError, category_text, check_names, naming
from .common import (
    Clip,
    Crowd,
    FolderIndex,
    Record,
    attempt,
    bounds,
    find_file,
    image_fields,
    inside,
    read_annotations,
    read_degrees,
    region_fields,
    rotated_corners,
)


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    masks: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of a COCO instances file, in the file's order.

    A `caption` or `captions` in an annotation, or in its `attributes`, are its captions, in place of the class name. A
    box with `attributes.rotation`, in degrees clockwise as CVAT has it, is the box around the turned one, which is its
    mask. Without a box, that of the segmentation counts. Boxes are fractions of the image's sides where no number of
    any box in the file exceeds 1.

    Args:
        annotations: `instances_train2017.json` or any file of its form.
        images: the folder in which the `file_name`s lie (default: the file's own, or one that is beside it as the
            tools have it).
        task: "caption" makes the class name the caption of its regions, "recognition" their category alone.
        names: words for class names, in place of `names.category_text`'s own.
        crowd: whether annotations of a crowd (`iscrowd`) are regions.
        masks: read the segmentations; an empty one, or one without area, leaves the region its box alone.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    folder = Path(images) if images is not None else default_images(Path(annotations))
    yield from _CocoFile(Path(annotations), Locator(folder), task, names, crowd, masks, clip).records()


def unnamed_images(annotations: str | Path, images: str | Path | None = None, **others: Any) -> list[Path]:
    """Returns the folder that is read although no option names it, for the cache to know its state."""
    return [] if images is not None else [default_images(Path(annotations))]


read_coco.paths = unnamed_images  # type: ignore[attr-defined]


def default_images(annotations: Path) -> Path:
    """Returns the folder of the pictures of a file in COCO's form, where the option does not name it."""
    folder = annotations.parent
    base = folder.parent if folder.name == "annotations" else folder
    subset = annotations.stem.split("_", 1)[-1]
    usual = [base / "images" / subset, base / subset, base / "images"]
    return next((path for path in usual if path.is_dir()), base)


class Locator:
    """Finds an image's file below a folder; returns None where its name leads out and nothing inside fits."""

    def __init__(self, folder: Path) -> None:
        self.index = FolderIndex(folder)

    def expect(self, images: Sequence[Mapping[str, Any]]) -> None:
        """Takes all images of the file, so that no file is taken for that of two."""
        self.index.names = [str(image.get("file_name")) for image in images]

    def __call__(self, image: Mapping[str, Any]) -> Path | None:
        name = str(image["file_name"])
        return self.index.find(name) or inside(self.index.folder, name)


def place_image(
    image: Mapping[str, Any], locate: Callable[[Mapping[str, Any]], Path | None], where: str
) -> tuple[Path, tuple[int, int]]:
    """Returns the file, width and height of an image; raises a `RegionRecordError` that names `where`."""
    with naming(where):
        if image.get("id") is None:
            raise ValueError("an image has no id")
        path = locate(image)
    with naming(f"{where}: file_name, width or height is missing or not a number"):
        size = (int(image["width"]), int(image["height"]))
    if path is None:
        raise RegionRecordError(f"{where}: its file name points outside the image folder")
    return path, size


# Fields of annotations that may hold what captions are made for.
_UNREAD_TEXTS = frozenset(("description", "text", "phrase", "sentence", "expression", "label"))


@dataclass
class _CocoFile:
    """A file of images, annotations and categories, and how to read it.

    locate: finds an image's file; None where its name leads out of the folder.
    plain: what to make of a class name that `names` has not, before it is written as words.
    """

    path: Path
    locate: Callable[[Mapping[str, Any]], Path | None]
    task: str = "caption"
    names: Mapping[str, str] | None = None
    crowd: Crowd = "skip"
    masks: bool = True
    clip: Clip = "rounding"
    plain: Callable[[str], str] = str

    def records(self) -> Iterator[Record]:
        content = read_annotations(self.path)
        categories = self._categories(content)
        images = rows_of(content, "images", self.path)
        counts = Counter(id_key(image.get("id")) for image in images)
        rows: dict[Any, list[dict[str, Any]]] = {key: [] for key in counts if key is not None}
        if isinstance(self.locate, Locator):
            self.locate.expect(images)
        strays: list[dict[str, Any]] = []
        annotations = rows_of(content, "annotations", self.path)
        for row in annotations:
            rows.get(id_key(row.get("image_id")), strays).append(row)
        for row in strays:
            where = f"{self.path}, image {row.get('image_id')}"
            yield RegionRecordError(f"{where}: annotation {row.get('id')} refers to this image, which does not exist")
        self.notes: list[str] = []
        self.in_fractions = _in_fractions(row.get("bbox") for row in annotations)
        if self.in_fractions:
            self.notes.append("no box has a number above 1: boxes are read as fractions of the image's sides")
        unread = sorted(
            {key for row in annotations for key in _UNREAD_TEXTS & row.keys() if isinstance(row[key], str)}
        )
        if unread:
            self.notes.append(f"texts of annotations in {', '.join(unread)} are not read; those in caption are")
        seen: set[Any] = set()
        for image in images:
            key = id_key(image.get("id"))
            if key is not None and counts[key] > 1:
                where = f"{self.path}, image {key} ({image.get('file_name')})"
                yield RegionRecordError(f"{where}: two images have the id {key}, so their boxes cannot be told apart")
                continue
            yield self._record(image, rows.pop(key, []), categories, seen)

    def _categories(self, content: Any) -> dict[Any, str]:
        if isinstance(content, dict) and "categories" not in content:
            annotations = rows_of(content, "annotations", self.path)
            if annotations and all(_captions(row) for row in annotations):
                return {}  # captions need no classes
        rows = rows_of(content, "categories", self.path)
        names = {id_key(row.get("id")): str(row.get("name") or "") for row in rows}
        if len(names) < len(rows):
            raise ValueError(f"{self.path}: two categories have the same id.")
        check_names(self.names, names.values(), str(self.path))
        table = self.names or {}
        return {key: table.get(name) or category_text(self.plain(name)) for key, name in names.items()}

    def _record(
        self, image: Mapping[str, Any], rows: list[dict[str, Any]], categories: Mapping[Any, str], seen: set[Any]
    ) -> Record:
        where = f"{self.path}, image {image.get('id')}"
        try:
            path, size = place_image(image, self.locate, where)
        except RegionRecordError as error:
            return error
        crowds: list[str] = []
        regions: list[Record] = []
        for row in rows:
            if self.crowd != "keep" and row.get("iscrowd"):
                crowds.append(categories.get(id_key(row.get("category_id")), "?"))
                continue
            regions.append(attempt(f"{where}, region {row.get('id')}", self._region, row, size, categories, seen))
        extra = image.get("extra")
        # Roboflow names the picture that augmented copies were made of.
        group = image.get("group", extra.get("name") if isinstance(extra, dict) else None)
        told = {"left_out": {"crowd annotations": crowds} if crowds else {}, "notes": self.notes}
        return image_fields(
            path, image.get("id"), size, self.path, task=self.task, regions=regions, group=group, **told
        )

    def _region(
        self, row: Mapping[str, Any], size: tuple[int, int], categories: Mapping[Any, str], seen: set[Any]
    ) -> dict[str, Any]:
        key = id_key(row.get("id"))
        if key is None or key in seen:
            raise ValueError("an annotation has no id" if key is None else "two annotations have this id")
        seen.add(key)
        captions, category = _captions(row), categories.get(id_key(row.get("category_id")))
        if category is None and (not captions or (row.get("category_id") is not None and categories)):
            raise ValueError(f"there is no category with the id {row.get('category_id')!r}")
        if not captions and category is not None and self.task == "caption":
            captions = [category]
        segmentation, box, turned = _shape(row, size, self.in_fractions)
        mask = mask_fields(segmentation, size) if self.masks else {}
        # Tools keep a box inside the picture, but not the corners that come of turning it.
        clip: Clip = "image" if turned else self.clip
        notes = _notes(row, len(captions)) if captions else {}
        return region_fields(str(row["id"]), box, size, clip, **mask, captions=captions, category=category, **notes)


def id_key(value: Any) -> Any:
    """Returns an id as all files have it: some tools write those of images as numbers and refer to them as texts."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if value is None else str(value)


def _captions(row: Mapping[str, Any]) -> list[str]:
    """Returns the captions of an annotation; annotation tools keep them among its attributes."""
    for fields in (row, row.get("attributes")):
        if not isinstance(fields, dict):
            continue
        for key in ("captions", "caption"):
            if key not in fields:
                continue
            given = fields[key]
            texts = [given] if isinstance(given, str) else given if isinstance(given, list) else []
            captions = [text for text in texts if isinstance(text, str) and text.strip()]
            if captions:
                return captions
    return []


def _notes(row: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Returns what an annotation says of its captions, where it does: `lengths`, or `length` of all; languages too."""
    found: dict[str, Any] = {}
    for fields in (row, row.get("attributes")):
        for name in NOTES:
            if isinstance(fields, dict) and (said := fields.get(name) or fields.get(name[:-1])):
                found.setdefault(name, said if isinstance(said, list) else [said] * count)
    return found


def _in_fractions(boxes: Iterable[Any]) -> bool:
    """Whether no number of any box exceeds 1, so that they cannot be pixels."""
    found = False
    for box in boxes:
        try:
            x, y, width, height = (float(value) for value in box)
        except (TypeError, ValueError, OverflowError):
            continue
        # Fractions add up to 1, and rounding to a little more.
        if x + width > 1.001 or y + height > 1.001:
            return False
        found = found or (width > 0 and height > 0)
    return found


def _shape(row: Mapping[str, Any], size: tuple[int, int], in_fractions: bool) -> tuple[Any, list[float], bool]:
    """Returns the segmentation and the box, xyxy, of an annotation in pixels, and whether the box was a turned one.

    size: width and height of the image.
    """
    segmentation = row.get("segmentation")
    if isinstance(segmentation, list) and segmentation and not isinstance(segmentation[0], list | dict | str):
        segmentation = [segmentation]  # one polygon, not in a list of its own
    if in_fractions and isinstance(segmentation, list):
        segmentation = [_in_pixels(polygon, size) for polygon in segmentation]
    given = row.get("bbox")
    if segmentation and (not given or (isinstance(given, list) and not any(given))):
        return segmentation, _segmentation_box(segmentation, size), False
    box = xywh_box(given)
    if in_fractions:
        box = _in_pixels(box, size)
    degrees = _rotation(row)
    if not degrees:
        return segmentation, box, False
    corners = rotated_corners(box, degrees)
    if not segmentation:
        return [corners], bounds(corners), True
    around = _segmentation_box(segmentation, size)
    if max(abs(a - b) for a, b in zip(around, box, strict=True)) <= _AROUND:
        return segmentation, box, False  # the box is that of the turned shape already
    return segmentation, bounds(corners), True


# A box and a segmentation that differ by less, in pixels, are of one another.
_AROUND = 2


def _in_pixels(values: Any, size: tuple[int, int]) -> Any:
    """Scales x, y, x, y, ... from fractions of the sides, unless they show that they are not."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return values  # an error for others to tell
    if any(abs(number) > 2 for number in numbers):
        return values
    return [number * size[index % 2] for index, number in enumerate(numbers)]


_ANGLES = ("rotation", "angle", "theta")


def _rotation(row: Mapping[str, Any]) -> float:
    """Returns by how many degrees a box is turned clockwise.

    Raises:
        ValueError: it is turned by a number whose meaning the file does not tell.
    """
    attributes = row.get("attributes")
    given = attributes.get("rotation") if isinstance(attributes, dict) else None
    for key in _ANGLES:
        if key in row and row[key] and given is None:
            raise ValueError(
                f"its box is rotated by {key} = {row[key]!r}, in an unknown unit and direction; export polygons"
            )
    return read_degrees(given)


def _segmentation_box(segmentation: Any, size: tuple[int, int]) -> list[float]:
    """Returns the box, xyxy, around polygons or a run-length code; size: width and height of the image."""
    if isinstance(segmentation, Mapping):
        _, box = tidy_rle(dict(segmentation), "segmentation", size[::-1])
        if box is None:
            raise ValueError("there is no bbox, and the segmentation covers no pixel")
        return [float(side) for side in box]
    points = [value for polygon in segmentation for value in _polygon(polygon)]
    if len(points) < 6:
        raise ValueError("there is no bbox, and no polygon of three points or more")
    return bounds(points)


def xywh_box(box: Any) -> list[float]:
    """Returns xyxy from left, top, width and height, fractions kept."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox is {box!r:.200}, expected left, top, width and height") from None
    return [x, y, x + width, y + height]


def mask_fields(
    segmentation: Any, size: tuple[int, int], read: Callable[..., dict[str, Any] | None] | None = None
) -> dict[str, Any]:
    """Returns the field `mask` of a region, or what is the `problem` with it: its box does not depend on it.

    size: width and height of the image; read: what reads the segmentation, see [`segmentation_mask`].
    """
    mask = attempt("", read or segmentation_mask, segmentation, size)
    return {"problem": str(mask)} if isinstance(mask, RegionRecordError) else {"mask": mask}


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """Returns a COCO segmentation, polygons or RLE, as one compressed RLE; None when it covers no pixel.

    All polygons of a list count, less those of fewer than three points. size: width and height of the image.
    """
    try:
        from pycocotools import mask as coco_mask
    except ModuleNotFoundError:
        raise ImportError(f"Masks of polygons need pycocotools: {install_command('train')}") from None
    width, height = size
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        rle, box = tidy_rle(dict(segmentation), "segmentation", (height, width))
        return None if box is None else rle
    rle_size({"size": [height, width], "counts": ""}, "the picture")
    polygons = [_polygon(polygon) for polygon in segmentation]
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        return None
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if coco_mask.area(merged) == 0:
        return None
    return {"size": [height, width], "counts": merged["counts"].decode("ascii")}


def _polygon(values: Any) -> list[float]:
    try:
        polygon = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"segmentation holds {values!r:.200}, expected polygons x0, y0, x1, y1, ...") from None
    # What is far outside would make the rasterizer run forever.
    if len(polygon) % 2 or not all(abs(value) < 1e6 for value in polygon):
        raise ValueError(
            "segmentation has a polygon with an odd number of coordinates, or a coordinate that is not a number"
        )
    return polygon


def rows_of(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or (rows and not any(isinstance(row, dict) for row in rows)):
        raise ValueError(f"{path} has no list of {key}, as a COCO instances file has.")
    # What is not an object has no fields, which is told where they are needed.
    return [row if isinstance(row, dict) else {} for row in rows]


def read_lvis(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    masks: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `lvis_v1_train.json` or `lvis_v1_val.json`.

    Which categories are known to be absent from an image, or not marked everywhere, is of no use here and not read.

    Args:
        annotations: the file; of version 1, which tells a picture by `coco_url`, or 0.5.
        images: the folder that holds `train2017` and `val2017` (both splits take pictures of both).
        names: words for the names in the file; by default what is in brackets there, as `bow_(weapon)`, is dropped.
        task, masks, clip: as for COCO.
    """
    folder = Path(images)

    def locate(image: Mapping[str, Any]) -> Path | None:
        if "coco_url" not in image:
            name = str(image["file_name"])
            # Version 0.5 writes COCO_val2014_000000000042.jpg for what is 000000000042.jpg in val2017.
            plain = name.rsplit("_", 1)[-1]
            found = find_file([folder, folder / "train2017", folder / "val2017"], [name, plain])
            return found or inside(folder, name)
        split, name = urlsplit(str(image["coco_url"])).path.rsplit("/", 2)[-2:]
        return find_file([folder], [f"{split}/{name}", name]) or inside(folder, f"{split}/{name}")

    file = _CocoFile(Path(annotations), locate, task, names, "skip", masks, clip, plain=_without_brackets)
    yield from file.records()


def _without_brackets(name: str) -> str:
    return name.split("_(")[0]


def read_boxes(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `zhiyuan_objv2_*.json` (Objects365) or of `v3det_2023_v1_*.json` (V3Det).

    A few photographs of either were never published or are gone: read it with `on_error="skip"`.

    Args:
        annotations: the file.
        images: the folder that holds `images/v1/patch0/...` and `images/a00000066/...` as the files name them, or
            `patch0/...` and `a00000066/...`, or all pictures.
        crowd: whether the boxes that are marked as a group are regions.
        task, names, clip: as for COCO.
    """
    yield from read_coco(annotations, images, task, names, crowd, masks=False, clip=clip)
