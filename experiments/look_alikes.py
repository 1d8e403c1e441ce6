"""Which one is meant? Captions as a listener hears them, on pictures of 12 to 20 objects that look alike.

    python -m experiments.look_alikes --model sca-tiny --output runs/look_alikes.json

Most objects of a picture share texture and either color or shape; no two are alike in all three. All are small, the
smallest that the model has learned or a little less. A caption picks out its region uniquely if what it says of color,
shape and texture holds for its object and for no other. Captions are true ones, the model's own (greedy), and those
that the listener chooses of beams and of samples.

Finding by words is measured on plain scenes, by a caption and by texture, color and shape alone: whether the best
region has the mask of the object (IoU of at least 0.5), and whether a text that is of nothing in the picture is
answered by nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sca_hf.captioning import load
from sca_hf.data import scenes
from sca_hf.data.scenes import Scene, SceneObject
from sca_hf.files import write_whole
from sca_hf.modeling.listener_sca import listener_scores
from sca_hf.processing.find_sca import FIND_THRESHOLD
from sca_hf.processing.masks_sca import decode_rle


CELL = 48  # pixels of the picture
SHARED = 0.9  # of the objects have the shared value of an attribute, unless there is one like it
ATTRIBUTES = ("color", "shape", "texture")
CANDIDATES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "rerank 4 beams": dict(num_beams=4, num_return_sequences=4, rerank="listener"),
    "rerank 8 beams": dict(num_beams=8, num_return_sequences=8, rerank="listener"),
    "rerank 8 samples": dict(do_sample=True, num_return_sequences=8, rerank="listener"),
}


def look_alikes(split: str, count: int) -> Iterator[Scene]:
    """Renders pictures of look-alikes; each is a function of split and number."""
    for index in range(count):
        yield _render(scenes.scene_seed(split, index) + 5_000_000)


def _render(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(12, 21))
    columns = int(np.ceil(np.sqrt(number)))
    side = CELL * columns
    background, mean = scenes._draw_background(rng)
    picture = Image.fromarray(np.clip(background, 0, 255).astype(np.uint8)).resize((side, side))
    image, labels = np.asarray(picture, np.float32).copy(), np.zeros((side, side), np.uint8)
    palette = [name for name, rgb in scenes.COLORS.items() if np.abs(np.subtract(rgb, mean)).sum() > 130]
    values = {"color": palette, "shape": scenes.SHAPES, "texture": scenes.TEXTURES}
    shared = ("texture", ("color", "shape")[rng.integers(2)])
    common = {name: values[name][rng.integers(len(values[name]))] for name in shared}
    objects: list[SceneObject] = []
    for cell in rng.permutation(columns**2)[:number]:
        obj = _draw_object(rng, values, common, objects)
        middle = (np.array([cell % columns, cell // columns]) + 0.5) * CELL
        shift = np.round(middle + rng.uniform(-1, 1, 2)).astype(int) - 96
        window, x, y = scenes._window(obj)
        distance = scenes._signed_distance(obj.shape, x, y, obj.radius * scenes._SHAPE_SCALE[obj.shape])
        place = tuple(
            slice(part.start + shift[axis], part.stop + shift[axis]) for axis, part in zip((1, 0), window, strict=True)
        )
        inside = [slice(max(0, -p.start), (p.stop - p.start) - max(0, p.stop - side)) for p in place]
        place = tuple(slice(max(0, p.start), min(side, p.stop)) for p in place)
        alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)[tuple(inside)]
        image[place] += alpha * (scenes._paint(rng, obj, x, y)[tuple(inside)] - image[place])
        labels[place][distance[tuple(inside)] < 0] = len(objects) + 1
        objects.append(obj)
    for index, obj in enumerate(objects):
        obj.box, obj.point = scenes._locate(labels == index + 1)
        obj.captions = scenes.describe(obj, np.random.default_rng((seed, index)))
    return Scene(seed, np.clip(image + 0.5, 0, 255).astype(np.uint8), labels, objects)


def _draw_object(
    rng: np.random.Generator, values: dict[str, Any], common: dict[str, str], others: list[SceneObject]
) -> SceneObject:
    """Draws the attributes of an object that is not like any other in all of them."""
    while True:
        said = {name: some[rng.integers(len(some))] for name, some in values.items()}
        said |= {name: value for name, value in common.items() if rng.random() < SHARED}
        tilt = float(rng.uniform(-scenes._MAX_TILT, scenes._MAX_TILT))
        radius = float(rng.uniform(21, 23))
        obj = SceneObject(**said, size="small", center=(96.0, 96.0), radius=radius, tilt=tilt)
        if all(any(getattr(obj, name) != getattr(other, name) for name in ATTRIBUTES) for other in others):
            return obj


def holds_for(caption: str, objects: list[SceneObject]) -> list[int]:
    """The objects that everything that a caption says of color, shape and texture holds for; it must name a shape."""
    said = scenes.read_caption(caption)
    if said["shape"] is None:
        return []
    wanted = {name: said[name] for name in ATTRIBUTES if said[name] is not None}
    return [k for k, obj in enumerate(objects) if all(getattr(obj, name) == value for name, value in wanted.items())]


@torch.inference_mode()
def measure_captions(
    model: Any, processor: Any, pictures: list[Scene], candidates: dict[str, dict[str, Any]] = CANDIDATES
) -> dict[str, dict[str, float]]:
    """Fractions of regions by kind of captions."""
    found: dict[str, list[tuple[bool, bool, bool]]] = {}
    for scene in pictures:
        inputs = processor(scene.to_pil(), input_boxes=[[list(obj.box) for obj in scene.objects]])
        said = {"true": [obj.captions[0] for obj in scene.objects]}
        for name, options in candidates.items():
            torch.manual_seed(scene.seed % 2**31)
            said[name] = processor.batch_decode(model.generate(**inputs, output_masks=False, **options))[0]
        texts = [text for captions in said.values() for text in captions]
        heard = model.score_captions(**inputs, **processor.caption_inputs([texts]))
        meant = listener_scores(heard.log_likelihoods, heard.region_mask)[0].argmax(0)
        for kind, captions, guesses in zip(said, said.values(), meant.split(len(scene.objects)), strict=True):
            for k, (caption, guess) in enumerate(zip(captions, guesses.tolist(), strict=True)):
                fits = holds_for(caption, scene.objects)
                found.setdefault(kind, []).append((guess == k, fits == [k], k in fits))
    names = ("listener finds its region", "unique", "attributes right")
    return {
        kind: dict(zip(names, np.mean(rows, axis=0).round(4).tolist(), strict=True)) | {"regions": len(rows)}
        for kind, rows in found.items()
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((a & b).sum() / max((a | b).sum(), 1))


def absent(rng: np.random.Generator, scene: Scene, like: SceneObject) -> SceneObject:
    """Something that could stand where `like` does, with a color, shape and texture that nothing in the scene has."""
    while True:
        obj = SceneObject(
            color=list(scenes.COLORS)[rng.integers(len(scenes.COLORS))],
            shape=scenes.SHAPES[rng.integers(len(scenes.SHAPES))],
            texture=scenes.TEXTURES[rng.integers(len(scenes.TEXTURES))],
            size=like.size,
            center=like.center,
            radius=like.radius,
            tilt=like.tilt,
            relation=like.relation,
            reference=like.reference,
        )
        if all(obj.category != other.category for other in scene.objects):
            obj.captions = scenes.describe(obj, rng)
            return obj


def measure_finding(
    model: Any, processor: Any, pictures: list[Scene], threshold: float
) -> dict[str, dict[str, float]]:
    """Accuracy of the best region's mask, and precision and recall of "there is none", by kind of text."""
    found: dict[str, list[tuple[bool, bool, bool]]] = {}
    for scene in pictures:
        rng = np.random.default_rng(scene.seed)
        k = int(rng.integers(len(scene.objects)))
        there, nothing = scene.objects[k], absent(rng, scene, scene.objects[k])
        for obj in (there, nothing):
            for kind, text in (("caption", obj.captions[0]), ("category", f"the {obj.category}")):
                ranked = processor.find(model, scene.to_pil(), text, threshold=-math.inf)
                mask = decode_rle(ranked[0]["segmentation"]) if ranked else np.zeros_like(scene.mask(k))
                none = not ranked or ranked[0]["match"] < threshold
                found.setdefault(kind, []).append((obj is there, none, iou(mask, scene.mask(k)) >= 0.5))
    results = {}
    for kind, rows in found.items():
        meant, none, right = np.array(rows).T
        results[kind] = {
            "mask right": float(right[meant].mean()),
            "mask right and not refused": float((right & ~none)[meant].mean()),
            "none: precision": float((none & ~meant).sum() / max(none.sum(), 1)),
            "none: recall": float(none[~meant].mean()),
            "texts": len(rows),
        }
    return results


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, repository id or sca-tiny (default)")
    parser.add_argument("--split", default="test", choices=list(scenes.SPLIT_STARTS))
    parser.add_argument("--pictures", type=int, default=20, help="of look-alikes (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=60, help="to find by words in (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.json")
    options = parser.parse_args()
    model, processor = load(options.model)
    found = {
        "captions": measure_captions(model, processor, list(look_alikes(options.split, options.pictures))),
        "finding": measure_finding(
            model, processor, list(scenes.scenes(options.split, options.scenes)), FIND_THRESHOLD
        ),
    }
    for name, rows in found.items():
        for kind, figures in rows.items():
            print(f"{name}, {kind}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()))
    write_whole(options.output, json.dumps(found, indent=2).encode())


if __name__ == "__main__":
    main()
