"""Corpus BLEU at orders 1 to 4 as caption tables have it: closest reference length, no smoothing to speak of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from .ngrams import MAX_ORDER, Corpus
from .results import MetricResult, Sums, Tokens, check_pairs


BLEU_NAMES = tuple(f"BLEU@{order}" for order in range(1, MAX_ORDER + 1))
# What keeps empty sums from dividing by zero; those of the reference implementation.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, MetricResult]:
    """Scores BLEU@1 to BLEU@4, 0 to 1 (doi 10.3115/1073083.1073135).

    Matches are clipped to the largest count in any one reference; a pair's reference length is the one closest to the
    candidate's, the shorter of two. The corpus value comes from summed counts and is not the mean over pairs.

    Args:
        candidates: N lists of tokens; an empty one scores 0.
        references: N lists of one or more lists of tokens.
    """
    found = bleu_sums(candidates, references)
    return {
        name: {"corpus": sums.corpus(), "per_item": sums.finish(sums.values).tolist()} for name, sums in found.items()
    }


def bleu_sums(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> dict[str, Sums]:
    """Returns what each pair adds: matches and guesses of 4 orders each, candidate's and reference's length."""
    check_pairs(candidates, references)
    corpus = Corpus.of(candidates, references)
    lengths = corpus.lengths[: corpus.pairs]
    matches, guesses = [], []
    for ngrams in corpus.ngrams():
        most = np.zeros(len(ngrams.gram), np.int64)
        np.maximum.at(most, ngrams.partner, ngrams.ref_count[ngrams.shared])
        matches.append(np.bincount(ngrams.pair, np.minimum(ngrams.count, most), corpus.pairs))
        guesses.append(np.maximum(0, lengths - ngrams.order + 1))
    values = np.stack([*matches, *guesses, lengths, _closest_lengths(corpus)], 1).astype(float)
    return {name: Sums(values, partial(_score, order=order)) for order, name in enumerate(BLEU_NAMES, 1)}


def _closest_lengths(corpus: Corpus) -> np.ndarray:
    """(N,) the length of a reference that is closest to the candidate's."""
    lengths = corpus.lengths[corpus.pairs :]
    distance = np.abs(lengths - corpus.lengths[corpus.pair])
    order = np.lexsort((lengths, distance, corpus.pair))
    _, first = np.unique(corpus.pair[order], return_index=True)
    return lengths[order[first]]


def _score(sums: np.ndarray, order: int) -> np.ndarray:
    """(..., 10) to BLEU of one order (...)."""
    matches, guesses = sums[..., :order], sums[..., MAX_ORDER : MAX_ORDER + order]
    score = ((matches + _TINY) / (guesses + _SMALL)).prod(-1) ** (1 / order)
    quotient = (sums[..., -2] + _TINY) / (sums[..., -1] + _SMALL)
    return score * np.where(quotient < 1, np.exp(1 - 1 / quotient), 1.0)
