"""SAM and an image captioner: the training-free baseline of the paper, with and without visual chain-of-thought."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from .crops import Area, Background, CropStyle, Edges, cut_region
from .image_text import ImageTextModel
from .interface import ImageQuery, RegionPrediction, RegionQuery
from .segmenter import SegmentedRegion, Segmenter


Heads = Literal["best", "all"]
FIRST_QUESTION = "What is this?"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class CropCaptioner:
    """Cuts each region out of its image and has the crop described as a picture of its own.

    With `vcot`, visual chain-of-thought (arXiv 2312.00869, supplement): the region alone on white is asked what it is,
    and the crop is asked to describe the answer.

    Args:
        captioner: describes pictures.
        segmenter: finds the masks. None: there are none but those given as prompts, and crops are along boxes.
        style: how to cut.
        vcot: ask twice.
        heads: describe the mask of best expected IoU, or all three. The best by expected IoU is what counts in the
            end, so "all" takes three times as long for the same score; the authors' files hold all three.
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

    def describe(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region; the crops of all of them go to the captioner together."""
        if self.style.area == "box":
            for region in (region for asked in images for region in asked.regions):
                if region.resample_point is not None or (region.prompt.box is None and region.prompt.mask is None):
                    raise ValueError("area=box cuts along a box that a point does not tell; cut along SAM's mask.")
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
                    raise ValueError(f"{self.name} has no SAM to find a mask with, in which to draw a point.")
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
