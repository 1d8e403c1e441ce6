"""Our metrics as `compute_metrics` of a Trainer that generates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .predictions import PredictionRecord
from .scoring import ScoringTools, score_records


def make_compute_metrics(
    tokenizer: Any,
    metrics: Iterable[str] | None = None,
    references: Sequence[Sequence[str]] | None = None,
    tools: ScoringTools | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Returns a function for `compute_metrics` of a Trainer.

    It takes an `EvalPrediction`:
        predictions: Generated ids (regions, heads, length) with predicted IoUs (regions, heads), as a pair; or ids
            (regions, length) alone. -100 counts as padding.
        label_ids: (regions, length), or (regions, references, length); a row of -100 is not a reference; a region
            without one is padding and not scored.

    Args:
        tokenizer: The language model's tokenizer.
        metrics: Metrics of captions, as for `score_records`.
        references: The regions' true captions as the data set has them, in order. Published scores are on these; None:
            decoded labels, which the tokenizer or a cut at the longest caption may have changed.
        tools: What some metrics use.
    """
    wanted = None if metrics is None else list(metrics)

    def compute_metrics(prediction: Any) -> dict[str, float]:
        ids, ious = _candidates(prediction.predictions)
        labels = _references(prediction.label_ids)
        if len(ids) != len(labels):
            raise ValueError(f"there are {len(ids)} generated regions and {len(labels)} labelled ones")
        real = [k for k, rows in enumerate(labels) if len(rows)]
        if references is not None and len(references) != len(real):
            raise ValueError(f"there are {len(references)} lists of references and {len(real)} labelled regions")
        records = [
            PredictionRecord(
                id=str(number),
                references=list(references[number]) if references is not None else _decode(tokenizer, labels[k]),
                candidates=_decode(tokenizer, ids[k]),
                iou_scores=None if ious is None else ious[k].tolist(),
            )
            for number, k in enumerate(real)
        ]
        return score_records(records, wanted, tools).metrics

    return compute_metrics


def _candidates(predictions: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids (regions, heads, length) and IoUs (regions, heads) or None."""
    ids, ious = predictions if isinstance(predictions, (tuple, list)) else (predictions, None)
    ids = np.asarray(ids)
    if ids.ndim == 2:
        ids = ids[:, None]
    if ids.ndim != 3:
        raise ValueError(f"generated ids have the shape {ids.shape}, expected (regions, heads, length)")
    ious = None if ious is None else np.asarray(ious, float)
    if ious is not None and (ious.ndim != 2 or len(ious) != len(ids) or ids.shape[1] not in (1, ious.shape[1])):
        raise ValueError(f"IoUs have the shape {ious.shape}, expected (regions, heads) = {ids.shape[:2]}")
    return ids, ious


def _references(labels: Any) -> list[np.ndarray]:
    """Of each region the rows of ids (references, length) that hold any."""
    labels = np.asarray(labels)
    if labels.ndim == 2:
        labels = labels[:, None]
    if labels.ndim != 3:
        raise ValueError(f"label_ids have the shape {labels.shape}, expected (regions, length)")
    return [rows[(rows != -100).any(-1)] for rows in labels]


def _decode(tokenizer: Any, rows: np.ndarray) -> list[str]:
    filled = np.where(rows == -100, tokenizer.pad_token_id, rows)
    return [text.strip() for text in tokenizer.batch_decode(filled, skip_special_tokens=True)]
