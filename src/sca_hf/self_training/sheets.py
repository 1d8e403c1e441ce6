"""Contact sheets of what was kept and what was refused, for people to look at."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from ..files import save_picture
from ..processing.images_sca import as_image
from ..processing.masks_sca import decode_rle
from .proposing import region_box
from .selection import Candidate


SHEETS = ("kept.png", "refused.png")
_KEPT, _REFUSED, _GRAY = (18, 122, 62), (178, 38, 38), (90, 94, 102)


def write_sheets(
    output: Path, proposals: Path, entries: Mapping[str, dict[str, Any]], candidates: Sequence[Candidate], tiles: int
) -> None:
    """Draws some regions that were kept and some that were refused, at random but the same every time.

    Args:
        output: The folder to draw into.
        proposals: The folder of the proposals, with the pictures.
        entries: The proposals of each picture.
        candidates: The regions.
        tiles: How many regions a sheet shows at most.
    """
    for name, kept in zip(SHEETS, (True, False), strict=True):
        chosen = [one for one in candidates if one.kept is kept]
        path = output / name
        if not chosen:
            path.unlink(missing_ok=True)
            continue
        shown = random.Random(0).sample(chosen, min(tiles, len(chosen)))
        shown.sort(key=lambda one: -one.combined)
        title = f"{'Kept' if kept else 'Refused'}: {len(shown)} of {len(chosen)}, the best rank first"
        save_picture(draw_sheet([_tile(proposals, entries[one.image], one) for one in shown], title), path)


def _tile(proposals: Path, entry: dict[str, Any], one: Candidate) -> SheetTile:
    record = entry["records"][one.region - 1]
    picture = as_image(proposals / entry["file"])
    part = cut_region(picture, DrawnRegion(mask=decode_rle(record["segmentation"]), box=region_box(record)))
    return SheetTile(
        part, [(one.caption, _KEPT if one.kept else _REFUSED)], f"{one.image}, {one.region}: {one.reason}"
    )
