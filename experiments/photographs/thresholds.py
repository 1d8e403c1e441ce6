"""Chooses the settings of anything mode on photographs of the side `choice`, and saves them with the model.

Everything is found once for each grid and suppression, with low thresholds; the others are applied to what was found.
The best settings have the highest mean of recall of medium and large objects (IoU 0.5), which counts twice, and
precision (harmonic, F2). Photographs show things that nobody annotated: precision is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from sca_hf.data.region import record_image
from sca_hf.processing.masks_sca import decode_rle

from .measure import match, overlaps, size_of


GRIDS, SUPPRESSIONS = (16, 24), (0.5, 0.7)
IOUS, STABILITIES, AREAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8), (0.3, 0.5, 0.65, 0.8, 0.9), (0.0, 0.001, 0.003)
# What is the same everywhere: holes and islands are drawn shut, captions come from boxes, which the model knows best.
COMMON = {"min_mask_region_area": 50, "caption_prompt": "box", "max_area": 0.9}


@torch.inference_mode()
def choose_settings(
    model: Any, processor: Any, records: Sequence[Mapping[str, Any]], grids: Sequence[int] = GRIDS
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns the best settings of anything mode, and the figures of all, best first."""
    rows = []
    for grid, suppression in product(grids, SUPPRESSIONS):
        base = {**COMMON, "points_per_side": grid, "box_nms_thresh": suppression}
        pictures = [_found(model, processor, record, base) for record in records]
        for iou, stability, area in product(IOUS, STABILITIES, AREAS):
            limits = {"pred_iou_thresh": iou, "stability_score_thresh": stability, "min_area": area}
            rows.append({"settings": {**base, **limits}, **score(pictures, iou, stability, area)})
    # Of equal ones the coarsest grid, which is the quickest, and the strictest thresholds.
    rows.sort(key=lambda row: (-row["f2"], row["settings"]["points_per_side"], row["regions"]))
    return rows[0]["settings"], rows


def _found(model: Any, processor: Any, record: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values (n, 3) of what is found in a picture, its IoU (n, m) with the true masks, and which are small."""
    lowest = {"pred_iou_thresh": min(IOUS), "stability_score_thresh": min(STABILITIES), "min_area": min(AREAS)}
    # A second look comes after the choice and improves masks; that of the many found here would take an hour.
    quick = {"max_new_tokens": 1, "second_look": False}
    found = processor.caption_anything(model, record_image(record), {**settings, **lowest}, **quick)
    masks = [decode_rle(dict(region["mask"])) for region in record["regions"]]
    iou = overlaps([decode_rle(one["segmentation"]) for one in found], masks)
    area = record["width"] * record["height"]
    values = [(one["predicted_iou"], one["stability_score"], one["area"] / area) for one in found]
    small = np.array([size_of(float(mask.sum())) == "small" for mask in masks], bool)
    return {"values": np.array(values).reshape(-1, 3), "iou": iou, "small": small}


def score(pictures: Sequence[Mapping[str, Any]], iou: float, stability: float, area: float) -> dict[str, float]:
    """Returns recall of medium and large objects and of all, precision, and regions a picture, above thresholds."""
    hits = larger = objects = big = found = 0
    for one in pictures:
        kept = (one["values"] > (iou, stability, area)).all(1)
        matched = match(one["iou"][kept])
        hits, found = hits + len(matched), found + int(kept.sum())
        larger += sum(not one["small"][place] for _, place in matched)
        objects, big = objects + len(one["small"]), big + int((~one["small"]).sum())
    recall, precision = larger / max(big, 1), hits / max(found, 1)
    f2 = 5 * recall * precision / (4 * precision + recall) if hits else 0.0
    told = {"recall": hits / max(objects, 1), "recall_medium_large": recall, "precision": precision}
    return {**told, "f2": f2, "regions": found / len(pictures)}
