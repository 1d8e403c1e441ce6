"""Measures a model on photographs with true masks, picture by picture, into a file that a killed run resumes from."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import torch

from sca_hf.data.prompts import PromptSource, draw_prompt
from sca_hf.data.readers.coco import read_coco
from sca_hf.data.region import RegionRecordError, record_image
from sca_hf.data.scenes import interior_distance
from sca_hf.files import to_json, write_whole
from sca_hf.processing.masks_sca import decode_rle
from sca_hf.run_identity import model_identity

from ..sca_tiny.scenes_report import mask_iou
from .data import SETS, coco_file, divided


JITTER = 0.1
MATCH_IOU = 0.5
# COCO's, in pixels of area.
_MEDIUM, _LARGE = 32**2, 96**2


def size_of(area: float) -> str:
    """Returns COCO's name of a size: "small", "medium" or "large"."""
    return "small" if area < _MEDIUM else "medium" if area < _LARGE else "large"


def read_pictures(folder: Path, seed: int, side: str, sets: Sequence[str] = SETS) -> list[dict[str, Any]]:
    """Returns region records of one side of a split, as the product reads them; `picture` names each.

    Args:
        folder: of the sets.
        seed: of the split.
        side: of `SIDES`, or "all" for every side.
        sets: of `SETS`.
    """
    found = []
    pictures = divided(folder, seed)
    with TemporaryDirectory() as draft:
        for name in sets:
            part = [one for one in pictures if one.of == name and side in (one.side, "all") and one.annotations]
            annotations = Path(draft) / f"{name}.json"
            write_whole(annotations, to_json(coco_file(part), None))
            for record in read_coco(annotations, folder / name / "images"):
                if isinstance(record, RegionRecordError):
                    raise record
                if record["regions"]:
                    found.append({**record, "of": name, "picture": f"{name}/{Path(record['image']).name}"})
    return found


def deepest_point(mask: np.ndarray) -> list[float]:
    """Returns x, y of the center of the pixel that lies farthest from whatever is not the mask (H, W)."""
    y, x = np.unravel_index(int(interior_distance(mask).argmax()), mask.shape)
    return [float(x) + 0.5, float(y) + 0.5]


def touched_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels (H, W) of which a box, xyxy, holds any part; size: (H, W)."""
    return filled_box([*np.floor(box[:2]), *np.ceil(box[2:])], size)


def filled_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels (H, W) whose centers a box, xyxy, holds; size: (H, W)."""
    y, x = np.ogrid[: size[0], : size[1]]
    return (x + 0.5 > box[0]) & (x + 0.5 < box[2]) & (y + 0.5 > box[1]) & (y + 0.5 < box[3])


