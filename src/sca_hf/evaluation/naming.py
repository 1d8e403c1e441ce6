"""Whether regions are to be named, not described: the one place that decides it, for scores, reports, cards, training.

Sentence metrics say little of names, however right: they count phrases of up to four words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from .metrics.languages import is_english
from .metrics.results import Sums, ratio
from .metrics.rouge import words


# What leads where references are names.
NAME_METRICS = ("category-accuracy", "category-macro-recall")
NAMES_NOTE = (
    "All references are class names, so accuracy and macro recall come first: CIDEr-D averages over phrases of 1 to "
    "4 words and gives a correct name of one word at most 2.5 of 10, of two words 5; BLEU@4 is low for the same "
    "reason."
)
# One word less than the longest phrases that CIDEr-D and BLEU@4 count.
_MAX_WORDS = 3
_ARTICLES = {"a", "an", "the"}
# Scripts without spaces between words, whose number is not known then: Thai to Khmer, kana, Chinese characters.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class Referenced(Protocol):
    """A region with its true texts."""

    @property
    def references(self) -> list[str]: ...
    @property
    def category(self) -> str | None: ...
    @property
    def task(self) -> str | None: ...
    @property
    def language(self) -> str | None: ...


def are_names(regions: Iterable[Referenced]) -> bool:
    """Returns whether the references of all regions are class names; those of no region are not.

    Known from the data: a region's references are its category, or its task is "recognition". Where the data name no
    category, a single reference in English, of at most 3 words and without an article in front, is one by its length.
    """
    one = False
    for region in regions:
        if not _is_name(region):
            return False
        one = True
    return one


def _is_name(region: Referenced) -> bool:
    references = {tuple(words(text)) for text in region.references}
    if len(references) != 1:
        return False
    (name,) = references
    if region.category:
        return bool(name) and name == tuple(words(region.category))
    short = 0 < len(name) <= _MAX_WORDS and name[0] not in _ARTICLES and not _UNSPACED.search(region.references[0])
    return (short and is_english(region.language)) or region.task == "recognition"


def true_name(region: Referenced) -> str:
    """Returns the name of a region whose references are names."""
    return region.category or region.references[0]


def macro_recall_sums(names: Sequence[str], hits: Sequence[float]) -> Sums:
    """Returns the mean over classes of the fraction of right regions, as sums over N regions.

    Args:
        names: The true names of N regions, compared as `category_accuracy` does.
        hits: 1 for each region whose name was said, else 0. A region weighs as much as its class has few; a part of
            the regions, or a draw of them, keeps these weights.
    """
    classes = [tuple(words(name)) for name in names]
    counts = Counter(classes)
    weights = np.array([1 / counts[name] for name in classes])
    return Sums(np.stack([weights * np.asarray(hits, float), weights], 1), ratio)


def leading(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns the scores with accuracy and macro recall of names first, where they are there."""
    return {name: scores[name] for name in NAME_METRICS if name in scores} | dict(scores)
