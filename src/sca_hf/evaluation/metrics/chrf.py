"""chrF: the F value of character n-grams, which needs no tokens, for languages with many forms of a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .results import MetricResult, Sums, check_counts


ORDER, BETA = 6, 2.0


def chrf(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> MetricResult:
    """Scores chrF2 without words, 0 to 1 (aclanthology W15-3049), as sacrebleu has it (`nc:6|nw:0|space:no|eff:yes`).

    Precision and recall are means over orders 1 to 6, of those that both texts have; the reference with which a pair
    scores best counts. The corpus value comes from summed counts and is not the mean over pairs.

    Args:
        candidates: N texts; an empty one scores 0. White space is dropped, letters stay as they are.
        references: N lists of one or more texts.
    """
    sums = chrf_sums(candidates, references)
    return {"corpus": sums.corpus(), "per_item": sums.finish(sums.values).tolist()}


def chrf_sums(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Sums:
    """Returns what each pair adds: n-grams of the candidate, of its best reference, and shared, of 6 orders each."""
    check_counts(candidates, references)
    known: dict[str, list[Counter[str]]] = {}
    rows = np.zeros((len(candidates), 3 * ORDER))
    for row, candidate, wanted in zip(rows, candidates, references, strict=True):
        ours = _ngrams(candidate)
        found = np.array([_shared(ours, known.setdefault(text, _ngrams(text))) for text in wanted], float)
        row[:] = found[int(_score(found).argmax())]
    return Sums(rows, _score)


def _ngrams(text: str) -> list[Counter[str]]:
    letters = "".join(text.split())
    return [Counter(letters[k : k + n] for k in range(len(letters) - n + 1)) for n in range(1, ORDER + 1)]


def _shared(ours: list[Counter[str]], theirs: list[Counter[str]]) -> list[int]:
    """The 18 counts of a pair of texts; n-grams of an order that the reference lacks do not count."""
    orders = list(zip(ours, theirs, strict=True))
    counts = [sum(a.values()) if b else 0 for a, b in orders], [sum(b.values()) for b in theirs]
    return [*counts[0], *counts[1], *(sum((a & b).values()) for a, b in orders)]


def _score(sums: np.ndarray) -> np.ndarray:
    """(..., 18) to chrF (...)."""
    ours, theirs, shared = np.split(sums, 3, -1)
    both = (ours > 0) & (theirs > 0)
    orders = np.maximum(1, both.sum(-1))
    precision = np.divide(shared, ours, out=np.zeros(shared.shape), where=both).sum(-1) / orders
    recall = np.divide(shared, theirs, out=np.zeros(shared.shape), where=both).sum(-1) / orders
    below = BETA**2 * precision + recall
    return np.divide((1 + BETA**2) * precision * recall, below, out=np.zeros(below.shape), where=below > 0)
