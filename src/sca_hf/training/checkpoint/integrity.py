"""Which checkpoints of a folder are whole, and which of them stay."""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...files import REPLACED, UNFINISHED, LockedError, digest_of, drop, file_sizes, hash_file, locked, put_in_place


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint_manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is incomplete, or belongs to another run."""


@contextmanager
def lock_run(folder: str | Path) -> Iterator[None]:
    """Claims the folder of a training run; others are refused, this process may claim it again."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with locked(Path(folder) / "run", again=True):
            yield
    except LockedError:
        raise LockedError(
            f"Another process is training in {folder}: wait until it finishes, or choose another output."
        ) from None


def last_checkpoint(folder: str | Path, before: int | None = None) -> Path | None:
    """Returns the newest whole checkpoint of a folder, ours or the stock Trainer's; None where there is none.

    Args:
        folder: The folder of the run.
        before: Only checkpoints of earlier steps than this one.
    """
    paths = [path for path in _checkpoints(Path(folder)) if before is None or _step(path) < before]
    for path in sorted(paths, key=_step, reverse=True):
        reason = incomplete_reason(path)
        if reason is None:
            return path
        logger.warning("%s is incomplete and skipped: %s.", path, reason)
    return None


def incomplete_reason(checkpoint: Path) -> str | None:
    """Says why a checkpoint is not whole, or returns None.

    One of ours holds every file that its manifest lists, with its length and its SHA-256. The stock Trainer writes no
    manifest: there, every file must end where its own format says, and the Trainer's state, written last, must be that
    of the folder's step.
    """
    sizes = file_sizes(checkpoint)
    if MANIFEST in sizes:
        manifest = read_json(checkpoint / MANIFEST)
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or manifest.get("sum", own := manifest_sum(manifest)) != own:
            return f"{MANIFEST} is damaged"
        short = (f"{name} is missing or truncated" for name, size in files.items() if sizes.get(name) != size)
        sums = manifest.get("sha256", {}).items()
        damaged = (f"{name} is damaged" for name, sha256 in sums if hash_file(checkpoint / name) != sha256)
        return next(chain(short, damaged), None)
    state = read_json(checkpoint / TRAINER_STATE_NAME)
    if not isinstance(state, dict) or state.get("global_step") != _step(checkpoint):
        return f"{TRAINER_STATE_NAME} is missing or truncated"
    return next((f"{name} is cut" for name in sizes if not _is_complete(checkpoint / name, set(sizes))), None)


def manifest_sum(manifest: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of what a manifest says beside it."""
    return digest_of({name: value for name, value in manifest.items() if name != "sum"})


def clear_leftovers(folder: str | Path) -> None:
    """Removes what killed saves left; a checkpoint that lacked only its last renaming gets it."""
    folder = Path(folder)
    for staging in sorted(folder.glob(f"{UNFINISHED}{PREFIX_CHECKPOINT_DIR}-*")):
        name = staging.name.removeprefix(UNFINISHED)
        part, target = staging / name, folder / name
        if (
            (part / MANIFEST).exists()
            and incomplete_reason(part) is None
            and (not target.exists() or incomplete_reason(target))
        ):
            put_in_place(part, target)
        shutil.rmtree(staging, ignore_errors=True)
    for replaced in folder.glob(f"{REPLACED}{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(replaced, ignore_errors=True)


def rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`, never the newest nor the best."""
    if not limit or limit < 0:
        return
    protected = {newest} | ({Path(best)} if best and Path(best).is_dir() else set())
    others = [path for path in _checkpoints(newest.parent) if path not in protected]
    others.sort(key=lambda path: (path.stat().st_mtime_ns, _step(path)))
    for path in others[: max(0, len(others) + len(protected) - max(limit, len(protected)))]:
        drop(path)


def _checkpoints(folder: Path) -> list[Path]:
    paths = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if re.fullmatch(r"\d+", path.name.rpartition("-")[2]) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def has_optimizer(checkpoint: Path) -> bool:
    """Deepspeed keeps optimizer and scheduler in a folder of its own, named by the file `latest`."""
    return any((checkpoint / name).is_file() for name in ("scheduler.pt", "latest"))


def _is_complete(path: Path, names: set[str]) -> bool:
    """Whether a file of the stock Trainer ends where its format says: the end is what a killed save lacks."""
    if path.name.endswith(".index.json"):
        index = read_json(path)
        return isinstance(index, dict) and set(index.get("weight_map", {}).values()) <= names
    if path.suffix == ".json":
        return read_json(path) is not None
    if path.suffix == ".safetensors":
        return _safetensors_length(path) == path.stat().st_size
    # torch.save writes a zip archive, whose table of contents comes last.
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


def _safetensors_length(path: Path) -> int | None:
    """Returns the length that the header of a safetensors file promises."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
