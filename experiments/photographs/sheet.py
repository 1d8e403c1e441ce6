"""Draws what a model makes of photographs that were kept for testing: to look at, the failures included.

    python -m experiments.photographs.sheet --model MODEL --output docs/images/photographs.jpg

Which photographs and regions are drawn depends on their names alone, before any model has seen them: photographs in
the order of a hash, those with a medium or large region, of each up to --regions of these. Below each stand the
caption, green where it says the category and red where not, the truth, and the IoU of the mask.

    python -m experiments.photographs.sheet --listed 60 --output regions.jpg

draws that many regions, one of a picture, boxes alone, and writes a list beside the picture: for a person to judge
captions of, not knowing whose they are. --model then adds each caption to the list, which the picture does not show.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sca_hf.captioning import with_doubt
from sca_hf.data.region import record_image
from sca_hf.drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from sca_hf.files import save_picture, to_json, write_whole
from sca_hf.processing.masks_sca import decode_rle

from ..sca_tiny.scenes_report import mask_iou
from . import data
from .measure import deepest_point, read_pictures, size_of
from .words import says


_RIGHT, _WRONG, _PLAIN = (16, 120, 50), (190, 30, 40), (60, 62, 68)


def chosen(records: Sequence[Any], pictures: int, regions: int) -> list[tuple[Any, list[Any]]]:
    """Returns the first pictures in the order of a hash, each with medium and large regions, as many at most."""
    found = []
    for record in sorted(records, key=lambda record: _order(record["picture"])):
        big = [region for region in record["regions"] if size_of(decode_rle(dict(region["mask"])).sum()) != "small"]
        big.sort(key=lambda region: _order(f"{record['picture']} {region['region_id']}"))
        if big and len(found) < pictures:
            found.append((record, big[:regions]))
    return found


def _order(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@torch.inference_mode()
def described(model: Any, processor: Any, image: Image.Image, regions: Sequence[Any], kind: str) -> list[Any]:
    """Returns a record of every region, prompted by its box or by its deepest point."""
    if kind == "box":
        prompts = {"input_boxes": [[region["box"] for region in regions]]}
    else:
        prompts = {"input_points": [[[deepest_point(decode_rle(dict(region["mask"])))] for region in regions]]}
    inputs = processor(image, return_tensors="pt", **prompts)
    outputs = model.generate(**inputs.to(model.device, model.dtype))
    return processor.post_process_regions(outputs, inputs["original_sizes"], inputs["reshaped_input_sizes"])[0]


def model_tiles(model: Any, processor: Any, picked: Sequence[Any], kind: str) -> list[SheetTile]:
    """Returns a tile for every region: its mask, what the model says, what is true."""
    tiles = []
    for record, regions in picked:
        image = record_image(record)
        found = described(model, processor, image, regions, kind)
        for region, one in zip(regions, found, strict=True):
            true = decode_rle(dict(region["mask"]))
            prompt = {"box": list(region["box"])} if kind == "box" else {"points": [deepest_point(true)]}
            tile = cut_region(image, DrawnRegion(mask=np.asarray(one["mask"]), **prompt))
            color = _RIGHT if says(one["caption"], region["category"]) else _WRONG
            said = with_doubt(one["caption"], one["confidence"])
            iou = mask_iou(np.asarray(one["mask"]), true)
            truth = f"true: {region['category']}; mask IoU {iou:.2f}"
            tiles.append(SheetTile(tile, [(said, color), (truth, _PLAIN)], record["picture"]))
    return tiles


def listed(picked: Sequence[Any], model: Any = None, processor: Any = None) -> tuple[list[SheetTile], list[Any]]:
    """Returns tiles of numbered regions with their boxes alone, and the list of them, with captions of a model."""
    tiles, rows = [], []
    for number, (record, (region, *_)) in enumerate(picked, 1):
        image = record_image(record)
        tile = cut_region(image, DrawnRegion(box=list(region["box"])))
        tiles.append(SheetTile(tile, [(f"{number}", _PLAIN)], record["picture"]))
        row = {"number": number, "picture": record["picture"], "region": region["region_id"], "box": region["box"]}
        if model is not None:
            said = described(model, processor, image, [region], "box")[0]
            row["caption"] = with_doubt(said["caption"], said["confidence"])
        rows.append(row)
    return tiles, rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    from sca_hf.captioning import load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, repository id or sca-tiny; needed without --listed")
    parser.add_argument("--output", type=Path, required=True, help="picture, .png or .jpg")
    parser.add_argument("--seed", type=int, default=0, help="of the split (%(default)s)")
    parser.add_argument("--split", choices=data.SIDES, default="test", help="side to draw (%(default)s)")
    parser.add_argument("--photographs", type=int, default=10, help="number of photographs (%(default)s)")
    parser.add_argument("--regions", type=int, default=2, help="of each photograph at most (%(default)s)")
    parser.add_argument("--prompt", choices=("box", "point"), default="box", help="(%(default)s)")
    parser.add_argument("--listed", type=int, help="number of regions to draw without a model's words")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    options = parser.parse_args(arguments)
    if options.model is None and options.listed is None:
        parser.error("--model is needed, except with --listed")
    folder = data.data_folder(options.data)
    records = read_pictures(folder, options.seed, options.split)
    loaded = (None, None) if options.model is None else load(options.model)
    if options.listed is not None:
        tiles, rows = listed(chosen(records, options.listed, 1), *loaded)
        write_whole(options.output.with_suffix(".json"), to_json(rows))
        title = f"{len(tiles)} regions of photographs kept for testing"
    else:
        tiles = model_tiles(*loaded, chosen(records, options.photographs, options.regions), options.prompt)
        title = f"{Path(options.model).name} on photographs kept for testing, from a {options.prompt}"
    save_picture(draw_sheet(tiles, title, columns=5), options.output)


if __name__ == "__main__":
    main()
