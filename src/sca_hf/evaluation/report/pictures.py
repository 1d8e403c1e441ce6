"""Pictures of regions for a report, as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

from PIL import Image

from ...data.inspection import good_records
from ...data.loading import ReadReport
from ...data.region import RegionRecordError, record_image
from ...drawing import DrawnRegion, cut_region
from ...processing.masks_sca import decode_rle
from ..predictions import PredictionRecord
from .contents import Example


# Twice what a page shows, for sharp screens.
_SIZE = (560, 420)
_QUALITY = 82


def add_pictures(examples: Iterable[Example], data: str | Mapping[str, Any]) -> None:
    """Draws the examples, reading the data set once, up to the last image that is needed.

    Args:
        examples: get their `picture`; one whose image is not in the data, or cannot be opened, says so in `missing`.
        data: a data spec, see docs/data.md.
    """
    wanted: dict[str, list[Example]] = {}
    for example in examples:
        example.missing = f"image {example.record.image_id} is not in the data"
        if example.record.image_id is not None:
            wanted.setdefault(example.record.image_id, []).append(example)
    # What is wrong with other regions does not matter here.
    for record in good_records(data, ReadReport()):
        for example in wanted.pop(str(record["image_id"]), ()):
            try:
                example.picture = data_uri(draw_example(record_image(record), example.record))
                example.missing = ""
            except RegionRecordError as error:
                example.missing = str(error)
        if not wanted:
            return


def draw_example(image: Image.Image, record: PredictionRecord) -> Image.Image:
    """Draws the region of a record in its surroundings: its true box and, where there is one, the predicted mask."""
    rle = record.mask or record.reference_mask
    mask = None if rle is None else decode_rle(rle)
    if mask is not None and mask.shape != image.size[::-1]:
        raise RegionRecordError(f"the mask of {record.id} is of {mask.shape}, its picture of {image.size[::-1]}")
    return cut_region(image, DrawnRegion(mask=mask, box=record.box), _SIZE)


def data_uri(picture: Image.Image) -> str:
    """A picture as a JPEG inside a page."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
