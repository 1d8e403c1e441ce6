"""What became of the records of a data set as it was read."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .region import CheckCounts


logger = logging.getLogger(__name__)


@dataclass
class ReadReport(CheckCounts):
    """`CheckCounts`, with what was left out by rule.

    Attributes:
        source: the data set, for messages.
        left_out: what was no fault, as `{"crowd annotations": 8}`.
    """

    source: str = "records"
    left_out: Counter[str] = field(default_factory=Counter)

    def log(self, examples: int = 3) -> None:
        """Warns of what was skipped, with the first reasons; tells what was left out by rule."""
        if self.skipped_records or self.skipped_regions:
            logger.warning(
                "%s: skipped %d bad images and %d bad regions, kept %d images with %d regions. The first: %s",
                self.source,
                self.skipped_records,
                self.skipped_regions,
                self.records,
                self.regions,
                "; ".join(self.messages[:examples]),
            )
        if self.left_out:
            what = ", ".join(f"{count} {name}" for name, count in sorted(self.left_out.items()))
            logger.info("%s: left out %s", self.source, what)

    def require_records(self) -> None:
        """Raises if nothing was kept: a slip in a path or an option, most likely."""
        if not self.records:
            left_out = ", ".join(f"{count} {name}" for name, count in sorted(self.left_out.items()))
            why = "; ".join([*self.messages[:1], *([f"left out {left_out}"] if left_out else [])])
            raise ValueError(f"{self.source}: there is no image to use ({why or 'no image at all'}).")

    def write(self, path: Path) -> None:
        """Writes the report to a file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        unfinished.write_text(json.dumps(vars(self)), encoding="utf-8")
        os.replace(unfinished, path)

    @classmethod
    def read(cls, path: Path) -> ReadReport:
        """Reads a written report."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**values, "left_out": Counter(values["left_out"])})
