"""Metrics of region captions as pure functions: lists of tokens or texts in, `{"corpus", "per_item"}` out.

No files, no network; nothing heavy is imported before it is used.
"""

from .chrf import chrf, chrf_sums
from .dense import DenseImage, MaskOverlaps, dense_map, iou_error, mask_ciou, mask_miou, mask_miou_oracle
from .java_programs import meteor, spice
from .languages import in_language, is_english, needs_words, tokenize, tokenizer_name
from .ngrams import BLEU_NAMES, DocumentFrequency, bleu, bleu_sums, cider_d
from .results import Interval, MetricResult, interval, p_value, resample
from .rouge import category_accuracy, exact_match, rouge_l
from .semantic import content_recall, mean_pooled_encoder, semantic_iou, semantic_similarity, spacy_tools
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
    "chrf",
    "chrf_sums",
    "cider_d",
    "content_recall",
    "dense_map",
    "exact_match",
    "in_language",
    "interval",
    "iou_error",
    "is_english",
    "mask_ciou",
    "mask_miou",
    "mask_miou_oracle",
    "mean_pooled_encoder",
    "meteor",
    "needs_words",
    "p_value",
    "ptb_tokenize",
    "ptb_tokenize_all",
    "resample",
    "rouge_l",
    "semantic_iou",
    "semantic_similarity",
    "spacy_tools",
    "spice",
    "tokenize",
    "tokenizer_name",
]
