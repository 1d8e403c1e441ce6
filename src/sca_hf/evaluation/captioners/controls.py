"""Captions from a file, and controls: what a system scores that does not see the image, or sees another region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...files import hash_file
from ...processing.masks_sca import decode_rle, encode_rle
from ..predictions import PredictionError, PredictionRecord, read_predictions
from .interface import Captioner, ImageQuery, RegionPrediction


_GRAY = (128, 128, 128)


class BlankImages:
    """Another captioner, shown a gray picture of the same size for each image: what the prompt alone gives away."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner, self.segments = captioner, captioner.segments
        self.name = f"{captioner.name}, blank images"

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        return {"control": "blank", **self.captioner.settings()}

    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns what the other captioner says of a blank."""
        blanks = [replace(asked, image=Image.new("RGB", asked.image.size, _GRAY)) for asked in images]
        return self.captioner.caption_regions(blanks, with_masks)


class PredictionsFile:
    """A file of predictions as a captioner: GRiT's, or anything else's.

    Args:
        path: The file, see [`read_predictions`].
        shuffle: None, or a seed: each region gets what was said of another region, never its own. This is what a
            system's captions score by being like the data set's in general.
        name: What records call it; None: the system that the file names, else the file's name.
    """

    segments = False

    def __init__(self, path: str | Path, shuffle: int | None = None, name: str | None = None) -> None:
        records = read_predictions(path)
        systems = {record.system for record in records}
        own = systems.pop() if len(systems) == 1 else None
        self.name = (name or own or Path(path).stem) + ("" if shuffle is None else ", shuffled regions")
        self.path, self.shuffle = Path(path), shuffle
        self._records = {_place(record): record for record in _shuffled(records, shuffle)}

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        return {"kind": "predictions", "file": hash_file(self.path), "shuffle": self.shuffle}

    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns what the file says of each region, found by image and region; in a file with neither, by id."""
        return [
            [self._answer(asked.image_id, region.region_id, with_masks) for region in asked.regions]
            for asked in images
        ]

    def _answer(self, image_id: str, region_id: str, with_masks: bool) -> RegionPrediction:
        places = ((image_id, region_id), (None, f"{image_id}/{region_id}"), (None, region_id))
        record = next((self._records[place] for place in places if place in self._records), None)
        if record is None:
            raise PredictionError(f"{self.path} has no prediction for image {image_id}, region {region_id}.")
        rles = record.masks or ([record.mask] if record.mask else [])
        masks = np.stack([decode_rle(rle) for rle in rles]) if with_masks and rles else None
        return RegionPrediction(record.candidates, record.scores, record.iou_scores, masks)


def _place(record: PredictionRecord) -> tuple[str | None, str | None]:
    """What a record is found by: other tools number their records as they like."""
    known = record.image_id is not None and record.region_id is not None
    return (record.image_id, record.region_id) if known else (None, record.id)


def _shuffled(records: list[PredictionRecord], seed: int | None) -> list[PredictionRecord]:
    """Returns records whose answers are those of other regions, drawn for each seed."""
    if seed is None:
        return records
    if len(records) < 2:
        raise ValueError("one region cannot be shuffled; at least two are needed.")
    order = np.random.default_rng(seed).permutation(len(records))
    # Each takes from the next in a random ring, so that none keeps its own.
    takes_from = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [_with_answer(record, records[takes_from[index]]) for index, record in enumerate(records)]


def _with_answer(record: PredictionRecord, other: PredictionRecord) -> PredictionRecord:
    """Returns a record with the answer of another, masks scaled to its own picture."""
    size = (record.height, record.width) if record.height and record.width else None
    answer = {name: getattr(other, name) for name in ("candidates", "scores", "iou_scores", "mask", "masks")}
    if size is not None:
        answer["mask"] = other.mask and _scaled(other.mask, size)
        answer["masks"] = other.masks and [_scaled(mask, size) for mask in other.masks]
    return replace(record, **answer)


def _scaled(rle: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Returns a mask at another (height, width)."""
    if tuple(rle["size"]) == size:
        return rle
    return encode_rle(np.asarray(Image.fromarray(decode_rle(rle)).resize(size[::-1], Image.Resampling.NEAREST)))
