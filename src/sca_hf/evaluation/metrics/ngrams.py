"""BLEU and CIDEr-D as caption tables have them, from the n-grams of many sentences at once, as numbers.

BLEU is the corpus's, at orders 1 to 4, with the closest reference length and no smoothing to speak of. CIDEr-D (arXiv
1411.5726, section 4) is what captioning tables call CIDEr.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from ...files import read_json, write_whole
from .results import MetricResult, Sums, Tokens, check_counts, check_pairs, mean_result


MAX_ORDER = 4


@dataclass(frozen=True)
class Corpus:
    """Sentences in one run of token numbers: N candidates first, then their M references in the order of the pairs.

    tokens: (T,) numbers of the tokens, from 0.
    sentence: (T,) which sentence each token belongs to.
    lengths: (N + M,) tokens of each sentence.
    pair: (M,) which candidate each reference belongs to.
    vocabulary: the number of each token.
    """

    tokens: np.ndarray
    sentence: np.ndarray
    lengths: np.ndarray
    pair: np.ndarray
    vocabulary: dict[str, int]

    @classmethod
    def of(cls, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Corpus:
        """Numbers the tokens of all pairs."""
        sentences = [*candidates, *chain.from_iterable(references)]
        lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
        flat = list(chain.from_iterable(sentences))
        vocabulary = {token: number for number, token in enumerate(dict.fromkeys(flat))}
        tokens = np.fromiter(map(vocabulary.__getitem__, flat), np.int64, len(flat))
        counts = np.fromiter(map(len, references), np.int64, len(references))
        sentence = np.repeat(np.arange(len(sentences)), lengths)
        return cls(tokens, sentence, lengths, np.repeat(np.arange(len(references)), counts), vocabulary)

    @property
    def pairs(self) -> int:
        return len(self.lengths) - len(self.pair)

    def ngrams(self) -> Iterator[Ngrams]:
        """Yields the n-grams of each order in turn, 1 to 4."""
        starts = np.cumsum(self.lengths) - self.lengths
        left = self.lengths[self.sentence] - (np.arange(len(self.tokens)) - starts[self.sentence])  # to the end
        position, gram, kinds = np.arange(len(self.tokens)), self.tokens, len(self.vocabulary)
        for order in range(1, MAX_ORDER + 1):
            if order > 1:
                keep = left[position] >= order
                position, gram = position[keep], gram[keep]
                keys = gram * len(self.vocabulary) + self.tokens[position + order - 1]
                unique, gram = np.unique(keys, return_inverse=True)
                kinds = len(unique)
            yield self._counted(position, gram, kinds, order)

    def _counted(self, position: np.ndarray, gram: np.ndarray, kinds: int, order: int) -> Ngrams:
        start = np.empty(kinds, np.int64)
        start[gram] = position
        keys, counts = np.unique(self.sentence[position] * kinds + gram, return_counts=True)
        sentence, gram = np.divmod(keys, kinds) if kinds else (keys, keys)
        border = int(np.searchsorted(sentence, self.pairs))
        pair = self.pair[sentence[border:] - self.pairs]
        # Where the candidate of a reference's pair has the same n-gram.
        wanted = pair * kinds + gram[border:]
        place = np.searchsorted(keys[:border], wanted)
        found = place < border
        found[found] = keys[place[found]] == wanted[found]
        return Ngrams(
            order=order,
            start=start,
            gram=gram[:border],
            count=counts[:border],
            pair=sentence[:border],
            ref_gram=gram[border:],
            ref_count=counts[border:],
            ref_sentence=sentence[border:] - self.pairs,
            ref_pair=pair,
            shared=np.flatnonzero(found),
            partner=place[found],
        )


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of one order: E entries of candidates and F of references, one per sentence and distinct n-gram.

    order: n.
    start: (kinds,) where in the corpus's tokens each n-gram is, once of possibly many times.
    gram, count, pair: (E,) number of the n-gram, how often the candidate has it, and whose candidate it is.
    ref_gram, ref_count, ref_sentence, ref_pair: (F,) the same of references; `ref_sentence` counts references alone.
    shared: (K,) entries of references whose candidate has the n-gram too; partner: (K,) that candidate's entries.
    """

    order: int
    start: np.ndarray
    gram: np.ndarray
    count: np.ndarray
    pair: np.ndarray
    ref_gram: np.ndarray
    ref_count: np.ndarray
    ref_sentence: np.ndarray
    ref_pair: np.ndarray
    shared: np.ndarray
    partner: np.ndarray

    @property
    def kinds(self) -> int:
        return len(self.start)


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
        allowed = np.zeros(len(ngrams.gram), np.int64)
        np.maximum.at(allowed, ngrams.partner, ngrams.ref_count[ngrams.shared])
        matches.append(np.bincount(ngrams.pair, np.minimum(ngrams.count, allowed), corpus.pairs))
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


