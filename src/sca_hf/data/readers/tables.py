"""Reads region records of our own schema from JSON lines and Parquet."""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..notes import NOTES
from ..pictures import image_size
from ..region import RegionRecordError, category_text
from .coco import mask_fields
from .common import FolderIndex, Record, attempt, files_below, image_fields, inside


_ROWS_PER_BATCH = 64


def read_jsonl(
    path: str | Path, images: str | Path | None = None, task: str | None = None, names: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """Yields the records of a file of JSON lines, one region record a line.

    Args:
        path: the file, or a folder of `*.jsonl`.
        images: the folder in which pictures are looked for, the file's own by default; none is read from outside it. A
            picture may stand in the line itself, as `{"bytes": its file in base64}`.
        task: replaces the task of every record.
        names: words for the categories; without it they are taken as they are.

    `width`, `height`, `image_id`, `region_id` and `task` may be left out. Masks may be RLE or polygons, `captions` one
    text.
    """
    for file in _files(path, ".jsonl"):
        index = FolderIndex(Path(images or file.parent))
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                row = attempt(f"{where}: is not JSON", json.loads, line)
                yield (
                    row
                    if isinstance(row, RegionRecordError)
                    else attempt(where, _record, row, index, where, f"{file.stem}-{number}", task, names)
                )


def read_parquet(
    path: str | Path, images: str | Path | None = None, task: str | None = None, names: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """Yields the records of a Parquet file, as `Dataset.to_parquet` writes a data set of regions.

    Args:
        path: the file, or a folder of `*.parquet`.
        images, task, names: as for JSON lines; pictures may stand in the file as bytes.
    """
    for file in _files(path, ".parquet"):
        index = FolderIndex(Path(images or file.parent))
        number = 0
        try:
            for batch in read_batches(file):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{file}, row {number}"
                    yield attempt(where, _record, row, index, where, f"{file.stem}-{number}", task, names)
        except Exception as error:
            raise ValueError(f"{file} cannot be read as Parquet: {error}.") from error


# Bytes of one column that rows read together may become. A few bytes of a file may refer to a long text for each row.
_MAX_UNFOLDED = 1 << 27


def read_batches(path: str | Path) -> Iterator[Any]:
    """Yields the rows of a Parquet file in batches, refusing texts that unfold to far more than the file holds.

    What compression hides is told by the file's own table; how often a text is repeated, once it is read, while it is
    in memory once. A refusal takes at most twice the longest text that [`_MAX_UNFOLDED`] admits, and a second.
    """
    from pyarrow import parquet  # type: ignore[import-untyped]

    # What the file says of each column is not asked for: the library ends the process where that is damaged.
    meta, packed = parquet.ParquetFile(path).metadata, os.path.getsize(path)
    size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    if size > _MAX_UNFOLDED // 8 and size > 200 * packed:
        raise ValueError(f"{path}: its {packed} bytes unfold to {size}")
    columns = [meta.schema.column(place) for place in range(meta.num_columns)]
    texts = sorted({column.path for column in columns if column.physical_type == "BYTE_ARRAY"})
    for batch in parquet.ParquetFile(path, read_dictionary=texts).iter_batches(_ROWS_PER_BATCH):
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            size = _unfolded(column)
            if size > _MAX_UNFOLDED and size > 4 * column.get_total_buffer_size():
                raise ValueError(f"{path}: a few rows of the column {name} unfold to {size} bytes")
        yield batch


def _unfolded(column: Any) -> int:
    """Returns how many bytes the texts behind dictionaries become when they are written out."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        return compute.sum(compute.binary_length(column.dictionary).take(column.indices)).as_py() or 0
    if types.is_struct(column.type):
        return sum(map(_unfolded, column.flatten()))
    return _unfolded(column.flatten()) if types.is_list(column.type) or types.is_large_list(column.type) else 0


def _parts(path: str | Path, suffix: str) -> list[dict[str, Any]]:
    return [{"path": file} for file in _files(path, suffix)]


read_jsonl.parts = lambda path, **others: _parts(path, ".jsonl")  # type: ignore[attr-defined]
read_parquet.parts = lambda path, **others: _parts(path, ".parquet")  # type: ignore[attr-defined]


def _files(path: str | Path, suffix: str) -> list[Path]:
    path = Path(path)
    found = files_below(path, suffix, deep=False) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise ValueError(f"path: there is no file {path}, and no folder with *{suffix}.")
    return found


def _record(
    row: Any, index: FolderIndex, where: str, key: str, task: str | None, names: Mapping[str, str] | None
) -> Record:
    if not isinstance(row, Mapping) or not isinstance(row.get("regions", []), list):
        return RegionRecordError(f"{where}: expected an object with image and a list of regions")
    image = _image(row.get("image"), index)
    known = row.get("width") is not None and row.get("height") is not None
    size = (
        (int(row["width"]), int(row["height"]))
        if known
        else image_size(image if isinstance(image, str) else image["bytes"])
    )
    regions: list[Record] = [
        attempt(f"{where}, region {place}", _region, region, place, size, names)
        for place, region in enumerate(row.get("regions", []))
    ]
    image_id = key if row.get("image_id") is None else row["image_id"]
    own = {"task": task or row.get("task") or "caption", "regions": regions, "measured": not known}
    return {**row, **image_fields(image, image_id, size, where, **own)}


def _image(image: Any, index: FolderIndex) -> Any:
    """Returns a path inside the folder of images, or the bytes of a picture."""
    content = image.get("bytes") if isinstance(image, Mapping) else image if isinstance(image, bytes) else None
    if content is not None:
        if isinstance(content, str):
            try:
                content = base64.b64decode(content, validate=True)
            except binascii.Error as error:
                raise ValueError(f"the bytes of its image are not base64 ({error})") from None
        return {"path": None, "bytes": content}
    name = image.get("path") if isinstance(image, Mapping) else image
    if not isinstance(name, str):
        raise ValueError(f"image is {name!r}, expected a file name or an object with bytes")
    given, images = Path(name), index.folder
    found = given if given.is_absolute() and given.is_relative_to(images.absolute()) else inside(images, name)
    if found is not None and not given.is_absolute() and not found.is_file():
        found = index.find(name, whole=True) or found
    if found is None or ".." in given.parts:
        raise ValueError(f"its image {name!r} is not in {images}")
    return str(found)


def _region(values: Any, index: int, size: tuple[int, int], names: Mapping[str, str] | None) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ValueError(f"is a {type(values).__name__}, expected an object")
    region = dict(values)
    region["region_id"] = str(index if region.get("region_id") is None else region["region_id"])
    captions = region.get("captions") or []
    region["captions"] = [captions] if isinstance(captions, str) else captions
    region |= _notes(region)
    if region.get("mask") is not None:
        region |= {"mask": None, **mask_fields(region["mask"], size)}
    if region.get("points") is not None and region.get("labels") is None:
        region["labels"] = [1] * len(region["points"])
    if names is not None and region.get("category") is not None:
        region["category"] = category_text(region["category"], names)
    for name in NOTES:
        region.pop(name[:-1], None)
    return region


def _notes(region: Mapping[str, Any]) -> dict[str, Any]:
    """Returns captions as texts, and their notes: of each, as `{"text", "length"}`, or `length` of all in a region."""
    captions = region["captions"]
    names = {name: name[:-1] for name in NOTES if region.get(name) is None}
    if not names or not isinstance(captions, list):
        return {}
    said = [caption if isinstance(caption, Mapping) else {"text": caption} for caption in captions]
    for caption in said:
        if unknown := sorted(set(caption) - {"text", *names.values()}):
            known = ", ".join(["text", *names.values()])
            raise ValueError(f"a caption has the unknown fields {unknown}, expected {known}")
    notes = {name: [caption.get(one, region.get(one)) for caption in said] for name, one in names.items()}
    return {"captions": [caption.get("text") for caption in said], **notes}
