"""Augmentation of region records: pictures are mirrored, turned, resized, cut out and recolored, regions with them.

The published large-scale jitter is `augmentation_from("lsj-0.1-2.0")`. Boxes, masks and points move in floats, and
captions stay true (see `sca_hf.data.sides`), neither of which was so in the original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from .region import RegionRecordError, record_image
from .sides import mirrored_text, turned_text
from .views import View, moved_region, picture_view


# SAM's mean color, which is 0 for the model; the padding of the original.
MEAN_COLOR = (124, 116, 104)
# Up to this angle, above stays above and left stays left.
_LEVEL_DEGREES = 20.0
# Cuts that show no region are drawn again, this often; then the whole picture is taken.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """Changes a record at random; called with the record and a generator, it returns the new record.

    In this order: mirroring, turning about the middle onto a canvas that holds the whole picture, resizing, cutting
    out, padding. Captions of mirrored and turned pictures are reworded or dropped by the rules of `sca_hf.data.sides`.
    A region of which no caption (or no category) is left is dropped; if that were half of them or more, the picture is
    neither mirrored nor turned. If no region is to be seen in a cut, another is made.

    Args:
        flip: probability of mirroring.
        scale: smallest and largest factor of size. At 1 the longest side of the picture is `crop` pixels, and of
            whatever is larger than `crop` x `crop` such a square is cut out, at a place that is the same fraction
            of the way along both axes; the rest of the square is padded with the mean color, right and below. None:
            the whole picture, shrunk to `crop` pixels on its longest side where it is larger.
        rotate: turned by an angle drawn evenly up to so many degrees either way.
        quarter_turns: turned by none to three quarters besides, which keeps boxes as tight as they were.
        color: brightness, contrast and saturation are each changed by a factor drawn evenly up to so far from 1.
        crop: side of the square in pixels; the model's image size is best.
        min_visible: a region is kept if at least this fraction of its area is visible, and a pixel of each side of its
            box.
    """

    flip: float = 0.0
    scale: tuple[float, float] | None = None
    rotate: float = 0.0
    quarter_turns: bool = False
    color: float = 0.0
    crop: int = 1024
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        for name, low, high in (("flip", 0, 1), ("rotate", 0, 180), ("color", 0, 0.95), ("min_visible", 0, 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"augmentation: {name} is {value!r}, expected a number from {low} to {high}.")
        if not isinstance(self.crop, int) or self.crop < 8:
            raise ValueError(f"augmentation: crop is {self.crop!r}, expected at least 8 pixels.")
        if self.scale is not None:
            object.__setattr__(self, "scale", _range(self.scale))

    @property
    def changes_geometry(self) -> bool:
        """Whether regions move, so that they no longer fit an embedding of the unchanged picture."""
        return self.flip > 0 or self.scale is not None or self.rotate > 0 or self.quarter_turns

    @property
    def keeps_image(self) -> bool:
        """Whether pictures and regions stay as they are, so that embeddings of the pictures still hold."""
        return not self.changes_geometry and not self.color

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns an augmented record with an RGB picture; the record itself stays as it is."""
        if self.keeps_image:
            return dict(record)
        if record.get("image_embedding") is not None:
            raise RegionRecordError(
                f"image {record.get('image_id', '?')} comes as an embedding, which cannot be augmented; omit the "
                "embedding cache or the augmentation."
            )
        image = record_image(record)
        mirrored, angle = bool(rng.random() < self.flip), float(rng.uniform(-self.rotate, self.rotate))
        if self.quarter_turns:
            angle += 90.0 * int(rng.integers(4))
        regions = _reworded(record["regions"], mirrored, angle)
        if 2 * len(regions) <= len(record["regions"]):
            mirrored, angle, regions = False, 0.0, list(record["regions"])
        view, moved = self._view(image.size, mirrored, angle, regions, rng)
        if not moved:
            raise RegionRecordError(f"image {record.get('image_id', '?')} has no visible region.")
        picture = picture_view(image, view, MEAN_COLOR, lambda part: self._recolored(part, rng))
        return {**record, "image": picture, "width": view.size[0], "height": view.size[1], "regions": moved}

    def _view(
        self,
        size: tuple[int, int],
        mirrored: bool,
        angle: float,
        regions: Sequence[Mapping[str, Any]],
        rng: np.random.Generator,
    ) -> tuple[View, list[dict[str, Any]]]:
        """Draws a view of the picture that shows a region, and returns it with the regions that it shows."""
        for attempt in range(_ATTEMPTS + 1):
            if self.scale is None:
                view = View.whole(size, mirrored, angle, self.crop)
            elif attempt < _ATTEMPTS:
                view = View.cut(size, mirrored, angle, self.crop, float(rng.uniform(*self.scale)), float(rng.random()))
            else:
                view = View.cut(size, mirrored, 0.0, self.crop, 1.0, 0.0)
            moved = [moved_region(region, view, self.min_visible) for region in regions]
            shown = [region for region in moved if region is not None]
            if shown or self.scale is None:
                break
        return view, shown

    def _recolored(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if not self.color:
            return image
        for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = change(image).enhance(float(rng.uniform(1 - self.color, 1 + self.color)))
        return image


def augmentation_from(spec: str | Mapping[str, Any] | Augmentation | None, size: int = 1024) -> Augmentation | None:
    """Returns the augmentation that a recipe asks for.

    Args:
        spec: `"lsj-0.1-2.0"`, large-scale jitter as published, with these or other factors; or fields of
            `Augmentation`; None for none.
        size: side of the square that is cut out where the fields do not say; the model's image size.
    """
    if spec is None or isinstance(spec, Augmentation):
        return spec
    if isinstance(spec, str):
        found = re.fullmatch(r"lsj-(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", spec)
        if found is None:
            raise ValueError(f'augmentation is {spec!r}, expected "lsj-MIN-MAX" such as "lsj-0.1-2.0".')
        return Augmentation(flip=0.5, scale=(float(found[1]), float(found[2])), crop=size)
    known = [field.name for field in fields(Augmentation)]
    if unknown := sorted(set(spec) - set(known)):
        raise ValueError(f"augmentation has the unknown keys {', '.join(unknown)}; known are {', '.join(known)}.")
    return Augmentation(**{"crop": size, **spec})


def _range(scale: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in scale)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0 < low <= high <= 100:
        raise ValueError(f"augmentation: scale is {scale!r}, expected two factors above 0, the smaller first.")
    return low, high


def _reworded(regions: Sequence[Mapping[str, Any]], mirrored: bool, angle: float) -> list[dict[str, Any]]:
    """Returns regions with texts true of the changed picture: those that keep every kind of text that they had."""

    def reword(text: str) -> str | None:
        kept = turned_text(text) if abs(angle) > _LEVEL_DEGREES else text
        return mirrored_text(kept) if mirrored and kept is not None else kept

    result = []
    for region in regions:
        had = region.get("captions") or []
        captions = [text for text in map(reword, had) if text is not None]
        category = reword(region["category"]) if region.get("category") else None
        if bool(captions) == bool(had) and (category is not None) == bool(region.get("category")):
            result.append({**region, "captions": captions, "category": category})
    return result
