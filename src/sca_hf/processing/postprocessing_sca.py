"""Output of the model to records of regions: masks of the original image, their boxes, and the choice among many."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .mask_generation_sca import mask_boxes, select_masks, stability_scores


# Pixels of upscaled masks held at once; those of a whole batch would not fit.
_MASK_PIXELS = 1 << 26


def to_list(value: Any) -> list[Any]:
    """Return a tensor, array or sequence as a list of plain numbers."""
    return value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else list(value)


def real_regions(outputs: dict[str, Any], region_mask: Any, sizes: list[Any], resized: list[Any]) -> list[list[int]]:
    """Return the indices of the real regions of each image.

    Args:
        outputs: of the model; its own `region_mask` counts where none is given, else all regions are real.
        region_mask: (B, R) or None.
        sizes: height, width of each original.
        resized: height, width of each of the model's inputs.
    """
    shape = next((outputs[k].shape[:2] for k in ("sequences", "pred_masks") if outputs.get(k) is not None), None)
    if shape is None:
        raise ValueError("the output holds neither sequences nor pred_masks; there is nothing to post-process.")
    if region_mask is None:
        region_mask = outputs.get("region_mask")
    real = np.ones(tuple(shape), bool) if region_mask is None else np.array(to_list(region_mask), bool)
    if real.shape != tuple(shape) or not len(sizes) == len(resized) == shape[0]:
        raise ValueError(
            f"the output has {shape[0]} image(s) of {shape[1]} region(s); region_mask has shape {real.shape}, "
            f"original_sizes {len(sizes)} and reshaped_input_sizes {len(resized)} entries; give those of one call."
        )
    return [np.flatnonzero(row).tolist() for row in real]


def mask_records(
    masks: torch.Tensor, ious: torch.Tensor, upscale: Callable[..., list[torch.Tensor]], pixels: int, all_masks: bool
) -> list[dict[str, Any]]:
    """Return `mask`, `iou` and `box` of the regions of one image.

    Args:
        masks: (R, M, 4h, 4w) logits.
        ious: (R, M).
        upscale: turns [(n, M, 4h, 4w)] into [(n, M, height, width)] bool.
        pixels: of the largest intermediate of one mask.
        all_masks: keep all M candidates; otherwise the one of best IoU.
    """
    ious = ious.float()
    if not all_masks:
        best = ious.argmax(1, keepdim=True)
        ious, masks = ious.gather(1, best), masks.take_along_dim(best[..., None, None], 1)
    size = max(1, _MASK_PIXELS // (pixels * masks.shape[1]))
    records = []
    for part, part_ious in zip(masks.split(size), ious.split(size), strict=True):
        upscaled = upscale([part])[0]  # (n, M, height, width)
        boxes = mask_boxes(upscaled.flatten(0, 1)).view(*upscaled.shape[:2], 4).tolist()
        for mask, iou, candidates in zip(upscaled.cpu().numpy(), part_ious.tolist(), boxes, strict=True):
            box = [candidate if any(candidate) else None for candidate in candidates]
            record = {"mask": mask, "iou": iou, "box": box}
            records.append(record if all_masks else {name: value[0] for name, value in record.items()})
    return records


def cut_padding(masks: torch.Tensor, resized: tuple[int, int], frame_size: int) -> torch.Tensor:
    """Cut the padding off low-resolution masks: a view of (..., 4h, 4w) that holds all cells of the image.

    Args:
        masks: (..., 4h, 4w) logits of the padded square frame.
        resized: height, width of the model's input before padding.
        frame_size: side of the padded square, pixels of the resized image.
    """
    cell = frame_size / masks.shape[-1]
    height, width = (min(masks.shape[-1], int(-(-side // cell))) for side in resized)
    return masks[..., :height, :width]


def choose_candidates(
    masks: torch.Tensor,
    ious: torch.Tensor,
    regions: list[int],
    size: tuple[int, int],
    resized: tuple[int, int],
    frame_size: int,
    **thresholds: float,
) -> dict[str, torch.Tensor]:
    """Choose among all mask candidates of one image, see [`select_masks`].

    Args:
        masks: (R, M, 4h, 4w) logits of the padded square frame.
        ious: (R, M).
        regions: the real ones of R.
        size: height, width of the original.
        resized: height, width of the model's input before padding.
        frame_size: side of the padded square, pixels of the resized image.
        thresholds: of [`select_masks`].
    """
    candidates = masks.shape[1]
    real = torch.zeros(len(masks), 1, dtype=torch.bool, device=ious.device)
    real[regions] = True
    # Views: with a thousand points the masks fill a gigabyte, and few of them are good.
    flat, flat_ious = masks.flatten(0, 1), ious.float().masked_fill(~real, -torch.inf).flatten()
    inside = cut_padding(flat, resized, frame_size)
    cell = frame_size / masks.shape[-1]  # pixels of the resized image
    kept = select_masks(inside, flat_ious, **thresholds)
    boxes = mask_boxes(inside[kept] > thresholds.get("mask_threshold", 0.0))
    scale = torch.tensor([size[1] / resized[1], size[0] / resized[0]], device=boxes.device).repeat(2) * cell
    limit = torch.tensor([size[1], size[0]], device=boxes.device).repeat(2)
    return {
        # The last cell may reach over the edge of the image.
        "boxes": torch.minimum(boxes * scale, limit),
        "masks": flat[kept].float(),
        "iou_scores": flat_ious[kept],
        "stability_scores": stability_scores(
            inside[kept], thresholds.get("mask_threshold", 0.0), thresholds.get("stability_score_offset", 1.0)
        ),
        "region_index": kept // candidates,
        "candidate_index": kept % candidates,
    }
