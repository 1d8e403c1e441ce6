"""Scores by meaning: similarity of a text to a category name, recall of nouns and verbs exactly and by similarity.

The first is how Osprey scores open-vocabulary recognition (arXiv 2312.10032); the second takes a tagger that is passed
in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ...environment import install_command
from .results import MetricResult, check_counts, mean_result


# N texts to N vectors (N, D).
Encoder = Callable[[Sequence[str]], Any]


def semantic_iou(candidates: Sequence[str], categories: Sequence[str]) -> MetricResult:
    """Scores shared words over all words of a text and its category, 0 to 1; 0 where both are empty."""
    check_counts(candidates, [[name] for name in categories])
    scores = []
    for text, name in zip(candidates, categories, strict=True):
        said, wanted = set(plain_text(text).lower().split()), set(plain_category(name).lower().split())
        scores.append(len(said & wanted) / len(said | wanted) if said | wanted else 0.0)
    return mean_result(scores)


def semantic_similarity(candidates: Sequence[str], categories: Sequence[str], encoder: Encoder) -> MetricResult:
    """Scores the cosine of the sentence embeddings of a text and its category, -1 to 1.

    Args:
        candidates, categories: N texts each.
        encoder: N texts to (N, D) vectors. Published numbers are of all-MiniLM-L6-v2.
    """
    check_counts(candidates, [[name] for name in categories])
    names = list(dict.fromkeys(map(plain_category, categories)))
    vectors = dict(zip(names, np.asarray(encoder(names)), strict=True))
    said = np.asarray(encoder([plain_text(text) for text in candidates]))
    return mean_result(
        [cosine(vector, vectors[plain_category(name)]) for vector, name in zip(said, categories, strict=True)]
    )


def plain_text(text: str) -> str:
    """Returns what counts of an answer: the text after its first colon, with `.` and `,` as spaces."""
    head, colon, tail = text.partition(":")
    return re.sub("[.:,]", " ", tail if colon else head)


def plain_category(name: str) -> str:
    """A category name with `_` and `:` as spaces."""
    return re.sub("[_:]", " ", name)


def mean_pooled_encoder(model: str, batch_size: int = 256) -> Encoder:
    """Returns an encoder by any text model of transformers: its last hidden states, averaged over a text's tokens.

    That is how the sentence-transformers models with mean pooling, such as all-MiniLM-L6-v2, embed a sentence.

    Args:
        model: folder, or repository on the Hub.
        batch_size: texts at a time.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = (kind.from_pretrained(model, trust_remote_code=False) for kind in (AutoTokenizer, AutoModel))

    def encode(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), batch_size):
            part = list(texts[start : start + batch_size])
            inputs = tokenizer(part, padding=True, truncation=True, return_tensors="pt")
            with torch.inference_mode():
                states = network(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            vectors.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy())
        return np.concatenate(vectors)

    return encode


# Text to pairs of a token and its part of speech, as in Universal Dependencies.
Tagger = Callable[[str], Sequence[tuple[str, str]]]
# Two words to the similarity of their meaning, 1 for the same.
Similarity = Callable[[str, str], float]

PARTS = {"noun": frozenset({"NOUN", "PROPN"}), "verb": frozenset({"VERB"})}
_SMALL = 1e-8


class ContentRecall(MetricResult):
    """The recall, and how many pairs have no such word in any reference; these score 0 and count in the mean."""

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
        similarity: The similarity of two words; each word of the references then counts as much as the most similar
            word of the candidate. None: 1 where the candidate has the word itself, else 0.
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
            similarity needs one with word vectors.
    """
    try:
        import spacy
    except ImportError as error:
        raise ImportError(f"noun and verb recall need spaCy: {install_command('spacy')}") from error
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
