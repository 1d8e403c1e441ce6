"""Copy-paste augmentation: regions of other pictures, turned and resized, laid into a picture.

A small data set has few regions per picture and few pictures per class. Pasted regions give each picture several, of
rare classes as often as of common ones, at every size, angle and place (after arXiv 2012.07177, which pastes whole
masks; here a region without a mask is pasted as its box).
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..processing.masks_sca import decode_rle, encode_rle, mask_extent
from .augmentation import Augmentation, augmentation_from
from .notes import NOTES
from .region import record_image, region_mask


# The longest side of a crop that is kept, and how many bytes of crops are kept.
_CROP_SIDE = 256
_CACHE_BYTES = 256 * 2**20
# Places tried per wanted region: in a full picture most are taken.
_ATTEMPTS = 8


class TrainingAugmentation:
    """What a recipe's `augmentation` does to the records of one data set: a picture is changed, then pasted into.

    Args:
        spec: of [`augmentation_from`]; a mapping may also have `paste`, the arguments of [`RegionPaster`].
        size: side of the model's input.
        dataset: the records that are augmented, and pasted from.
    """

    def __init__(self, spec: Any, size: int, dataset: Any) -> None:
        paste = spec.get("paste") if isinstance(spec, Mapping) else None
        if isinstance(spec, Mapping):
            spec = {name: value for name, value in spec.items() if name != "paste"}
        self.change: Augmentation | None = augmentation_from(spec or None, size)
        self.paste = None if paste is None else RegionPaster(dataset, **paste)

    @property
    def keeps_image(self) -> bool:
        """Whether an embedding of the unchanged picture is still its own."""
        return self.paste is None and (self.change is None or self.change.keeps_image)

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the record augmented; the record itself stays as it is."""
        changed = dict(record) if self.change is None else self.change(record, rng)
        return changed if self.paste is None else self.paste(changed, rng)


