"""Tells which pictures are the same, or copies of one, so that none is scored whose copy was trained on."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from PIL import Image

from ..files import hash_file, in_one_line


logger = logging.getLogger(__name__)

# Roboflow's name of a copy: that of the picture it was made of, and a hash.
_ROBOFLOW = re.compile(r"(.+?)\.rf\.[0-9A-Za-z]{8,}(?=[._]|$)")
_ROWS_PER_BATCH = 32
_SHOWN = 10
Key = tuple[str, Hashable]
Unit = tuple[str, str]


def source_keys(dataset: Any, group: str = "group") -> list[list[Key]]:
    """Returns what each row says of its source: its group, and the picture that Roboflow made it of.

    Args:
        group: The column of groups.
    """
    keys: list[list[Key]] = []
    ids, groups = _column(dataset, "image_id"), _column(dataset, group)
    for image_id, given, (path, _) in zip(ids, groups, _pictures(dataset), strict=True):
        copy = _ROBOFLOW.match(PurePath(path or str(image_id)).name)
        names = [*([] if given is None else [str(given)]), *([copy[1]] if copy else [])]
        keys.append([("group", name) for name in names])
    return keys


def _column(dataset: Any, name: str) -> list[Any]:
    if isinstance(dataset, list | tuple):
        return [row.get(name) for row in dataset]
    return list(dataset.with_format(None)[name]) if name in dataset.column_names else [None] * len(dataset)


def content_keys(datasets: Sequence[Any]) -> list[list[Key | None]]:
    """Returns a key of each row's picture, the same where two files are the same; None where there is no file.

    A file that alone has its length is not read; others are, one at a time.
    """
    lengths: list[list[int | None]] = []
    first: dict[int, Hashable] = {}
    doubtful: set[int] = set()
    for place, dataset in enumerate(datasets):
        lengths.append([])
        for row, (path, content) in enumerate(_pictures(dataset)):
            length = _length(path, content)
            lengths[-1].append(length)
            file = path if content is None else (place, row)
            if length is not None and first.setdefault(length, file) != file:
                doubtful.add(length)
    digests: dict[str, str] = {}
    keys: list[list[Key | None]] = []
    for dataset, sizes in zip(datasets, lengths, strict=True):
        keys.append([None if length is None else ("content", length) for length in sizes])
        rows = [row for row, length in enumerate(sizes) if length in doubtful]
        for row, (path, content) in zip(rows, _pictures(dataset, rows), strict=True):
            if content is not None:
                keys[-1][row] = ("content", hashlib.sha256(content).hexdigest())
            elif path is not None:
                keys[-1][row] = ("content", digests.get(path) or digests.setdefault(path, hash_file(path)))
    return keys


def _length(path: str | None, content: Any) -> int | None:
    if content is not None:
        return memoryview(content).nbytes
    try:
        return os.stat(path).st_size if path else None
    except (OSError, ValueError):
        return None  # a name on the network, or in an archive


def _pictures(dataset: Any, rows: Sequence[int] | None = None) -> Iterator[tuple[str | None, Any]]:
    """Yields path and content of the rows' pictures; neither of what is not a file, nor the content of a file."""
    if isinstance(dataset, list | tuple):
        for row in dataset if rows is None else (dataset[index] for index in rows):
            yield _picture(row.get("image"))
        return
    if "image" not in dataset.column_names:
        yield from [(None, None)] * len(dataset if rows is None else rows)
        return
    column = dataset.select_columns("image").with_format("arrow")
    for table in (column if rows is None else column.select(rows)).iter(_ROWS_PER_BATCH):
        for cell in table["image"]:
            if not hasattr(cell, "keys") or not cell.is_valid:
                yield _picture(cell.as_py())
                continue
            content = cell["bytes"].as_buffer() if "bytes" in cell else None
            yield cell["path"].as_py(), content


