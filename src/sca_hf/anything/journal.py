"""What a run over many images has done so far, on disk: nothing is lost when it is killed, nothing is done twice.

Each process appends to a file of its own, one line per image. A line that was cut short by a kill is dropped when the
run goes on. Any number of processes, on any number of machines that share the folder, may take part.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm


class Place(NamedTuple):
    """Where an image's line is, and whether the image failed."""

    path: Path
    offset: int
    failed: bool


class Journal:
    """The lines of a run.

    Args:
        folder: of the run.
        identity: what decides the results: model, settings. A folder holds one run only.
        rank: of this process; None only reads.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any], rank: int | None = 0) -> None:
        self.folder = Path(folder) / "journal"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim(json.loads(json.dumps(identity)))
        self._file = None
        if rank is not None:
            path = self.folder / f"part-{rank:05d}.jsonl"
            self._file = path.open("ab")
            _lock(self._file, path)
            _cut_torn_line(path)

    def _claim(self, identity: dict[str, Any]) -> None:
        path = self.folder / "run.json"
        # Whole or not there: several processes begin at once.
        mine = path.with_name(f"run.json.{os.getpid()}")
        mine.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")
        try:
            os.link(mine, path)
        except FileExistsError:
            known = json.loads(path.read_text(encoding="utf-8"))
            if different := sorted(k for k in {*known, *identity} if known.get(k) != identity.get(k)):
                name = different[0]
                raise ValueError(
                    f"{self.folder.parent} holds a run with {name} = {known.get(name)!r}, not {identity.get(name)!r}; "
                    "give another output, or remove that folder."
                ) from None
        finally:
            mine.unlink()

    def add(self, entry: Mapping[str, Any]) -> None:
        """Appends an image: `image`, its name, first, then what became of it, beginning with an `error`."""
        if self._file is None:
            raise ValueError("this journal was opened for reading.")
        # One write of a whole line: a killed process leaves it whole or torn, never mixed with another.
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes this process's file."""
        if self._file is not None:
            self._file.close()

    def places(self) -> dict[str, "Place"]:
        """Where each image's last line is."""
        found: dict[str, Place] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            with path.open("rb") as file:
                offset = 0
                for line in file:
                    if line.endswith(b"\n"):
                        name, failed = _head(line)
                        # A failure that was tried again elsewhere gives way.
                        if name not in found or found[name].failed or not failed:
                            found[name] = Place(path, offset, failed)
                    offset += len(line)
        return found

    def entries(self, places: Iterable["Place"]) -> Iterator[dict[str, Any]]:
        """Yields the lines at these places."""
        places = list(places)
        files = {path: path.open("rb") for path in {place.path for place in places}}
        try:
            for place in places:
                files[place.path].seek(place.offset)
                yield json.loads(files[place.path].readline())
        finally:
            for file in files.values():
                file.close()


def _head(line: bytes) -> tuple[str, bool]:
    """The name of a line's image, and whether it failed, without a look at its masks."""
    text = line.decode()
    start = len('{"image": ')
    name, end = json.JSONDecoder().raw_decode(text, start)
    return name, text.startswith(', "error"', end)


def write_whole(path: Path, lines: Iterator[str]) -> None:
    """Writes a text file that is there whole or not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
    os.replace(part, path)


def progress_bar(total: int, done: int, show: bool) -> Any:
    """A bar over all images of this process; what was done before counts as done."""
    return tqdm(total=total, initial=done, unit="image", disable=not show, dynamic_ncols=True)


def _cut_torn_line(path: Path) -> None:
    content_end = path.stat().st_size
    with path.open("rb+") as file:
        while content_end:
            start = max(0, content_end - (1 << 16))
            file.seek(start)
            block = file.read(content_end - start)
            last = block.rfind(b"\n")
            if last >= 0:
                file.truncate(start + last + 1)
                return
            content_end = start
        file.truncate(0)


def _lock(file: Any, path: Path) -> None:
    """Holds the file until this process ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise RuntimeError(
            f"{path} is being written by another process; wait for it, or give another output."
        ) from None
