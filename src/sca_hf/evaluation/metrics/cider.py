"""CIDEr-D (arXiv 1411.5726, section 4), what captioning tables call CIDEr."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .ngrams import MAX_ORDER, Corpus, Ngrams
from .results import MetricResult, Tokens, check_counts, check_pairs, mean_result


SIGMA = 6.0


@dataclass(frozen=True)
class DocumentFrequency:
    """In how many pairs of a corpus each n-gram stands in a reference; `ngrams` maps tokens joined by a space."""

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
        values = json.loads(Path(path).read_text("utf-8"))
        if not isinstance(values, dict) or set(values) != {"pairs", "ngrams"}:
            raise ValueError(f"{path}: holds no document frequencies, expected an object with pairs and ngrams.")
        return cls(**values)

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        text = json.dumps({"pairs": self.pairs, "ngrams": dict(self.ngrams)}, ensure_ascii=False)
        Path(path).write_text(text + "\n", encoding="utf-8")


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
    """(kinds,) pairs in whose references each n-gram stands."""
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
