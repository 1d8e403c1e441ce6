"""What the model returns; letters for shapes as in modeling_sca.py."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .grouping_sca import RegionPlan
from .segmentation_sca import ImageEncoding, Masks


@dataclass
class ScaOutput(ModelOutput):
    """Output of [`ScaForConditionalGeneration.forward`].

    Attributes:
        loss: scalar, when `labels` or weighted `mask_labels` are given.
        logits: (B, R, T, V); position t predicts text token t. (B, R, A, T, V) with several caption heads. Zero for
            padded regions, and while training wherever there is no label.
        pred_masks: (B, R, M, 4h, 4w) mask logits in the frame of the padded square input.
        iou_scores: (B, R, M) predicted IoU of each mask.
        object_score_logits: (B, R) of there being an object where the prompt is; of SAM 2 and its relatives.
        query_embeds: (B, R, A, Q, C) caption queries after the mixer.
        prefix_embeds: (B, R, A, L, D) what stands in front of the text in the language model.
        image_embeddings: (B, C, h, w).
        hidden_states: with `output_hidden_states`, what each layer of the language model returned for the N real
            regions, (N * A, L + T - 1, D).
        attentions: with `output_attentions`, its attention weights, (N * A, its heads, L + T - 1, L + T - 1).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    iou_scores: torch.Tensor | None = None
    object_score_logits: torch.Tensor | None = None
    query_embeds: torch.Tensor | None = None
    prefix_embeds: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class ScaGenerateOutput(ModelOutput):
    """Output of [`ScaForConditionalGeneration.generate`].

    Attributes:
        sequences: (B, R, T) ids of new tokens, right-padded; (B, R, n, T) for n > 1 captions per region (caption heads
            times `num_return_sequences`, heads outermost).
        caption_scores: (B, R) or (B, R, n) mean log-probability of the caption's tokens, its end token included, under
            the language model's unprocessed distribution. None if not asked for.
        confidences: (B, R) in [0, 1], how sure it may be that a region is of what the model was trained on; below 0.5
            its caption is a guess. None without a [`ScaConfidenceHead`].
        pred_masks: (B, R, M, 4h, 4w) mask logits in the frame of the padded square input. None if not asked for.
        iou_scores: (B, R, M) predicted IoU of each mask.
        object_score_logits: (B, R) of there being an object where the prompt is; of SAM 2 and its relatives.
        region_mask: (B, R) True for real regions; values of the others are padding.
    """

    sequences: torch.LongTensor | None = None
    caption_scores: torch.FloatTensor | None = None
    confidences: torch.FloatTensor | None = None
    pred_masks: torch.FloatTensor | None = None
    iou_scores: torch.FloatTensor | None = None
    object_score_logits: torch.FloatTensor | None = None
    region_mask: torch.BoolTensor | None = None


@dataclass
class RegionFeatures:
    """Results for the N real regions of a call, in ascending order.

    Attributes:
        plan: which regions those are.
        encoding: of the images.
        masks: mask logits (N, M, 4h, 4w) and IoU scores (N, M) for each `multimask_output` that was wanted, the one
            that the call asks for first.
        queries: (N, A, Q, C) caption queries after the mixer; None where no captions are wanted.
        object_scores: (N,) logits; None where the segmenter has none or no masks are wanted.
        task_ids: (B, R), as in the call.
    """

    plan: RegionPlan
    encoding: ImageEncoding
    masks: Masks
    queries: torch.Tensor | None
    object_scores: torch.Tensor | None
    task_ids: torch.Tensor | None

    def padded_masks(self) -> dict[str, torch.Tensor]:
        """`pred_masks` (B, R, M, 4h, 4w), `iou_scores` (B, R, M), `object_score_logits` (B, R): those there are."""
        if not self.masks:
            return {}
        pred_masks, iou_scores = next(iter(self.masks.values()))
        found = {"pred_masks": pred_masks, "iou_scores": iou_scores, "object_score_logits": self.object_scores}
        return {name: self.plan.padded(values) for name, values in found.items() if values is not None}


__all__ = ["RegionFeatures", "ScaGenerateOutput", "ScaOutput"]
