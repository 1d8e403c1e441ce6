"""Reads data sets of the Hub, or of local files that `datasets` opens, with pictures, boxes and texts in columns."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..pictures import image_size
from ..region import RegionRecordError, category_text, naming
from .coco import mask_fields
from .common import Clip, Record, region_fields
from .tables import read_batches


_COLUMNS = ("image", "boxes", "captions", "categories", "masks", "image_id", "region_ids", "width", "height", "group")


def read_hub(
    path: str,
    columns: Mapping[str, str],
    split: str = "train",
    box_format: Literal["xyxy", "xywh", "cxcywh"] | None = None,
    normalized: bool = False,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    clip: Clip = "rounding",
    revision: str | None = None,
    config: str | None = None,
    data_files: Any = None,
    download: bool = True,
) -> Iterator[Record]:
    """Yields one record per row.

    Args:
        path, config, data_files, split, revision: as for `datasets.load_dataset`. A revision pins what is read.
        columns: which column holds what: `image`, `boxes`, `captions` or `categories` or both, and if there are any
            `masks` (COCO RLE or polygons), `image_id`, `region_ids`, `width`, `height`, `group`. A dot goes into a
            column: `{"boxes": "objects.bbox", "categories": "objects.category"}`. Without `boxes` the whole picture is
            the region.
        box_format: what the four numbers of a box are: corners (xyxy), corner and size (xywh), center and size
            (cxcywh). Default: corners; where some cannot be, the data set is an error until it is said.
        normalized: Whether boxes are fractions of the picture's sides rather than pixels.
        task: "caption" makes the name of a category the caption where there is no column of captions.
        names: words for categories.
        clip: as for COCO.
        download: whether to fetch the data set to this disk or to read it over the network on each pass.
    """
    _check_columns(columns)
    places = _places(path, data_files)
    rows = _load(path, config, data_files, split, revision, download, columns["image"])
    label = _label_names(rows.features, columns.get("categories"))
    for number, row in enumerate(rows):
        where = f"{path} ({split}), row {number}"
        try:
            with naming(where):
                record, row_cells = _record(row, number, columns, places)
        except RegionRecordError as error:
            yield error
            continue
        if box_format is None:
            _check_corners([cells["boxes"] for cells in row_cells if "boxes" in cells], where)
        size = (record["width"], record["height"])
        regions: list[Record] = []
        for index, cells in enumerate(row_cells):
            try:
                with naming(f"{where}, region {index}"):
                    box = [0.0, 0.0, *map(float, size)]
                    if "boxes" in cells:
                        box = _box(cells["boxes"], box_format or "xyxy", normalized, size)
                    region = _texts(cells["captions"], cells["categories"], label, names, task)
                    if cells["masks"] is not None:
                        region |= mask_fields(cells["masks"], size)
                    key = str(index if cells["region_ids"] is None else cells["region_ids"])
                    regions.append(region_fields(key, box, size, clip, **region))
            except RegionRecordError as error:
                regions.append(error)
        yield {**record, "task": task, "regions": regions, "source": where}


def _places(path: str, data_files: Any) -> tuple[str, ...]:
    """Returns where pictures of a data set may lie: beside its files, in what was fetched of it, on its own page.

    Local Parquet files are looked at on the way: `datasets` would write out whatever they unfold to.
    """
    import datasets
    from huggingface_hub import constants

    named = data_files.values() if isinstance(data_files, Mapping) else [data_files]
    named = [one for part in named for one in (part if isinstance(part, list | tuple) else [part]) if one is not None]
    # Of a pattern, the folder in front of it.
    plain = [re.sub(r"[^/\\]*[*?\[].*", "", str(one)) for one in (path, *named)]
    local = [os.path.realpath(one) for one in plain if os.path.exists(one)]
    files = [one for place in local for one in ([place] if os.path.isfile(place) else Path(place).rglob("*.parquet"))]
    for file in (file for file in files if str(file).endswith(".parquet")):
        with naming(f"{file} cannot be read as Parquet"):
            for _ in read_batches(file):
                pass
    folders = [os.path.dirname(place) if os.path.isfile(place) else place for place in local]
    fetched = os.path.join(constants.HF_HUB_CACHE, f"datasets--{path.replace('/', '--')}")
    folders += [str(datasets.config.DOWNLOADED_DATASETS_PATH), str(datasets.config.HF_DATASETS_CACHE), fetched]
    inside = [os.path.join(os.path.realpath(folder), "") for folder in folders]
    return *inside, *(() if os.path.exists(path) else (f"hf://datasets/{path}/", f"hf://datasets/{path}@"))


def _cache_key(
    path: str, config: str | None = None, data_files: Any = None, revision: str | None = None, **others: Any
) -> str:
    """Tells one state of the data set from another: `datasets` names its cache by the commit, or the files' times."""
    from datasets import load_dataset_builder

    return str(load_dataset_builder(path, config, data_files=data_files, revision=revision).cache_dir)


