"""What every metric returns, what it takes, and what its corpus value is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np


Tokens = Sequence[str]


class MetricResult(TypedDict):
    """A metric over a corpus, and of each pair in order."""

    corpus: float
    per_item: list[float]


@dataclass(frozen=True)
class Sums:
    """A corpus value as a function of sums over items, so that a resample of the items needs no scoring.

    values: (N, S), what each item adds to the sums.
    finish: takes sums (..., S) to corpus values (...).
    """

    values: np.ndarray
    finish: Callable[[np.ndarray], np.ndarray]

    def corpus(self) -> float:
        """The value of the whole corpus."""
        return float(self.finish(self.values.sum(0)))


def mean_sums(per_item: Sequence[float], counted: Sequence[bool] | None = None) -> Sums:
    """A plain mean as sums; items that are not `counted` add nothing. Not a number where nothing is counted."""
    values = np.asarray(per_item, float)
    weights = np.ones(len(values)) if counted is None else np.asarray(counted, float)
    return Sums(np.stack([np.where(weights > 0, values, 0.0), weights], 1), ratio)


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) to the first over the second; not a number where the second is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] != 0)


def mean_result(per_item: Iterable[float]) -> MetricResult:
    """A metric whose corpus value is the mean over the pairs."""
    values = [float(value) for value in per_item]
    return {"corpus": sum(values) / len(values), "per_item": values}


def check_pairs(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Raises unless there is something to score, and every candidate has references, all as lists of tokens."""
    check_counts(candidates, references)
    for index, refs in enumerate(references):
        if isinstance(candidates[index], str) or any(isinstance(r, str) for r in refs):
            raise TypeError(f"pair {index} holds a string, expected lists of tokens")


def check_counts(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Raises unless there is something to score, and every candidate has references."""
    if not len(candidates):
        raise ValueError("there is nothing to score: candidates is empty")
    if len(candidates) != len(references):
        raise ValueError(f"there are {len(candidates)} candidates and {len(references)} lists of references")
    for index, refs in enumerate(references):
        if not len(refs):
            raise ValueError(f"pair {index} has no reference")
