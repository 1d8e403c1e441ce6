"""Reads region records of our own schema from JSON lines and Parquet."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..pictures import image_size
from ..region import RegionRecordError, category_text
from .coco import mask_fields
from .common import FolderIndex, Record, image_fields, inside


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
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield RegionRecordError(f"{where}: is not JSON: {error}")
                    continue
                yield _record(row, index, where, f"{file.stem}-{number}", task, names)


def read_parquet(
    path: str | Path, images: str | Path | None = None, task: str | None = None, names: Mapping[str, str] | None = None
) -> Iterator[Record]:
    """Yields the records of a Parquet file, as `Dataset.to_parquet` writes a data set of regions.

    Args:
        path: the file, or a folder of `*.parquet`.
        images, task, names: as for JSON lines; pictures may stand in the file as bytes.
    """
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    for file in _files(path, ".parquet"):
        index = FolderIndex(Path(images or file.parent))
        number = 0
        try:
            for batch in parquet.ParquetFile(file).iter_batches(_ROWS_PER_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{file}, row {number}"
                    yield _record(row, index, where, f"{file.stem}-{number}", task, names)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read as Parquet: {error}.") from error


def _parts(path: str | Path, suffix: str) -> list[dict[str, Any]]:
    return [{"path": file} for file in _files(path, suffix)]


read_jsonl.parts = lambda path, **others: _parts(path, ".jsonl")  # type: ignore[attr-defined]
read_parquet.parts = lambda path, **others: _parts(path, ".parquet")  # type: ignore[attr-defined]


def _files(path: str | Path, suffix: str) -> list[Path]:
    path = Path(path)
    found = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path] if path.is_file() else []
    if not found:
        raise ValueError(f"path: there is no file {path}, and no folder with *{suffix}.")
    return found


def _record(
    row: Any, index: FolderIndex, where: str, key: str, task: str | None, names: Mapping[str, str] | None
) -> Record:
    if not isinstance(row, Mapping) or not isinstance(row.get("regions", []), list):
        return RegionRecordError(f"{where}: expected an object with image and a list of regions")
    try:
        image = _image(row.get("image"), index)
        known = row.get("width") is not None and row.get("height") is not None
        size = (
            (int(row["width"]), int(row["height"]))
            if known
            else image_size(image if isinstance(image, str) else image["bytes"])
        )
    except (RegionRecordError, TypeError, ValueError) as error:
        return RegionRecordError(f"{where}: {error}")
    regions: list[Record] = []
    for place, region in enumerate(row.get("regions", [])):
        try:
            regions.append(_region(region, place, size, names))
        except (TypeError, ValueError) as error:
            regions.append(RegionRecordError(f"{where}, region {place}: {error}"))
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
    if region.get("mask") is not None:
        region |= {"mask": None, **mask_fields(region["mask"], size)}
    if region.get("points") is not None and region.get("labels") is None:
        region["labels"] = [1] * len(region["points"])
    if names is not None and region.get("category") is not None:
        region["category"] = category_text(region["category"], names)
    return region
