"""ROUGE-L as caption tables have it (best precision and best recall over references, beta 1.2), and exact matches."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from .ngrams import Corpus
from .results import MetricResult, Tokens, check_counts, check_pairs, mean_result


BETA = 1.2
# Cells of a table of subsequence lengths that are filled at once.
_CELLS = 1 << 18


def rouge_l(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> MetricResult:
    """Scores the F value of the longest common subsequence, 0 to 1 (aclanthology W04-1013); the corpus is the mean.

    Precision and recall are each the best over references, not of one and the same. (The rouge-score package takes the
    best single reference and beta 1, which gives other values.)

    Args:
        candidates: N lists of tokens; an empty one scores 0.
        references: N lists of one or more lists of tokens.
    """
    check_pairs(candidates, references)
    corpus = Corpus.of(candidates, references)
    common = _common_lengths(corpus).astype(float)
    precision, recall = np.zeros(corpus.pairs), np.zeros(corpus.pairs)
    np.maximum.at(precision, corpus.pair, common / np.maximum(1, corpus.lengths[corpus.pair]))
    np.maximum.at(recall, corpus.pair, common / np.maximum(1, corpus.lengths[corpus.pairs :]))
    numerator, denominator = (1 + BETA**2) * precision * recall, recall + BETA**2 * precision
    return mean_result(np.divide(numerator, denominator, out=np.zeros(corpus.pairs), where=denominator > 0))


def _common_lengths(corpus: Corpus) -> np.ndarray:
    """(M,) length of the longest common subsequence of each reference and its candidate."""
    starts = np.cumsum(corpus.lengths) - corpus.lengths
    result = np.zeros(len(corpus.pair), np.int64)
    for chosen in _chunks(corpus):
        ours, theirs = corpus.pair[chosen], chosen + corpus.pairs
        candidate = _padded(corpus, starts[ours], corpus.lengths[ours], -1)
        reference = _padded(corpus, starts[theirs], corpus.lengths[theirs], -2)
        row = np.zeros((len(chosen), reference.shape[1] + 1), np.int32)
        # A row of the usual table at a time; the running maximum is the step to the right.
        for token in candidate.T:
            step = row[:, :-1] + (reference == token[:, None])
            row[:, 1:] = np.maximum.accumulate(np.maximum(row[:, 1:], step), 1)
        result[chosen] = row[:, -1]
    return result


def _chunks(corpus: Corpus) -> Iterator[np.ndarray]:
    """References of similar length together, so that little is padding."""
    lengths = corpus.lengths[corpus.pairs :]
    order = np.lexsort((corpus.lengths[corpus.pair], lengths))
    start = 0
    while start < len(order):
        # The longest of a chunk is its last; lengths only grow.
        size = max(1, _CELLS // (int(lengths[order[start]]) + 1))
        yield order[start : start + size]
        start += size


def _padded(corpus: Corpus, starts: np.ndarray, lengths: np.ndarray, filler: int) -> np.ndarray:
    """(n, longest) tokens of sentences."""
    columns = np.arange(int(lengths.max(initial=0)))
    inside = columns < lengths[:, None]
    places = np.where(inside, starts[:, None] + columns, 0)
    return np.where(inside, corpus.tokens[places] if len(corpus.tokens) else filler, filler)


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
