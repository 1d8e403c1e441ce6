"""What decides the result of a run, by content: two runs that agree in it end with the same result.

How a path is spelled and where a folder lies are no part of it. Pictures in files count by their size and time, as
reading all of them would take as long as the run; everything else by a digest of what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from . import __version__
from .files import hash_file
from .model_names import resolve_model
from .modeling.base_models_sca import source_of


# What loading a model reads, beside code, which is this package's.
_MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".jinja", ".txt"}
_ROWS_AT_A_TIME = 1000


def versions() -> dict[str, str]:
    """Returns the versions of the code that decides results."""
    return {"sca-hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def all_versions() -> dict[str, str]:
    """Returns these, and what else is worth knowing of a run that is over."""
    return {**versions(), "python": platform.python_version()}


def model_identity(name: str | os.PathLike[str] | None, revision: str | None = None) -> str:
    """Returns what identifies a model: a digest of a folder's weights, configurations and tokenizer, or a commit."""
    source = resolve_model(name)
    if os.path.isdir(source):
        files = [path for path in Path(source).rglob("*") if path.suffix in _MODEL_FILES and path.is_file()]
        names = {path.relative_to(source).as_posix(): path for path in files}
        return digest_of({name: hash_file(path) for name, path in names.items() if not name.startswith(".")})
    if "/" not in source:
        return source  # neither a folder nor a repository: loading will say so
    found = source_of(source, {} if revision is None else {"revision": revision})
    return f"{found['repo_id']}@{found['revision']}"


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of a value as JSON has it; arrays and pictures count by what they hold."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        about = (getattr(value, name, None) for name in ("mode", "size", "shape", "dtype"))
        return [*map(str, about), hashlib.sha256(value.tobytes()).hexdigest()]
    return str(value) if isinstance(value, os.PathLike) else type(value).__qualname__


def picture_stamp(image: Any) -> str:
    """Returns what tells a picture from one that takes its place: a file's size and time, or a digest of the content.

    An address, or a place in an archive, is told by its name.

    Args:
        image: As a record has it: a path, bytes, a mapping of both, or a PIL picture.
    """
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    image = getattr(image, "filename", None) or image  # of a PIL picture that was opened from a file
    if isinstance(image, str | os.PathLike):
        try:
            status = os.stat(image)
        except (OSError, ValueError):
            return str(image)[:500]
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    return digest_of(image) if hasattr(image, "tobytes") else str(image)


def data_identity(dataset: Any) -> dict[str, Any]:
    """Returns what identifies a data set by every record and every picture; {} for a stream, which has no end yet.

    Args:
        dataset: Region records by index: of `datasets`, or any other.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        return {}
    contents, pictures = hashlib.sha256(), hashlib.sha256()
    for content, stamps in _tables(dataset) if hasattr(dataset, "with_format") else _rows(dataset):
        contents.update(content)
        pictures.update("\n".join([*stamps, ""]).encode(errors="surrogatepass"))
    return {
        "images": len(dataset),
        "contents of the records": contents.hexdigest()[:16],
        "sizes and times of the pictures": pictures.hexdigest()[:16],
    }


def picture_stamps(column: Any) -> list[str]:
    """Returns the stamps of a column of pictures, as Arrow has it."""
    return [picture_stamp(image) for image in column.to_pylist()]


def _tables(dataset: Any) -> Iterator[tuple[bytes, list[str]]]:
    """Yields the records of a data set of `datasets` as Arrow has them, far faster than one by one."""
    import pyarrow  # type: ignore[import-untyped]

    for table in dataset.with_format("arrow").iter(_ROWS_AT_A_TIME):
        stamps = picture_stamps(table["image"]) if "image" in table.column_names else []
        rest = table.drop_columns(["image"] if stamps else []).combine_chunks().replace_schema_metadata(None)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, rest.schema) as writer:
            writer.write_table(rest)
        yield sink.getvalue().to_pybytes(), stamps


def _rows(dataset: Any) -> Iterator[tuple[bytes, list[str]]]:
    for index in range(len(dataset)):
        row = dataset[index]
        row = dict(row) if isinstance(row, Mapping) else {"row": row}
        yield digest_of({**row, "image": None}).encode(), [picture_stamp(row.get("image"))]