read_hub.cache_key = _cache_key  # type: ignore[attr-defined]


def _check_columns(columns: Mapping[str, str]) -> None:
    if not isinstance(columns, Mapping) or "image" not in columns or not {"captions", "categories"} & set(columns):
        raise ValueError(f"columns is {columns!r}, expected a mapping with image and with captions or categories.")
    unknown = sorted(set(columns) - set(_COLUMNS))
    if unknown:
        raise ValueError(f"columns: there is no {', '.join(unknown)}, expected some of {', '.join(_COLUMNS)}.")


def _load(
    path: str, config: str | None, data_files: Any, split: str, revision: str | None, download: bool, image: str
) -> Any:
    import datasets

    options = {"data_files": data_files, "split": split, "revision": revision, "streaming": not download}
    with naming(f"{path} cannot be opened"):
        rows = datasets.load_dataset(path, config, **options)
    if image not in rows.features:
        raise ValueError(f"columns: {path} has no column {image!r}; it has {', '.join(rows.features)}.")
    if not isinstance(rows.features[image], datasets.Image):
        raise ValueError(f"columns: column {image!r} of {path} has no pictures, but {rows.features[image]}.")
    return rows.cast_column(image, datasets.Image(decode=False))


def _label_names(features: Mapping[str, Any], column: str | None) -> Callable[[Any], str]:
    """Returns what turns a category into a name; a number stands for the name of a label."""
    if column is None:
        return str
    feature: Any = features
    for part in column.split("."):
        feature = getattr(feature, "feature", feature)
        feature = feature.get(part) if isinstance(feature, Mapping) else None
    while hasattr(feature, "feature"):
        feature = feature.feature
    to_name = getattr(feature, "int2str", None)
    return (lambda value: str(to_name(value))) if to_name else str


def _pick(row: Mapping[str, Any], column: str) -> Any:
    """Returns a cell; "objects.bbox" is found in a column of objects and in a column of lists of them."""
    value: Any = row
    for part in column.split("."):
        if isinstance(value, list):
            value = [item[part] for item in value]
        elif isinstance(value, Mapping) and part in value:
            value = value[part]
        else:
            raise ValueError(f"there is no column {column}")
    return value


