"""Checks what readers yield, and reports what was kept, skipped, left out by rule, and how much that weighs."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..files import read_json, write_whole
from .region import RegionRecord, RegionRecordError, naming


logger = logging.getLogger(__name__)

# The fraction of regions that may be left out by rule without a warning.
_NOTICED_FRACTION = 0.05
_SHOWN_CLASSES = 10
# What to do about what is left out.
_REMEDIES = {
    "crowd annotations": "crowd=keep reads them; CVAT marks every brush mask as a crowd",
    "difficult objects": "difficult=true reads them",
    "regions below min_area": "a lower min_area reads more",
    "captions below min_score": "a lower min_score reads more",
}


class NothingLeftError(ValueError):
    """A data set of which nothing is left to use; a command that meets it ends with 1."""

    exit_code = 1


@dataclass
class ReadReport:
    """What `check_records` has counted, what a reader's rules left out, and what was decided about the whole set.

    Attributes:
        records, regions: How many were passed on.
        skipped_records, skipped_regions: How many were left out; regions of an image that is bad itself do not count.
        clipped_regions: How many boxes a reader cut at the edge of their image.
        damaged_regions: How many were kept without a mask, as theirs cannot be read.
        messages: The first `kept_messages` reasons for skipping.
        source: The data set's name, for messages.
        left_out: How many of what kind were left out without being wrong, as `{"crowd annotations": 8}`.
        left_out_regions: How many of those are regions.
        left_out_classes: How many of each class were left out, where a reader says so.
        classes: How many regions of each class were kept.
        notes: The decisions, each once.
    """

    records: int = 0
    regions: int = 0
    skipped_records: int = 0
    skipped_regions: int = 0
    clipped_regions: int = 0
    damaged_regions: int = 0
    messages: list[str] = field(default_factory=list)
    kept_messages: int = 1000
    source: str = "records"
    left_out: Counter[str] = field(default_factory=Counter)
    left_out_regions: int = 0
    left_out_classes: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def note(self, message: str) -> None:
        """Keeps a message, unless `kept_messages` have been kept."""
        if len(self.messages) < self.kept_messages:
            self.messages.append(message)

    def leave_out(self, what: str, left: int | Sequence[str]) -> None:
        """Counts regions that a reader left out by a rule: how many, or the class of each."""
        count = left if isinstance(left, int) else len(left)
        self.left_out[what] += count
        self.left_out_regions += count
        if not isinstance(left, int):
            self.left_out_classes.update(left)

    def remark(self, notes: Iterable[str]) -> None:
        """Takes down what was decided, once."""
        self.notes += [note for note in notes if note not in self.notes]

    def warnings(self) -> list[str]:
        """Weighs what was left out by rule: a class that disappears, or more than 5 % of the regions, is a warning."""
        gone = [name for name, _ in self.left_out_classes.most_common() if name not in self.classes]
        total = self.regions + self.left_out_regions
        if not gone and self.left_out_regions <= _NOTICED_FRACTION * total:
            return []
        shown = ", ".join(gone[:_SHOWN_CLASSES]) + (", ..." if len(gone) > _SHOWN_CLASSES else "")
        classes = f", and with them all of {'the classes' if len(gone) > 1 else 'the class'} {shown}" if gone else ""
        remedies = "; ".join(text for what, text in _REMEDIES.items() if self.left_out[what])
        return [
            f"{self.left_out_regions} of {total} regions ({self.left_out_regions / total:.0%}) are left out{classes} "
            f"({self._left_out_text()}){': ' if remedies else ''}{remedies}"
        ]

    def log(self, examples: int = 3) -> None:
        """Warns of what was skipped, with the first reasons, of what weighs, and of what was decided."""
        if self.skipped_records or self.skipped_regions or self.damaged_regions:
            masks = f", left out {self.damaged_regions} bad masks" if self.damaged_regions else ""
            logger.warning(
                "%s: skipped %d bad images and %d bad regions%s, kept %d images with %d regions. The first: %s",
                self.source,
                self.skipped_records,
                self.skipped_regions,
                masks,
                self.records,
                self.regions,
                "; ".join(self.messages[:examples]),
            )
        for text in (*self.warnings(), *self.notes):
            logger.warning("%s: %s", self.source, text)
        if self.left_out:
            logger.info("%s: left out %s", self.source, self._left_out_text())

    def skipped(self, max_lines: int = 50) -> list[str]:
        """Lists what was skipped, and why, for the end of a command: `max_lines` lines at most, and how many more."""
        count = self.skipped_records + self.skipped_regions + self.damaged_regions
        if not count:
            return []
        head = f"{self.source}: left out as bad: {self.skipped_records} images, {self.skipped_regions} regions, "
        more = [f"  ... and {count - max_lines} more"] if len(self.messages) > max_lines else []
        return [f"{head}{self.damaged_regions} masks", *(f"  {text}" for text in self.messages[:max_lines]), *more]

    def require_records(self) -> None:
        """Raises if nothing was kept, be it for a mistake in a path or an option, or by a rule."""
        if self.records and (self.regions or not self.left_out_regions):
            return
        left_out = [f"left out {self._left_out_text()}"] if self.left_out else []
        remedies = [text for what, text in _REMEDIES.items() if self.left_out[what]]
        why = "; ".join([*self.messages[:1], *left_out, *remedies])
        raise NothingLeftError(f"{self.source}: no usable image ({why or 'none was read'}).")

    def _left_out_text(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.left_out.items()))

    def write(self, path: Path) -> None:
        """Writes the report to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(vars(self)))

    @classmethod
    def read(cls, path: Path) -> ReadReport:
        """Reads a written report."""
        values = read_json(path, dict, "Delete it, and the data set is read again.")
        counters = {key: Counter(values[key]) for key in ("left_out", "left_out_classes", "classes")}
        return cls(**{**values, **counters})


