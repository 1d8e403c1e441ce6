"""Files of a run of predictions: written as it goes, gone on with after a kill, shared by several processes.

Beside `OUTPUT` stands `OUTPUT.run.json`, which says what the run is and whether it is complete. Each process appends
records to a part of its own, one a line; a single one that writes JSON lines, to OUTPUT itself.
"""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .predictions import PredictionError, PredictionRecord, write_predictions


try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

SUFFIXES = (".jsonl", ".parquet", ".json")
_PATIENCE = 0.2  # seconds between two looks at whether the other processes are done
# What a record must share with the data that it is about.
_OF_THE_DATA = ("image_id", "region_id", "box", "references")


class PredictionRun:
    """One process's view of a run.

    Args:
        output: .jsonl, .parquet or .json, see [`write_predictions`].
        settings: everything that the records depend on, as JSON values.
        notes: what else is worth knowing of the run; kept as it was when the run began.
        rank, processes: which of how many this one is.

    Raises:
        PredictionError: OUTPUT is of a run with other settings, or of no run, or somebody else is writing it.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.output, self.rank, self.processes = output, rank, processes
        self._sidecar = run_file(output)
        # As JSON has it, so that what is read equals what is compared.
        self.settings: dict[str, Any] = json.loads(json.dumps({**settings, "processes": processes}))
        check_output(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        _create(self._sidecar, {"settings": self.settings, "complete": False, **(notes or {})})
        state = self._state()
        different = differences(state["settings"], self.settings)
        if different and _is_empty(output):  # it came to nothing: no harm in another
            _write(self._sidecar, {"settings": self.settings, "complete": False, **(notes or {})})
            state = self._state()
        elif different:
            raise PredictionError(
                f"{output} belongs to a run with other settings: {'; '.join(different)}. Give the former ones, name "
                f"another file, or remove {output.name}* to start anew."
            )
        self.complete: bool = state["complete"] and output.exists()
        if self.complete:
            self._drop_parts()
        elif state["complete"]:  # and its file removed: anew
            _write(self._sidecar, {**state, "complete": False})
        self._file = None if self.complete else _open_alone(self.part)
        # What a run before this one left, with where each line ends; and how many of these are gone past.
        self._kept = [] if self.complete else _whole_lines(self.part)
        self._place = 0

    @property
    def part(self) -> Path:
        """The file that this process appends to."""
        return self._part(self.rank)

    def skip(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether these rows, the next of this process's, are predicted; if not, whatever is left of them is cut away.

        rows: of records, with `image_id`, `region_id`, `box` and `references`.
        """
        found = self._kept[self._place : self._place + len(rows)]
        for (line, _), row in zip(found, rows, strict=False):
            if any(line.get(name) != row[name] for name in _OF_THE_DATA):
                raise PredictionError(
                    f"{self.part} is of other data: it has image {line.get('image_id')}, region "
                    f"{line.get('region_id')} where the data have image {row['image_id']}, region "
                    f"{row['region_id']}, or another box or other references for it."
                )
        if len(found) == len(rows):
            self._place += len(rows)
            return True
        if found:
            # A batch is predicted again as a whole: the same company gives the same bits.
            os.truncate(self.part, self._kept[self._place - 1][1] if self._place else 0)
            del self._kept[self._place :]
        return False

    def append(self, records: Sequence[PredictionRecord]) -> None:
        """Writes the records of a batch; those of a kill in between are cut away when the run goes on."""
        assert self._file is not None, "a complete run takes no more records"
        self._file.write("".join(record.to_json() + "\n" for record in records).encode())
        self._file.flush()

    def finish(self, batches: Sequence[int]) -> None:
        """Ends this process's share; the first one waits for the others and puts OUTPUT together.

        batches: how many records each batch of the whole run has, of all processes, in order; they take turns.
        """
        if self._place < len(self._kept):
            raise PredictionError(f"{self.part} has {len(self._kept)} records, the data only {self._place}.")
        if self.processes > 1:
            _write(self._done(self.rank), {"complete": True})
        if self.rank != 0:
            return
        while not all(self._is_done(rank) for rank in range(self.processes)):
            time.sleep(_PATIENCE)
        if self.part != self.output:
            write_predictions(self._merged(batches), self.output)
        _write(self._sidecar, {**self._state(), "complete": True, "records": sum(batches)})
        self._drop_parts()

    def _merged(self, batches: Sequence[int]) -> Iterator[PredictionRecord]:
        with ExitStack() as stack:
            parts = [stack.enter_context(self._part(rank).open("rb")) for rank in range(self.processes)]
            for number, count in enumerate(batches):
                rank = number % self.processes
                lines = list(islice(parts[rank], count))
                if len(lines) != count:
                    raise PredictionError(f"{self._part(rank)} lacks {count - len(lines)} records of batch {number}.")
                yield from (PredictionRecord.from_dict(json.loads(line)) for line in lines)

    def _part(self, rank: int) -> Path:
        if self.processes == 1 and self.output.suffix == ".jsonl":
            return self.output
        return self.output.with_name(f"{self.output.name}.part-{rank + 1}-of-{self.processes}")

    def _done(self, rank: int) -> Path:
        return self._part(rank).with_name(self._part(rank).name + ".done")

    def _is_done(self, rank: int) -> bool:
        return self.processes == 1 or self._done(rank).exists()

    def _state(self) -> dict[str, Any]:
        return json.loads(self._sidecar.read_text(encoding="utf-8"))

    def _drop_parts(self) -> None:
        for rank in range(self.processes):
            for path in {self._part(rank), self._done(rank)} - {self.output}:
                with suppress(FileNotFoundError):
                    path.unlink()


