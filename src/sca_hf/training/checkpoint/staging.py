"""Folders that are written whole or not at all: staged beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol


# The Trainer's uploads leave out what begins with an underscore.
UNFINISHED = "_tmp-"
REPLACED = "_tmp-old-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_NUMBERS = "|".join(str(number) for number in _FULL)


class DiskFullError(OSError):
    """Something could not be written for want of space; no part of it is left."""


class Saveable(Protocol):
    """A model, tokenizer or processor."""

    def save_pretrained(self, save_directory: Path) -> Any:
        """Writes itself to a folder."""


def save_whole(folder: str | Path, *parts: Saveable) -> Path:
    """Saves parts into one folder, which exists only once everything in it is written."""
    with staged(folder) as part:
        for saveable in parts:
            saveable.save_pretrained(part)
    return Path(folder)


@contextmanager
def staged(target: str | Path) -> Iterator[Path]:
    """Gives an empty folder that becomes `target`, replacing what is there, when the block ends without an error."""
    target = Path(target)
    staging = target.with_name(UNFINISHED + target.name)
    shutil.rmtree(staging, ignore_errors=True)
    with removed_on_error(staging, target):
        part = staging / target.name
        part.mkdir(parents=True)
        yield part
        flush(part)
        put_in_place(part, target)


@contextmanager
def removed_on_error(staging: Path, target: Path, least: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Removes the staging folder at the end, and says what is to be done where the disk is full.

    least: how many bytes `target` is known to take.
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        needed = max(least(), sum(file_sizes(staging).values()))
        shutil.rmtree(staging, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        raise DiskFullError(
            f"{target} could not be written, the disk is full: it takes {needed / 1e6:.1f} MB or more beside what is "
            f"there, {free / 1e6:.1f} MB are free; make room and go on."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def put_in_place(part: Path, target: Path) -> None:
    """Renames a finished folder; one that it replaces is set aside first, so that no moment has half of each."""
    replaced = target.with_name(REPLACED + target.name)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    part.rename(target)
    flush_entry(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def drop(folder: Path) -> None:
    """Deletes a folder that is never seen by halves."""
    replaced = folder.with_name(REPLACED + folder.name)
    folder.rename(replaced)
    shutil.rmtree(replaced, ignore_errors=True)


def file_sizes(folder: Path) -> dict[str, int]:
    """Returns the length of every file below a folder by its relative name."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def flush(folder: Path) -> None:
    """Has every file and folder below a folder written to the disk itself."""
    for entry in [*folder.rglob("*"), folder]:
        flush_entry(entry)


def flush_entry(path: Path) -> None:
    """Has one file, or the names in one folder, written to the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not flush folders.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _is_disk_full(error: BaseException) -> bool:
    """Libraries hide the error number of a failed write in errors of their own, or lose it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        # safetensors keeps the number in its text; torch, which writes its archives itself, says only that it failed.
        text = str(cause)
        if re.search(rf"os error ({_FULL_NUMBERS})\b", text) or "PytorchStreamWriter" in text:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