SIGMA = 6.0


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many pairs of a corpus each n-gram is in a reference; `ngrams` maps tokens joined by a space."""

    pairs: int
    ngrams: Mapping[str, int]

    @classmethod
    def of(cls, references: Sequence[Sequence[Tokens]]) -> DocumentFrequency:
        """Counts the references of a corpus."""
        check_counts(references, references)
        counts: dict[str, int] = {}
        for refs in references:
            for gram in {gram for tokens in refs for gram in _ngrams(tokens)}:
                counts[gram] = counts.get(gram, 0) + 1
        return cls(len(references), counts)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequency:
        """Reads what `save` wrote."""
        values = read_json(path, dict)
        if set(values) != {"pairs", "ngrams"}:
            raise ValueError(f"{path} has no document frequencies, expected an object with pairs and ngrams.")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        text = json.dumps({"pairs": self.pairs, "ngrams": dict(self.ngrams)}, ensure_ascii=False)
        write_whole(path, text + "\n")


def cider_d(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    df: Literal["corpus"] | DocumentFrequency = "corpus",
) -> MetricResult:
    """Scores CIDEr-D, 0 to 10; the corpus value is the mean over pairs.

    An n-gram's weight in a sentence is its count times ln(N / df), with df the number of pairs whose references hold
    it and N the number of pairs. Per order (1 to 4) a candidate's weights, clipped to the reference's, are compared by
    cosine, damped by a Gaussian (sigma 6) of the difference in length, and averaged over orders and references.

    Args:
        candidates: N lists of tokens; an empty one scores 0.
        references: N lists of one or more lists of tokens.
        df: "corpus" counts these references, so that a part of a data set does not compare with the whole, and one
            pair alone scores 0. Otherwise frequencies from elsewhere, with their own N.
    """
    check_pairs(candidates, references)
    corpus = Corpus.of(candidates, references)
    log_pairs = math.log(corpus.pairs if df == "corpus" else df.pairs)
    total = np.zeros(len(corpus.pair))
    for ngrams in corpus.ngrams():
        frequency = _frequency(ngrams) if df == "corpus" else _known_frequency(corpus, ngrams, df)
        idf = log_pairs - np.log(np.maximum(1, frequency))
        total += _similarity(ngrams, idf, corpus.pairs, len(corpus.pair))
    bigrams = np.maximum(0, corpus.lengths - 1)
    difference = bigrams[corpus.pair] - bigrams[corpus.pairs :]
    scores = total / MAX_ORDER * np.exp(-(difference**2) / (2 * SIGMA**2))
    sums = np.bincount(corpus.pair, scores, corpus.pairs)
    return mean_result(10 * sums / np.bincount(corpus.pair, minlength=corpus.pairs))


def _frequency(ngrams: Ngrams) -> np.ndarray:
    """(kinds,) pairs in whose references each n-gram is."""
    # An n-gram in two references of a pair counts once.
    once = np.unique(ngrams.ref_pair * ngrams.kinds + ngrams.ref_gram)
    return np.bincount(once % max(1, ngrams.kinds), minlength=ngrams.kinds)


def _known_frequency(corpus: Corpus, ngrams: Ngrams, df: DocumentFrequency) -> np.ndarray:
    """(kinds,) what `df` says of each n-gram."""
    names = list(corpus.vocabulary)
    rows = corpus.tokens[ngrams.start[:, None] + np.arange(ngrams.order)].tolist()
    return np.array([df.ngrams.get(" ".join(names[token] for token in row), 0) for row in rows])


def _similarity(ngrams: Ngrams, idf: np.ndarray, pairs: int, references: int) -> np.ndarray:
    """(M,) clipped cosine of each reference with its candidate; 0 where either has no weight."""
    weight = ngrams.count * idf[ngrams.gram]
    ref_weight = ngrams.ref_count * idf[ngrams.ref_gram]
    norm = np.sqrt(np.bincount(ngrams.pair, weight**2, pairs))
    ref_norm = np.sqrt(np.bincount(ngrams.ref_sentence, ref_weight**2, references))
    ours, theirs = weight[ngrams.partner], ref_weight[ngrams.shared]
    products = np.minimum(ours, theirs) * theirs
    sentence = ngrams.ref_sentence[ngrams.shared]
    # Only sentences with a shared n-gram have a product, and theirs are the norms to divide by.
    scale = norm[ngrams.pair[ngrams.partner]] * ref_norm[sentence]
    return np.bincount(sentence, np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0), references)


def _ngrams(tokens: Tokens) -> set[str]:
    return {" ".join(tokens[k : k + n]) for n in range(1, MAX_ORDER + 1) for k in range(len(tokens) - n + 1)}
