"""Files and folders that are written whole or not at all, locks between processes, and what differs from before.

What is written gets a temporary name beside its place until it is complete, and is renamed then, so that a
killed process never leaves half a file under its final name. Needs neither torch nor transformers.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickletools
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol


if TYPE_CHECKING:
    from filelock import FileLock


# The Trainer's uploads leave out what begins with an underscore.
UNFINISHED = "_tmp-"
REPLACED = "_tmp-old-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_NUMBERS = "|".join(str(number) for number in _FULL)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class DiskFullError(OSError):
    """Something could not be written for want of space; no part of it is left."""


class LockedError(RuntimeError):
    """Another process is writing the file; the message names it."""


class Saveable(Protocol):
    """A model, tokenizer or processor."""

    def save_pretrained(self, save_directory: Path) -> Any:
        """Writes itself to a folder."""


def write_whole(path: str | Path, content: str | bytes | Iterable[str | bytes], durable: bool = False) -> None:
    """Writes a file that other processes see complete or not at all.

    Args:
        path: The file, which is replaced if it is there; its folder must exist.
        content: A text, which is written as UTF-8 with its line ends as they are, bytes, or an iterable of either.
        durable: Also wait until the content has reached the disk, for what must survive a power failure.
    """
    parts = [content] if isinstance(content, str | bytes) else content
    with replacing(path, durable) as draft, draft.open("wb") as file:
        for part in parts:
            file.write(part.encode() if isinstance(part, str) else part)


@contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Gives a name beside `path` to write a file to, which takes the place of `path` if the block raises no error."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield draft
        if durable:
            flush_entry(draft)
        os.replace(draft, path)
        if durable:
            flush_entry(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def write_new(path: Path, content: str | bytes) -> bool:
    """Writes a complete file unless it is there already, also when several processes try; returns who was first."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        write_whole(draft, content)
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError:  # not every file system has links
            if path.exists():
                return False
            os.replace(draft, path)
        return True
    finally:
        draft.unlink(missing_ok=True)


def lock_file(path: str | Path) -> FileLock:
    """Claims a file for this process until `release` is called or the process ends, however it ends.

    A file beside it, `.NAME.lock`, is what is locked: on Windows the file itself could not be read meanwhile.

    Raises:
        LockedError: another process, or another lock in this one, has it.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = FileLock(lock_path(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(
            f"{path} is being written by another process; wait until it finishes, or choose another output."
        ) from None
    return lock


def lock_path(path: Path) -> Path:
    """Returns the file that is locked in the place of `path`."""
    return path.with_name(f".{path.name}.lock")


def differences(former: Any, present: Any, name: str = "") -> list[str]:
    """Says which of nested settings are not what they were, one line each: `a.b was 1 and is 2`."""
    if isinstance(former, Mapping) and isinstance(present, Mapping):
        keys = [*former, *(key for key in present if key not in former)]
        parts = [differences(former.get(key), present.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for part in parts for line in part]
    return [] if former == present else [f"{name} was {former!r} and is {present!r}"]


def hash_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path | None:
    """Joins a name that a file gave; None where it would lead out of the folder, by its parts or by a link.

    Args:
        folder: where the name is looked for.
        name: a relative path, with / or \\ between its parts.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if not parts or path.is_absolute() or ".." in parts or ":" in parts[0] or "\0" in name:
        return None
    joined = folder.joinpath(*parts)
    return None if leads_out(folder, joined) else joined


def leads_out(folder: Path, path: Path) -> bool:
    """Whether a link on the way from a folder to a path below it leads out of the folder."""
    place = os.fspath(folder)
    for part in path.relative_to(folder).parts:
        place = os.path.join(place, part)
        if os.path.islink(place):
            return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    return False


def is_special(path: str | Path) -> bool:
    """Whether a path is a pipe, a device or a folder: opening it may block, or never end."""
    return os.path.exists(path) and not os.path.isfile(path)


# Hashing a tuple recurses on the C stack, which ends at some 100,000; what is read here has few, and flat ones.
_MOST_TUPLES = 20_000


def check_pickle(file: BinaryIO) -> None:
    """Refuses a pickle with tuples that may nest without end: as keys they would crash the interpreter.

    Reads up to the pickle's end and runs nothing; a refusal takes some 100,000 operations, a tenth of a second.
    """
    tuples, name = 0, ""
    while name != "STOP":
        operation = pickletools.code2op.get(file.read(1).decode("latin-1"))
        if operation is None:
            raise ValueError("it is not a pickle, or cut short")
        name = operation.name
        tuples += name.startswith("TUPLE")
        if operation.arg is not None:
            # Strings of Python 2 may hold any bytes.
            file.readline() if name == "STRING" else operation.arg.reader(file)
    if tuples > _MOST_TUPLES:
        raise ValueError(f"it has {tuples} tuples, more than {_MOST_TUPLES}, which may nest without end")


def read_json(path: str | Path, kind: type = object, remedy: str = "", errors: str = "strict") -> Any:
    """Reads a JSON file; errors name it.

    Args:
        path: The file.
        kind: What it must hold, as dict.
        remedy: What to do about a file that is damaged.
        errors: As for `open`: "surrogateescape" leaves bytes that are not UTF-8 to the texts that they stand in.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", errors=errors) as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        problem = "is empty" if getattr(error, "doc", None) == "" else f"is not JSON, or cut short: {error}"
        raise ValueError(f"{path} {problem}.{remedy and f' {remedy}'}") from None
    if not isinstance(content, kind):
        raise ValueError(
            f"{path} holds a {type(content).__name__}, expected {kind.__name__}.{remedy and f' {remedy}'}"
        )
    return content


def to_json(value: Any, indent: int | None = 1) -> str:
    """Returns a value as JSON that every parser takes, with a line end: what is not a number is null."""
    return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False, indent=indent) + "\n"


def without_nan(value: Any) -> Any:
    """Returns a value with None in place of every NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def has_lone_surrogate(text: str) -> bool:
    """Returns whether a text has half of a character, as broken JSON escapes leave it and UTF-8 cannot hold it."""
    return _LONE_SURROGATE.search(text) is not None


def in_one_line(name: str) -> str:
    """Returns a name for a message; one with a line break, or what cannot be seen, as Python writes it."""
    return name if name.isprintable() else repr(name)


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
def removed_on_error(staging: Path, target: Path, min_bytes: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Removes the staging folder at the end, and says what to do where the disk is full.

    Args:
        staging: The folder to remove.
        target: What is being written, for the message.
        min_bytes: Returns how many bytes `target` takes at least, as far as that is known.
    """
    try:
        yield
    except Exception as error:
        if not _is_disk_full(error):
            raise
        needed = max(min_bytes(), sum(file_sizes(staging).values()))
        shutil.rmtree(staging, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        raise DiskFullError(
            f"{target} could not be written, the disk is full: at least {needed / 1e6:.1f} MB more are needed, "
            f"{free / 1e6:.1f} MB are free; free some space and resume."
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
    windows = os.name == "nt"
    if windows and path.is_dir():
        return  # Windows flushes files only, and those only where they are open for writing
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
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
