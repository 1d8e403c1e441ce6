"""Likeness of a text to a category name, as Osprey scores open-vocabulary recognition (arXiv 2312.10032)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .content_words import cosine
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
    """What counts of an answer: after its first colon, with `.` and `,` as spaces."""
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

    tokenizer, network = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

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