def check_output(output: Path) -> None:
    """Raises unless predictions can be written under this name: their format, and nothing there but a run."""
    if output.suffix not in SUFFIXES:
        raise PredictionError(f"{output}: name predictions as {', '.join(SUFFIXES)}.")
    if run_file(output).exists():
        return
    if output.exists():
        raise PredictionError(f"{output} is there already, and not of a run: name another file or remove it.")
    if strays := sorted(output.parent.glob(f"{glob.escape(output.name)}.part-*")):
        raise PredictionError(f"{strays[0]} is left of another run: remove it, or name another file.")


def run_file(output: Path) -> Path:
    """Returns the file that tells of the run which wrote OUTPUT."""
    return output.with_name(output.name + ".run.json")


def read_run(output: str | Path) -> dict[str, Any] | None:
    """Returns what is known of the run that wrote a file of predictions, None where nothing is.

    Raises:
        PredictionError: the run is not complete.
    """
    sidecar = run_file(Path(output))
    if not sidecar.exists():
        return None
    state = json.loads(sidecar.read_text(encoding="utf-8"))
    if not state.get("complete"):
        raise PredictionError(
            f"{output} is not complete: give the command that began it once more; see {sidecar.name}."
        )
    return state


def differences(former: Any, present: Any, name: str = "") -> list[str]:
    """Says which settings are not what they were."""
    if isinstance(former, Mapping) and isinstance(present, Mapping):
        keys = [*former, *(key for key in present if key not in former)]
        parts = [differences(former.get(key), present.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for part in parts for line in part]
    return [] if former == present else [f"{name} was {former!r} and is {present!r}"]


def _is_empty(output: Path) -> bool:
    parts = [output, *output.parent.glob(f"{glob.escape(output.name)}.part-*")]
    return not any(path.exists() and path.stat().st_size for path in parts)


def _open_alone(path: Path) -> BinaryIO:
    """Opens a part to append to; raises where another process has it open so."""
    file = path.open("ab")
    if fcntl is not None:
        try:
            # Ends with the process, however that ends.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise PredictionError(f"{path} is being written by another process.") from None
    return file


def _whole_lines(path: Path) -> list[tuple[dict[str, Any], int]]:
    """Reads what a part holds and where each line ends; cuts a torn last line away."""
    lines: list[tuple[dict[str, Any], int]] = []
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError:
                raise PredictionError(f"{path}, line {number} is damaged: remove it and all that follow.") from None
            end += len(line)
            lines.append(({name: row.get(name) for name in _OF_THE_DATA}, end))
    if end < path.stat().st_size:
        os.truncate(path, end)
    return lines


def _create(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file of JSON as a whole, unless it is there: another process may be as far."""
    draft = _draft(path, values)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # not every file system has links
        if not path.exists():
            os.replace(draft, path)
    draft.unlink(missing_ok=True)


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Writes a file of JSON as a whole, in the place of what is there."""
    os.replace(_draft(path, values), path)


def _draft(path: Path, values: Mapping[str, Any]) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return draft