def _picture(image: Any) -> tuple[str | None, Any]:
    if isinstance(image, Mapping):
        return image.get("path"), image.get("bytes")
    if isinstance(image, Image.Image):
        return None, image.tobytes()
    return (os.fspath(image), None) if isinstance(image, str | os.PathLike) else (None, None)


def source_units(datasets: Sequence[Any], group: str = "group", by_content: bool = True) -> list[list[Unit]]:
    """Returns for each row the unit that must not be divided, told by its first group, else by its first `image_id`.

    Rows are of one unit where they are of one image, group or picture, or are linked by others that are.

    Args:
        group: The column of groups.
        by_content: Whether the same content makes two pictures one.
    """
    none: list[list[Key | None]] = [[None] * len(dataset) for dataset in datasets]
    contents = content_keys(datasets) if by_content else none
    above: dict[Key, Key] = {}

    def top(key: Key) -> Key:
        while above.setdefault(key, key) != key:
            above[key] = above[above[key]]
            key = above[key]
        return key

    rows: list[list[list[Key]]] = []
    for place, (dataset, pictures) in enumerate(zip(datasets, contents, strict=True)):
        ids = [str(name) for name in dataset["image_id"]]
        rows.append([])
        for name, sources, picture in zip(ids, source_keys(dataset, group), pictures, strict=True):
            # The image of another set with this id is this one, unless groups say more: Roboflow counts each from 0.
            keys: list[Key] = [*(sources or [("image", name)]), (f"image of set {place}", name)]
            rows[-1].append(keys if picture is None else [*keys, picture])
            for key in rows[-1][-1][1:]:
                above[top(key)] = top(keys[0])
    units: dict[Key, Unit] = {}
    for (kind, text), *_ in (keys for part in rows for keys in part):
        unit = (kind, str(text))
        units[top(unit)] = min(unit, units.get(top(unit), unit))
    return [[units[top(keys[0])] for keys in part] for part in rows]


def warn_of_leaks(train: Any, evaluation: Any) -> None:
    """Warns of pictures in evaluation sets that are trained on too, or are of one source with what is.

    Args:
        train: Records by index; streamed ones are not compared.
        evaluation: The same, or a mapping of several sets by name.
    """
    one = "the evaluation set"
    several = isinstance(evaluation, Mapping)
    named = {f"{one} {name}": part for name, part in evaluation.items()} if several else {one: evaluation}
    if not all(map(_is_known, (train, *named.values()))):
        logger.info("pictures of the training and evaluation sets are not compared: some sets have no index")
        return
    trained, *contents = content_keys([train, *named.values()])
    known = {*trained, *(key for keys in source_keys(train) for key in keys)} - {None}
    for (name, dataset), pictures in zip(named.items(), contents, strict=True):
        same: dict[str, None] = {}
        related: dict[str, None] = {}
        ids = _column(dataset, "image_id")
        for image_id, picture, sources, (path, _) in zip(
            ids, pictures, source_keys(dataset), _pictures(dataset), strict=True
        ):
            if picture in known:
                same[os.path.basename(path or "") or str(image_id)] = None
            elif not known.isdisjoint(sources):
                related[os.path.basename(path or "") or str(image_id)] = None
        for what, found in (("trained on too", same), ("from the same source as training pictures", related)):
            if found:
                shown = ", ".join(map(in_one_line, list(found)[:_SHOWN]))
                logger.warning(
                    "pictures of %s that are %s: %d (%s%s). Scores on them say little about new pictures: remove "
                    "them from one of the two sets, or split with data.holdout (hold_out), which keeps them together",
                    name,
                    what,
                    len(found),
                    shown,
                    ", ..." if len(found) > _SHOWN else "",
                )


def _is_known(dataset: Any) -> bool:
    """Whether the pictures of a data set can be told without decoding or transforming them."""
    if isinstance(dataset, list | tuple):
        return all(isinstance(row, Mapping) for row in dataset)
    return hasattr(dataset, "select_columns") and hasattr(dataset, "__len__")
