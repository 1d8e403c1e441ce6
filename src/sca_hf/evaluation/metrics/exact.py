"""Captions and names that are exactly right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .results import MetricResult, Tokens, check_counts, check_pairs, mean_result


def exact_match(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricResult:
    """Scores 1 where the candidate equals one of its references, else 0; the corpus value is the mean."""
    check_pairs(candidates, references)
    return mean_result([any(list(c) == list(r) for r in refs) for c, refs in zip(candidates, references, strict=True)])


def category_accuracy(candidates: Sequence[str], categories: Sequence[str]) -> MetricResult:
    """Scores 1 where a text names the true category, else 0; the corpus value is the mean over regions.

    Words are compared in lower case without punctuation, `_` as a space.
    """
    check_counts(candidates, [[category] for category in categories])
    return mean_result(
        [bool(words(c)) and words(c) == words(name) for c, name in zip(candidates, categories, strict=True)]
    )


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+(?:['-]\w+)*", text.lower().replace("_", " "))
