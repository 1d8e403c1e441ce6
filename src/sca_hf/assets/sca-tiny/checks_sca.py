"""What a call may not contain: each fault is one error that says what came and what is expected."""

from typing import Any

import torch


_FORMS = {"input_points": "(B, R, P, 2)", "input_labels": "(B, R, P)", "input_boxes": "(B, R, 4)"}


def refuse_unknown(given: dict[str, Any], allowed: frozenset[str], method: str) -> None:
    """Refuse keyword arguments that would silently change nothing."""
    unknown = sorted(set(given) - allowed)
    if unknown:
        raise TypeError(f"{method}() got unknown arguments {unknown}.")


def check_prompts(batch_size: int, prompts: dict[str, torch.Tensor | None]) -> None:
    """Refuse prompt tensors whose shapes contradict each other, and coordinates in half precision."""
    given = {name: tensor for name, tensor in prompts.items() if tensor is not None}
    last = {"input_points": 2, "input_boxes": 4}
    for name, tensor in given.items():
        form = _FORMS.get(name, "(B, R)")
        if tensor.ndim != form.count(",") + 1 or (name in last and tensor.shape[-1] != last[name]):
            raise ValueError(f"{name} must be {form}, got {tuple(tensor.shape)}.")
        if name in last and tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is {tensor.dtype}, which cannot hold sub-pixel positions; keep coordinates in float32 "
                "(the processor's output does so under .to(dtype))."
            )
    shapes = {name: tuple(tensor.shape[:2]) for name, tensor in given.items()}
    wrong = {name: shape for name, shape in shapes.items() if shape[0] != batch_size}
    if wrong or len(set(shapes.values())) > 1:
        raise ValueError(f"Prompts must agree on (B, R) for {batch_size} images, got {shapes}.")
    points, labels = prompts.get("input_points"), prompts.get("input_labels")
    if labels is not None and (points is None or labels.shape != points.shape[:-1]):
        shape = None if points is None else tuple(points.shape)
        raise ValueError(f"input_labels {tuple(labels.shape)} must have one label per point of input_points {shape}.")


def as_mask_table(
    masks: torch.Tensor | None, prompts: dict[str, torch.Tensor | None], images: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Mask prompts as (K, 4h, 4w) and their (B, R) index; SAM's own (B, 1, 4h, 4w) is shared by an image's regions.

    Args:
        masks: `input_masks` of the call.
        prompts: its other prompts, `mask_index` among them.
        images: (B, C, h, w).
    """
    index = prompts["mask_index"]
    if masks is None:
        if index is not None and prompts.get("prompt_layout") is None:
            raise ValueError("mask_index chooses among input_masks, which are not given.")
        return None, index
    size = tuple(4 * side for side in images.shape[2:])
    if tuple(masks.shape[-2:]) == size:
        if index is not None and masks.ndim == 3:
            return masks, index
        if index is None and masks.ndim == 4 and masks.shape[:2] == (len(images), 1):
            given = next((x for x in prompts.values() if x is not None), None)
            regions = 1 if given is None else given.shape[1]
            return masks[:, 0], torch.arange(len(masks), device=masks.device)[:, None].expand(-1, regions)
    height, width = size
    raise ValueError(
        f"input_masks must be (K, {height}, {width}) with a mask_index, or ({len(images)}, 1, {height}, {width}) "
        f"without; got {tuple(masks.shape)} {'without' if index is None else 'with'} mask_index."
    )


def check_regional(regions: tuple[int, int], **tensors: torch.Tensor | None) -> None:
    """Refuse tensors that are not (B, R, ...) for the regions of the call, or whose further axes differ.

    Args:
        regions: (B, R).
        tensors: to compare by name; all must have the shape of the first that is given.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    if any(shape[:2] != regions for shape in given.values()) or len(set(given.values())) > 1:
        raise ValueError(f"The prompts are for (B, R) = {regions}; got {given}.")


__all__ = ["as_mask_table", "check_prompts", "check_regional", "refuse_unknown"]
