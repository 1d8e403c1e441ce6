"""What a long run has done so far, on disk: nothing is lost when it is killed, nothing is done twice.

A state file says what decides the results of the run, so that a run with other settings is refused. Each process
appends JSON lines to a part of its own; a line that a kill cut short is dropped when the run is resumed.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from .files import (
    differences,
    encode,
    lock_file,
    naming_full_disk,
    read_json,
    to_json,
    unlock,
    write_new,
    write_whole,
)


if TYPE_CHECKING:
    from filelock import FileLock


logger = logging.getLogger(__name__)

_BLOCK = 1 << 16
_PATIENCE = 0.2  # seconds between two looks at whether the other processes are done
SAY_SECONDS = 10.0  # of waiting that need a word
WAIT_SECONDS = 600.0  # without a new line of any process, after which nobody is taken to be at work


class RunLogError(ValueError):
    """A log that cannot be used; the message names the file and the line."""


class RunMismatchError(RunLogError):
    """A log of a run with other settings; the message names each of them."""


class Line(NamedTuple):
    """One line of a log.

    Attributes:
        key: What the line is about.
        about: What else is remembered of it, see [`RunLog`].
        path: The part that holds it.
        start: Its first byte.
        end: The byte after its line end.
    """

    key: str
    about: Any
    path: Path
    start: int
    end: int


class RunLog:
    """The JSON lines of one run, in one part per process; as a context it appends to this process's part.

    Args:
        output: What the run makes, for messages.
        state: The file that says what the run is; it is created if it is not there.
        settings: What decides the results, as JSON values.
        part: The file that this process appends to; None only reads.
        pattern: A glob of all parts, in the folder of `state`.
        head: Returns the key of a line, and whatever else of it is to be remembered; raises ValueError if it is
            damaged.
        notes: What else the state file says, kept as it was when the run began.
        replaces: Whether a line takes the place of a former one of the same key, from what is remembered of both.

    Raises:
        RunMismatchError: The log is of a run with other settings, and has lines.
    """

    def __init__(
        self,
        output: Path,
        state: Path,
        settings: Mapping[str, Any],
        part: Path | None,
        pattern: str,
        head: Callable[[bytes], tuple[str, Any]],
        notes: Mapping[str, Any] | None = None,
        replaces: Callable[[Any, Any], bool] = lambda former, new: True,
    ) -> None:
        self.output, self.part = output, part
        self.own: list[Line] = []
        self._state_file, self._pattern, self._head, self._replaces = state, pattern, head, replaces
        self._file: FileIO | None = None
        self._lock: FileLock | None = None
        # As JSON has it, so that what is read equals what is compared.
        self.state: dict[str, Any] = self._claim(json.loads(json.dumps(dict(settings))), notes or {})

    def _claim(self, settings: dict[str, Any], notes: Mapping[str, Any]) -> dict[str, Any]:
        begun = {"settings": settings, "complete": False, **notes}
        self._state_file.parent.mkdir(parents=True, exist_ok=True)
        # Complete or not there: several processes begin at once.
        write_new(self._state_file, to_json(begun))
        state = self._read_state()
        different = differences(state["settings"], settings)
        if not different:
            return state
        if any(path.is_file() and path.stat().st_size for path in (self.output, *self.parts())):
            raise RunMismatchError(
                f"{self.output} belongs to a run with other settings: {'; '.join(different)}. Use those settings, "
                f"choose another output, or remove {self.output.name}* to start from scratch."
            )
        write_whole(self._state_file, to_json(begun))  # the former run came to nothing: no harm in another
        return begun

    def _read_state(self) -> dict[str, Any]:
        state = read_json(self._state_file)
        if not isinstance(state, dict) or not isinstance(state.get("settings"), dict) or "complete" not in state:
            raise RunLogError(
                f"{self._state_file} does not say what the run is: it was changed. Remove {self.output} and "
                f"{self._state_file} to start from scratch, or choose another output."
            )
        return state

    def update(self, **values: Any) -> None:
        """Changes what the state file says beside the settings, as `complete`."""
        self.state |= values
        write_whole(self._state_file, to_json(self.state))

    def parts(self) -> list[Path]:
        """Returns the parts that are there, of all processes."""
        return sorted(path for path in self._state_file.parent.glob(self._pattern) if path.is_file())

    def __enter__(self) -> RunLog:
        """Claims this process's part, drops an incomplete last line, and reads what it holds as `own`.

        Raises:
            LockedError: Another process has the part.
            RunLogError: A line is damaged.
        """
        if self.part is None:
            raise ValueError("this log was opened for reading; pass a part to append to.")
        self._lock = lock_file(self.part)
        try:
            # Without a buffer, so that what finds no room is not written again when the file is closed.
            self._file = self.part.open("ab", buffering=0)
            self._file.truncate(_end_of_lines(self.part))
            self.own = list(self._scan(self.part))
            self.state = self._read_state()  # another process may have ended the run meanwhile
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes this process's part and leaves it to others."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None

    def append(self, lines: Iterable[str]) -> None:
        """Appends lines, each a JSON value without its line end; all of them or none.

        Raises:
            DiskFullError: There is no room for them.
        """
        file, left = self._opened(), memoryview(encode("".join(line + "\n" for line in lines)))
        end = file.seek(0, os.SEEK_END)
        try:
            with naming_full_disk(self.part or self.output):
                while left:
                    left = left[file.write(left) :]
        except BaseException:
            file.truncate(end)
            raise

    def cut(self, count: int) -> None:
        """Drops all lines of this process's part but the first `count` of those that were there when it was opened."""
        self._opened().truncate(self.own[count - 1].end if count else 0)
        del self.own[count:]

    def _opened(self) -> FileIO:
        if self._file is None:
            raise ValueError("enter the log (with log: ...) before changing it.")
        return self._file

    def lines(self) -> dict[str, Line]:
        """Reads all parts and returns the line of each key."""
        found: dict[str, Line] = {}
        for path in self.parts():
            # A part may be dropped meanwhile, by the process that has put all of them together.
            with suppress(FileNotFoundError):
                for line in self._scan(path):
                    former = found.get(line.key)
                    if former is None or self._replaces(former.about, line.about):
                        found[line.key] = line
        return found

    def wait_for(self, keys: Collection[str]) -> dict[str, Line]:
        """Returns the line of each key once other processes have written all of them; says what is waited for.

        Raises:
            RunLogError: None of them wrote a line for `WAIT_SECONDS`, so that some are not running.
        """
        began = news = time.monotonic()
        missing, said = -1, False
        while True:
            looked = time.monotonic()
            lines = self.lines()
            before, missing = missing, sum(key not in lines for key in keys)
            if not missing or self._read_state()["complete"]:  # then the parts are gone
                return lines
            now = time.monotonic()
            news = now if missing != before else news
            what = f"{self.output}: {missing} of {len(keys)} are missing, which other processes should write"
            if now - news >= WAIT_SECONDS:
                raise RunLogError(
                    f"{what}, and none did for {now - news:.0f} seconds. Start all processes of the run (RANK 0 to "
                    "WORLD_SIZE - 1, as torchrun does); what is done is kept."
                )
            if not said and now - began >= SAY_SECONDS:
                said = True
                logger.warning("%s; waiting for them, at most %.0f seconds for the next.", what, WAIT_SECONDS)
            time.sleep(max(_PATIENCE, 4 * (now - looked)))

    def entries(self, lines: Iterable[Line]) -> Iterator[dict[str, Any]]:
        """Yields the content of lines, in this order, one at a time."""
        with ExitStack() as stack:
            files: dict[Path, BinaryIO] = {}
            for line in lines:
                if line.path not in files:
                    files[line.path] = stack.enter_context(line.path.open("rb"))
                files[line.path].seek(line.start)
                yield json.loads(files[line.path].read(line.end - line.start))

    def _scan(self, path: Path) -> Iterator[Line]:
        """Yields the complete lines of a part."""
        start = 0
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                try:
                    key, about = self._head(text)
                except ValueError:
                    raise RunLogError(f"{path}, line {number} is damaged: remove it and all lines after it.") from None
                yield Line(key, about, path, start, start + len(text))
                start += len(text)


def torchrun_rank() -> tuple[int, int]:
    """Returns the rank and the number of the processes that torchrun started; 0 and 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _end_of_lines(path: Path) -> int:
    """Returns where the last complete line of a file ends."""
    end = path.stat().st_size
    with path.open("rb") as file:
        while end:
            start = max(0, end - _BLOCK)
            file.seek(start)
            last = file.read(end - start).rfind(b"\n")
            if last >= 0:
                return start + last + 1
            end = start
    return 0
