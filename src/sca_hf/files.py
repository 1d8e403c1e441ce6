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
from typing import IO, TYPE_CHECKING, Any


if TYPE_CHECKING:
    from filelock import FileLock


# The Trainer's uploads leave out what begins with an underscore.
UNFINISHED = "_tmp-"
REPLACED = "_tmp-old-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_NAME = 255  # bytes of a file's name
_FULL_NUMBERS = "|".join(str(number) for number in _FULL)
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class DiskFullError(OSError):
    """Something could not be written for want of space; no part of it is left."""


class LockedError(RuntimeError):
    """Another process is writing the file; the message names it."""


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
            file.write(encode(part) if isinstance(part, str) else part)


def encode(text: str) -> bytes:
    """Returns a text as UTF-8; a byte of a file name that is not UTF-8 becomes \\udcXX, which JSON reads back."""
    return text.encode(errors="backslashreplace")


@contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Gives a name beside `path` to write a file to, which takes the place of `path` if the block raises no error.

    What a link leads to is replaced, not the link. A device or a pipe is given as it is.

    Raises:
        DiskFullError: There is no room; `path` is what it was.
    """
    path = Path(os.path.realpath(path))
    with naming_full_disk(path):
        if path.exists() and not path.is_file():
            yield path
            return
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is read-only.")  # renaming would not ask
        draft = beside(path, ".", f".{uuid.uuid4().hex[:8]}.part")
        try:
            yield draft
            if path.exists():
                shutil.copymode(path, draft)
            if durable:
                flush_entry(draft)
            os.replace(draft, path)
            if durable:
                flush_entry(path.parent)
        finally:
            draft.unlink(missing_ok=True)


def save_picture(picture: Any, path: str | Path) -> None:
    """Saves a PIL picture in the format of the path's suffix, whole or not at all."""
    from PIL import Image

    with replacing(path) as draft:
        picture.save(draft, Image.registered_extensions()[Path(path).suffix.lower()])


def beside(path: Path, before: str, after: str = "") -> Path:
    """Returns a name in the folder of `path` that is made from its own, and short enough for every file system."""
    room = _LONGEST_NAME - len(before + after)
    fits = len(os.fsencode(path.name)) <= room
    name = path.name if fits else hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
    return path.with_name(f"{before}{name}{after}")


def write_new(path: Path, content: str | bytes) -> bool:
    """Writes a complete file unless it is there already, also when several processes try; returns who was first."""
    draft = beside(path, ".", f".{uuid.uuid4().hex[:8]}.part")
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


@contextmanager
def locked(path: str | Path, again: bool = False) -> Iterator[None]:
    """Claims a file or folder for this process, see [`lock_file`]."""
    lock = lock_file(path, again)
    try:
        yield
    finally:
        unlock(lock)


