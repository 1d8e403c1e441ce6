"""Masks of regions: records of the model's output, boxes, scores, non-maximum suppression, grids of points, crops.

Boxes are xyxy and run along pixel edges, so that a mask of the one pixel (x, y) has the box `[x, y, x + 1, y + 1]` and
the whole image `[0, 0, width, height]`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .images_sca import stretches


# Elements of one intermediate of the pairwise functions: bounds their memory, not their result.
_CHUNK = 1 << 24
# Pixels of upscaled masks held at once; those of a whole batch would not fit.
_MASK_PIXELS = 1 << 26


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return the tight box of each mask.

    Args:
        masks: (N, height, width) bool.

    Returns:
        (N, 4) float32 xyxy along pixel edges; all zero for an empty mask.
    """
    height, width = masks.shape[-2:]
    columns, rows = masks.any(-2), masks.any(-1)  # (N, width), (N, height)
    x = torch.arange(width, device=masks.device)
    y = torch.arange(height, device=masks.device)
    box = torch.stack(
        [
            torch.where(columns, x, width).amin(-1),
            torch.where(rows, y, height).amin(-1),
            torch.where(columns, x + 1, 0).amax(-1),
            torch.where(rows, y + 1, 0).amax(-1),
        ],
        dim=-1,
    )
    return (box * columns.any(-1, keepdim=True)).float()


def stability_scores(logits: torch.Tensor, threshold: float = 0.0, offset: float = 1.0) -> torch.Tensor:
    """Return how little each mask changes when its threshold moves: IoU of the masks at threshold +- offset.

    Args:
        logits: (..., height, width).
        threshold: the threshold that makes the mask.
        offset: how far it moves to either side.

    Returns:
        (...) float32; 0 where both masks are empty.
    """
    inner = (logits > threshold + offset).flatten(-2).sum(-1)
    outer = (logits > threshold - offset).flatten(-2).sum(-1)
    return inner / outer.clamp(min=1)


def box_iou(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each box (N, 4) with each of the others (M, 4), all xyxy, as (N, M); 0 without any area."""
    top_left = torch.maximum(boxes[:, None, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, None, 2:], others[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(-1)  # (N, M)
    union = _areas(boxes)[:, None] + _areas(others) - inter
    return torch.where(union > 0, inter / union, 0.0)


def mask_iou(masks: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Return the IoU of each mask (N, height, width) with each of the others (M, height, width), bool, as (N, M)."""
    # float32 counts pixels exactly up to 2^24, a mask of 4096 x 4096.
    flat, flat_others = masks.flatten(1).float(), others.flatten(1).float()
    inter = flat @ flat_others.T
    union = flat.sum(1)[:, None] + flat_others.sum(1) - inter
    return torch.where(union > 0, inter / union, 0.0)


def box_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Keep the best boxes: each kept box removes those behind it that overlap it by more than the threshold.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,); of equal scores, the earlier box is the better one.
        iou_threshold: overlaps above it are removed.

    Returns:
        (kept,) int64 indices, best first.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    ordered = boxes[order].float()
    return order[_greedy(lambda start, stop: box_iou(ordered[start:stop], ordered), len(order), iou_threshold)]


