"""Training losses: captions (cross-entropy) and, where wanted, masks (SAM's focal, dice and IoU terms)."""

import torch
import torch.nn.functional as F


FOCAL_GAMMA = 2.0
FOCAL_ALPHA = 0.25
# Segment Anything, appendix A: focal and dice in a ratio of 20 to 1, IoU regression with weight 1.
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 20.0, 1.0, 1.0


def caption_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    label_smoothing: float = 0.0,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Summed cross-entropy over the caption tokens, divided by their number (arXiv 2312.00869, section 3.3).

    Args:
        logits: (..., T, V); position t predicts `labels[..., t]`.
        labels: (..., T) token ids, -100 where nothing is to be predicted.
        label_smoothing: probability mass spread over the whole vocabulary.
        num_items: what the sum is divided by; None for the number of labels here. Under gradient accumulation or
            several processes pass the number over all of them, as the Trainer does.
    """
    total = F.cross_entropy(
        logits.flatten(0, -2).float(),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    if num_items is None:
        num_items = (labels != -100).sum().clamp(min=1)
    return total / num_items


def mask_loss(
    pred_masks: torch.Tensor,
    iou_scores: torch.Tensor,
    mask_labels: torch.Tensor,
    region_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """SAM's training loss, a weighted mean over regions (arXiv 2304.02643, appendix A).

    Of several candidate masks only the one with the lowest focal + dice loss is trained; IoU scores are all trained.

    Args:
        pred_masks: (N, M, H, W) logits.
        iou_scores: (N, M).
        mask_labels: (N, H, W) true masks in the same frame, in [0, 1]; NaN throughout for a region whose mask is not
            known, which adds nothing.
        region_weights: (N,) weight of each region in the mean; None weighs those with a known mask alike.
    """
    known = ~mask_labels[:, 0, 0].isnan()
    if region_weights is None:
        region_weights = known / known.sum().clamp(min=1)
    target = mask_labels.float().masked_fill(~known[:, None, None], 0.0).unsqueeze(1).expand_as(pred_masks)
    logits = pred_masks.float()
    per_mask = FOCAL_WEIGHT * _focal(logits, target) + DICE_WEIGHT * _dice(logits, target)  # (N, M)
    iou_error = (iou_scores.float() - _iou(logits.detach(), target)).square().mean(dim=1)
    per_region = per_mask.min(dim=1).values + IOU_WEIGHT * iou_error
    return (per_region * region_weights * known).sum()


def _focal(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Focal loss (arXiv 1708.02002, equation 5), mean over pixels: (N, M)."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    probability = logits.sigmoid()
    wrong = probability * (1 - target) + (1 - probability) * target
    balance = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    return (balance * wrong.pow(FOCAL_GAMMA) * entropy).flatten(2).mean(dim=2)


def _dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - dice coefficient with a smoothing of one pixel: (N, M)."""
    probability = logits.sigmoid().flatten(2)
    target = target.flatten(2)
    overlap = 2 * (probability * target).sum(dim=2)
    return 1 - (overlap + 1) / (probability.sum(dim=2) + target.sum(dim=2) + 1)


def _iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Intersection over union of the thresholded masks: (N, M)."""
    predicted, true = (logits > 0).flatten(2), (target > 0.5).flatten(2)
    union = (predicted | true).sum(dim=2)
    return (predicted & true).sum(dim=2) / union.clamp(min=1)


__all__ = ["caption_loss", "mask_loss"]
