"""What decides the result of a run, by content: two runs that agree in it end with the same result.

How a path is spelled and where a folder lies are no part of it. Pictures in files count by their size and time, as
reading all of them would take as long as the run; everything else by a digest of what it holds.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from . import __version__
from .data.pictures import picture_stamp
from .files import digest_of, hash_file
from .model_names import resolve_model
from .modeling.base_models_sca import source_of, split_gguf


# What loading a model reads, beside code, which is this package's.
_MODEL_FILES = {".safetensors", ".bin", ".json", ".model", ".jinja", ".txt"}
_ROWS_AT_A_TIME = 200


def versions() -> dict[str, str]:
    """Returns the versions of the code that decides results."""
    return {"sca-hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def all_versions() -> dict[str, str]:
    """Returns these, and what else is worth knowing of a run that is over."""
    return {**versions(), "python": platform.python_version()}


def model_identity(name: str | os.PathLike[str] | None, revision: str | None = None) -> str:
    """Returns what identifies a model: a digest of a folder's weights, configurations and tokenizer, or a commit."""
    source = resolve_model(name)
    if source.endswith(".gguf") and os.path.isfile(source):
        return hash_file(Path(source))
    if os.path.isdir(source):
        files = [path for path in Path(source).rglob("*") if path.suffix in _MODEL_FILES and path.is_file()]
        names = {path.relative_to(source).as_posix(): path for path in files}
        return digest_of({name: hash_file(path) for name, path in names.items() if not name.startswith(".")})
    if "/" not in source:
        return source  # neither a folder nor a repository: loading will say so
    place, named = split_gguf(source, {} if revision is None else {"revision": revision})
    found = source_of(place, named)
    return f"{source}@{found['revision']}"


def weights_digest(weights: Mapping[str, torch.Tensor]) -> str:
    """Returns the SHA-256 of tensors: names, shapes, types and every number."""

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        head = f"{name} {tuple(tensor.shape)} {tensor.dtype} "
        numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return hashlib.sha256(head.encode() + hashlib.sha256(numbers).digest()).digest()

    with ThreadPoolExecutor() as pool:
        parts = pool.map(digest, sorted(weights.items()))
        return hashlib.sha256(b"".join(parts)).hexdigest()


def data_identity(dataset: Any) -> dict[str, Any]:
    """Returns what identifies a data set by every record and every picture.

    Args:
        dataset: Region records: of `datasets`, by index, or a stream, which is read once.
    """
    contents, pictures, images = hashlib.sha256(), hashlib.sha256(), 0
    stored = hasattr(dataset, "with_format") and hasattr(dataset, "__len__")
    for content, stamps in _tables(dataset) if stored else _rows(dataset):
        contents.update(content)
        pictures.update("\n".join([*stamps, ""]).encode(errors="surrogatepass"))
        images += len(stamps)
    return {
        "images": images,
        "contents of the records": contents.hexdigest()[:16],
        "sizes and times of the pictures": pictures.hexdigest()[:16],
    }


def _tables(dataset: Any) -> Iterator[tuple[bytes, list[str]]]:
    """Yields the records of a data set of `datasets` as Arrow has them, far faster than one by one."""
    import pyarrow  # type: ignore[import-untyped]

    for table in dataset.with_format("arrow").iter(_ROWS_AT_A_TIME):
        images = table["image"].to_pylist() if "image" in table.column_names else [None] * len(table)
        stamps = [picture_stamp(image) for image in images]
        rest = table.select([name for name in table.column_names if name != "image"]).combine_chunks()
        rest = rest.replace_schema_metadata(None)
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, rest.schema) as writer:
            writer.write_table(rest)
        yield sink.getvalue().to_pybytes(), stamps


def _rows(dataset: Any) -> Iterator[tuple[bytes, list[str]]]:
    rows = (dataset[index] for index in range(len(dataset))) if hasattr(dataset, "__len__") else dataset
    for row in rows:
        row = dict(row) if isinstance(row, Mapping) else {"row": row}
        yield digest_of({**row, "image": None}).encode(), [picture_stamp(row.get("image"))]
