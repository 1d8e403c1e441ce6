"""How regions of a data set are shown to a captioner: each by a prompt that is drawn from a seed.

All coordinates are floats in pixels of the original image, where the authors' ablation drew in the resized one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data.prompts import PROMPT_KINDS, PromptSource, draw_prompt
from ..data.region import record_image
from ..prompt_arguments import RegionPrompt
from .captioners.interface import ImageQuery, RegionQuery


def build_query(row: Mapping[str, Any], kind: str = "box", seed: int = 0) -> ImageQuery:
    """Opens the picture of a record and prompts each of its regions.

    Args:
        row: A record as `data.region.region_features` has it, the image decoded or not.
        kind: One of `data.prompts.PROMPT_KINDS`; for `random_point_in_mask` the captioner draws the point.
        seed: The seed of what is random; a region's draw depends on nothing but this, the kind and the ids.

    Raises:
        RegionRecordError: The picture cannot be opened or has another size, or a region lacks what the kind shows.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(PROMPT_KINDS)}.")
    image = record_image(row)
    regions = [_region(region, image.size, kind, seed, row["image_id"]) for region in row["regions"]]
    return ImageQuery(image, row["image_id"], regions, row["task"])


def _region(region: Mapping[str, Any], size: tuple[int, int], kind: str, seed: int, image_id: str) -> RegionQuery:
    source = PromptSource(region, size, f"image {image_id}, region {region['region_id']}")
    box = source.box.tolist()
    number = _number(seed, kind, image_id, region["region_id"])
    if kind == "random_point_in_mask":
        return RegionQuery(region["region_id"], box, RegionPrompt(box=box), number)
    drawn = draw_prompt(kind, source, np.random.default_rng(number), strict=True)
    prompt = RegionPrompt(
        box=drawn.get("input_boxes"),
        points=drawn.get("input_points", []),
        labels=drawn.get("input_labels", []),
        mask=drawn.get("input_masks"),
    )
    return RegionQuery(region["region_id"], box, prompt)


def _number(*parts: Any) -> int:
    """Returns a number that differs with every part, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
