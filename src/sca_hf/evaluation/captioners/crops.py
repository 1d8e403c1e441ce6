"""Cutting regions out of images, for captioners that know whole pictures only.

As the paper's baselines of SAM and an image captioner do it, see [`CropStyle`]. Coordinates are pixels of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from PIL import Image


Area = Literal["mask", "box"]
Background = Literal["keep", "white", "gray", "black"]
Edges = Literal["published", "whole"]
_LEVELS = {"white": 255, "gray": 128, "black": 0}
# A crop of a single row or column is more than some captioners can resize.
_LEAST_SIDE = 2


@dataclass(frozen=True)
class CropStyle:
    """How a region is cut out; the defaults are those of the published baselines.

    Attributes:
        area: "mask" cuts along the mask, "box" along the region's box.
        margin: what is left around it on each side, as a share of the crop's sides; it ends where the image does.
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
            raise ValueError(f"margin is {self.margin}, expected a share of the crop's sides from 0 to 10.")


def cut_region(
    image: Image.Image, mask: np.ndarray | None, box: list[float], style: CropStyle
) -> tuple[Image.Image, Image.Image]:
    """Returns the crop of a region as it is, and with the background that the style asks for.

    Args:
        image: RGB.
        mask: (height, width) bool; may be None where the style needs none.
        box: xyxy, for a style that cuts along the box.
        style: see [`CropStyle`]. What lies outside the image is black.
    """
    if mask is not None and mask.shape != image.size[::-1]:
        raise ValueError(
            f"the mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {image.width} x {image.height}."
        )
    if mask is None and (style.area == "mask" or style.background != "keep"):
        raise ValueError("there is no mask to cut along or to keep: give a SAM, masks as prompts, or area=box.")
    if mask is not None and not mask.any():
        mask = mask.copy()
        # The authors' stand-in for an empty mask.
        mask[0, 0] = mask[min(2, mask.shape[0] - 1), min(2, mask.shape[1] - 1)] = True
    frame = mask_extent(mask, style.edges) if style.area == "mask" and mask is not None else box_extent(box)
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


def mask_extent(mask: np.ndarray, edges: Edges = "whole") -> tuple[int, int, int, int]:
    """Returns the box xyxy of a mask's pixels, far edges exclusive; see `CropStyle.edges`. The mask is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
    if edges == "published":
        return left, top, max(right, left + _LEAST_SIDE), max(bottom, top + _LEAST_SIDE)
    return left, top, right + 1, bottom + 1


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