class SourceAugmentation:
    """A [`TrainingAugmentation`] for each of the data sets that a mixture is made of.

    Args:
        specs: by the name that a record's `source` says; records of other sources stay as they are.
        size: side of the model's input.
        dataset: the mixture, by index.
    """

    def __init__(self, specs: Mapping[str, Any], size: int, dataset: Any) -> None:
        sources = list(dataset["source"]) if "source" in getattr(dataset, "column_names", ()) else []
        if unknown := sorted(set(specs) - set(sources)):
            raise ValueError(
                f"augmentation.by_source names {', '.join(unknown)}; the training sets are named "
                f"{', '.join(sorted(set(sources))) or 'nothing: give each a name in the recipe'}."
            )
        self.by_source = {}
        for name, spec in specs.items():
            rows = [row for row, source in enumerate(sources) if source == name]
            self.by_source[name] = TrainingAugmentation(spec, size, dataset.select(rows))

    @property
    def keeps_image(self) -> bool:
        """Whether embeddings of the unchanged pictures are still their own."""
        return all(augmentation.keeps_image for augmentation in self.by_source.values())

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Augments a record as its source is."""
        augmentation = self.by_source.get(record["source"])
        return dict(record) if augmentation is None else augmentation(record, rng)


def training_augmentation(spec: Any, size: int, dataset: Any) -> TrainingAugmentation | SourceAugmentation | None:
    """Returns what `ScaTrainingArguments.augmentation` asks for.

    Args:
        spec: None; or of [`TrainingAugmentation`], for all records; or `{"by_source": {name: such, ...}}`.
        size: side of the model's input.
        dataset: region records by index.
    """
    if spec is None:
        return None
    if isinstance(spec, Mapping) and "by_source" in spec:
        if len(spec) > 1:
            raise ValueError("augmentation.by_source must be the only key; move the other fields into its sets.")
        return SourceAugmentation(spec["by_source"], size, dataset)
    return TrainingAugmentation(spec, size, dataset)


class _Region:
    """A region of a record and its mask, (height, width) bool or None."""

    def __init__(self, values: Mapping[str, Any], mask: np.ndarray | None) -> None:
        self.values, self.mask = dict(values), mask

    def hidden_by(self, laid: np.ndarray, frame: tuple[slice, slice]) -> float:
        """The fraction of the mask that `laid`, bool, hides within a frame of rows and columns; 0 without a mask."""
        if self.mask is None or not (count := np.count_nonzero(self.mask[frame] & laid)):
            return 0.0
        return count / np.count_nonzero(self.mask)

    def cut(self, laid: np.ndarray, frame: tuple[slice, slice]) -> None:
        """Takes what is hidden out of the mask, and points inside that are."""
        assert self.mask is not None
        self.mask[frame] &= ~laid
        encoded = encode_rle(self.mask) if isinstance(self.values["mask"], Mapping) else self.mask
        self.values |= {"mask": encoded, "box": [float(value) for value in mask_extent(self.mask)]}
        if self.values.get("points"):
            pairs = zip(self.values["points"], self.values["labels"], strict=True)
            kept = [(point, label) for point, label in pairs if not label or self.mask[int(point[1]), int(point[0])]]
            self.values |= {"points": [point for point, _ in kept], "labels": [label for _, label in kept]}


class RegionPaster:
    """Pastes regions of a data set into its records.

    Args:
        dataset: region records by index; only their texts are read here, pictures when they are pasted.
        number: up to so many regions are pasted into a picture, as many drawn as not.
        size: smallest and largest longer side of a pasted region, as a fraction of the picture's longer side.
        rotate: turns regions by up to so many degrees either way.
        quarter_turns: turns them by none to three quarters besides.
        stretch: along an axis at any angle regions become up to exp(stretch) times as long as across it, as things do
            that are looked at from the side; their area stays.
        color: changes brightness and contrast of pasted regions by up to this fraction.
        overlap: how much of another region a pasted one may hide, and its box of the other's, as a fraction of the
            smaller; what is hidden is cut out of the other's mask. In photographs things stand before others: 0.5.
        min_source: regions with a shorter longer side, in pixels, are not pasted: enlarged, they are a blur.
    """

    def __init__(
        self,
        dataset: Any,
        number: int = 6,
        size: tuple[float, float] = (0.15, 0.45),
        rotate: float = 0.0,
        stretch: float = 0.0,
        color: float = 0.3,
        quarter_turns: bool = False,
        overlap: float = 0.1,
        min_source: float = 0.0,
    ) -> None:
        bounded = 0 < size[0] <= size[1] <= 1 and 0 <= stretch <= 2 and 0 <= color < 1 and 0 <= overlap < 1
        if number < 1 or rotate < 0 or not bounded:
            raise ValueError(
                f"paste has number {number}, size {size}, rotate {rotate}, stretch {stretch}, color {color}, overlap "
                f"{overlap}; expected a number of at least 1, ascending sizes in (0, 1], no negative degrees, a "
                "stretch in [0, 2], a color and an overlap in [0, 1)."
            )
        self.dataset, self.number, self.size = dataset, number, tuple(size)
        self.rotate, self.stretch, self.color = rotate, stretch, color
        self.quarter_turns, self.overlap = quarter_turns, overlap
        self.sources = _regions_by_text(dataset, min_source)
        self._crops: OrderedDict[tuple[int, int], tuple[Image.Image, Image.Image, bool]] = OrderedDict()
        self._bytes = 0

    def __call__(self, record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the record with more regions; of those that were there, what is hidden now is cut off."""
        picture = record_image(record).copy()
        regions = [_Region(region, region_mask(region, picture.size, "a region")) for region in record["regions"]]
        wanted = int(rng.integers(self.number + 1))
        for attempt in range(_ATTEMPTS * wanted):
            if len(regions) - len(record["regions"]) == wanted:
                break
            texts = self.sources[int(rng.integers(len(self.sources)))]
            row, index, said = texts[int(rng.integers(len(texts)))]
            if not said.get("category" if record.get("task") == "recognition" else "captions"):
                continue  # it is of a record of the other task, and has no text for this one
            pasted = self._paste(picture, regions, row, index, rng)
            if pasted is None:
                continue
            box, mask = pasted
            region = {**_EMPTY, **said, "region_id": f"pasted-{attempt}-{said['region_id']}", "box": box}
            regions.append(_Region(region if mask is None else {**region, "mask": encode_rle(mask)}, mask))
        return {**record, "image": picture, "regions": [region.values for region in regions]}

    def _paste(
        self, picture: Image.Image, regions: list[_Region], row: int, index: int, rng: np.random.Generator
    ) -> tuple[list[float], np.ndarray | None] | None:
        """Lays one region into `picture` and returns its box and mask; None where it would hide others."""
        crop, alpha, has_mask = self._crop(row, index)
        low, high = np.log(self.size)
        side = max(picture.size) * math.exp(rng.uniform(low, high))
        # An affine resample looks at four pixels only: what becomes much smaller is averaged first.
        if (shrink := int(max(crop.size) / side)) > 1:
            crop, alpha = crop.reduce(shrink), alpha.reduce(shrink)
        scale = side / max(crop.size)
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        if self.quarter_turns:
            angle += math.pi / 2 * int(rng.integers(4))
        matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        if self.stretch:
            axis, half_log = rng.uniform(0, math.pi), rng.uniform(0, self.stretch) / 2
            turn = np.array([[math.cos(axis), -math.sin(axis)], [math.sin(axis), math.cos(axis)]])
            matrix = matrix @ (turn * [math.exp(half_log), math.exp(-half_log)]) @ turn.T
        half = np.array(crop.size) / 2
        # Bounds of the ellipse within the turned box: those of its corners would be far too wide for most things.
        extent = np.sqrt(matrix**2 @ half**2)
        room = np.array(picture.size) - extent
        if (room <= extent).any():
            return None
        center = rng.uniform(extent, room)
        box = np.concatenate([center - extent, center + extent])
        if any(_hides(box, np.asarray(other.values["box"]), self.overlap) for other in regions):
            return None
        reach = np.abs(matrix) @ half
        left, top = np.floor(center - reach).clip(0).astype(int)
        right, bottom = np.minimum(np.ceil(center + reach), picture.size).astype(int)
        inverse = np.linalg.inv(matrix)
        shift = half - inverse @ (center - (left, top))
        layer = (inverse[0, 0], inverse[0, 1], shift[0], inverse[1, 0], inverse[1, 1], shift[1])
        shape = (int(right - left), int(bottom - top))
        stencil = alpha.transform(shape, Image.Transform.AFFINE, layer, Image.Resampling.BILINEAR)
        frame, laid = (slice(top, bottom), slice(left, right)), np.asarray(stencil) > 127
        if not laid.any() or any(region.hidden_by(laid, frame) > self.overlap for region in regions):
            return None
        pasted = self._recolored(crop, rng).transform(shape, Image.Transform.AFFINE, layer, Image.Resampling.BILINEAR)
        picture.paste(pasted, (int(left), int(top)), stencil)
        for region in regions:
            if region.hidden_by(laid, frame):
                region.cut(laid, frame)
        if not has_mask:
            return box.tolist(), None
        mask = np.zeros(picture.size[::-1], bool)
        mask[frame] = laid
        return [float(value) for value in mask_extent(mask)], mask

    def _recolored(self, crop: Image.Image, rng: np.random.Generator) -> Image.Image:
        brightness, contrast = 1 + rng.uniform(-self.color, self.color, 2)
        middle = 128 * brightness
        values = (np.arange(256) * brightness - middle) * contrast + middle
        return crop.point(np.tile(values.clip(0, 255).round().astype(int), 3).tolist())

    def _crop(self, row: int, index: int) -> tuple[Image.Image, Image.Image, bool]:
        """The picture within a region's box, what of it is the region (L), and whether a mask says so."""
        key = (row, index)
        if key in self._crops:
            self._crops.move_to_end(key)
            return self._crops[key]
        record = self.dataset[row]
        region = record["regions"][index]
        x0, y0, x1, y1 = (round(value) for value in region["box"])
        frame = (max(x0, 0), max(y0, 0), max(x1, x0 + 1), max(y1, y0 + 1))
        crop = record_image(record).crop(frame)
        if region["mask"] is None:
            alpha = Image.new("L", crop.size, 255)
        else:
            alpha = Image.fromarray(decode_rle(region["mask"]).astype(np.uint8) * 255).crop(frame)
        crop.thumbnail((_CROP_SIDE, _CROP_SIDE), Image.Resampling.BOX)
        alpha = alpha.resize(crop.size, Image.Resampling.BOX)
        self._crops[key] = (crop, alpha, region["mask"] is not None)
        self._bytes += 4 * crop.width * crop.height
        while self._bytes > _CACHE_BYTES:
            old = self._crops.popitem(last=False)[1][0]
            self._bytes -= 4 * old.width * old.height
        return self._crops[key]


