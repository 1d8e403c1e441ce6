"""Weak names: what NanoDet finds in photographs whose names nobody wrote, and what it sees of those that have names.

    python -m experiments.photographs.names --towers runs/photographs/towers --split runs/photographs/seed-0/data \
        --output runs/photographs/seed-0/names

Of 60 photographs the mixer doesn't learn to read what NanoDet says; it needs many regions that are called as NanoDet
calls them. Pictures are those of the train sides, and of aquarium_boxes. Each is looked at as a whole and in four
crops that overlap. Boxes with a score of at least 0.35 (0.45 in crops) are kept, but those that a crop cuts off, those
that a surer box of the same name covers, and those that overlap a true region of another name: the truth counts there.

SET.names.json is a COCO file of each set; its captions have the form of data.py's ("a dog"), and all of its names are
NanoDet's, none is true. counts.json says how many there are, and of those that overlap a true region of one of COCO's
names how many say it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel

from sca_hf.files import read_json, staged, to_json, write_whole
from sca_hf.processing.images_sca import as_image
from sca_hf.processing.mask_generation_sca import box_iou, box_nms

from .data import data_folder
from .words import SYNONYMS, caption_of, plain_name, says


NAMES = tuple(SYNONYMS)[:80]  # COCO's, in the order of its classes
# Set -> file of its pictures below the folder of the split (or else of all sets), and folder of its pictures.
SOURCES = {
    "coco_permissive": ("{split}/coco_permissive.train.json", "coco_permissive/images"),
    "coco_permissive_2": ("{split}/coco_permissive_2.train.json", "coco_permissive_2/images"),
    "taco_litter": ("{split}/taco_litter.train.json", "taco_litter/images"),
    "signs": ("{split}/signs.train.json", "road_signs_voc"),
    "aquarium": ("{data}/aquarium_boxes/instances.json", "aquarium_boxes/images"),
}
WHOLE, CROP = 0.35, 0.45
_SIDE, _BATCH = 416, 5
_CROPS = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.4, 0.4))  # left and top of crops of 0.6 of each side
_ZOOM, _SAME, _OVERLAP, _EDGE = 0.6, 0.55, 0.3, 0.01
_SMALLEST = 12.0  # pixels of the shorter side


@dataclass
class Detections:
    """Boxes (n, 4), xyxy in pixels of a picture, with the scores (n,) and numbers (n,) of their names."""

    boxes: torch.Tensor
    scores: torch.Tensor
    names: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> Detections:
        return Detections(self.boxes[rows], self.scores[rows], self.names[rows])


def load_detector(towers: Path) -> Any:
    """Returns towers that see pictures as they are given, not reduced."""
    model = AutoModel.from_pretrained(towers, dtype=torch.float32).eval()
    model.config.reduction = 1
    return model


@torch.inference_mode()
def detect(model: Any, image: Image.Image) -> Detections:
    """Returns what NanoDet finds in a picture and in its crops, each thing once."""
    width, height = image.size
    windows = [(0.0, 0.0, 1.0)] + [(left, top, _ZOOM) for left, top in _CROPS]
    sides = [(x * width, y * height, (x + s) * width, (y + s) * height) for x, y, s in windows]
    places = [tuple(map(round, place)) for place in sides]
    parts = []
    pixels, scales = zip(*(_pixels(image.crop(place), model.config) for place in places), strict=True)
    things = model(torch.stack(pixels), output_detections=True).detections
    boxes, scores = things[..., :4] * _SIDE, things[..., 4:]
    for index, place in enumerate(places):
        best, names = scores[index].max(-1)
        here = boxes[index] / scales[index]
        size = torch.tensor([place[2] - place[0], place[3] - place[1]] * 2, dtype=here.dtype)
        rows = best >= (CROP if index else WHOLE)
        if index:  # what the crop cuts off is not a whole thing
            margin = _EDGE * size
            inner = torch.tensor([place[0] > 0, place[1] > 0, place[2] < width, place[3] < height])
            distance = torch.cat([here[:, :2], size[2:] - here[:, 2:]], 1)
            rows &= ~((distance < margin) & inner).any(1)
        here = here.clamp(min=0).minimum(size) + torch.tensor([*place[:2]] * 2, dtype=here.dtype)
        parts.append(Detections(here, best, names)[rows])
    found = Detections(*(torch.cat([getattr(part, name) for part in parts]) for name in ("boxes", "scores", "names")))
    found = found[(found.boxes[:, 2:] - found.boxes[:, :2]).amin(1) >= _SMALLEST]
    # Boxes of different names never overlap where each name has a place of its own.
    apart = found.boxes + found.names[:, None] * 2.0 * max(width, height)
    return found[box_nms(apart, found.scores, _SAME)]


def _pixels(image: Image.Image, config: Any) -> tuple[torch.Tensor, float]:
    """A picture as a square (3, S, S), normalized and padded below and right, and how much smaller it is there."""
    scale = _SIDE / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    normalized = (pixels.permute(2, 0, 1) / 255 - mean) / std
    return F.pad(normalized, (0, _SIDE - size[0], 0, _SIDE - size[1])), scale


def without_others(found: Detections, true: Sequence[tuple[Sequence[float], str]]) -> tuple[Detections, Counter[str]]:
    """Leaves out what overlaps a true region of another name more than any of its own; counts it.

    true: box, xyxy, and name of each region.
    """
    counts: Counter[str] = Counter()
    if not true or not len(found.scores):
        return found, counts
    iou = box_iou(found.boxes, torch.tensor([list(box) for box, _ in true], dtype=found.boxes.dtype))
    kept = []
    for row, number in enumerate(found.names.tolist()):
        place = int(iou[row].argmax())
        if iou[row, place] < _OVERLAP:
            kept.append(row)
            continue
        own = says(caption_of(NAMES[number]), true[place][1])
        if true[place][1] in NAMES and iou[row, place] >= 0.5:
            counts["right" if own else "wrong"] += 1
        if own:
            kept.append(row)
        counts["left out"] += not own
    return found[torch.tensor(kept, dtype=torch.long)], counts


def name_set(model: Any, content: Mapping[str, Any], images: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a COCO file of what is found in the pictures of one, and counts."""
    names = {row["id"]: plain_name(row["name"]) for row in content["categories"]}
    true: dict[Any, list[tuple[list[float], str]]] = {row["id"]: [] for row in content["images"]}
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        true[row["image_id"]].append(([x, y, x + width, y + height], names[row["category_id"]]))
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    said: Counter[str] = Counter()
    for image in content["images"]:
        found, more = without_others(detect(model, as_image(images / image["file_name"])), true[image["id"]])
        counts += more
        for row in _rows(found, image["id"], len(rows) + 1):
            rows.append(row)
            said[NAMES[row["category_id"] - 1]] += 1
    pictures = len({row["image_id"] for row in rows})
    told = {"pictures": len(content["images"]), "with names": pictures, "regions": len(rows)}
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    info = {"description": "Names by NanoDet-g, not by people; boxes of photographs that others took."}
    file = {"info": info, "images": content["images"], "annotations": rows, "categories": categories}
    return file, {**told, **counts, "names": dict(said.most_common())}


