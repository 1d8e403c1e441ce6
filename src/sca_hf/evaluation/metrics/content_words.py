"""Recall of nouns and verbs, exact and by likeness of meaning, with a tagger that is passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from .results import MetricResult, check_counts, mean_result


# Text to pairs of a token and its part of speech, as in Universal Dependencies.
Tagger = Callable[[str], Sequence[tuple[str, str]]]
# Two words to the likeness of their meaning, 1 for the same.
Similarity = Callable[[str, str], float]

PARTS = {"noun": frozenset({"NOUN", "PROPN"}), "verb": frozenset({"VERB"})}
_SMALL = 1e-8


class ContentRecall(MetricResult):
    """The recall, and how many pairs have no such word in any reference; those score 0 and stay in the mean."""

    without_target: int


def content_recall(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    tagger: Tagger,
    part: Literal["noun", "verb"] = "noun",
    similarity: Similarity | None = None,
) -> ContentRecall:
    """Scores which nouns or verbs of the references a candidate has, 0 to 1; the corpus value is the mean over pairs.

    Args:
        candidates: N texts as they are, not in lower case.
        references: N lists of one or more texts; a pair's are joined by a space before tagging.
        tagger: gives the tokens of a text with their parts of speech.
        part: nouns with names, or verbs.
        similarity: each word of the references then counts as much as the likest word of the candidate is like it;
            None: 1 where the candidate has the very word, else 0.
    """
    check_counts(candidates, references)
    scores, empty = [], 0
    for candidate, texts in zip(candidates, references, strict=True):
        said, wanted = _forms(tagger(candidate), part), _forms(tagger(" ".join(texts)), part)
        empty += not wanted
        found = float(len(set(said) & set(wanted)))
        if similarity is not None:
            found = sum(max((similarity(word, target) for word in said), default=0.0) for target in wanted)
        scores.append(found / (len(wanted) + _SMALL))
    return {**mean_result(scores), "without_target": empty}


def spacy_tools(model: str = "en_core_web_lg") -> tuple[Tagger, Similarity]:
    """Returns tagger and similarity of a spaCy pipeline that is installed here; nothing is downloaded.

    Args:
        model: name of an installed pipeline, or its folder. Published noun and verb recalls are of en_core_web_lg;
            likeness needs one with word vectors.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError("noun and verb recall need spaCy: pip install 'sca-hf[spacy]'.") from error
    try:
        pipeline = spacy.load(model, exclude=["ner", "parser"])
    except OSError as error:
        raise ValueError(
            f"the spaCy pipeline {model} is not installed: python -m spacy download {model}, or name another."
        ) from error

    def tag(text: str) -> list[tuple[str, str]]:
        return [(token.text, token.pos_) for token in pipeline(text)]

    def similar(word: str, other: str) -> float:
        return cosine(pipeline.vocab[word].vector, pipeline.vocab[other].vector)

    return tag, similar


def cosine(first: Any, second: Any) -> float:
    """Cosine of two vectors; 0 where either is zero."""
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(np.dot(first, second)) / norm if norm else 0.0


def _forms(tagged: Sequence[tuple[str, str]], part: str) -> list[str]:
    """The distinct words of a part of speech, in order."""
    return list(dict.fromkeys(form for form, pos in tagged if pos in PARTS[part]))
