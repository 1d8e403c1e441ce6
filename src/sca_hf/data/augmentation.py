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
from PIL import Image, ImageEnhance, ImageFilter

from .notes import NOTES
from .region import RegionRecordError, record_image
from .sides import mirrored_text, turned_text
from .views import View, moved_region, picture_view


# SAM's mean color, which is 0 for the model; the padding of the original.
MEAN_COLOR = (124, 116, 104)
# Up to this angle, above stays above and left stays left.
_LEVEL_DEGREES = 20.0
_HIGHEST = {"flip": 1, "rotate": 180, "zoom": 1, "color": 0.95, "tint": 0.95, "gray": 1, "blur": 20, "min_visible": 1}
# Cuts that show no region are drawn again, this often; then the whole picture is taken.
_ATTEMPTS = 10


@dataclass(frozen=True)
class Augmentation:
    """Changes a record at random; called with the record and a generator, it returns the new record.

    In this order: mirroring, turning about the middle onto a canvas that holds the whole picture, resizing, cutting
    out, padding, color. Captions of mirrored and turned pictures are reworded or dropped by the rules of
    `sca_hf.data.sides`. A region of which no caption (or no category) is left is dropped; if that were half of them or
    more, the picture is neither mirrored nor turned. If no region is to be seen in a cut, another is made.

    Args:
        flip: probability of mirroring.
        scale: smallest and largest factor of size. At 1 the longest side of the picture is `crop` pixels, and of
            whatever is larger than `crop` x `crop` such a square is cut out, at a place that is the same fraction
            of the way along both axes; the rest of the square is padded with the mean color, right and below. None:
            the whole picture, shrunk to `crop` pixels on its longest side where it is larger.
        rotate: turned by an angle drawn evenly up to so many degrees either way.
        quarter_turns: turned by none to three quarters besides, which keeps boxes as tight as they were.
        zoom: probability that, in place of `scale`, a square around one of the regions is cut out: small things are
            then seen as large ones are.
        context: smallest and largest side of that square, in longer sides of the region; the region lies anywhere in
            it. Nothing is enlarged more than four times for it.
        color: brightness, contrast and saturation are each changed by a factor drawn evenly up to so far from 1.
        tint: each color channel is multiplied by a factor drawn evenly up to so far from 1, as other light does.
            Captions that name colors need a small one.
        gray: probability that the picture loses its colors.
        blur: blurred by a Gaussian whose standard deviation is drawn evenly up to so many pixels.
        crop: side of the square in pixels; the model's image size is best.
        min_visible: a region is kept if at least this fraction of its area is visible, and a pixel of each side of its
            box.
    """

    flip: float = 0.0
    scale: tuple[float, float] | None = None
    rotate: float = 0.0
    quarter_turns: bool = False
    zoom: float = 0.0
    context: tuple[float, float] = (1.5, 6.0)
    color: float = 0.0
    tint: float = 0.0
    gray: float = 0.0
    blur: float = 0.0
    crop: int = 1024
    min_visible: float = 0.25

    def __post_init__(self) -> None:
        for name, high in _HIGHEST.items():
            low, value = 0, getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"augmentation: {name} is {value!r}, expected a number from {low} to {high}.")
        if not isinstance(self.crop, int) or self.crop < 8:
            raise ValueError(f"augmentation: crop is {self.crop!r}, expected at least 8 pixels.")
        if self.scale is not None:
            object.__setattr__(self, "scale", _range("scale", self.scale))
        object.__setattr__(self, "context", _range("context", self.context, 1.0))

    @property
    def changes_geometry(self) -> bool:
        """Whether regions move, so that they no longer fit an embedding of the unchanged picture."""
        return self.flip > 0 or self.scale is not None or self.rotate > 0 or self.quarter_turns or self.zoom > 0

    @property
    def keeps_image(self) -> bool:
        """Whether pictures and regions stay as they are, so that embeddings of the pictures still hold."""
        return not self.changes_geometry and not (self.color or self.tint or self.gray or self.blur)

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
        if self.zoom and regions and rng.random() < self.zoom:
            box, context = regions[int(rng.integers(len(regions)))]["box"], float(rng.uniform(*self.context))
            view = View.around(size, mirrored, angle, self.crop, box, context, rng.random(2))
            moved = [moved_region(region, view, self.min_visible) for region in regions]
            if shown := [region for region in moved if region is not None]:
                return view, shown
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
        if self.color:
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = change(image).enhance(float(rng.uniform(1 - self.color, 1 + self.color)))
        if self.tint:
            factors = rng.uniform(1 - self.tint, 1 + self.tint, (3, 1))
            image = image.point((np.arange(256) * factors).round().clip(0, 255).astype(int).ravel().tolist())
        if self.gray and rng.random() < self.gray:
            image = image.convert("L").convert("RGB")
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, self.blur))))
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


def _range(name: str, factors: Any, lowest: float = 0.0) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in factors)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0 < low <= high <= 100 or low < lowest:
        bound = f"of at least {lowest:g}" if lowest else "above 0"
        raise ValueError(f"augmentation: {name} is {factors!r}, expected two factors {bound}, the smaller first.")
    return low, high


def _reworded(regions: Sequence[Mapping[str, Any]], mirrored: bool, angle: float) -> list[dict[str, Any]]:
    """Returns regions with texts true of the changed picture: those that keep every kind of text that they had."""

    def reword(text: str, language: str | None = None) -> str | None:
        if language is not None and language.split("-")[0] != "en":  # the rules know no other
            return None if mirrored or abs(angle) > _LEVEL_DEGREES else text
        kept = turned_text(text) if abs(angle) > _LEVEL_DEGREES else text
        return mirrored_text(kept) if mirrored and kept is not None else kept

    result = []
    for region in regions:
        had = region.get("captions") or []
        texts = map(reword, had, region.get("languages") or [None] * len(had))
        kept = [(place, text) for place, text in enumerate(texts) if text is not None]
        captions = [text for _, text in kept]
        notes = {name: [said[place] for place, _ in kept] for name in NOTES if (said := region.get(name))}
        category = reword(region["category"]) if region.get("category") else None
        if bool(captions) == bool(had) and (category is not None) == bool(region.get("category")):
            result.append({**region, "captions": captions, "category": category, **notes})
    return result
