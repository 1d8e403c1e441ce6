"""What the mixer reads of each region: as published all that SAM's decoder left behind, in ablations other things."""

from collections.abc import Callable
from typing import Any

import torch

from .detail_sca import box_weights, mask_weights, region_means
from .families_sca import ImageFrame
from .grouping_sca import PromptGroup
from .placement_sca import execution_device
from .second_look_sca import mask_extents
from .segmentation_sca import DecodedRegions, ImageEncoding, Masks, SamSegmenter, best_masks


# What is left out on each side of a box where features in it are averaged: most of it is background.
_EDGE = 0.2


def reads_queries(
    model: Any, segmenter: SamSegmenter, encoding: ImageEncoding
) -> Callable[[PromptGroup, DecodedRegions, Masks], dict[str, torch.Tensor]]:
    """Return what reads the caption `queries` (n, A, Q, C) of each chunk of regions out of a segmenter.

    Args:
        model: a [`ScaForConditionalGeneration`], for its mixer and detail encoder.
        segmenter: of the call.
        encoding: of the images.
    """
    mixer, details, frame = model.mixer, model.detail_encoder, model.config.image_frame
    config, device = mixer.config, execution_device(mixer)
    folded = mixer.fold_positions(segmenter.positions.to(device))
    maps = list(encoding.intermediate_embeddings or ())
    fine = maps[-1] if maps and details is not None else None
    things = maps.pop(0).to(device) if mixer.class_reader is not None else None
    features = mixer.feature_map(maps.pop(0).to(device)) if mixer.feature_reader is not None else None

    def read(chunk: PromptGroup, regions: DecodedRegions, masks: Masks) -> dict[str, torch.Tensor]:
        found, placed = None, fine is not None or mixer.reads_features
        if chunk.boxes is None and (config.query_type == "roi" or placed):
            found = masks.get(True) or segmenter.masks(regions, True)
        tokens = {"decoder": regions.tokens, "prompt": regions.prompt_tokens, "none": regions.tokens[:, :0]}
        from_encoder = config.image_source == "encoder"
        image = segmenter.image_input(regions) if from_encoder else regions.image_tokens
        given = None
        if config.query_type == "mask_tokens":
            given = segmenter.mask_tokens(regions)
        elif config.query_type == "roi":
            given = roi_align(
                segmenter.images, regions.image_index, _boxes(chunk.boxes, found, frame), config.roi_size
            )
        given = None if given is None else given.to(device)
        queries = mixer(tokens[config.token_source].to(device), image.to(device), folded, given)
        named = means = None
        if things is not None:
            named = mixer.class_reader(things, chunk.image_index, _boxes(chunk.boxes, found, frame).to(device))
        if features is not None:
            means = region_means(features, chunk.image_index, _cells(chunk.boxes, found, frame, _EDGE).to(device))
        if mixer.reads_features:
            queries = queries + mixer.combine(named, means)[:, None, None].to(queries)
        if fine is not None:
            described = details.describe(fine, chunk.image_index, _cells(chunk.boxes, found, frame))
            queries = queries + described[:, None, None].to(queries)
        return {"queries": queries}

    return read


def _boxes(boxes: Any, found: Any, frame: ImageFrame) -> torch.Tensor:
    """Of regions, (n, 4) xyxy in fractions of the frame: their prompts, or else around the best of masks `found`."""
    return boxes / frame.side if found is None else mask_extents(best_masks(*found) > 0)


def _cells(boxes: Any, found: Any, frame: ImageFrame, edge: float = 0.0) -> torch.Tensor:
    """Where regions are, (n, h, w): in their boxes without this much of each side, or else in the best of masks."""
    if found is not None:
        return mask_weights(*found)
    return box_weights(boxes.lerp(boxes.roll(2, 1), edge), frame.side, frame.grid)


def roi_align(images: torch.Tensor, image_index: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Pool boxes to `size` x `size` vectors, as torchvision's aligned `roi_align` does with adaptive sampling.

    Args:
        images: (B, C, h, w).
        image_index: (n,) image of each box.
        boxes: (n, 4) xyxy in fractions of the image, 0 to 1.
        size: parts along each side.

    Returns:
        (n, size * size, C), row by row.
    """
    rows, columns = (_samples(boxes[:, axis::2], images.shape[3 - axis], size) for axis in (1, 0))
    pooled = torch.einsum("niy,ncyx,njx->nijc", rows, images[image_index].float(), columns)
    return pooled.flatten(1, 2).to(images.dtype)


def _samples(ends: torch.Tensor, cells: int, size: int) -> torch.Tensor:
    """Weights (n, size, cells) of cells in each part of intervals (n, 2): bilinear at evenly spread points."""
    ends = ends.float() * cells
    length = (ends[:, 1] - ends[:, 0])[:, None, None] / size  # of a part
    max_count = -(-cells // size)
    count = length.ceil().clamp(1, max_count)
    step = torch.arange(max_count, device=ends.device)
    part = torch.arange(size, device=ends.device)[:, None]
    points = ends[:, :1, None] + length * (part + (step + 0.5) / count) - 0.5  # (n, size, max_count)
    weights = (step < count) / count
    points = points.clamp(0, cells - 1)[..., None]
    near = (1 - (points - torch.arange(cells, device=ends.device)).abs()).clamp(min=0)  # (n, size, max_count, cells)
    return (near * weights[..., None]).sum(2)


__all__ = ["reads_queries", "roi_align"]