def mask_nms(masks: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Keep the best masks (N, height, width), bool, as [`box_nms`] keeps boxes."""
    order = torch.argsort(scores, descending=True, stable=True)
    ordered = masks[order]
    return order[_greedy(lambda start, stop: mask_iou(ordered[start:stop], ordered), len(order), iou_threshold)]


def _greedy(iou_rows: Any, count: int, iou_threshold: float) -> torch.Tensor:
    """Return the kept positions of a list sorted best first; `iou_rows(start, stop)` gives rows of its IoU matrix."""
    removed = np.zeros(count, bool)
    kept = []
    rows = max(1, _CHUNK // max(count, 1))
    for start in range(0, count, rows):
        overlaps = (iou_rows(start, min(start + rows, count)) > iou_threshold).cpu().numpy()
        for i, overlap in enumerate(overlaps, start):
            if not removed[i]:
                kept.append(i)
                removed |= overlap
    return torch.tensor(kept, dtype=torch.int64)


def build_point_grid(size: tuple[int, int], points_per_side: int = 32) -> np.ndarray:
    """Return points on a regular grid, the centers of points_per_side x points_per_side equal cells of an image.

    Args:
        size: (height, width), pixels.
        points_per_side: points along each side.

    Returns:
        (points_per_side ** 2, 2) float64 x, y, row by row.
    """
    if points_per_side < 1:
        raise ValueError(f"points_per_side must be at least 1, got {points_per_side}.")
    steps = (np.arange(points_per_side) + 0.5) / points_per_side
    y, x = np.meshgrid(steps * size[0], steps * size[1], indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def generate_crop_boxes(
    size: tuple[int, int], layers: int, overlap: float = 512 / 1500
) -> list[list[tuple[int, int, int, int]]]:
    """Return the whole image and, for layer i from 1, 2^i x 2^i crops that overlap.

    Args:
        size: (height, width), pixels.
        layers: how many layers beside the whole image.
        overlap: overlap of neighbors in the first layer, as a fraction of the image's short side; half of that next.

    Returns:
        Per layer, the whole image being layer 0, its crops, xyxy in pixels.
    """
    height, width = size
    boxes = [[(0, 0, width, height)]]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * 2 / count)
        crop_width, crop_height = (-(-(shared * (count - 1) + side) // count) for side in (width, height))
        left = [column * (crop_width - shared) for column in range(count)]
        top = [row * (crop_height - shared) for row in range(count)]
        crops = [(x, y, min(x + crop_width, width), min(y + crop_height, height)) for y in top for x in left]
        boxes.append([crop for crop in crops if crop[0] < crop[2] and crop[1] < crop[3]])
    return boxes


def remove_small_regions(mask: np.ndarray, min_area: int) -> np.ndarray:
    """Fill the holes and remove the islands of fewer than `min_area` pixels; the largest island stays in any case.

    Args:
        mask: (height, width) bool.
        min_area: pixels; pixels that touch at a corner hang together.
    """
    holes, sizes = connected_components(~mask)
    mask = mask | np.isin(holes, np.flatnonzero(sizes < min_area)[1:])
    parts, sizes = connected_components(mask)
    small = sizes < min_area
    small[0] = False
    if len(sizes) > 1 and small[1:].all():
        small[1 + int(sizes[1:].argmax())] = False
    return mask & ~small[parts]


def connected_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the parts of a mask that hang together, corners counting.

    Returns:
        (height, width) int64, 0 outside and from 1 the number of the part; and the pixels of each number, those of 0
        being 0.
    """
    height, width = mask.shape
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # 1 where a run begins, -1 behind its end
    rows, starts = np.nonzero(steps == 1)
    ends = np.nonzero(steps == -1)[1]
    # Runs are in order of row and column, so those of the row above that a run touches stand side by side.
    stride = width + 2
    first = np.searchsorted(rows * stride + ends, (rows - 1) * stride + starts, side="left")
    last = np.searchsorted(rows * stride + starts, (rows - 1) * stride + ends, side="right")
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    for run, (begin, end) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        for above in range(begin, end):
            parent[root(above)] = root(run)
    roots, part_of_run = np.unique([root(run) for run in range(len(rows))], return_inverse=True)
    lengths = ends - starts
    sizes = np.bincount(part_of_run + 1, weights=lengths, minlength=len(roots) + 1).astype(np.int64)
    labels = np.zeros(mask.size, np.int64)
    labels[mask.reshape(-1)] = np.repeat(part_of_run + 1, lengths)
    return labels.reshape(height, width), sizes


def select_masks(
    logits: torch.Tensor,
    iou_scores: torch.Tensor,
    *,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    mask_threshold: float = 0.0,
    box_nms_thresh: float = 0.7,
    mask_nms_thresh: float = 1.0,
    min_area: float = 0.0,
    max_area: float = 1.0,
) -> torch.Tensor:
    """Choose the good masks among many that overlap, as SAM's automatic mask generation does.

    Args:
        logits: (N, height, width) mask logits, all of one image, padding cut off.
        iou_scores: (N,) the model's own estimate of each mask's IoU.
        pred_iou_thresh: masks are kept if their estimated IoU is above.
        stability_score_thresh: and if their stability is at least this, see [`stability_scores`].
        stability_score_offset: offset of the stability.
        mask_threshold: logit above which a pixel is in the mask.
        box_nms_thresh: box IoU above which only the better of two masks is kept; 1 keeps all.
        mask_nms_thresh: the same of the masks themselves.
        min_area: smallest fraction of the image that a mask may cover; empty masks are never kept.
        max_area: largest fraction.

    Returns:
        (kept,) int64 indices into N, best estimated IoU first.
    """
    logits, iou_scores = logits.detach(), iou_scores.detach().float()
    good = iou_scores > pred_iou_thresh
    # Each later step looks only at what is left: the masks are the expensive part.
    index = torch.nonzero(good).flatten()
    index = index[stability_scores(logits[index], mask_threshold, stability_score_offset) >= stability_score_thresh]
    masks = logits[index] > mask_threshold
    area = masks.flatten(1).sum(1) / (masks.shape[-1] * masks.shape[-2])
    fits = (area > 0) & (area >= min_area) & (area <= max_area)
    index, masks = index[fits], masks[fits]
    kept = nms(mask_boxes(masks), masks, iou_scores[index], box_nms_thresh, mask_nms_thresh)
    return index[kept.to(index.device)]


def nms(
    boxes: torch.Tensor,
    masks: torch.Tensor,
    scores: torch.Tensor,
    box_nms_thresh: float = 0.7,
    mask_nms_thresh: float = 1.0,
) -> torch.Tensor:
    """Keep the best of what overlaps, by boxes first and by masks among what is left; see [`box_nms`], [`mask_nms`].

    Args:
        boxes: (N, 4) xyxy of the masks.
        masks: (N, height, width) bool.
        scores: (N,).
        box_nms_thresh: box IoU; 1 keeps all.
        mask_nms_thresh: mask IoU; 1 keeps all.

    Returns:
        (kept,) int64 indices, best first.
    """
    kept = box_nms(boxes, scores, box_nms_thresh).to(scores.device)
    if mask_nms_thresh >= 1:
        return kept
    return kept[mask_nms(masks[kept], scores[kept], mask_nms_thresh).to(kept.device)]


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


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
        raise ValueError("the output has neither sequences nor pred_masks; there is nothing to post-process.")
    if region_mask is None:
        region_mask = outputs.get("region_mask")
    real = np.ones(tuple(shape), bool) if region_mask is None else np.array(to_list(region_mask), bool)
    if real.shape != tuple(shape) or not len(sizes) == len(resized) == shape[0]:
        raise ValueError(
            f"the output has {shape[0]} image(s) of {shape[1]} region(s); region_mask has shape {real.shape}, "
            f"original_sizes {len(sizes)} and reshaped_input_sizes {len(resized)} entries; give those of one call."
        )
    return [np.flatnonzero(row).tolist() for row in real]


# Of the model's outputs, what tells of masks, region by region.
MASK_OUTPUTS = ("pred_masks", "iou_scores", "second_masks", "second_boxes", "second_iou_scores")


def mask_records(
    found: Mapping[str, torch.Tensor],
    upscale: Callable[..., list[torch.Tensor]],
    size: tuple[int, int],
    resized: tuple[int, int],
    side: int,
    all_masks: bool,
    mask_threshold: float,
) -> list[dict[str, Any]]:
    """Return `mask`, `iou` and `box` of the regions of one image.

    Args:
        found: R rows of each of `MASK_OUTPUTS` that there are.
        upscale: turns [(n, M, 4h, 4w)] into [(n, M, height, width)] bool.
        size: (height, width) of the original image.
        resized: (height, width) of the model's input before padding.
        side: of the square that images are brought to.
        all_masks: keep the mask of a second look, if there is one, and all M candidates; otherwise the former, or else
            the candidate of best IoU.
        mask_threshold: logit above which a pixel is in a mask.
    """
    masks, ious, second = found["pred_masks"], found["iou_scores"].float(), "second_masks" in found
    if not all_masks:
        best = ious.argmax(1, keepdim=True)
        ious, masks = ious.gather(1, best), masks.take_along_dim(best[..., None, None], 1)
    scale = masks.new_tensor([size[1] / resized[1], size[0] / resized[0]] * 2, dtype=torch.float32)
    pixels = max(size[0] * size[1], side**2)  # of the largest intermediate of one mask
    records = []
    step = max(1, _MASK_PIXELS // (pixels * masks.shape[1]))
    for start in range(0, len(masks), step):
        rows, shown, scores = slice(start, start + step), [], []
        if second:
            windows = found["second_boxes"][rows].float() * scale
            shown = [paste_masks(found["second_masks"][rows], windows, size, mask_threshold)[:, None]]
            scores = [found["second_iou_scores"][rows].float()[:, None]]
        if all_masks or not second:
            shown.append(upscale([masks[rows]])[0])  # (n, M, height, width)
            scores.append(ious[rows])
        drawn = torch.cat(shown, 1)
        boxes = mask_boxes(drawn.flatten(0, 1)).view(*drawn.shape[:2], 4).tolist()
        for mask, iou, candidates in zip(drawn.cpu().numpy(), torch.cat(scores, 1).tolist(), boxes, strict=True):
            box = [candidate if any(candidate) else None for candidate in candidates]
            record = {"mask": mask, "iou": iou, "box": box}
            records.append(record if all_masks else {name: value[0] for name, value in record.items()})
    return records


def paste_masks(masks: torch.Tensor, windows: torch.Tensor, size: tuple[int, int], threshold: float) -> torch.Tensor:
    """Put masks that were drawn in crops where they belong.

    Args:
        masks: (N, S, S) logits.
        windows: (N, 4) the crops, xyxy in pixels of an image; parts may lie outside of it.
        size: (height, width) of the image.
        threshold: logit above which a pixel is in the mask.

    Returns:
        (N, height, width) bool; what is outside a crop is not in its mask.
    """
    weights, reached = [], []
    for axis in (1, 0):
        pixels = torch.arange(size[1 - axis], device=masks.device) + 0.5
        low, high = windows[:, axis, None], windows[:, axis + 2, None]
        places = (pixels - low) / (high - low) * masks.shape[-1] - 0.5  # (N, pixels)
        cells = torch.arange(masks.shape[-1], device=masks.device)
        near = places.clamp(0, masks.shape[-1] - 1)[..., None] - cells
        weights.append((1 - near.abs()).clamp(min=0))
        reached.append((pixels >= low) & (pixels < high))
    logits = weights[0] @ masks.float() @ weights[1].transpose(1, 2)
    return (logits > threshold) & reached[0][:, :, None] & reached[1][:, None, :]


def upscale_masks(
    image_processor: Any,
    masks: list[torch.Tensor],
    sizes: list[Any],
    resized: list[Any],
    mask_threshold: float = 0.0,
    binarize: bool = True,
    **kwargs: Any,
) -> list[torch.Tensor]:
    """Scale low-resolution masks to the original images, by way of the square as the image processor makes it.

    Args:
        image_processor: the library's.
        masks: per image (R, M, 4h, 4w) float32 logits.
        sizes: (height, width) of each original.
        resized: height, width of each of the model's inputs before padding.
        mask_threshold: logit above which a pixel is in the mask.
        binarize: return bool masks, else logits.
        kwargs: `pad_size`, where images are padded.

    Returns:
        Per image (R, M, height, width).
    """
    if not stretches(image_processor.size):
        return image_processor.post_process_masks(masks, sizes, resized, mask_threshold, binarize=binarize, **kwargs)
    scaled = [F.interpolate(mask, tuple(size), mode="bilinear") for mask, size in zip(masks, sizes, strict=True)]
    return [mask > mask_threshold for mask in scaled] if binarize else scaled


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