def _rows(found: Detections, image: Any, first: int) -> Iterable[dict[str, Any]]:
    boxes = zip(found.boxes.tolist(), found.scores.tolist(), found.names.tolist(), strict=True)
    for number, (box, score, name) in enumerate(boxes, first):
        left, top, right, bottom = (round(side, 2) for side in box)
        bbox = [left, top, right - left, bottom - top]
        own = {"id": number, "image_id": image, "category_id": name + 1, "bbox": bbox, "area": bbox[2] * bbox[3]}
        yield {
            **own,
            "segmentation": [],
            "iscrowd": 0,
            "captions": [caption_of(NAMES[name])],
            "score": round(score, 3),
        }


def write_names(
    towers: Path, split: Path, output: Path, folder: Path, sets: Sequence[str] = tuple(SOURCES)
) -> dict[str, Any]:
    """Writes the files of this file's head in one piece; returns the counts."""
    model, counts = load_detector(towers), {}
    with staged(output) as part:
        for name in sets:
            file, images = SOURCES[name]
            content = read_json(Path(file.format(split=split, data=folder)), dict)
            named, counts[name] = name_set(model, content, folder / images)
            write_whole(part / f"{name}.names.json", to_json(named, None))
        write_whole(part / "counts.json", to_json(counts))
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", type=Path, required=True, help="folder of experiments.photographs.towers")
    parser.add_argument("--split", type=Path, required=True, help="folder of experiments.photographs.data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--sets", nargs="+", choices=SOURCES, default=list(SOURCES), help="(all)")
    options = parser.parse_args(arguments)
    counts = write_names(options.towers, options.split, options.output, data_folder(options.data), options.sets)
    for name, told in counts.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in told.items() if key != 'names')}")


if __name__ == "__main__":
    main()
