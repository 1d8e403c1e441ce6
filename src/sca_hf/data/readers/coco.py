"""Reads COCO instances (boxes, polygons, run-length codes, crowds) and the sets that follow COCO's form.

Those are LVIS, COCO's photographs with masks of 1,203 categories, and the large sets of boxes only: Objects365
version 2 and V3Det.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ...processing.masks_sca import decode_rle, encode_rle
from ..region import RegionRecordError, category_text, check_names
from .common import Clip, Record, choice, find_file, inside, read_json, region_fields


_Crowd = Literal["skip", "keep"]


def read_coco(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: _Crowd = "skip",
    masks: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of a COCO instances file, in the file's order.

    Args:
        annotations: `instances_train2017.json` or any file of its form.
        images: the folder in which the `file_name`s lie.
        task: "caption" makes the class name the caption of its regions, "recognition" their category alone.
        names: words for class names, in place of `names.category_text`'s own.
        crowd: whether annotations of a crowd (`iscrowd`) are regions.
        masks: read the segmentations; an empty one, or one without area, leaves the region its box alone.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    folder = Path(images)

    def locate(image: Mapping[str, Any]) -> Path | None:
        return inside(folder, str(image["file_name"]))

    yield from _CocoFile(Path(annotations), locate, task, names, crowd, masks, clip).records()


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
    crowd: _Crowd = "skip"
    masks: bool = True
    clip: Clip = "rounding"
    plain: Callable[[str], str] = str

    def records(self) -> Iterator[Record]:
        choice(self.crowd, "crowd", ("skip", "keep"))
        choice(self.clip, "clip", ("rounding", "image"))
        content = read_json(self.path)
        categories = self._categories(rows_of(content, "categories", self.path))
        images = rows_of(content, "images", self.path)
        rows: dict[Any, list[dict[str, Any]]] = {image.get("id"): [] for image in images}
        if len(rows) < len(images):
            twice = [key for key, count in Counter(image.get("id") for image in images).items() if count > 1]
            raise ValueError(
                f"{self.path}: two images have the id {twice[0]}, so that nobody knows whose boxes are whose."
            )
        strays: list[dict[str, Any]] = []
        for row in rows_of(content, "annotations", self.path):
            rows.get(row.get("image_id"), strays).append(row)
        for row in strays:
            where = f"{self.path}, image {row.get('image_id')}"
            yield RegionRecordError(f"{where}: there is no such image, but the annotation {row.get('id')} on it")
        seen: set[Any] = set()
        for image in images:
            yield self._record(image, rows.pop(image.get("id")), categories, seen)

    def _categories(self, rows: Sequence[Mapping[str, Any]]) -> dict[Any, str]:
        names = {row.get("id"): str(row.get("name") or "") for row in rows}
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
            path, size = self.locate(image), (int(image["width"]), int(image["height"]))
        except (KeyError, TypeError, ValueError) as error:
            return RegionRecordError(f"{where}: file_name, width or height is missing or not a number ({error})")
        if path is None:
            return RegionRecordError(f"{where}: its file name leads out of the folder of images")
        kept = [row for row in rows if self.crowd == "keep" or not row.get("iscrowd")]
        regions: list[Record] = []
        for row in kept:
            try:
                regions.append(self._region(row, size, categories, seen))
            except ValueError as error:
                regions.append(RegionRecordError(f"{where}, region {row.get('id')}: {error}"))
        return {
            "image": str(path),
            "image_id": str(image.get("id")),
            "width": size[0],
            "height": size[1],
            "task": self.task,
            "regions": regions,
            "source": str(self.path),
            "left_out": {"crowd annotations": len(rows) - len(kept)} if len(kept) < len(rows) else {},
        }

    def _region(
        self, row: Mapping[str, Any], size: tuple[int, int], categories: Mapping[Any, str], seen: set[Any]
    ) -> dict[str, Any]:
        if row.get("id") is None or row["id"] in seen:
            raise ValueError("the annotation has no id" if row.get("id") is None else "two annotations have this id")
        seen.add(row["id"])
        if row.get("category_id") not in categories:
            raise ValueError(f"there is no category with the id {row.get('category_id')!r}")
        name = categories[row["category_id"]]
        captions = [name] if self.task == "caption" else []
        mask = segmentation_mask(row.get("segmentation"), size) if self.masks else None
        box = xywh_box(row.get("bbox"))
        return region_fields(str(row["id"]), box, size, self.clip, mask=mask, captions=captions, category=name)


def xywh_box(box: Any) -> list[float]:
    """Returns xyxy from left, top, width and height, fractions kept."""
    try:
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        raise ValueError(f"bbox is {box!r}, expected left, top, width and height") from None
    return [x, y, x + width, y + height]


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """Returns a COCO segmentation, polygons or RLE, as one compressed RLE; None when it covers no pixel.

    All polygons of a list count, less those of fewer than three points. size: width and height of the image.
    """
    try:
        from pycocotools import mask as coco_mask
    except ModuleNotFoundError:
        raise ImportError("Masks of polygons need pycocotools: pip install 'sca-hf[train]'.") from None
    width, height = size
    if not segmentation:
        return None
    if isinstance(segmentation, Mapping):
        rle = encode_rle(decode_rle(dict(segmentation), "segmentation"))
        if rle["size"] != [height, width]:
            raise ValueError(f"segmentation is of size {rle['size']}, expected [height, width] = [{height}, {width}]")
        empty = coco_mask.area({**rle, "counts": rle["counts"].encode()}) == 0
        return None if empty else rle
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
    except (TypeError, ValueError):
        raise ValueError(f"segmentation holds {values!r}, expected polygons x0, y0, x1, y1, ...") from None
    # What is far outside would make the rasterizer run forever.
    if len(polygon) % 2 or not all(abs(value) < 1e6 for value in polygon):
        raise ValueError(
            "segmentation has a polygon of an odd number of coordinates, or a coordinate that is not a number"
        )
    return polygon


def rows_of(content: Any, key: str, path: Path) -> list[dict[str, Any]]:
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} has no list of {key}, as a COCO instances file has.")
    return rows


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


def read_objects365(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: _Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `zhiyuan_objv2_train.json` or `zhiyuan_objv2_val.json`.

    Three photographs that the training file names were never published: read it with `on_error="skip"`.

    Args:
        annotations: the file.
        images: the folder that holds `images/v1/patch0/...` as the file names them, or `patch0/...`, or all pictures.
        crowd: whether the boxes that are marked as a group are regions.
        task, names, clip: as for COCO.
    """
    locate = _locate_by_tail(Path(images), 2)
    yield from _CocoFile(Path(annotations), locate, task, names, crowd, masks=False, clip=clip).records()


def read_v3det(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: _Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `v3det_2023_v1_train.json` or `v3det_2023_v1_val.json`.

    A few photographs can no longer be fetched: read it with `on_error="skip"`.

    Args:
        annotations: the file.
        images: the folder that holds `images/a00000066/...` as the file names them, or `a00000066/...`.
        crowd: whether the boxes that are marked as a group are regions.
        task, names, clip: as for COCO.
    """
    locate = _locate_by_tail(Path(images), 2)
    yield from _CocoFile(Path(annotations), locate, task, names, crowd, masks=False, clip=clip).records()


def _locate_by_tail(folder: Path, parts: int) -> Callable[[Mapping[str, Any]], Path | None]:
    """Finds pictures by their whole name, or by the last parts of it, down to the file's name alone."""

    def locate(image: Mapping[str, Any]) -> Path | None:
        name = str(image["file_name"])
        pieces = name.replace("\\", "/").split("/")
        tails = ["/".join(pieces[-count:]) for count in range(parts, 0, -1)]
        return find_file([folder], dict.fromkeys([name, *tails])) or inside(folder, name)

    return locate
