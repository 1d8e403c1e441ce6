"""How everything in an image is found: thresholds, the grid, crops, what captions are asked by."""

import math
from dataclasses import dataclass


CAPTION_PROMPTS = ("point", "box", "mask")
_RANGES = {
    "points_per_side": (1, 256),
    "points_per_batch": (1, math.inf),
    "pred_iou_thresh": (0, 1),
    "stability_score_thresh": (0, 1),
    "stability_score_offset": (0, math.inf),
    "mask_threshold": (-math.inf, math.inf),
    "box_nms_thresh": (0, 1),
    "mask_nms_thresh": (0, 1),
    "crop_n_layers": (0, 4),
    "crop_overlap_ratio": (0, 1),
    "crop_n_points_downscale_factor": (1, 16),
    "crop_nms_thresh": (0, 1),
    "min_mask_region_area": (0, math.inf),
    "min_area": (0, 1),
    "max_area": (0, 1),
}


@dataclass(frozen=True)
class AnythingSettings:
    """How everything in an image is found; the defaults are SAM's.

    Attributes:
        points_per_side: the grid has this many points along each side of the image.
        points_per_batch: prompts whose masks are computed at once; changes no result, only the memory.
        pred_iou_thresh: masks are kept if the model expects a higher IoU of them.
        stability_score_thresh: and if the IoU of the masks at two thresholds is at least this.
        stability_score_offset: the two thresholds are `mask_threshold` plus and minus this, logits.
        mask_threshold: logit above which a pixel is in the mask.
        box_nms_thresh: of two masks whose boxes overlap by more (IoU), the better one is kept; 1 keeps both.
        mask_nms_thresh: the same for the masks themselves.
        crop_n_layers: 1 also looks at the image's four quarters, 2 at its sixteen parts too, each encoded by itself.
        crop_overlap_ratio: of neighbouring crops, as a share of the image's short side.
        crop_n_points_downscale_factor: the grid of layer i is this to the power of i times coarser.
        crop_nms_thresh: `box_nms_thresh` between crops; the mask of the smaller crop is kept.
        min_mask_region_area: holes are filled and islands removed up to this many pixels of the original image.
        min_area: least share of the image that a mask covers.
        max_area: largest share.
        caption_prompt: what captions are asked by: the `point` that found the mask, as the published model's demo
            does, the mask's `box`, or the `mask` itself.
        unique_captions: of several regions with the same caption, keep the one of best estimated IoU.
        task: of the processor; None takes its default.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    mask_threshold: float = 0.0
    box_nms_thresh: float = 0.7
    mask_nms_thresh: float = 1.0
    crop_n_layers: int = 0
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    crop_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    min_area: float = 0.0
    max_area: float = 1.0
    caption_prompt: str = "point"
    unique_captions: bool = False
    task: str | None = None

    def __post_init__(self) -> None:
        """Raises where a number is none, or out of its range."""
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            whole = isinstance(getattr(type(self), name), int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{name} is {value!r}, expected a {'whole ' if whole else ''}number.")
            if not least <= value <= most:  # NaN fails as well
                raise ValueError(f"{name} is {value}, expected {least:g} to {most:g}.")
        if self.caption_prompt not in CAPTION_PROMPTS:
            raise ValueError(
                f"caption_prompt is {self.caption_prompt!r}, expected one of {', '.join(CAPTION_PROMPTS)}."
            )
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} is above max_area {self.max_area}: nothing could be kept.")

    def thresholds(self, share: float) -> dict[str, float]:
        """Those of [`select_masks`] that look at one mask; suppression waits until all masks are there.

        Args:
            share: of the image that is looked at, above 0.
        """
        names = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "mask_threshold")
        areas = {"min_area": self.min_area / share, "max_area": self.max_area / share}
        return {name: getattr(self, name) for name in names} | areas | {"box_nms_thresh": 1.0}


__all__ = ["CAPTION_PROMPTS", "AnythingSettings"]