_EMPTY: dict[str, Any] = {"mask": None, "points": None, "labels": None}


def _regions_by_text(dataset: Any, min_side: float) -> list[list[tuple[int, int, dict[str, Any]]]]:
    """Rows, positions and texts of the regions of a data set, those that are called alike together.

    min_side: of the longer side of their boxes, in pixels.
    """
    # Without their pictures: a data set that decodes these would do so for every row, now and whenever one is pasted.
    texts = dataset.select_columns(["regions"]) if hasattr(dataset, "select_columns") else dataset
    found: dict[str, list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
    for row in range(len(texts)):
        for index, region in enumerate(texts[row]["regions"]):
            x0, y0, x1, y1 = region["box"]
            if max(x1 - x0, y1 - y0) < min_side:
                continue
            said = {name: region[name] for name in ("region_id", "captions", "category", *NOTES) if name in region}
            found[region["category"] or region["captions"][0]].append((row, index, said))
    if not found:
        raise ValueError(f"there are no regions to paste: the data set has none of {min_side:g} pixels or more.")
    return [found[text] for text in sorted(found)]


def _hides(box: np.ndarray, other: np.ndarray, overlap: float) -> bool:
    """Whether two boxes overlap by more than a fraction of the smaller one."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    if (sides <= 0).any():
        return False
    smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
    return bool(np.prod(sides) > overlap * smaller)
