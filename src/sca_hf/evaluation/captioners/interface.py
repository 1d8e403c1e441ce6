"""What a captioner is: images and their regions in, what it says of each region out.

All coordinates are pixels of the original image, boxes xyxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from ...processing.region_prompts_sca import RegionPrompt


@dataclass
class RegionQuery:
    """One region to describe.

    Attributes:
        region_id: The id that the data set gives it.
        box: The region's own box, inside the image.
        prompt: What shows the captioner where to look.
        resample_point: None, or the seed of a point: the captioner segments what `prompt` shows, draws one pixel of
            that mask (see [`point_in_mask`]) and then describes what is at this point.
    """

    region_id: str
    box: list[float]
    prompt: RegionPrompt
    resample_point: int | None = None


@dataclass
class ImageQuery:
    """One image and the regions of it to describe, at least one.

    Attributes:
        image: The picture, upright and RGB.
        image_id: The id that the data set gives it.
        regions: The regions.
        task: "caption" or "recognition".
        language: In which captions are to be, a tag of BCP 47; None: the captioner's own. Our model follows it.
    """

    image: Image.Image
    image_id: str
    regions: list[RegionQuery]
    task: str = "caption"
    language: str | None = None


@dataclass
class RegionPrediction:
    """What a captioner says of one region.

    Attributes:
        candidates: One text, or one per mask where a captioner describes several masks of a region.
        scores: The mean log-probability of the tokens of each candidate, where the captioner knows it.
        iou_scores: The IoU that the captioner expects of each of its masks.
        agreements: How surely a listener finds the region by each candidate among those of its image, where asked for.
        masks: (M, height, width) bool, in the order of `iou_scores`; None unless asked for.
    """

    candidates: list[str]
    scores: list[float] | None = None
    iou_scores: list[float] | None = None
    masks: np.ndarray | None = field(default=None, repr=False)
    agreements: list[float] | None = None

    @property
    def best(self) -> int:
        """The mask of best expected IoU, the first of equals."""
        return int(np.argmax(self.iou_scores)) if self.iou_scores else 0

    @property
    def best_mask(self) -> np.ndarray | None:
        """The mask of best expected IoU (height, width), where masks were asked for; the only one of a file's."""
        if self.masks is None:
            return None
        return self.masks[self.best if len(self.masks) > 1 else 0]


@runtime_checkable
class Captioner(Protocol):
    """Anything that describes regions of images.

    Attributes:
        name: What records call it.
        segments: Whether it has masks, and so can follow `RegionQuery.resample_point`.
    """

    name: str
    segments: bool

    def settings(self) -> dict[str, Any]:
        """Returns everything that changes its answers, as plain JSON values: a resumed run must have the same."""
        ...

    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region of each image, whatever else is asked for in the same call."""
        ...


def point_in_mask(mask: np.ndarray, box: Sequence[float], seed: int) -> list[float]:
    """Returns x, y of the center of a random pixel of a mask (height, width); the box's center where it is empty."""
    pixels = np.flatnonzero(mask)
    if not len(pixels):
        return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    y, x = divmod(int(np.random.default_rng(seed).choice(pixels)), mask.shape[1])
    return [x + 0.5, y + 0.5]
