"""From padded prompt tensors to groups of regions that can run together without padding.

SAM's decoder does not mask padded prompt tokens, so a padded region would get another result than the same region
alone. Regions are therefore grouped by their *layout*: which kinds of prompt they have and how many points.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from .validation_sca import as_mask_table, check_prompts


@dataclass
class RegionInputs:
    """Images and prompted regions of one call of the model, as the processor returns them.

    Letters for shapes as in modeling_sca.py. Coordinates are float32 pixels of the resized image.

    Attributes:
        pixel_values: (B, 3, H, W) normalized pixels of the resized and padded images.
        image_embeddings: (B, C, h, w) from `encode_images` or `get_image_embeddings`, in place of `pixel_values`.
        intermediate_embeddings: from the same, beside `image_embeddings`, where the model has them (SAM-HQ, a detail
            encoder).
        input_points: (B, R, P, 2) x, y in pixels of the resized image.
        input_labels: (B, R, P): 1 in the region, 0 outside, -1 not a point, -10 padding. None: all 1.
        input_boxes: (B, R, 4) xyxy in pixels of the resized image.
        input_masks: (K, 4h, 4w) mask prompts as logits, or (B, 1, 4h, 4w) for one per image.
        mask_index: (B, R) rows of `input_masks`, -1 for none.
        region_mask: (B, R) False for padded regions.
        prompt_layout: (B, R) from the processor, see [`read_layout`]; 0 for padding. None takes all prompt tensors for
            all regions, exactly as SAM does.
        task_ids: (B, R) rows of `config.mixer_config.tasks`. None: all `"caption"`. For `generate` also (B, R, L):
            a region is then captioned by each of L tasks.
    """

    pixel_values: torch.Tensor | None = None
    image_embeddings: torch.Tensor | None = None
    intermediate_embeddings: list[torch.Tensor] | None = None
    input_points: torch.Tensor | None = None
    input_labels: torch.Tensor | None = None
    input_boxes: torch.Tensor | None = None
    input_masks: torch.Tensor | None = None
    mask_index: torch.Tensor | None = None
    region_mask: torch.Tensor | None = None
    prompt_layout: torch.Tensor | None = None
    task_ids: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            for one in value if isinstance(value, (list, tuple)) and name == "intermediate_embeddings" else [value]:
                if one is not None and not isinstance(one, torch.Tensor):
                    remedy = "call the processor with return_tensors='pt'"
                    if isinstance(one, Mapping):
                        remedy = "unpack the processor's output with two stars, as in model.generate(**inputs)"
                    raise TypeError(f"{name} must be a torch tensor, got {type(one).__name__}: {remedy}.")

    @classmethod
    def taken_from(cls, arguments: dict[str, Any], **given: torch.Tensor | None) -> "RegionInputs":
        """Remove the inputs from keyword arguments, and return them with those that are `given` beside."""
        taken = {field.name: arguments.pop(field.name) for field in fields(cls) if field.name in arguments}
        return cls(**taken, **given)

    def to(self, device: torch.device) -> "RegionInputs":
        """The same inputs on a device; images stay where they are."""
        images = ("pixel_values", "image_embeddings", "intermediate_embeddings")
        moved = {name: x.to(device) for name, x in vars(self).items() if name not in images and x is not None}
        return replace(self, **moved)

    def plan(self, image_embeddings: torch.Tensor, num_tasks: int = 0) -> tuple["RegionPlan", torch.Tensor | None]:
        """Check the prompts, and group the regions by them.

        Args:
            image_embeddings: (B, C, h, w).
            num_tasks: how many tasks `task_ids` choose among.

        Returns:
            The plan, and the mask prompts (K, 4h, 4w) that it refers to, or None.
        """
        names = ("input_points", "input_labels", "input_boxes", "mask_index", "region_mask", "prompt_layout")
        prompts: dict[str, torch.Tensor | None] = {name: getattr(self, name) for name in names}
        check_prompts(len(image_embeddings), prompts)
        input_masks, prompts["mask_index"] = as_mask_table(self.input_masks, prompts, image_embeddings)
        plan = plan_regions(
            len(image_embeddings),
            image_embeddings.device,
            **prompts,
            task_ids=self.task_ids,
            num_masks=0 if input_masks is None else len(input_masks),
            num_tasks=num_tasks,
        )
        if not len(plan):
            raise ValueError("There are no regions: every region of every image is padding.")
        return plan, input_masks


@dataclass
class PromptGroup:
    """Regions of one layout, all tensors on the model's device.

    Attributes:
        index: (n,) position of each region in the flattened (B * R) order.
        image_index: (n,) image of each region.
        points: (n, P, 2) or None; pixels of the resized image. labels: (n, P) or None.
        boxes: (n, 4) or None; xyxy, pixels of the resized image.
        mask_index: (n,) rows of the call's mask prompts, or None.
    """

    index: torch.Tensor
    image_index: torch.Tensor
    points: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    boxes: torch.Tensor | None = None
    mask_index: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    def chunks(self, size: int) -> Iterator["PromptGroup"]:
        """Consecutive parts of at most `size` regions."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield PromptGroup(**{name: x if x is None else x[part] for name, x in vars(self).items()})


