"""The settings of anything mode; a file of its own, so that a command line can list them without importing torch."""

import math
from dataclasses import dataclass, field, fields
from typing import Any


CAPTION_PROMPTS = ("point", "box", "mask")


def _setting(default: Any, text: str, low: float = -math.inf, high: float = math.inf, choices: Any = None) -> Any:
    """Declare a setting: what it means, and the range or the choice of its values."""
    return field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class AnythingSettings:
    """How everything in an image is found; the defaults are SAM's.

    This is the only list of the settings: the command line, the HTTP interface and the page are made from its fields
    and their metadata, `help`, `low`, `high` and `choices`.
    """

    points_per_side: int = _setting(32, "points of the grid along each side of the image", 1, 256)
    points_per_batch: int = _setting(64, "prompts per batch; fewer need less memory", 1)
    pred_iou_thresh: float = _setting(0.88, "keep masks with a predicted IoU above this", 0, 1)
    stability_score_thresh: float = _setting(
        0.95, "keep masks that are at least this stable: the IoU of the masks at two thresholds", 0, 1
    )
    stability_score_offset: float = _setting(
        1.0, "the two thresholds are mask_threshold plus and minus this, in logits", 0
    )
    mask_threshold: float = _setting(0.0, "logit above which a pixel is in the mask")
    box_nms_thresh: float = _setting(
        0.7, "keep the better of two masks whose boxes overlap by more than this IoU; 1 keeps both", 0, 1
    )
    mask_nms_thresh: float = _setting(
        1.0, "keep the better of two masks that overlap by more than this IoU; 1 keeps both", 0, 1
    )
    crop_n_layers: int = _setting(
        0, "1 also uses the four quarters of the image, 2 also its sixteenths, each encoded separately", 0, 4
    )
    crop_overlap_ratio: float = _setting(
        512 / 1500, "overlap of neighboring crops, as a fraction of the image's short side", 0, 1
    )
    crop_n_points_downscale_factor: int = _setting(
        1, "the grid of crop layer i is coarser by this factor to the power of i", 1, 16
    )
    crop_nms_thresh: float = _setting(0.7, "box_nms_thresh between crops; the mask of the smaller crop is kept", 0, 1)
    min_mask_region_area: int = _setting(
        0, "fill holes and drop islands of up to this many pixels of the original image", 0
    )
    min_area: float = _setting(0.0, "smallest fraction of the image that a mask may cover", 0, 1)
    max_area: float = _setting(1.0, "largest fraction of the image that a mask may cover", 0, 1)
    caption_prompt: str = _setting(
        "point",
        "prompt of the caption: the point that found the mask (as in the published demo), its box, or the mask itself",
        choices=CAPTION_PROMPTS,
    )
    unique_captions: bool = _setting(
        False, "keep only the region with the best predicted IoU of those with the same caption"
    )
    task: str | None = _setting(None, "one of the model's tasks; its default if omitted")
    length: str | int | None = _setting(
        None, "of captions: short, sentence, detailed or a number of words, if it was learned"
    )
    language: str | None = _setting(None, "of captions, a tag such as de or zh, if it was learned")

    def __post_init__(self) -> None:
        """Raises where a value is of the wrong kind or out of its range."""
        for setting in fields(self):
            value, name, kind = getattr(self, setting.name), setting.name, type(setting.default)
            if kind in (int, float):
                if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
                    raise TypeError(f"{name} is {value!r}, expected a {'whole ' if kind is int else ''}number.")
                if not setting.metadata["low"] <= value <= setting.metadata["high"]:  # NaN fails as well
                    raise ValueError(f"{name} is {value}, expected {range_text(setting)}.")
            elif kind is bool and not isinstance(value, bool):
                raise TypeError(f"{name} is {value!r}, expected true or false.")
            elif setting.metadata["choices"] and value not in setting.metadata["choices"]:
                raise ValueError(f"{name} is {value!r}, expected {range_text(setting)}.")
        if "," in (self.language or ""):
            raise ValueError(f"language is {self.language!r}: of everything in an image captions are in one language.")
        if self.min_area > self.max_area:
            raise ValueError(f"min_area {self.min_area} is above max_area {self.max_area}: no mask would be kept.")

    @property
    def asked(self) -> dict[str, Any]:
        """Arguments of the processor that say what to write of a region."""
        return {"task": self.task, "length": self.length, "language": self.language}

    def thresholds(self, fraction: float) -> dict[str, float]:
        """Those of [`select_masks`] that look at one mask; suppression waits until all masks are there.

        Args:
            fraction: fraction of the image that is looked at, above 0.
        """
        names = ("pred_iou_thresh", "stability_score_thresh", "stability_score_offset", "mask_threshold")
        areas = {"min_area": self.min_area / fraction, "max_area": self.max_area / fraction}
        return {name: getattr(self, name) for name in names} | areas | {"box_nms_thresh": 1.0}


# For help() and the page of all names: a second list by hand would differ some day.
AnythingSettings.__doc__ = f"{AnythingSettings.__doc__}\n    Attributes:\n" + "".join(
    f"        {setting.name}: {setting.metadata['help']}.\n" for setting in fields(AnythingSettings)
)


def range_text(setting: Any) -> str:
    """Return the values that a field of [`AnythingSettings`] may take, for instance `0 to 1`."""
    low, high, choices = (setting.metadata[key] for key in ("low", "high", "choices"))
    if choices:
        return f"one of {', '.join(choices)}"
    if math.isfinite(high):
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if math.isfinite(low) else "a number"


__all__ = ["CAPTION_PROMPTS", "AnythingSettings", "range_text"]
