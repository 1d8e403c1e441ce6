"""LabelMe: a JSON file beside each picture, the label a region's category and the description its caption."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from .common import (
    PictureFolder,
    Shapes,
    WriteReport,
    WrittenRegion,
    mask_extent,
    mask_polygons,
    note_box,
    written_regions,
)


def write_labelme(records: Iterable[Mapping[str, Any]], folder: Path, shapes: Shapes) -> WriteReport:
    """Writes pictures and their JSON files side by side: rectangles, and masks as masks or polygons."""
    report = WriteReport(folder)
    pictures = PictureFolder(folder)
    for record in records:
        drawn: list[dict[str, Any]] = []
        for number, region in enumerate(written_regions(record, report, shapes), 1):
            note_box(region, report)
            parts = list(_parts(region, shapes == "polygons"))
            # Shapes of one label and group are one object.
            group = number if len(parts) > 1 else None
            named: dict[str, Any] = {"label": region.label, "description": region.caption, "group_id": group}
            named |= {"flags": {}} if region.score is None else {"flags": {}, "score": region.score}
            drawn += [{**named, **part} for part in parts]
        name = pictures.add(record)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": drawn,
            "imagePath": PurePosixPath(name).name,
            "imageData": None,
            "imageHeight": record["height"],
            "imageWidth": record["width"],
        }
        path = (folder / name).with_suffix(".json")
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return report


def _parts(region: WrittenRegion, polygons: bool) -> Iterator[dict[str, Any]]:
    if region.mask is None:
        yield {"shape_type": "rectangle", "points": [region.box[:2], region.box[2:]], "mask": None}
    elif polygons:
        for polygon in mask_polygons(region.mask):
            points = [list(point) for point in zip(polygon[::2], polygon[1::2], strict=True)]
            yield {"shape_type": "polygon", "points": points, "mask": None}
    else:
        x0, y0, x1, y1 = mask_extent(region.mask)
        # The picture of a mask holds its corner pixels, both included.
        points = [[x0, y0], [x1 - 1, y1 - 1]]
        yield {"shape_type": "mask", "points": points, "mask": _png(region.mask[y0:y1, x0:x1])}


def _png(mask: np.ndarray) -> str:
    data = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode("ascii")