def check_records(
    records: Iterable[Mapping[str, Any] | RegionRecordError],
    source: str,
    on_error: Literal["raise", "skip"] = "raise",
    counts: ReadReport | None = None,
) -> Iterator[RegionRecord]:
    """Yields validated records.

    Args:
        records: what a reader yields: mappings with the fields of `RegionRecord`. In place of a record, or of one of
            its regions, a reader may pass the `RegionRecordError` that says why there is none. A record may
            name its own `source`, and a region may say that its box was `clipped`, and what
            `problem` its mask has, which is left out then.
        source: The file to name in errors where a record does not name its own.
        on_error: "raise" stops at the first bad region. "skip" leaves bad regions out, and a record whose picture is
            bad or of which no region is left. A record that came without regions stays, and so does
            a region whose mask alone cannot be read.
        counts: Counters that are updated before each record is passed on.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error is {on_error!r}, expected "raise" or "skip"')
    counts = ReadReport() if counts is None else counts
    for values in records:
        try:
            record = _checked(values, source, on_error == "skip", counts)
        except RegionRecordError as error:
            if on_error == "raise":
                raise
            counts.note(str(error))
            counts.skipped_records += 1
            continue
        if record is not None:
            counts.records += 1
            counts.regions += len(record.regions)
            yield record


def _checked(
    values: Mapping[str, Any] | RegionRecordError, source: str, skip: bool, counts: ReadReport
) -> RegionRecord | None:
    """Builds and validates one record; None when all of its regions are bad."""
    if isinstance(values, RegionRecordError):
        raise values
    fields = dict(values)
    source = fields.pop("source", None) or source
    rows = fields.get("regions")
    with naming(f"{source}, image {fields.get('image_id')}"):
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            return RegionRecord.from_dict(fields, source)  # says what is wrong
        record = RegionRecord.from_dict({**fields, "regions": []}, source)
    clipped = 0
    for row in rows:
        try:
            with naming(f"{source}, image {record.image_id}"):
                region = record.checked_region(row, source)
            marks = row if isinstance(row, dict) else {}
            if "problem" in marks:
                text = f"{source}, image {record.image_id}, region {region.region_id}: {marks['problem']}"
                if not skip:
                    raise RegionRecordError(f'{text}; on_error="skip" keeps its box')
                counts.note(f"{text}; its box is kept")
                counts.damaged_regions += 1
            record.regions.append(region)
            clipped += bool(marks.get("clipped"))
        except RegionRecordError as error:
            if not skip:
                raise
            counts.note(str(error))
            counts.skipped_regions += 1
    counts.clipped_regions += clipped
    if rows and not record.regions:
        counts.skipped_records += 1
        return None
    return record
