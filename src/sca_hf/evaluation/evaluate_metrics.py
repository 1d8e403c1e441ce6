"""Our metrics as modules of the `evaluate` library: offline, alone or in `evaluate.combine`.

    from sca_hf.evaluation.evaluate_metrics import evaluate_metric
    combined = evaluate.combine([evaluate_metric("CIDEr-D"), evaluate_metric("BLEU")])
    combined.compute(predictions=["a red star"], references=[["a star", "the red star"]])

Needs the extra `eval`; nothing is looked up on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..environment import install_command
from ..processing.masks_sca import decode_rle
from . import metrics as m


Results = Mapping[str, Any]


def evaluate_metric(name: str, **options: Any) -> Any:
    """Returns an `evaluate.Metric` that works offline and keeps what it is given in memory.

    Its `compute` returns values by the names of `sca-hf evaluate`, in raw scales; with `per_item=True` also the scores
    of the pairs, as `NAME per item`.

    Args:
        name: One of `EVALUATE_METRICS`, in upper or lower case.
        options: Arguments of `evaluate.Metric`, for instance `experiment_id`.

    What `compute` takes as `predictions` and `references`:
        CIDEr-D (also `df`), BLEU, ROUGE-L, exact-match (all with `language`, a tag, for its tokens), METEOR, SPICE
            (also `cache`): texts; references one text or a list of texts each.
        chrF: the same.
        content-recall: the same, with `tagger` and, for inexact matches, `similarity`.
        category-accuracy, semantic-IoU, semantic-similarity (with `encoder`): texts and category names.
        masks: COCO RLEs; with `iou_scores` also the error of the predicted IoU.
        dense-captioning: per image {"boxes", "captions", "scores"} and {"boxes", "captions"}, with `scorer`.
    """
    known = {key.lower(): key for key in EVALUATE_METRICS}
    if name.lower() not in known:
        raise ValueError(f"there is no metric {name!r}; known are {', '.join(EVALUATE_METRICS)}")
    return _module_class(known[name.lower()])(**{"keep_in_memory": True, **options})


@dataclass(frozen=True)
class _Kind:
    """What a metric takes, and how it is computed from that.

    inputs: "captions" are texts with lists of references, "tokens" the same as lists of tokens; "names" two texts.
    compute: returns a result, or several by their names.
    """

    inputs: str
    compute: Callable[..., Mapping[str, Any]]
    about: str


@cache
def _module_class(name: str) -> type:
    try:
        import evaluate
    except ImportError as error:
        raise ImportError(f"modules of `evaluate` need that library: {install_command('eval')}") from error
    kind = EVALUATE_METRICS[name]

    def _info(self: Any) -> Any:
        features = _features(kind.inputs)
        return evaluate.MetricInfo(description=kind.about, citation="", inputs_description="", features=features)

    def _compute(
        self: Any,
        predictions: Any,
        references: Any,
        per_item: bool = False,
        language: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        if kind.inputs in ("captions", "tokens"):
            references = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
        if kind.inputs == "tokens":
            predictions = [m.tokenize(text, language) for text in predictions]
            references = [[m.tokenize(text, language) for text in texts] for texts in references]
        values: dict[str, Any] = {}
        found = kind.compute(predictions, references, **options)
        for metric, result in ({name: found} if "corpus" in found else found).items():
            values[metric] = result["corpus"]
            if per_item and "per_item" in result:
                values[f"{metric} per item"] = result["per_item"]
        return values

    title = re.sub(r"\W+", "", name.title())
    return type(f"Sca{title}", (evaluate.Metric,), {"_info": _info, "_compute": _compute, "__doc__": kind.about})


def _features(inputs: str) -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    if inputs in ("captions", "tokens"):
        return [
            Features({"predictions": text, "references": List(text)}),
            Features({"predictions": text, "references": text}),
        ]
    if inputs == "names":
        return Features({"predictions": text, "references": text})
    if inputs == "masks":
        rle = {"size": List(Value("int64")), "counts": text}
        return Features({"predictions": rle, "references": rle})
    boxes = {"boxes": List(List(Value("float64"))), "captions": List(text)}
    return Features({"predictions": {**boxes, "scores": List(Value("float64"))}, "references": boxes})


def _content(predictions: Any, references: Any, tagger: Any, similarity: Any = None) -> dict[str, Results]:
    results: dict[str, Results] = {}
    for part in ("noun", "verb"):
        results[f"{part}-recall"] = m.content_recall(predictions, references, tagger, part)
        if similarity is not None:
            fuzzy = m.content_recall(predictions, references, tagger, part, similarity)
            results[f"{part}-recall-fuzzy"] = fuzzy
    return results


def _masks(predictions: Any, references: Any, iou_scores: Any = None) -> dict[str, Results]:
    scores = None if iou_scores is None else [[value] for value in iou_scores]
    overlaps = m.MaskOverlaps.of([[decode_rle(rle)] for rle in predictions], [*map(decode_rle, references)], scores)
    results: dict[str, Results] = {"mask-mIoU": m.mask_miou(overlaps), "mask-cIoU": m.mask_ciou(overlaps)}
    return results if scores is None else {**results, "IoU-error": m.iou_error(overlaps)}


def _dense(predictions: Any, references: Any, scorer: Any) -> dict[str, Results]:
    images = [
        m.DenseImage(
            np.array(found["boxes"], float).reshape(-1, 4),
            found["captions"],
            found["scores"],
            np.array(true["boxes"], float).reshape(-1, 4),
            true["captions"],
        )
        for found, true in zip(predictions, references, strict=True)
    ]
    result = m.dense_map(images, scorer)
    return {"dense-mAP": {"corpus": result["map"]}, "detection-mAP": {"corpus": result["detection_map"]}}


EVALUATE_METRICS: dict[str, _Kind] = {
    "CIDEr-D": _Kind("tokens", m.cider_d, "CIDEr-D, 0 to 10."),
    "BLEU": _Kind("tokens", m.bleu, "BLEU@1 to BLEU@4, 0 to 1."),
    "ROUGE-L": _Kind("tokens", m.rouge_l, "ROUGE-L with beta 1.2, 0 to 1."),
    "chrF": _Kind("captions", m.chrf, "chrF2 without words, 0 to 1."),
    "METEOR": _Kind("tokens", m.meteor, "METEOR 1.5 by its own program, 0 to 1."),
    "SPICE": _Kind("tokens", m.spice, "SPICE 1.0 by its own program, 0 to 1."),
    "exact-match": _Kind("tokens", m.exact_match, "Fraction that equals a reference."),
    "content-recall": _Kind("captions", _content, "Share of the references' nouns and verbs in the captions, 0 to 1."),
    "category-accuracy": _Kind("names", m.category_accuracy, "Fraction of correct names."),
    "semantic-IoU": _Kind("names", m.semantic_iou, "Shared words over all words."),
    "semantic-similarity": _Kind("names", m.semantic_similarity, "Cosine of sentence embeddings."),
    "masks": _Kind("masks", _masks, "mIoU, cIoU and error of the predicted IoU."),
    "dense-captioning": _Kind("dense", _dense, "mAP of boxes with captions, and of boxes alone."),
}
