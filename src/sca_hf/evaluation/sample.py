"""What metrics are computed of: records of predictions, with their captions as tokens of their language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from ..processing.masks_sca import decode_rle
from . import metrics as m
from .naming import are_names, true_name
from .predictions import PredictionError, PredictionRecord


@dataclass(frozen=True)
class ScoringTools:
    """What some metrics use.

    Attributes:
        df: The document frequencies of CIDEr-D.
        spacy_model: The pipeline that tags words, for noun and verb recall.
        encoder: The folder or repository of a text model, for semantic similarity.
        spice_cache: The file that keeps SPICE of every caption.
    """

    df: Literal["corpus"] | m.DocumentFrequency = "corpus"
    spacy_model: str = "en_core_web_lg"
    encoder: str | None = None
    spice_cache: Path | None = None


class Sample:
    """Records to score, with their captions as tokens."""

    def __init__(self, records: Sequence[PredictionRecord], tools: ScoringTools | None = None) -> None:
        if not records:
            raise PredictionError("there is nothing to score: no records")
        self.records, self.tools = records, tools or ScoringTools()
        self.notes: dict[str, Any] = {}
        self.of_names = are_names(self.records)
        languages = dict.fromkeys(record.language for record in self.records)
        if len(languages) > 1:
            listed = ", ".join("no language" if tag is None else tag for tag in languages)
            raise PredictionError(f"the records are in {listed}: score each language by itself")
        self.language = self.records[0].language

    @cached_property
    def candidates(self) -> list[list[str]]:
        return [m.tokenize(record.caption, self.language) for record in self.records]

    @cached_property
    def references(self) -> list[list[list[str]]]:
        known: dict[str, list[str]] = {}
        for record in self.records:
            for text in record.references:
                if text not in known:
                    known[text] = m.tokenize(text, self.language)
        return [[known[text] for text in record.references] for record in self.records]

    @cached_property
    def categories(self) -> list[str]:
        if self.of_names:
            return [true_name(record) for record in self.records]
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

    def need_english(self, metric: str) -> None:
        """Raises where captions are in another language, of which a metric's program knows nothing."""
        if not m.is_english(self.language):
            raise ValueError(f"{metric} is for English; the captions are in {self.language}: chrF is for any language")

    def need(self, name: str) -> None:
        """Raises unless every record has this field."""
        self._complain(name, [record.id for record in self.records if getattr(record, name) is None])

    def _complain(self, name: str, lacking: Sequence[str | None]) -> None:
        if lacking:
            raise PredictionError(
                f"{len(lacking)} of {len(self.records)} records have no {name}; the first is {lacking[0]}"
            )