@dataclass
class RegionPlan:
    """How the B x R regions of a call are run.

    Attributes:
        groups: the regions by layout.
        index: (N,) flattened position of every real region, ascending; None where all B * R are real.
        order: (N,) brings results that are concatenated over the groups into ascending position; None if they are.
        shape: (B, R).
    """

    groups: list[PromptGroup]
    index: torch.Tensor | None
    order: torch.Tensor | None
    shape: tuple[int, int]

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def ordered(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Concatenate per-chunk results (n, ...) into (N, ...) in the order of the regions."""
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined if self.order is None else joined[self.order]

    def real(self, padded: torch.Tensor) -> torch.Tensor:
        """Drop padding: (B, R, ...) to (N, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.index is None else flat[self.index]

    def padded(self, real: torch.Tensor, fill: float | int = 0) -> torch.Tensor:
        """Put padding back: (N, ...) to (B, R, ...)."""
        if self.index is not None:
            full = real.new_full((self.shape[0] * self.shape[1], *real.shape[1:]), fill)
            real = full.index_copy(0, self.index, real)
        return real.unflatten(0, self.shape)


def plan_regions(
    batch_size: int,
    device: torch.device,
    input_points: torch.Tensor | None = None,
    input_labels: torch.Tensor | None = None,
    input_boxes: torch.Tensor | None = None,
    mask_index: torch.Tensor | None = None,
    prompt_layout: torch.Tensor | None = None,
    region_mask: torch.Tensor | None = None,
    task_ids: torch.Tensor | None = None,
    num_masks: int = 0,
    num_tasks: int = 0,
) -> RegionPlan:
    """Group the regions of a call by prompt layout; shapes as in [`RegionInputs`].

    With `prompt_layout`, each region uses the kinds and the number of points that its layout names, and layout 0 is
    padding, as is what `region_mask` leaves out. Without it, every prompt tensor holds for every region, exactly as
    SAM takes them. Layout, region mask and the two kinds of indices are read on the host, in one transfer; there the
    indices are checked against `num_masks` mask prompts and `num_tasks` tasks.
    """
    prompts = [x for x in (input_points, input_boxes, mask_index, prompt_layout, region_mask) if x is not None]
    regions = prompts[0].shape[1] if prompts else 1
    shape = (batch_size, regions)
    if task_ids is not None:
        if task_ids.ndim not in (2, 3) or tuple(task_ids.shape[:2]) != shape or not task_ids.numel():
            raise ValueError(f"task_ids must be (B, R) = {shape}, or (B, R, L), got {tuple(task_ids.shape)}.")
        low, high = (task_ids if task_ids.ndim > 2 else task_ids[..., None]).aminmax(dim=-1)
        task_ids = torch.where(low < 0, low, high)  # of several, the one that may be out of range
    host = _read(device, layout=prompt_layout, mask=region_mask, mask_index=mask_index, task_ids=task_ids)
    kept = host.get("mask", np.ones(batch_size * regions, dtype=np.int64)) != 0
    wanted: list[tuple[int | None, np.ndarray]]
    if prompt_layout is not None:
        layouts = host["layout"] * kept
        wanted = [(int(layout), np.flatnonzero(layouts == layout)) for layout in np.unique(layouts[layouts != 0])]
    else:
        wanted = [(None, np.flatnonzero(kept))] if kept.any() else []
    for layout, rows in wanted:
        if mask_index is not None and (layout is None or read_layout(layout)[1]):
            _check_range("mask_index", host["mask_index"], rows, regions, num_masks, "mask prompts")
        if task_ids is not None:
            _check_range("task_ids", host["task_ids"], rows, regions, num_tasks, "tasks")

    def on_device(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    flat = {
        name: x if x is None else x.flatten(0, 1)
        for name, x in dict(points=input_points, labels=input_labels, boxes=input_boxes, mask_index=mask_index).items()
    }
    groups = [_group(layout, rows, regions, flat, on_device) for layout, rows in wanted]
    rows = np.concatenate([rows for _, rows in wanted]) if wanted else np.zeros(0, dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    return RegionPlan(
        groups=groups,
        index=None if len(rows) == batch_size * regions else on_device(rows[order]),
        order=None if len(groups) == 1 else on_device(order),
        shape=shape,
    )


def read_layout(layout: int) -> tuple[int, bool, bool]:
    """Number of points of a region, and whether it has a mask and a box; what the processor's `pack_layout` wrote."""
    return layout >> 2, bool(layout & 2), bool(layout & 1)


def _read(device: torch.device, **tensors: torch.Tensor | None) -> dict[str, np.ndarray]:
    """Copy (B, R) tensors to the host as flat int64 arrays, all in one transfer."""
    given = {name: x.flatten().to(device=device, dtype=torch.int64) for name, x in tensors.items() if x is not None}
    return dict(zip(given, torch.stack(list(given.values())).cpu().numpy(), strict=True)) if given else {}


def _check_range(name: str, values: np.ndarray, rows: np.ndarray, regions: int, count: int, what: str) -> None:
    wrong = rows[(values[rows] < 0) | (values[rows] >= count)]
    if len(wrong):
        image, region = divmod(int(wrong[0]), regions)
        raise ValueError(
            f"{name} of image {image}, region {region} is {values[wrong[0]]}, but there are {count} {what}."
        )


def _group(layout: int | None, rows: np.ndarray, regions: int, flat: dict, on_device: Callable) -> PromptGroup:
    index = on_device(rows)
    picked = {name: x if x is None or len(rows) == len(x) else x[index] for name, x in flat.items()}
    if layout is not None:
        num_points, has_mask, has_box = read_layout(layout)
        for name, needed in (("points", num_points), ("boxes", has_box), ("mask_index", has_mask)):
            if needed and picked[name] is None:
                raise ValueError(f"prompt_layout says that regions have {name}, but the call has no such input.")
        if num_points and num_points > picked["points"].shape[1]:
            raise ValueError(
                f"prompt_layout says that regions have {num_points} points, but input_points has "
                f"{picked['points'].shape[1]} per region."
            )
        picked["points"] = picked["points"][:, :num_points] if num_points else None
        picked["labels"] = picked["labels"][:, :num_points] if num_points and picked["labels"] is not None else None
        picked["boxes"] = picked["boxes"] if has_box else None
        picked["mask_index"] = picked["mask_index"] if has_mask else None
    return PromptGroup(index=index, image_index=on_device(rows // regions), **picked)


__all__ = ["PromptGroup", "RegionInputs", "RegionPlan", "plan_regions", "read_layout"]
