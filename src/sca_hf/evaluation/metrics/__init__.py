"""Metrics of region captions as pure functions: lists of tokens or texts in, `{"corpus", "per_item"}` out.

No files, no network; nothing heavy is imported before it is used.
"""

from .bleu import BLEU_NAMES, bleu, bleu_sums
from .bootstrap import Interval, interval, p_value, resample
from .cider import DocumentFrequency, cider_d
from .content_words import content_recall, spacy_tools
from .dense import DenseImage, dense_map
from .exact import category_accuracy, exact_match
from .masks import MaskOverlaps, iou_error, mask_ciou, mask_miou, mask_miou_oracle
from .meteor import meteor
from .results import MetricResult
from .rouge import rouge_l
from .semantic import mean_pooled_encoder, semantic_iou, semantic_similarity
from .spice import spice
from .tokenizer import ptb_tokenize, ptb_tokenize_all


__all__ = [
    "BLEU_NAMES",
    "DenseImage",
    "DocumentFrequency",
    "Interval",
    "MaskOverlaps",
    "MetricResult",
    "bleu",
    "bleu_sums",
    "category_accuracy",
    "cider_d",
    "content_recall",
    "dense_map",
    "exact_match",
    "interval",
    "iou_error",
    "mask_ciou",
    "mask_miou",
    "mask_miou_oracle",
    "mean_pooled_encoder",
    "meteor",
    "p_value",
    "ptb_tokenize",
    "ptb_tokenize_all",
    "resample",
    "rouge_l",
    "semantic_iou",
    "semantic_similarity",
    "spacy_tools",
    "spice",
]
