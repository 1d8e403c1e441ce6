"""Draws some regions of a data set, so that a look tells whether boxes, masks and captions fit."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from PIL import Image

from ..drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from ..processing.masks_sca import decode_rle
from .images import record_image
from .region import RegionRecordError


_INK, _CATEGORY, _BAD = (24, 26, 30), (20, 90, 160), (180, 40, 30)
_CAPTIONS = 3
# Categories to remember regions of; V3Det has 13 000, a sheet some dozens of tiles.
_CATEGORIES = 200


class RegionSample:
    """Regions drawn at random from a data set that is seen once, of every category some; the same for the same seed.

    Give `add` to `check_data` as `watch`.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.random = count, random.Random(seed)
        self.seen: dict[str | None, int] = {}
        self.kept: dict[str | None, list[tuple[Mapping[str, Any], int]]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Considers the regions of a record: each region of a category is kept with the same probability."""
        for index, region in enumerate(record["regions"]):
            key = region["category"]
            if key not in self.kept and len(self.kept) >= _CATEGORIES:
                continue
            kept = self.kept.setdefault(key, [])
            seen = self.seen[key] = self.seen.get(key, 0) + 1
            if len(kept) < self.count:
                kept.append((record, index))
            elif (place := self.random.randrange(seen)) < self.count:
                kept[place] = (record, index)

    def chosen(self) -> list[tuple[Mapping[str, Any], int]]:
        """Returns pairs of a record and the index of a region: the tiles shared out among categories by turns."""
        order = sorted(self.kept, key=lambda key: (-self.seen[key], str(key)))
        shuffled = {key: self.random.sample(self.kept[key], len(self.kept[key])) for key in order}
        turns = [(turn, key) for turn in range(self.count) for key in order if turn < len(shuffled[key])]
        shown = turns[: self.count]
        return [shuffled[key][turn] for key in order for turn, name in shown if name == key]


def draw_contact_sheet(sample: RegionSample, title: str = "", columns: int = 4) -> Image.Image:
    """Draws the chosen regions with box, mask and points; below each what it is called and where it is from."""
    chosen = sample.chosen()
    if not chosen:
        raise ValueError("there is no region to draw.")
    return draw_sheet([_tile(record, record["regions"][index]) for record, index in chosen], title, columns)


def _tile(record: Mapping[str, Any], region: Mapping[str, Any]) -> SheetTile:
    captions = region["captions"]
    lines = [(text, _INK) for text in captions[:_CAPTIONS]]
    if region["category"] is not None and region["category"] not in captions:
        lines.insert(0, (region["category"], _CATEGORY))
    if len(captions) > _CAPTIONS:
        lines.append((f"and {len(captions) - _CAPTIONS} more", _INK))
    x0, y0, x1, y1 = region["box"]
    note = f"{record['image_id']}: {x1 - x0:.0f} x {y1 - y0:.0f} at {x0:.0f}, {y0:.0f}"
    try:
        image = record_image(record)
    except RegionRecordError as error:
        blank = Image.new("RGB", (record["width"], record["height"]), (60, 62, 68))
        return SheetTile(cut_region(blank, DrawnRegion(box=region["box"])), [(str(error), _BAD), *lines], note)
    drawn = DrawnRegion(
        mask=decode_rle(region["mask"]) if region["mask"] is not None else None,
        box=region["box"],
        points=region["points"] or (),
        labels=region["labels"] or [],
    )
    return SheetTile(cut_region(image, drawn), lines, note)
