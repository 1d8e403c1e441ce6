"""Training losses: captions (cross-entropy) and, where wanted, masks (SAM's focal, dice and IoU terms, or others)."""

import torch
import torch.nn.functional as F


FOCAL_GAMMA = 2.0
FOCAL_ALPHA = 0.25
# Segment Anything, appendix A: focal and dice in a ratio of 20 to 1, IoU regression with weight 1.
FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 20.0, 1.0, 1.0
MASK_LOSSES = ("sam", "region")
# Of "region": how much a mask's box is enlarged, in parts of its sides, and what counts outside of that.
_AROUND, _OUTSIDE = 0.25, 2.0
# Of a second look, whose crop is little larger than the region; and the weight of its coarser stages.
_CROP_OUTSIDE, _STAGE_WEIGHT = 0.5, 0.3


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


def mask_losses(
    pred_masks: torch.Tensor, iou_scores: torch.Tensor, mask_labels: torch.Tensor, kind: str = "sam"
) -> torch.Tensor:
    """Loss of each region's masks, (N,); 0 where the true mask is not known.

    Of several candidate masks only the one with the lowest loss is trained; IoU scores are all trained.

    Args:
        pred_masks: (N, M, H, W) logits.
        iou_scores: (N, M).
        mask_labels: (N, H, W) true masks in the same frame, in [0, 1]; NaN throughout for a region whose mask is not
            known.
        kind: `"sam"`, SAM's own (arXiv 2304.02643, appendix A): focal and dice. The mean of the focal term over all
            pixels gives small things next to no weight, and where the image encoder cannot tell edges apart, masks
            shrink under it, as they do on photographs for a small one. `"region"`: cross-entropy and dice in the
            mask's box enlarged by a quarter, and cross-entropy outside of it, so that each region weighs alike.
    """
    known = ~mask_labels[:, 0, 0].isnan()
    target = mask_labels.float().masked_fill(~known[:, None, None], 0.0)
    around = _around(target) if kind == "region" else None
    target = target.unsqueeze(1).expand_as(pred_masks)
    logits = pred_masks.float()
    if around is None:
        per_mask = FOCAL_WEIGHT * _focal(logits, target) + DICE_WEIGHT * _dice(logits, target)  # (N, M)
    else:
        per_mask = _focused(logits, target, around[:, None], _OUTSIDE)
    iou_error = (iou_scores.float() - _iou(logits.detach(), target)).square().mean(dim=1)
    return (per_mask.min(dim=1).values + IOU_WEIGHT * iou_error) * known


def mean_over_regions(losses: torch.Tensor, known: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Weighted mean of losses (N,) over the regions whose true mask is `known` (N,); None weighs those alike."""
    return (losses * (known / known.sum().clamp(min=1) if weights is None else weights)).sum()


def second_look_losses(logits: torch.Tensor, target: torch.Tensor, in_box: torch.Tensor) -> torch.Tensor:
    """Loss of each region's mask of a second look, (N,): cross-entropy and dice near the region, of all stages.

    Args:
        logits: (N, stages, S, S), the final ones first.
        target: (N, 1, S, S) true masks in the crops, in [0, 1].
        in_box: (N, 1, S, S) bool, the box that was looked at.
    """
    reach = logits.shape[-1] // 16
    around = F.max_pool2d((in_box | (target > 0.5)).float(), 2 * reach + 1, 1, reach)
    losses = _focused(logits.float(), target.expand_as(logits), around, _CROP_OUTSIDE)
    return losses[:, 0] + _STAGE_WEIGHT * losses[:, 1:].sum(1)


def _focused(logits: torch.Tensor, target: torch.Tensor, around: torch.Tensor, outside: float) -> torch.Tensor:
    """Cross-entropy and dice where `around` is 1, and `outside` times cross-entropy where it is 0: (N, M)."""
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    near = (entropy * around).flatten(2).sum(2) / around.flatten(2).sum(2).clamp(min=1)
    far = (entropy * (1 - around)).flatten(2).mean(2)
    probability, inside = (logits.sigmoid() * around).flatten(2), (target * around).flatten(2)
    dice = 1 - (2 * (probability * inside).sum(2) + 1) / (probability.sum(2) + inside.sum(2) + 1)
    return near + outside * far + dice


def _around(masks: torch.Tensor) -> torch.Tensor:
    """1 in the boxes of masks (N, H, W) enlarged by a quarter of their sides, at least by a pixel; else 0."""
    rows = []
    for inside in ((masks > 0).any(2), (masks > 0).any(1)):  # (N, H), (N, W)
        places = torch.arange(inside.shape[1], device=masks.device)
        low, high = (ends[:, None] for ends in outer_places(inside))
        more = ((high - low) * _AROUND / 2).clamp(min=1)
        rows.append((places >= low - more) & (places <= high - 1 + more))
    return (rows[0][:, :, None] & rows[1][:, None, :]).float()


def outer_places(inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First place (n,) and the one behind the last, where rows (n, L) are true; L and 0 where none is."""
    places = torch.arange(inside.shape[1], device=inside.device)
    return torch.where(inside, places, inside.shape[1]).amin(1), torch.where(inside, places + 1, 0).amax(1)


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


__all__ = ["MASK_LOSSES", "caption_loss", "mask_losses", "mean_over_regions", "outer_places", "second_look_losses"]
