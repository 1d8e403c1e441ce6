"""Reads SA-1B, whose masks have no texts, with a table of captions made for them."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...files import is_special, leads_out
from ..region import RegionRecordError, naming
from .coco import segmentation_mask, xywh_box
from .common import Clip, Record, attempt, image_fields, region_fields, rows_by_id
from .tables import read_batches


_MEMBER = re.compile(r"sa_(\d+)\.(jpg|json)")
# The largest picture of SA-1B is a tenth of this; a member that claims more is not read.
_MAX_BYTES = 1 << 28


def read_sa1b(
    images: str | Path,
    captions: str | Path,
    min_score: float | None = None,
    min_area: float = 0.0,
    masks: bool = True,
    clip: Clip = "rounding",
    task: str = "caption",
) -> Iterator[Record]:
    """Yields one record per image that the table has captions for.

    Args:
        images: one of SA-1B's tar files, or a folder of them, or a folder of extracted `sa_1.jpg` and `sa_1.json`. Tar
            files are read where they are and never extracted; pictures of theirs are carried in the records.
        captions: a table as .tsv (with a line of names), .jsonl or .parquet with the columns image_id ("sa_1" or 1),
            region_id (the annotation's `id`), caption and, if it likes, score.
        min_score: leave out captions of a lower score.
        min_area: Leave out regions that cover a smaller fraction of the image.
        masks, clip: as for COCO.
        task: only "caption".
    """
    if task != "caption":
        raise ValueError(f'task is {task!r}, but SA-1B has no categories: expected "caption".')
    with naming(f"captions: {captions} cannot be read"):
        table = _caption_table(Path(captions), min_score, os.stat(captions).st_mtime_ns)
    for number, where, picture, annotation in _pairs(Path(images), table):

        def record(read: Any = annotation, told: tuple[int, str, Any] = (number, where, picture)) -> Record:
            return _record(*told, read(), table, min_area, masks, clip)

        yield attempt(f"{where}, image sa_{number}", record)


def _parts(images: str | Path, **others: Any) -> list[dict[str, Any]]:
    """Returns the tar files of a folder that holds nothing else to read, each as an option."""
    names = sorted(os.listdir(images)) if os.path.isdir(images) else []
    extracted = any(_MEMBER.fullmatch(name) for name in names)
    return [] if extracted else [{"images": Path(images) / name} for name in names if name.endswith(".tar")]


read_sa1b.parts = _parts  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def _caption_table(path: Path, min_score: float | None, time: int) -> _CaptionTable:
    """Reads a table, or returns it again: every tar file of a folder needs it. `time` tells an edited one."""
    return _CaptionTable(path, min_score)


@dataclass
class _CaptionTable:
    """Captions by image and region, sorted once and looked up by halving.

    path: .tsv, .jsonl or .parquet.
    min_score: leave out lower scores.
    """

    path: Path
    min_score: float | None = None

    def __post_init__(self) -> None:
        table = _read_table(self.path)
        missing = {"image_id", "region_id", "caption"} - set(table.column_names)
        if missing or (self.min_score is not None and "score" not in table.column_names):
            raise ValueError(f"{self.path} has no column {', '.join(sorted(missing)) or 'score'}.")
        images, regions = _numbers(table, "image_id", self.path), _numbers(table, "region_id", self.path)
        kept = np.ones(len(images), bool)
        if self.min_score is not None:
            kept = np.asarray(table["score"].cast("double").fill_null(-np.inf)) >= self.min_score
        # Stable: captions of one region stay in the table's order.
        rows = np.lexsort((regions, images))
        self.rows = rows[kept[rows]]
        self.images, self.regions = images[self.rows], regions[self.rows]
        self.left_out = _counts(images[~kept])
        self.texts = table["caption"]

    def __contains__(self, image: int) -> bool:
        place = np.searchsorted(self.images, image)
        return bool(place < len(self.images) and self.images[place] == image)

    def of_image(self, image: int) -> dict[int, list[str]]:
        """Returns the captions of each region of an image, regions by number."""
        first, last = np.searchsorted(self.images, [image, image + 1])
        found: dict[int, list[str]] = {}
        for place in range(first, last):
            text = self.texts[int(self.rows[place])].as_py()
            found.setdefault(int(self.regions[place]), []).append(str(text or "").strip())
        return found


def _counts(numbers: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(numbers, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _read_table(path: Path) -> Any:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import csv, parquet
    from pyarrow import json as lines

    text = pyarrow.string()
    try:
        if path.suffix == ".tsv":
            # A quotation mark in a caption is a quotation mark.
            parse = csv.ParseOptions(delimiter="\t", quote_char=False)
            kinds = {"image_id": text, "region_id": text, "caption": text, "score": pyarrow.float64()}
            convert = csv.ConvertOptions(column_types=kinds, strings_can_be_null=False)
            return csv.read_csv(path, parse_options=parse, convert_options=convert)
        if path.suffix == ".jsonl":
            return lines.read_json(path)
        if path.suffix == ".parquet":
            for _ in read_batches(path):  # refuses what unfolds to far more than it is
                pass
            return parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error
    raise ValueError(f"captions: {path} is not a .tsv, .jsonl or .parquet file.")


def _numbers(table: Any, column: str, path: Path) -> np.ndarray:
    """Returns the ids of a column as integers, less the sa_ before them."""
    import pyarrow
    from pyarrow import compute

    try:
        text = compute.replace_substring_regex(table[column].cast(pyarrow.string()), "^sa_", "")
        return np.asarray(text.cast(pyarrow.int64()))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: {column} is not a number everywhere ({error}).") from error


def _pairs(images: Path, table: _CaptionTable) -> Iterator[tuple[int, str, Any, Any]]:
    """Yields the images in the table: number, source, picture (path or bytes), and what reads the annotation."""
    if images.is_file():
        yield from _pairs_of_tar(images, table)
        return
    if not images.is_dir():
        raise ValueError(f"images: there is no file or folder {images}.")
    with os.scandir(images) as entries:
        names = [entry.name for entry in entries]
    for name in sorted(name for name in names if name.endswith(".tar")):
        yield from _pairs_of_tar(images / name, table)
    numbers = sorted(int(found[1]) for name in names if (found := _MEMBER.fullmatch(name)) and found[2] == "json")
    for number in numbers:
        if number in table:
            path = images / f"sa_{number}.json"
            if is_special(path) or leads_out(images, path):
                raise ValueError(f"{path} is not a regular file, or a link that leads out of {images}: remove it.")
            yield number, str(path), str(path.with_suffix(".jpg")), path.read_bytes


def _pairs_of_tar(path: Path, table: _CaptionTable) -> Iterator[tuple[int, str, Any, Any]]:
    halves: dict[int, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                # A member is told by the last part of its name; where it would be extracted to does not matter.
                found = _MEMBER.fullmatch(member.name.rsplit("/", 1)[-1])
                if not found or not member.isreg() or int(found[1]) not in table:
                    continue
                number = int(found[1])
                both = halves.setdefault(number, {})
                both[found[2]] = member
                if len(both) == 2:
                    del halves[number]
                    picture = {"path": None, "bytes": _content(tar, both["jpg"], path)}
                    yield number, f"{path}", picture, lambda member=both["json"]: _content(tar, member, path)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a tar file, or cut short: {error}.") from error
    for number, both in sorted(halves.items()):
        missing = "jpg" if "json" in both else "json"

        def lost(name: str = f"sa_{number}.{missing}") -> bytes:
            raise RegionRecordError(f"{path}: there is no {name}")

        yield number, str(path), None, lost


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    file = tar.extractfile(member) if member.size <= _MAX_BYTES else None
    if file is None:
        raise RegionRecordError(f"{path}: the member {member.name} claims {member.size} bytes")
    return file.read()


def _record(
    number: int,
    where: str,
    picture: Any,
    annotation: bytes,
    table: _CaptionTable,
    min_area: float,
    masks: bool,
    clip: Clip,
) -> Record:
    with naming(f"{where}, image sa_{number}: its annotation cannot be read"):
        content = json.loads(annotation)
        size = (int(content["image"]["width"]), int(content["image"]["height"]))
        rows = {int(key): row for key, row in rows_by_id(content["annotations"]).items()}
    left_out = {"captions below min_score": table.left_out[number]} if number in table.left_out else {}
    regions: list[Record] = []
    for key, captions in table.of_image(number).items():
        problem = f"{where}, image sa_{number}, region {key}"
        if key not in rows:
            regions.append(RegionRecordError(f"{problem}: it is in the table but not in the annotations"))
            continue
        try:
            with naming(problem):
                box = xywh_box(rows[key].get("bbox"))
                if float(rows[key].get("area") or 0) < min_area * size[0] * size[1]:
                    left_out["regions below min_area"] = left_out.get("regions below min_area", 0) + 1
                    continue
                mask = segmentation_mask(rows[key].get("segmentation"), size) if masks else None
        except RegionRecordError as error:
            regions.append(error)
            continue
        regions.append(region_fields(str(key), box, size, clip, mask=mask, captions=captions))
    return image_fields(picture, f"sa_{number}", size, where, task="caption", regions=regions, left_out=left_out)
