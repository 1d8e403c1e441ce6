"""SAM and an image captioner: the training-free baseline of the paper, with and without visual chain-of-thought.

Regions are cut out as the paper has it, see [`CropStyle`]. Coordinates are pixels of the image.
"""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from ...processing.masks_sca import mask_extent
from .image_text import ImageTextModel
from .interface import ImageQuery, RegionPrediction, RegionQuery
from .sca import SegmentedRegion, Segmenter


Heads = Literal["best", "all"]
FIRST_QUESTION = "What is this?"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CropCaptioner:
    """Cuts each region out of its image and has the crop described as a picture of its own.

    With `vcot`, visual chain-of-thought (arXiv 2312.00869, supplement): the region alone on white is asked what it is,
    and the crop is asked to describe the answer.

    Args:
        captioner: Describes pictures.
        segmenter: Finds the masks. None: there are none but those given as prompts, and crops are along boxes.
        style: How regions are cut out.
        vcot: Whether to ask twice, as above.
        heads: Whether to describe the mask of best expected IoU, or all three. The best is what counts in
            the end, so "all" takes three times as long for the same score; the authors' files hold all three.
    """

    segments: bool

    def __init__(
        self,
        captioner: ImageTextModel,
        segmenter: Segmenter | None,
        style: CropStyle | None = None,
        vcot: bool = False,
        heads: Heads = "best",
        name: str = "crops",
    ) -> None:
        self.captioner, self.segmenter, self.style = captioner, segmenter, style or CropStyle()
        self.vcot, self.heads, self.name = vcot, heads, name
        self.segments = segmenter is not None
        if heads not in ("best", "all"):
            raise ValueError(f"heads is {heads!r}, expected best or all.")

    @classmethod
    def load(
        cls,
        model: str,
        sam: str | None = None,
        vcot: bool = False,
        heads: Heads = "best",
        area: Area = "mask",
        margin: float = 0.0,
        background: Background = "keep",
        edges: Edges = "published",
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> CropCaptioner:
        """Loads a captioner of transformers and, if named, a SAM; see [`CropStyle`] for how regions are cut."""
        style = CropStyle(area, margin, background, edges)
        captioner = ImageTextModel.load(model, device, dtype, batch_size, generation)
        segmenter = None if sam is None else Segmenter.load(sam, device, dtype)
        return cls(captioner, segmenter, style, vcot, heads, f"SAM + {model}" if sam else f"crops + {model}")

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        sam = None if self.segmenter is None else self.segmenter.source
        own = {"kind": "crop", "sam": sam, "vcot": self.vcot, "heads": self.heads, "style": asdict(self.style)}
        return {**own, **self.captioner.settings()}

    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region; the crops of all of them go to the captioner together."""
        if self.style.area == "box":
            for region in (region for asked in images for region in asked.regions):
                if region.resample_point is not None or (region.prompt.box is None and region.prompt.mask is None):
                    raise ValueError("area=box needs a box and the prompt is a point; use area=mask.")
        found = self._segment(images)
        crops: list[tuple[Image.Image, Image.Image]] = []
        for asked, regions in zip(images, found, strict=True):
            for region, segmented in zip(asked.regions, regions, strict=True):
                crops += [self._cut(asked.image, mask, region.box) for mask in self._chosen(segmented)]
        shown, alone = [pair[0] for pair in crops], [pair[1] for pair in crops]
        said = iter(self.think_aloud(alone, shown) if self.vcot else self.captioner.answer(shown))
        return [[self._answer(said, segmented, with_masks) for segmented in regions] for regions in found]

    def think_aloud(self, alone: Sequence[Image.Image], crops: Sequence[Image.Image]) -> list[str]:
        """Asks what each region is, shown alone on white, then has the same region described in its crop."""
        things = self.captioner.answer(alone, [FIRST_QUESTION] * len(alone))
        return self.captioner.answer(crops, [second_question(thing) for thing in things])

    def _segment(self, images: Sequence[ImageQuery]) -> list[list[SegmentedRegion | None]]:
        """Returns the masks of each region: SAM's, or the one that is its prompt."""
        if self.segmenter is not None:
            return [list(regions) for regions in self.segmenter.segment(images)]
        for asked in images:
            for region in asked.regions:
                if region.resample_point is not None:
                    raise ValueError(f"{self.name} has no SAM, so no point can be drawn from its mask.")
        return [[_given(region) for region in asked.regions] for asked in images]

    def _chosen(self, segmented: SegmentedRegion | None) -> list[np.ndarray | None]:
        if segmented is None:
            return [None]
        return list(segmented.masks) if self.heads == "all" else [segmented.best]

    def _cut(self, image: Image.Image, mask: np.ndarray | None, box: list[float]) -> tuple[Image.Image, Image.Image]:
        """Returns what is shown in the end, and for a chain of thought the region alone on white."""
        plain, painted = cut_region(image, mask, box, self.style)
        if not self.vcot:
            return painted, painted
        return plain, cut_region(image, mask, box, replace(self.style, background="white"))[1]

    def _answer(self, said: Iterator[str], segmented: SegmentedRegion | None, with_masks: bool) -> RegionPrediction:
        candidates = [next(said) for _ in self._chosen(segmented)]
        if segmented is None or not segmented.iou_scores:
            return RegionPrediction(candidates)
        return RegionPrediction(candidates, None, segmented.iou_scores, segmented.masks if with_masks else None)


def second_question(thing: str) -> str:
    """Returns what the chain of thought asks of the crop after the first answer."""
    thing = thing.strip().translate(_NO_PUNCTUATION)
    return f"Describe the {thing} in the image." if thing else "Describe the region in the image."


def _given(region: RegionQuery) -> SegmentedRegion | None:
    return None if region.prompt.mask is None else SegmentedRegion(region.prompt.mask[None], [])


Area = Literal["mask", "box"]
Background = Literal["keep", "white", "gray", "black"]
Edges = Literal["published", "whole"]
_LEVELS = {"white": 255, "gray": 128, "black": 0}
# A crop of a single row or column is more than some captioners can resize.
_MIN_SIDE = 2


@dataclass(frozen=True)
class CropStyle:
    """How a region is cut out; the defaults are those of the published baselines.

    Attributes:
        area: "mask" cuts along the mask, "box" along the region's box.
        margin: what is left around it on each side, as a fraction of the crop's sides; it ends where the image does.
        background: "keep", or a color for all that is not in the mask.
        edges: "published": the mask's last row and column are cut off, as in the authors' code, whose figures count
            them in and whose crops do not; and no side is shorter than two pixels. "whole": nothing is cut off.
    """

    area: Area = "mask"
    margin: float = 0.0
    background: Background = "keep"
    edges: Edges = "published"

    def __post_init__(self) -> None:
        for name, kind in (("area", Area), ("background", Background), ("edges", Edges)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}.")
        if not 0 <= self.margin < 10:
            raise ValueError(f"margin is {self.margin}, expected a fraction of the crop's sides from 0 to 10.")


def cut_region(
    image: Image.Image, mask: np.ndarray | None, box: list[float], style: CropStyle
) -> tuple[Image.Image, Image.Image]:
    """Returns the crop of a region as it is, and with the background that the style asks for.

    Args:
        image: The picture, RGB.
        mask: (height, width) bool; may be None where the style needs none.
        box: The box xyxy, for a style that cuts along it.
        style: How to cut, see [`CropStyle`]. What is outside the image is black.
    """
    if mask is not None and mask.shape != image.size[::-1]:
        raise ValueError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.width} x {image.height}."
        )
    if mask is None and (style.area == "mask" or style.background != "keep"):
        raise ValueError("there is no mask to crop to: give a SAM, mask prompts, or area=box.")
    if mask is not None and not mask.any():
        mask = mask.copy()
        # The authors' stand-in for an empty mask.
        mask[0, 0] = mask[min(2, mask.shape[0] - 1), min(2, mask.shape[1] - 1)] = True
    frame = _mask_frame(mask, style.edges) if style.area == "mask" and mask is not None else box_extent(box)
    frame = _with_margin(frame, style.margin, image.size)
    plain = image.crop(frame)
    if style.background == "keep" or mask is None:
        return plain, plain
    return plain, paint_background(image, mask, style.background).crop(frame)


