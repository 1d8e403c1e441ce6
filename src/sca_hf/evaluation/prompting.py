"""How regions of a data set are shown to a captioner: the kinds of prompts, drawn for each region from a seed.

All coordinates are floats in pixels of the original image, where the authors' ablation drew in the resized one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.region import RegionRecord, RegionRecordError
from ..prompt_arguments import RegionPrompt
from ..training.prompts import PromptSource
from .captioners.interface import ImageQuery, RegionQuery
from .predictions import PROMPTS


def build_query(row: Mapping[str, Any], kind: str = "box", seed: int = 0) -> ImageQuery:
    """Opens the picture of a record and prompts each of its regions.

    Args:
        row: as `data.region.region_features` has it, the image decoded or not.
        kind: "box": the region's own. "center_point": the middle of the box. "random_point_in_box": uniform in it.
            "random_point_in_mask": a pixel of the mask that the captioner finds by the box. "point": the points that
            the data set has. "mask": the mask that the data set has.
        seed: of what is random; a region's draw depends on nothing but this and the ids.
    """
    if kind not in PROMPTS:
        raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(PROMPTS)}.")
    image = RegionRecord(**{**row, "regions": []}).load_image()
    where = f"image {row['image_id']}"
    if image.size != (row["width"], row["height"]):
        raise RegionRecordError(
            f"{where}: the picture is {image.width} x {image.height}, the record says {row['width']} x {row['height']}"
        )
    regions = [_region(region, image.size, kind, seed, row["image_id"]) for region in row["regions"]]
    return ImageQuery(image, row["image_id"], regions, row["task"])


def _region(region: Mapping[str, Any], size: tuple[int, int], kind: str, seed: int, image_id: str) -> RegionQuery:
    where = f"image {image_id}, region {region['region_id']}"
    source = PromptSource(region, size, where)
    box = source.box.tolist()
    number = _number(seed, kind, image_id, region["region_id"])
    prompt, resample_point = RegionPrompt(box=box), None
    if kind == "center_point":
        prompt = _point([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    elif kind == "random_point_in_box":
        low, high = source.box[:2], source.box[2:]
        prompt = _point((low + (high - low) * np.random.default_rng(number).random(2)).tolist())
    elif kind == "random_point_in_mask":
        resample_point = number
    elif kind == "point":
        points, labels = region.get("points"), region.get("labels")
        if not points or not labels:
            raise RegionRecordError(f"{where} has no points; prompt it by box, center_point or random_point_in_box.")
        prompt = RegionPrompt(points=[list(point) for point in points], labels=list(labels))
    elif kind == "mask":
        if source.mask is None:
            raise RegionRecordError(f"{where} has no mask; prompt it by box or by a point.")
        prompt = RegionPrompt(mask=source.mask)
    return RegionQuery(region["region_id"], box, prompt, resample_point)


def _point(place: list[float]) -> RegionPrompt:
    return RegionPrompt(points=[place], labels=[1])


def _number(*parts: Any) -> int:
    """A number that differs with every part, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
