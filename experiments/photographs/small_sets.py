"""Writes the four small real sets that `sca-tiny` knows beside the photographs, divided as its recipe divides them.

A recipe that chooses its model on a set of its own has no holdout: what the recipe of `sca-tiny` keeps out by
`holdout: 0.2` and `holdout_seed: 0` must then lie in files. SET.train.json and SET.test.json, of cards, signs, cells
and fruit, are those two sides as COCO files, with pictures in the folders that `IMAGES` tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sca_hf.data import hold_out, load_regions
from sca_hf.data.loading import leave_undecoded
from sca_hf.data.writers.coco import write_coco
from sca_hf.files import write_whole
from sca_hf.training.recipe.schema import load_recipe


RECIPE = Path(__file__).parents[1] / "sca_tiny" / "sca_tiny_real.yaml"
# Where the pictures of each set lie, below the folder of all sets.
IMAGES = {
    "cards": "playing_cards_voc",
    "signs": "road_signs_voc",
    "cells": "blood_cells_voc",
    "fruit": "dates_figs_nuts/images",
}


def write_small_sets(output: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Writes both sides of each set below `output`; returns how many pictures each has in training and in test.

    folder: of all sets, `data` in the recipe.
    """
    data = load_recipe(RECIPE).data
    specs = {data.name_of(spec): _moved(data.reader_spec(spec), folder) for spec in data.train}
    sets = {name: leave_undecoded(load_regions(**specs[name])) for name in IMAGES}
    sides = dict(zip(("train", "test"), hold_out([*sets.values()], data.holdout or 0, data.holdout_seed), strict=True))
    for side, parts in sides.items():
        for name, records in zip(sets, parts, strict=True):
            images = (folder / IMAGES[name]).resolve()
            write_whole(output / f"{name}.{side}.json", write_coco(lambda r=records, i=images: _entries(r, i)))
    counts = [tuple(map(len, parts)) for parts in zip(*sides.values(), strict=True)]
    return dict(zip(sets, counts, strict=True))  # type: ignore[arg-type]


def _moved(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A data spec with the folder of all sets in place of `data`."""
    paths = {key: str(folder / Path(spec[key]).relative_to("data")) for key in spec if key in _PATHS}
    return {**spec, **paths}


_PATHS = ("root", "annotations", "images")


def _entries(records: Any, images: Path) -> Iterator[dict[str, Any]]:
    for record in records:
        name = Path(record["image"]["path"]).resolve().relative_to(images).as_posix()
        regions = [_region(region) for region in record["regions"]]
        yield {"image": name, "width": record["width"], "height": record["height"], "records": regions}


def _region(region: Mapping[str, Any]) -> dict[str, Any]:
    x0, y0, x1, y1 = region["box"]
    mask = region["mask"] if region["mask"] and region["mask"]["counts"] else None
    return {
        "segmentation": mask or [],
        "area": (x1 - x0) * (y1 - y0),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category": region["category"],
    }
