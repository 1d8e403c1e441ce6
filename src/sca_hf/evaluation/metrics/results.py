"""What every metric returns, what its corpus value is made of, and how sure that is.

How sure: the bootstrap over regions or images, for many metrics and systems at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

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


def mean_sums(per_item: Sequence[float]) -> Sums:
    """A plain mean as sums."""
    return Sums(np.stack([np.asarray(per_item, float), np.ones(len(per_item))], 1), ratio)


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
            raise TypeError(f"pair {index} is a string, expected lists of tokens")


def check_counts(candidates: Sequence[object], references: Sequence[Sequence[object]]) -> None:
    """Raises unless there is something to score, and every candidate has references."""
    if not len(candidates):
        raise ValueError("there is nothing to score: candidates is empty")
    if len(candidates) != len(references):
        raise ValueError(f"there are {len(candidates)} candidates and {len(references)} lists of references")
    for index, refs in enumerate(references):
        if not len(refs):
            raise ValueError(f"pair {index} has no reference")


# Numbers in a table of weights that is held at once.
_CELLS = 1 << 24


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def resample(
    sums: Mapping[str, Sums], resamples: int = 1000, seed: int = 0, groups: Sequence[object] | None = None
) -> dict[str, np.ndarray]:
    """Draws the items repeatedly, with replacement, and finishes every metric on each draw, the same for all.

    Args:
        sums: by name, all of the same N items in the same order.
        resamples: how many draws.
        seed: of the draws.
        groups: N labels; items with the same label are drawn together, for instance regions of one image, which are
            no independent evidence. None: each item by itself.

    Returns:
        By name (resamples,) corpus values.
    """
    tables = {id(metric.values): metric.values for metric in sums.values()}
    counts = {len(values) for values in tables.values()}
    if len(counts) != 1:
        raise ValueError(f"metrics of {sorted(counts)} items cannot be resampled together")
    if groups is not None:
        tables = {key: _grouped(values, groups) for key, values in tables.items()}
    items = len(next(iter(tables.values())))
    random, rows = np.random.default_rng(seed), max(1, _CELLS // items)
    drawn: dict[int, list[np.ndarray]] = {key: [] for key in tables}
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        weights = np.stack([np.bincount(random.integers(items, size=items), minlength=items) for _ in range(size)])
        for key, values in tables.items():
            drawn[key].append(weights.astype(float) @ values)
    joined = {key: np.concatenate(parts) for key, parts in drawn.items()}
    return {name: metric.finish(joined[id(metric.values)]) for name, metric in sums.items()}


def interval(draws: np.ndarray, level: float = 0.95) -> Interval:
    """Returns the percentiles that leave out as much on either side; draws that are not a number do not count."""
    if np.isnan(draws).all():
        return Interval(float("nan"), float("nan"))
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of no difference: twice the fraction of draws on the rarer side of 0, those at 0 on either."""
    count = len(differences)
    rarer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (count + 1))


def _grouped(values: np.ndarray, groups: Sequence[object]) -> np.ndarray:
    """(N, S) to (G, S): what each group adds."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    total = np.zeros((len(numbers), values.shape[1]))
    np.add.at(total, [numbers[group] for group in groups], values)
    return total