def lock_file(path: str | Path, again: bool = False) -> FileLock:
    """Claims a file or folder for this process until [`unlock`] is called or the process ends, however it ends.

    A file beside it, `.NAME.lock`, is what is locked: on Windows the file itself could not be read meanwhile.

    Args:
        path: What to claim.
        again: Whether what this process has claimed so itself may be claimed once more.

    Raises:
        LockedError: another process, or another lock in this one, has it.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    lock = FileLock(lock_path(path), is_singleton=again)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LockedError(
            f"{path} is being written by another process; wait until it finishes, or choose another output."
        ) from None
    return lock


def unlock(lock: FileLock) -> None:
    """Gives up what was claimed, and removes the file that was locked."""
    # Removed before it is given up: whoever waits for it then sees that it is gone and takes a new one.
    if os.name != "nt" and lock.lock_counter == 1:
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def lock_path(path: Path) -> Path:
    """Returns the file that is locked in the place of `path`."""
    return beside(path, ".", ".lock")


def named_paths(value: Any) -> Iterator[str]:
    """Yields what on this disk a path, a data spec (`format:option=path,...`) or a mapping names, absolute."""
    if isinstance(value, Mapping):
        value = value.values()
    elif isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if os.path.exists(text):
            yield os.path.abspath(text)
        elif isinstance(text, str) and "=" in text:
            yield from named_paths([part.partition("=")[2] for part in text.partition(":")[2].split(",")])
        return
    if isinstance(value, Iterable) and not isinstance(value, bytes):
        for part in value:
            yield from named_paths(part)


def refuse_inputs(outputs: Iterable[str | Path], inputs: Any, inside: bool = True) -> None:
    """Raises where something to write is something that is read, however both are spelled, or two outputs are one.

    Args:
        outputs: Files and folders to write.
        inputs: What is read, see [`named_paths`].
        inside: Whether a file that is there already, in a folder that is read, is one of its files too.
    """
    read = {os.path.realpath(path): os.stat(path) for path in named_paths(inputs)}
    files, seen = {(status.st_dev, status.st_ino) for status in read.values()}, set[str]()
    for output in outputs:
        place = os.path.realpath(output)
        status = os.stat(place) if os.path.exists(place) else None
        if status is not None and (status.st_dev, status.st_ino) in files:
            raise ValueError(f"{output} would be overwritten, but is read too: choose another output.")
        folder = next((str(above) for above in Path(place).parents if str(above) in read), None)
        if inside and folder and os.path.isfile(place):
            raise ValueError(f"{output} is in {folder}, which is read: choose another output, or remove that file.")
        if place in seen:
            raise ValueError(f"{output} would be written twice: choose another name for one of the two.")
        seen.add(place)


def differences(former: Any, present: Any, name: str = "") -> list[str]:
    """Says which of nested settings are not what they were, one line each: `a.b was 1 and is 2`."""
    if isinstance(former, Mapping) and isinstance(present, Mapping):
        keys = [*former, *(key for key in present if key not in former)]
        parts = [differences(former.get(key), present.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for part in parts for line in part]
    return [] if former == present else [f"{name} was {former!r} and is {present!r}"]


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of a value as JSON has it; arrays and pictures count by what they hold."""
    text = json.dumps(value, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if hasattr(value, "tobytes"):
        about = (getattr(value, name, None) for name in ("mode", "size", "shape", "dtype"))
        return [*map(str, about), hashlib.sha256(value.tobytes()).hexdigest()]
    return str(value) if isinstance(value, os.PathLike) else type(value).__qualname__


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
_OPERATIONS = {operation.code: operation for operation in pickletools.opcodes}


def check_pickle(file: IO[bytes]) -> None:
    """Refuses a pickle with tuples that may nest without end: as keys they would crash the interpreter.

    Reads up to the pickle's end and runs nothing; a refusal takes some 100,000 operations, a tenth of a second.
    """
    tuples, name = 0, ""
    while name != "STOP":
        operation = _OPERATIONS.get(file.read(1).decode("latin-1"))
        if operation is None:
            raise ValueError("it is not a pickle, or cut short")
        name = operation.name
        tuples += name.startswith("TUPLE")
        if operation.arg is not None:
            # Strings of Python 2 may hold any bytes.
            value: Any = file.readline() if name == "STRING" else operation.arg.reader(file)
            if name.endswith("PUT") and value > file.tell():
                raise ValueError("it numbers its parts beyond their count, and memory is taken for all numbers")
    if tuples > _MOST_TUPLES:
        raise ValueError(f"it has {tuples} tuples, more than {_MOST_TUPLES}, which may nest without end")


def text_encoding(path: str | Path) -> str:
    """Returns how a text file is written: UTF-16 with its mark, as on Windows, or UTF-8."""
    with Path(path).open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def read_json(path: str | Path, kind: type = object, remedy: str = "", errors: str = "strict") -> Any:
    """Reads a JSON file; errors name it.

    Args:
        path: The file.
        kind: What it must hold, as dict.
        remedy: What to do about a file that is damaged.
        errors: As for `open`: "surrogateescape" leaves bytes that are not UTF-8 to the texts that they stand in.
    """
    try:
        with Path(path).open(encoding=text_encoding(path), errors=errors) as file:
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


def json_line(value: Any) -> str:
    """Returns a value as JSON in one line, without its line end, whatever a reader takes for the end of a line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).translate(_LINE_ENDS)


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


@contextmanager
def staged(target: str | Path) -> Iterator[Path]:
    """Gives an empty folder that becomes `target`, replacing what is there, when the block ends without an error."""
    target = Path(os.path.realpath(target))
    staging, replaced = beside(target, UNFINISHED), beside(target, REPLACED)
    with locked(target), removed_on_error(staging, target):
        shutil.rmtree(staging, ignore_errors=True)
        if replaced.exists() and not target.exists():  # killed between the two renames
            replaced.rename(target)
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


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Has the error of a full disk name the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not _is_disk_full(error):
            raise
        raise DiskFullError(
            f"{path} could not be written, the disk is full; free some space and run the command again."
        ) from error


def put_in_place(part: Path, target: Path) -> None:
    """Renames a finished folder; one that it replaces is set aside first, so that no moment has half of each."""
    replaced = beside(target, REPLACED)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    part.rename(target)
    flush_entry(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def drop(folder: Path) -> None:
    """Deletes a folder that is never seen by halves."""
    replaced = beside(folder, REPLACED)
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
    seen: list[BaseException] = []  # an error that was raised again may be its own cause
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        # safetensors keeps the number in its text; torch, which writes its archives itself, says only that it failed.
        text = str(cause)
        if re.search(rf"os error ({_FULL_NUMBERS})\b|PytorchStreamWriter|inline_container", text):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