def _record(
    row: Mapping[str, Any], number: int, columns: Mapping[str, str], places: tuple[str, ...]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the fields of a row's image, and the cells of each of its regions."""
    image, (width, height) = _picture(row, columns, places)
    values = {key: _pick(row, column) for key, column in columns.items()}
    image_id = str(number if values.get("image_id") is None else values["image_id"])
    record = {"image": image, "image_id": image_id, "width": width, "height": height, "group": values.get("group")}
    return record, _cells(values)


def _cells(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the cells of each region of a row; without a column of boxes there is one region, which has no box."""
    boxes = _listed(values["boxes"]) if "boxes" in values else None
    count = 1 if boxes is None else len(boxes)
    columns = {
        key: _per_region(values.get(key), count, key) for key in ("captions", "categories", "masks", "region_ids")
    }
    if boxes is not None:
        columns["boxes"] = boxes
    return [{key: cells[index] for key, cells in columns.items()} for index in range(count)]


def _listed(boxes: Any) -> list[Any]:
    """Returns a list of boxes, of one if the column holds one box a row."""
    if boxes is None:
        return []
    boxes = list(boxes)
    return [boxes] if boxes and not isinstance(boxes[0], Sequence) else boxes


def _per_region(values: Any, count: int, column: str) -> list[Any]:
    """Returns one cell for each region, None where there is no such column."""
    if values is None:
        return [None] * count
    if count == 1 and (not isinstance(values, list) or (column == "captions" and len(values) != 1)):
        return [values]
    if not isinstance(values, list) or len(values) != count:
        found = f"{len(values)}" if isinstance(values, list) else f"one {type(values).__name__}"
        raise ValueError(f"there are {count} boxes, but {found} of {column}")
    return values


def _picture(
    row: Mapping[str, Any], columns: Mapping[str, str], places: tuple[str, ...]
) -> tuple[dict[str, Any] | str, tuple[int, int]]:
    """Returns the picture, as path or bytes, and its width and height; a row may name no other place than `places`."""
    cell = row[columns["image"]]
    if cell is None:
        raise ValueError("there is no image")
    path, content = cell.get("path"), cell.get("bytes")
    if content is None:
        # What stands behind the last :: is the file, what is in front of it leads into an archive.
        inner, _, base = str(path).rpartition("::")
        base = base if base.startswith("hf://") else os.path.realpath(base)
        if not base.startswith(places) or ("://" in base and ".." in base):
            raise ValueError(f"its picture {path!r} lies outside the data set")
        path = base if not inner else f"{inner}::{base}"
    if content is None and not os.path.isfile(path):
        import fsspec  # type: ignore[import-untyped]

        with fsspec.open(path, "rb") as file:  # in an archive, or on the network
            content = file.read()
    image: dict[str, Any] | str = path if content is None else {"path": None, "bytes": content}
    if "width" in columns and "height" in columns:
        return image, (int(_pick(row, columns["width"])), int(_pick(row, columns["height"])))
    return image, image_size(path if content is None else content)


def _check_corners(boxes: Iterable[Any], where: str) -> None:
    """Raises where a box is not one of corners: others of the set may pass for corners and be wrong."""
    for box in boxes:
        if isinstance(box, Sequence) and len(box) == 4 and (box[2] < box[0] or box[3] < box[1]):
            raise ValueError(
                f"{where}: the box {list(box)} is not one of corners x0, y0, x1, y1; say box_format=xywh (left, top, "
                "width, height, as most files with metadata have it) or box_format=cxcywh; box_format=xyxy makes it "
                "a bad region."
            )


def _box(values: Any, box_format: str, normalized: bool, size: tuple[int, int]) -> list[float]:
    try:
        a, b, c, d = (float(value) for value in values)
    except (TypeError, ValueError):
        raise ValueError(f"box is {values!r}, expected four numbers") from None
    if normalized:
        a, b, c, d = a * size[0], b * size[1], c * size[0], d * size[1]
    if box_format == "xywh":
        return [a, b, a + c, b + d]
    if box_format == "cxcywh":
        return [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    return [a, b, c, d]


def _texts(
    captions: Any, category: Any, label: Callable[[Any], str], names: Mapping[str, str] | None, task: str
) -> dict[str, Any]:
    name = None if category is None else category_text(label(category), names)
    texts = [captions] if isinstance(captions, str) else list(captions or ())
    if not texts and name and task == "caption":
        texts = [name]
    return {"captions": texts, "category": name}
