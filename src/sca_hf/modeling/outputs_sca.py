"""What the model returns; letters for shapes as in modeling_sca.py."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers.utils import ModelOutput

from .grouping_sca import RegionPlan
from .losses_sca import mask_losses, mean_over_regions, second_look_losses
from .second_look_sca import Pyramid, expected_iou
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
        second_masks: (B, R, S, S) mask logits of a second look, in crops of the frame; where the model takes one.
        second_boxes: (B, R, 4) those crops, xyxy in pixels of the padded square input; parts may lie outside.
        second_iou_scores: (B, R) expected IoU of `second_masks`.
        mask_losses: (B, R) loss of each region's masks, where they learn; 0 where the true mask is not known.
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
    second_masks: torch.Tensor | None = None
    second_boxes: torch.Tensor | None = None
    second_iou_scores: torch.Tensor | None = None
    mask_losses: torch.Tensor | None = None
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
        agreements: (B, R) or (B, R, n), p(region | caption) among the regions of the image: how surely a listener
            finds the region by its caption. None if not asked for.
        confidences: (B, R) in [0, 1], how sure it may be that a region is of what the model was trained on; below 0.5
            its caption is a guess. None without a [`ScaConfidenceHead`].
        pred_masks: (B, R, M, 4h, 4w) mask logits in the frame of the padded square input. None if not asked for.
        iou_scores: (B, R, M) predicted IoU of each mask.
        object_score_logits: (B, R) of there being an object where the prompt is; of SAM 2 and its relatives.
        second_masks: (B, R, S, S) mask logits of a second look, in crops of the frame; where the model takes one.
        second_boxes: (B, R, 4) those crops, xyxy in pixels of the padded square input; parts may lie outside.
        second_iou_scores: (B, R) expected IoU of `second_masks`.
        region_mask: (B, R) True for real regions; values of the others are padding.
    """

    sequences: torch.LongTensor | None = None
    caption_scores: torch.FloatTensor | None = None
    agreements: torch.FloatTensor | None = None
    confidences: torch.FloatTensor | None = None
    pred_masks: torch.FloatTensor | None = None
    iou_scores: torch.FloatTensor | None = None
    object_score_logits: torch.FloatTensor | None = None
    second_masks: torch.FloatTensor | None = None
    second_boxes: torch.FloatTensor | None = None
    second_iou_scores: torch.FloatTensor | None = None
    region_mask: torch.BoolTensor | None = None


@dataclass
class RegionFeatures:
    """Results for the N real regions of a call, in ascending order.

    Attributes:
        plan: which regions those are.
        encoding: of the images.
        masks: mask logits (N, M, 4h, 4w) and IoU scores (N, M) for each `multimask_output` that was wanted, the one
            that the call asks for first.
        found: what else there is: `queries` (N, A, Q, C), caption queries after the mixer; `object_scores` (N,) of
            segmenters that tell; what a [`ScaSecondLook`] gives.
        task_ids: (B, R) or (B, R, L), as in the call.
    """

    plan: RegionPlan
    encoding: ImageEncoding
    masks: Masks
    found: dict[str, torch.Tensor]
    task_ids: torch.Tensor | None

    @property
    def queries(self) -> torch.Tensor:
        """Caption queries (N, A, Q, C), where captions are wanted."""
        return self.found["queries"]

    def padded_masks(self, side: int) -> dict[str, torch.Tensor]:
        """Masks and scores as the outputs have them, those there are; `side` of the frame in pixels."""
        if not self.masks:
            return {}
        pred_masks, iou_scores = next(iter(self.masks.values()))
        objects = self.found.get("object_scores")
        found = {"pred_masks": pred_masks, "iou_scores": iou_scores, "object_score_logits": objects}
        if "second_logits" in self.found:
            logits = self.found["second_logits"][:, 0]
            found |= {"second_masks": logits, "second_boxes": self.found["second_windows"] * side}
            found |= {"second_iou_scores": expected_iou(logits)}
        return {name: self.plan.padded(values) for name, values in found.items() if values is not None}

    def mask_loss(
        self,
        mask_labels: torch.Tensor,
        labels: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        config: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of all masks that there are, and (B, R) those of the second look or else the ones asked for.

        Args:
            mask_labels: (B, R, k 4h, k 4w).
            labels: (B, R, T) of captions, or None.
            num_items: number of labels of the whole step, or None.
            config: [`ScaConfig`].
        """
        device, weights, side = self.encoding.image_embeddings.device, None, self.encoding.image_embeddings.shape[-1]
        fine, rest = divmod(mask_labels.shape[-1], 4 * side)
        if rest or mask_labels.ndim != 4 or tuple(mask_labels.shape[:2]) != self.plan.shape:
            raise ValueError(
                f"mask_labels must be (B, R, {4 * side}, {4 * side}), or a multiple of that, for (B, R) = "
                f"{self.plan.shape}; got {tuple(mask_labels.shape)}."
            )
        if labels is not None:
            # Tokens weigh regions as they weigh captions: only their number is known over all parts of a step.
            tokens = (self.plan.real(labels.to(device)) != -100).sum(dim=1)
            weights = tokens / (tokens.sum().clamp(min=1) if num_items is None else num_items)
        true = self.plan.real(mask_labels.to(device))
        known, coarse = ~true[:, 0, 0].isnan(), true if fine == 1 else F.avg_pool2d(true.float(), fine)
        # Whoever trains three masks will also be asked for one, and the encoder changes under both. Beside a second
        # look that learns, masks that do not are left out.
        first, second = list(self.masks.values()), "second_in_box" in self.found
        first = first if first[0][0].requires_grad or not second else []
        losses = [mask_losses(*masks, coarse, config.mask_loss_type) for masks in first]
        if second:
            logits, windows, in_box = (self.found[f"second_{name}"] for name in ("logits", "windows", "in_box"))
            rows = torch.arange(len(true), device=device)
            crops = Pyramid(true[:, None].nan_to_num()).crops(rows, windows, logits.shape[-1])
            losses.insert(0, second_look_losses(logits, crops, in_box) * known)
        total = sum(mean_over_regions(one, known, weights) for one in losses[1:])
        return mean_over_regions(losses[0], known, weights) + total, self.plan.padded(losses[0].detach())


__all__ = ["RegionFeatures", "ScaGenerateOutput", "ScaOutput"]
