"""The picture of a record, as the processor would see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing.images_sca import as_images
from .region import RegionRecordError


def record_image(record: Mapping[str, Any]) -> Image.Image:
    """Opens the picture of a record: upright by its EXIF orientation, 8-bit RGB, of the record's width and height.

    Args:
        record: its `image` is a picture, a path, or `{"path": ..., "bytes": ...}` as `datasets` has it undecoded.
    """
    where, image = f"image {record.get('image_id', '?')}", record["image"]
    if isinstance(image, Mapping):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    try:
        # A path and nothing else: a string of a data set opens no address.
        picture = as_images(Path(image) if isinstance(image, str) else image)[0]
    except (OSError, TypeError, ValueError) as error:
        raise RegionRecordError(f"{where}: {error}") from error
    if picture.size != (record["width"], record["height"]):
        raise RegionRecordError(
            f"{where}: the upright picture is {picture.width} x {picture.height}, its record says {record['width']} x "
            f"{record['height']}; regions are given in pixels of the upright picture."
        )
    return picture
