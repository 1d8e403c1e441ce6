"""The manifest of self-training: one Parquet file, a row per proposed region, to be read and edited by anyone.

What is learned from are its rows whose `kept` is true, as they stand: rows may be removed, captions corrected, `kept`
changed; without that column all rows count.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.readers.tables import read_batches
from ..data.region import RegionRecord, RegionRecordError
from ..files import digest_of, replacing
from ..processing.captions_sca import task_parts


MANIFEST = "manifest.parquet"
_NEEDED = ("image", "file", "region", "width", "height", "box", "caption")
_ROWS_AT_A_TIME = 1000


def label_id(entry: Mapping[str, Any], box: Sequence[float]) -> str:
    """Returns what a label is traced by: the same wherever this region of this picture is proposed."""
    return digest_of([entry["image"], list(box)])[:16]


def write_manifest(path: Path, rows: Iterable[Mapping[str, Any]], judges: Sequence[str]) -> None:
    """Writes rows, a few at a time."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int32()
    rle = pyarrow.struct([("size", pyarrow.list_(whole)), ("counts", text)])
    view = pyarrow.struct([("view", text), ("caption", text), ("score", number)])
    kinds = {"label_id": text, "image": text, "region": whole, "file": text, "width": whole, "height": whole}
    kinds |= {"task": text, "box": pyarrow.list_(number), "mask": rle, "caption": text, "kept": pyarrow.bool_()}
    kinds |= {"reason": text, "class": text, "combined": number, **dict.fromkeys(judges, number)}
    kinds |= {"views": pyarrow.list_(view), "teacher": text}
    schema = pyarrow.schema(list(kinds.items()))
    with replacing(path) as draft, parquet.ParquetWriter(draft, schema) as writer:
        part: list[Mapping[str, Any]] = []
        for row in rows:
            part.append(row)
            if len(part) == _ROWS_AT_A_TIME:
                writer.write_table(pyarrow.Table.from_pylist(part, schema))
                part = []
        writer.write_table(pyarrow.Table.from_pylist(part, schema))


def read_manifest(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of a manifest.

    Raises:
        ValueError: It cannot be read, or lacks a column.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path}: make one with `sca-hf self-train judge`.")
    try:
        for batch in read_batches(path):
            if missing := [name for name in _NEEDED if name not in batch.schema.names]:
                raise RegionRecordError(f"{path} has no column {missing[0]}, which a manifest needs.")
            yield from batch.to_pylist()
    except RegionRecordError:
        raise
    except Exception as error:  # whatever reading a damaged file may raise
        raise ValueError(
            f"{path} cannot be read as Parquet: {error}. Restore it, or remove it and judge again."
        ) from error


def label_records(path: str | Path) -> list[dict[str, Any]]:
    """Returns what a manifest has to learn from as region records, their `image` a path; checks every row.

    Raises:
        RegionRecordError: A row is not a label; the message names file, picture and region.
        ValueError: There is none, or the manifest cannot be read.
    """
    path = Path(path)
    by_image: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_manifest(path):
        if row.get("kept", True) is not True:
            continue
        # Not resolved: a link among the pictures is for their reader to refuse.
        picture, caption = os.path.abspath(path.parent / str(row["file"])), row["caption"]
        if not isinstance(caption, str):
            raise RegionRecordError(
                f"{path}, image {row['image']}, region {row['region']}: caption is {caption!r}, expected a text"
            )
        task, language, length = task_parts(row.get("task") or "caption")
        record = by_image.setdefault(
            (str(row["image"]), str(row["file"])),
            {
                "image": picture,
                "image_id": str(row["image"]),
                "width": row["width"],
                "height": row["height"],
                "task": task,
                "regions": [],
            },
        )
        mask = row.get("mask")
        region: dict[str, Any] = {
            "region_id": str(row["region"]),
            "box": row["box"],
            "mask": mask if mask and mask.get("counts") else None,
        }
        region |= {"category": caption} if task == "recognition" else {"captions": [caption]}
        region |= {name: [said] for name, said in (("lengths", length), ("languages", language)) if said is not None}
        record["regions"].append(region)
    if not by_image:
        raise ValueError(f"{path} has no row that is kept: lower the thresholds of the judges, or add pictures.")
    for record in by_image.values():
        RegionRecord.from_dict(record, str(path))
    return list(by_image.values())


def describe(row: Mapping[str, Any], judges: Sequence[str]) -> str:
    """Says in a few lines what became of a region, and why; columns that were removed are passed over."""
    values = ", ".join(f"{name} {_short(row[name])}" for name in judges if name in row)
    fate = "kept" if row.get("kept", True) is True else "refused"
    said = [f"{view['view']:8} {view['caption']}" for view in row.get("views") or ()]
    head = f"{row['image']}, region {row['region']} ({row.get('label_id')}): {fate}"
    return "\n  ".join([head, *filter(None, (row.get("reason"), values)), *said])


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.3g}"


def provenance(path: Path) -> dict[str, Any]:
    """Returns what is written beside a manifest; empty where nothing is."""
    file = path.with_suffix(".json")
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
