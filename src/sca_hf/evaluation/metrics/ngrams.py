"""N-grams of many sentences at once, as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from .results import Tokens


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
    start: (kinds,) where in the corpus's tokens each n-gram stands, once of possibly many times.
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
