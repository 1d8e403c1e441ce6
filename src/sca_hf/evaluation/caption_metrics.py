"""Caption metrics on pairs of a candidate and its references, as lists of tokens: CIDEr-D and exact match.

Pure functions: no files, no network, no tokenizer. Every result is `{"corpus": float, "per_item": [float, ...]}`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypedDict


CIDER_SIGMA = 6.0
MAX_ORDER = 4
Tokens = Sequence[str]


class MetricResult(TypedDict):
    """A metric over a corpus, and of each pair in order."""

    corpus: float
    per_item: list[float]


def exact_match(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricResult:
    """Scores 1 where the candidate equals one of its references, else 0; the corpus value is the mean."""
    _check_pairs(candidates, references)
    hits = [float(any(list(c) == list(r) for r in refs)) for c, refs in zip(candidates, references, strict=True)]
    return {"corpus": sum(hits) / len(hits), "per_item": hits}


def cider_d(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricResult:
    """Scores CIDEr-D (arXiv 1411.5726, section 4, scaled by 10); document frequencies come from these references.

    An n-gram's weight in a sentence is its count times ln(N / df), df the number of pairs whose references hold it.
    Values on a part of a data set are therefore not comparable with values on the whole.
    """
    _check_pairs(candidates, references)
    counted = [[_ngrams(tokens) for tokens in refs] for refs in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for refs in counted:
        frequency.update({gram for orders in refs for grams in orders for gram in grams})
    log_pairs = math.log(len(candidates))
    idf = {gram: log_pairs - math.log(count) for gram, count in frequency.items()}
    scores = []
    for candidate, refs in zip(candidates, counted, strict=True):
        vector = _Vector(_ngrams(candidate), idf, log_pairs)
        scores.append(10 * sum(_similarity(vector, _Vector(r, idf, log_pairs)) for r in refs) / len(refs))
    return {"corpus": sum(scores) / len(scores), "per_item": scores}


class _Vector:
    """The weighted n-grams of one sentence, by order, with their norms."""

    def __init__(
        self, orders: list[Counter[tuple[str, ...]]], idf: dict[tuple[str, ...], float], unseen: float
    ) -> None:
        self.weights = [{g: n * idf.get(g, unseen) for g, n in grams.items()} for grams in orders]
        self.norms = [math.sqrt(sum(w * w for w in weights.values())) for weights in self.weights]
        self.length = orders[1].total()  # counted in bigrams, as the reference implementation does


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    total = 0.0
    for ours, theirs, norm, other in zip(
        candidate.weights, reference.weights, candidate.norms, reference.norms, strict=True
    ):
        if norm and other:
            total += sum(min(w, theirs[g]) * theirs[g] for g, w in ours.items() if g in theirs) / (norm * other)
    penalty = math.exp(-((candidate.length - reference.length) ** 2) / (2 * CIDER_SIGMA**2))
    return penalty * total / MAX_ORDER


def _ngrams(tokens: Tokens) -> list[Counter[tuple[str, ...]]]:
    """Counts the n-grams of orders 1 to 4."""
    return [Counter(zip(*(tokens[k:] for k in range(n)), strict=False)) for n in range(1, MAX_ORDER + 1)]


def _check_pairs(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    if not candidates:
        raise ValueError("there is nothing to score: candidates is empty")
    if len(candidates) != len(references):
        raise ValueError(f"there are {len(candidates)} candidates and {len(references)} lists of references")
    for index, refs in enumerate(references):
        if not refs:
            raise ValueError(f"pair {index} has no reference")
        if isinstance(candidates[index], str) or any(isinstance(r, str) for r in refs):
            raise TypeError(f"pair {index} holds a string, expected lists of tokens")