def paint_background(image: Image.Image, mask: np.ndarray, background: Background) -> Image.Image:
    """Returns the image with all pixels outside the mask (height, width) in one color."""
    pixels = np.array(image)
    pixels[~mask] = _LEVELS[background]
    return Image.fromarray(pixels)


def _mask_frame(mask: np.ndarray, edges: Edges) -> tuple[int, int, int, int]:
    """Returns the box xyxy of a mask's pixels, see `CropStyle.edges`."""
    left, top, right, bottom = mask_extent(mask)
    if edges == "published":
        return left, top, max(right - 1, left + _MIN_SIDE), max(bottom - 1, top + _MIN_SIDE)
    return left, top, right, bottom


def box_extent(box: list[float]) -> tuple[int, int, int, int]:
    """Returns the whole pixels that a box touches."""
    left, top = math.floor(box[0]), math.floor(box[1])
    return left, top, max(math.ceil(box[2]), left + 1), max(math.ceil(box[3]), top + 1)


def _with_margin(frame: tuple[int, int, int, int], margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = frame
    across, down = round(margin * (right - left)), round(margin * (bottom - top))
    # A crop that reaches out of the image by itself still does.
    return (
        min(left, max(0, left - across)),
        min(top, max(0, top - down)),
        max(right, min(size[0], right + across)),
        max(bottom, min(size[1], bottom + down)),
    )