def inscribed_ellipse(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels (H, W) whose centers the ellipse within a box, xyxy, holds; size: (H, W)."""
    y, x = np.ogrid[: size[0], : size[1]]
    u = (x + 0.5 - (box[0] + box[2]) / 2) / (box[2] - box[0])
    v = (y + 0.5 - (box[1] + box[3]) / 2) / (box[3] - box[1])
    return u**2 + v**2 < 0.25


# What needs no model.
SHAPES = {"touched": touched_box, "filled": filled_box, "ellipse": inscribed_ellipse}


class Measurement:
    """A model on pictures; results are appended to a file of its own, a line per picture.

    Args:
        source: folder or repository id of the model, or `sca-tiny`.
        output: folder of the file. Its name has a digest of the model's files and of `generation`.
        generation: further arguments of `generate`.
        anything: measure anything mode too.
        fresh: forget former results; needed where the code changed and the model's files did not.
    """

    def __init__(
        self, source: str, output: Path, generation: Mapping[str, Any], anything: bool = True, fresh: bool = False
    ) -> None:
        from sca_hf.captioning import load

        self.source, self.generation, self.anything = source, dict(generation), anything
        identity = (
            f"{model_identity(source)} {sorted(self.generation.items())} {'anything' if anything else 'regions'}"
        )
        name = f"{Path(source).name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.jsonl"
        output.mkdir(parents=True, exist_ok=True)
        self.file = output / name
        self.done = {} if fresh else read_results(self.file)
        # Whole lines alone: a line that a kill cut short would spoil the one after it.
        write_whole(self.file, "".join(json.dumps(result) + "\n" for result in self.done.values()))
        self.model, self.processor = load(source)

    def run(self, records: Iterable[Mapping[str, Any]], label: str = "") -> None:
        """Measures the pictures that are not measured yet and prints how far it is."""
        missing = [record for record in records if record["picture"] not in self.done]
        begun = time.monotonic()
        for number, record in enumerate(missing, 1):
            result = self.picture(record)
            self.done[record["picture"]] = result
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            left = (time.monotonic() - begun) / number * (len(missing) - number)
            if number % 10 == 0 or number == len(missing):
                print(f"{label or self.file.stem}: {number} of {len(missing)} pictures, {left:.0f} s left", flush=True)

    @torch.inference_mode()
    def picture(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the results of one picture: of every region, and of anything mode."""
        image, size = record_image(record), (record["width"], record["height"])
        masks = [decode_rle(dict(region["mask"])) for region in record["regions"]]
        boxes = [list(region["box"]) for region in record["regions"]]
        points = [[deepest_point(mask)] for mask in masks]
        jittered = [_jittered(region, size, record["picture"]) for region in record["regions"]]
        count, begun = len(boxes), time.process_time()
        # All of one call: regions do not depend on each other.
        inputs = self.processor(
            image,
            input_boxes=[[*boxes, *jittered, *[None] * count]],
            input_points=[[*[None] * (2 * count), *points]],
            return_tensors="pt",
        )
        outputs = self.model.generate(**inputs.to(self.model.device, self.model.dtype), **self.generation)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        found = self.processor.post_process_regions(outputs, *sizes)[0]
        result = {"picture": record["picture"], "of": record["of"], "cpu": time.process_time() - begun}
        result["regions"] = [
            _region(region, mask, dict(zip(("box", "jittered", "point"), found[k::count], strict=True)))
            for k, (region, mask) in enumerate(zip(record["regions"], masks, strict=True))
        ]
        if self.anything:
            result["anything"] = self._everything(image, result["regions"], masks)
        return result

    def _everything(
        self, image: Any, regions: Sequence[Mapping[str, Any]], masks: Sequence[np.ndarray]
    ) -> dict[str, Any]:
        begun = time.process_time()
        records = self.processor.caption_anything(self.model, image, **self.generation)
        seconds = time.process_time() - begun
        matched = match(overlaps([decode_rle(record["segmentation"]) for record in records], masks))
        seen = {regions[place]["id"]: records[index]["caption"] for index, place in matched}
        return {"found": len(records), "matched": seen, "cpu": seconds}

    @torch.inference_mode()
    def cost(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Returns CPU seconds of a picture and of a further region in it, and bytes on disk."""
        one = several = regions = 0.0
        for record in records:
            boxes, image = [region["box"] for region in record["regions"]], record_image(record)
            one += self._seconds(image, boxes[:1])
            several += self._seconds(image, boxes)
            regions += len(boxes) - 1
        region = (several - one) / max(regions, 1)
        files = [path for path in model_files(self.source) if path.is_file()]
        weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
        whole = sum(path.stat().st_size for path in files)
        return {"picture": one / len(records) - region, "region": region, "weights": weights, "whole": whole}

    def _seconds(self, image: Any, boxes: Sequence[Any]) -> float:
        begun = time.process_time()
        inputs = self.processor(image, input_boxes=[boxes], return_tensors="pt")
        outputs = self.model.generate(**inputs.to(self.model.device, self.model.dtype), **self.generation)
        self.processor.post_process_regions(outputs, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        return time.process_time() - begun


def model_files(source: str) -> list[Path]:
    """Returns the files of a model's folder; of a repository none."""
    from sca_hf.model_names import resolve_model

    folder = Path(resolve_model(source))
    return [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] if folder.is_dir() else []


def _jittered(region: Mapping[str, Any], size: tuple[int, int], picture: str) -> list[float]:
    rng = np.random.default_rng(crc32(f"{picture} {region['region_id']}".encode()))
    return draw_prompt("jittered_box", PromptSource(region, size, picture), rng, JITTER)["input_boxes"]


def _region(region: Mapping[str, Any], mask: np.ndarray, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    area = int(mask.sum())
    iou = {kind: mask_iou(np.asarray(one["mask"]), mask) for kind, one in found.items()}
    for name, shape in SHAPES.items():
        iou[name] = mask_iou(shape(region["box"], mask.shape), mask)
    said = {kind: _first(found[kind]["caption"]) for kind in ("box", "point")}
    confidence = {kind: found[kind]["confidence"] for kind in ("box", "point")}
    own = {"id": region["region_id"], "category": region["category"], "area": area, "size": size_of(area)}
    return {**own, "iou": iou, "caption": said, "confidence": confidence}


def _first(caption: str | list[str]) -> str:
    return caption if isinstance(caption, str) else caption[0]


def overlaps(found: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the IoU (found, true) of masks of one size."""
    if not found or not true:
        return np.zeros((len(found), len(true)))
    a, b = (np.stack([mask.ravel() for mask in masks]).astype(np.float32) for masks in (found, true))
    both = a @ b.T
    return both / np.maximum(a.sum(1)[:, None] + b.sum(1) - both, 1)


def match(iou: np.ndarray) -> list[tuple[int, int]]:
    """Pairs found regions with true objects, best IoU first, each once, IoU at least 0.5."""
    pairs = sorted(((iou[i, k], -i, -k) for i, k in np.argwhere(iou >= MATCH_IOU)), reverse=True)
    left: tuple[set[int], set[int]] = (set(), set())
    matched = []
    for _, i, k in pairs:
        if -i not in left[0] and -k not in left[1]:
            left[0].add(-i)
            left[1].add(-k)
            matched.append((int(-i), int(-k)))
    return matched


def read_results(file: Path) -> dict[str, dict[str, Any]]:
    """Returns the results by picture; a last line that a kill cut short is dropped."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        found[result["picture"]] = result
    return found
