"""Scores of predictions: which metrics there are, what each needs of a record, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..processing.masks_sca import decode_rle
from . import metrics as m
from .metrics.masks import mask_ciou_sums
from .metrics.meteor import meteor_sums
from .metrics.results import Sums, mean_sums
from .predictions import PredictionError, PredictionRecord


TOKENIZER = "ptb (Penn Treebank, lower case, punctuation dropped; sca-hf's own, no Java)"
HEAD_RULE = "best predicted IoU, first of equals"


@dataclass(frozen=True)
class ScoringTools:
    """What some metrics use.

    df: document frequencies of CIDEr-D.
    spacy_model: tags words, for noun and verb recall.
    encoder: folder or repository of a text model, for semantic similarity.
    spice_cache: file that keeps SPICE of every caption.
    """

    df: Literal["corpus"] | m.DocumentFrequency = "corpus"
    spacy_model: str = "en_core_web_lg"
    encoder: str | None = None
    spice_cache: Path | None = None


class Sample:
    """Records to score, with their captions as tokens."""

    def __init__(self, records: Sequence[PredictionRecord], tools: ScoringTools | None = None) -> None:
        if not records:
            raise PredictionError("there is nothing to score: no record")
        self.records, self.tools = records, tools or ScoringTools()
        self.notes: dict[str, Any] = {}

    @cached_property
    def candidates(self) -> list[list[str]]:
        return [m.ptb_tokenize(record.caption) for record in self.records]

    @cached_property
    def references(self) -> list[list[list[str]]]:
        known: dict[str, list[str]] = {}
        for record in self.records:
            for text in record.references:
                if text not in known:
                    known[text] = m.ptb_tokenize(text)
        return [[known[text] for text in record.references] for record in self.records]

    @cached_property
    def categories(self) -> list[str]:
        self.need("category")
        return [record.category or "" for record in self.records]

    @cached_property
    def overlaps(self) -> m.MaskOverlaps:
        self.need("reference_mask")
        lacking = [r.id for r in self.records if r.mask is None and r.masks is None]
        self._complain("mask", lacking)
        masks = [[decode_rle(rle) for rle in r.masks or [r.mask or {}]] for r in self.records]
        truth = [decode_rle(record.reference_mask or {}) for record in self.records]
        known = all(record.iou_scores for record in self.records)
        # Of a single kept mask the predicted IoU is the best one: that is why it was kept.
        scores = [list(r.iou_scores or ()) if r.masks else [max(r.iou_scores or [0.0])] for r in self.records]
        return m.MaskOverlaps.of(masks, truth, scores if known else None)

    def need(self, name: str) -> None:
        """Raises unless every record has this field."""
        self._complain(name, [record.id for record in self.records if getattr(record, name) is None])

    def _complain(self, name: str, lacking: Sequence[str | None]) -> None:
        if lacking:
            raise PredictionError(
                f"{len(lacking)} of {len(self.records)} records have no {name}, the first is {lacking[0]}"
            )


@dataclass(frozen=True)
class Score:
    """A metric of all records: over the corpus, of each record, and as sums that can be drawn anew."""

    corpus: float
    per_item: list[float]
    sums: Sums


Scorer = Callable[[Sample], dict[str, Score]]


@dataclass
class Evaluation:
    """Scores by the name of their metric, in the raw scales of their definitions.

    notes: what else is to be known of some of them.
    """

    scores: dict[str, Score]
    ids: list[str | None]
    notes: dict[str, Any] = field(default_factory=dict)

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
        records: with ids of their own.
        names: metrics, of `METRICS`, or groups of them, in any case of letters; None: `DEFAULT_METRICS`.
        tools: what some metrics use.
    """
    wanted = metric_names(DEFAULT_METRICS if names is None else names)
    sample, scores = Sample(records, tools), dict[str, Score]()
    for group in dict.fromkeys(METRICS[name] for name in wanted):
        scores |= GROUPS[group][1](sample)
    return Evaluation({name: scores[name] for name in wanted}, [r.id for r in records], sample.notes)


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


def _meteor(sample: Sample) -> dict[str, Score]:
    from .metrics.java import java_version

    sample.notes["java"] = java_version()
    result, sums = meteor_sums(sample.candidates, sample.references)
    return {"METEOR": Score(result["corpus"], result["per_item"], sums)}


def _spice(sample: Sample) -> dict[str, Score]:
    return {"SPICE": _mean(m.spice(sample.candidates, sample.references, sample.tools.spice_cache))}


def _exact(sample: Sample) -> dict[str, Score]:
    return {"exact-match": _mean(m.exact_match(sample.candidates, sample.references))}


def _content(sample: Sample) -> dict[str, Score]:
    tagger, similarity = m.spacy_tools(sample.tools.spacy_model)
    said, wanted = [r.caption for r in sample.records], [r.references for r in sample.records]
    scores = {}
    parts: tuple[Literal["noun", "verb"], ...] = ("noun", "verb")
    for part in parts:
        for name, likeness in ((f"{part}-recall", None), (f"{part}-recall-fuzzy", similarity)):
            result = m.content_recall(said, wanted, tagger, part, likeness)
            scores[name] = Score(result["corpus"], result["per_item"], mean_sums(result["per_item"]))
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


def _category(sample: Sample) -> dict[str, Score]:
    result = m.category_accuracy([record.caption for record in sample.records], sample.categories)
    return {"category-accuracy": _mean(result)}


def _semantic_iou(sample: Sample) -> dict[str, Score]:
    result = m.semantic_iou([record.caption for record in sample.records], sample.categories)
    return {"semantic-IoU": _mean(result)}


def _semantic_similarity(sample: Sample) -> dict[str, Score]:
    name = sample.tools.encoder
    if name is None:
        raise ValueError("semantic-similarity needs an encoder; published numbers are of all-MiniLM-L6-v2")
    sample.notes["encoder"] = name
    said = [record.caption for record in sample.records]
    return {"semantic-similarity": _mean(m.semantic_similarity(said, sample.categories, m.mean_pooled_encoder(name)))}


# Group -> the metrics that are scored together, and how.
GROUPS: Mapping[str, tuple[tuple[str, ...], Scorer]] = {
    "CIDEr-D": (("CIDEr-D",), _cider),
    "BLEU": (m.BLEU_NAMES, _bleu),
    "ROUGE-L": (("ROUGE-L",), _rouge),
    "METEOR": (("METEOR",), _meteor),
    "SPICE": (("SPICE",), _spice),
    "exact-match": (("exact-match",), _exact),
    "content-recall": (("noun-recall", "noun-recall-fuzzy", "verb-recall", "verb-recall-fuzzy"), _content),
    "masks": (("mask-mIoU", "mask-mIoU-oracle", "mask-cIoU"), _masks),
    "IoU-error": (("IoU-error",), _iou_error),
    "category-accuracy": (("category-accuracy",), _category),
    "semantic-IoU": (("semantic-IoU",), _semantic_iou),
    "semantic-similarity": (("semantic-similarity",), _semantic_similarity),
}
METRICS = {name: group for group, (names, _) in GROUPS.items() for name in names}
DEFAULT_METRICS = ("CIDEr-D", *m.BLEU_NAMES, "ROUGE-L")
