"""Rendered scenes kept on disk as arrays, so that training does not draw a picture twice."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sca_hf.data.scenes import COLORS, IMAGE_SIZE, RELATIONS, SHAPES, SIZES, TEXTURES, render_scene, scene_seed


MAX_OBJECTS = 5
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "texture": TEXTURES,
    "size": SIZES,
    "relation": ("none", *RELATIONS),
}
_CHUNK = 250


@dataclass
class SceneArrays:
    """The scenes of one split, memory-mapped. n scenes, up to M objects each.

    pixels: (n, S, S, 3) uint8, resized as `SamImageProcessor` does it; labels: (n, H, W) uint8, 0 for background;
    boxes: (n, M, 4) float32 and points: (n, M, 2) float32, pixels of the original image, zero beyond the last object;
    attributes: (n, M, 5) int64 indices into `ATTRIBUTES`, -100 where there is no object or nothing is decidable;
    texts: per scene the JSON of a list with `captions`, `category` and `describable` of each object.
    """

    pixels: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    attributes: np.ndarray
    texts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.pixels)


def load_scene_arrays(folder: Path, split: str, count: int, input_size: int, workers: int = 2) -> SceneArrays:
    """Opens the first `count` scenes of a split below `folder`, rendering them first where they are not there."""
    names = [name for name in SceneArrays.__dataclass_fields__ if name != "texts"]
    target = _complete_folder(Path(folder), split, count, input_size)
    if target is None:
        target = Path(folder) / f"{split}-{count}-{input_size}"
        target.mkdir(parents=True, exist_ok=True)
        starts = range(0, count, _CHUNK)
        jobs = [(split, start, min(_CHUNK, count - start), input_size) for start in starts]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(_render_chunk, jobs))
        *arrays, texts = zip(*parts, strict=True)
        for name, chunks in zip(names, arrays, strict=True):
            np.save(target / f"{name}.npy", np.concatenate(chunks))
        (target / "texts.jsonl").write_text("".join(f"{line}\n" for chunk in texts for line in chunk))
        (target / "complete").touch()
    opened: dict[str, Any] = {name: np.load(target / f"{name}.npy", mmap_mode="r")[:count] for name in names}
    return SceneArrays(**opened, texts=(target / "texts.jsonl").read_text().splitlines()[:count])


def _complete_folder(folder: Path, split: str, count: int, input_size: int) -> Path | None:
    """Returns a folder that holds at least `count` scenes: fewer scenes are the first of more."""
    for path in sorted(folder.glob(f"{split}-*-{input_size}/complete")):
        if int(path.parent.name.split("-")[1]) >= count:
            return path.parent
    return None


def _render_chunk(job: tuple[str, int, int, int]) -> tuple[Any, ...]:
    split, start, count, input_size = job
    pixels = np.zeros((count, input_size, input_size, 3), np.uint8)
    labels = np.zeros((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    boxes = np.zeros((count, MAX_OBJECTS, 4), np.float32)
    points = np.zeros((count, MAX_OBJECTS, 2), np.float32)
    attributes = np.full((count, MAX_OBJECTS, len(ATTRIBUTES)), -100, np.int64)
    texts = []
    for row in range(count):
        scene = render_scene(scene_seed(split, start + row))
        # The same resize as SamImageProcessor's, so that training sees what inference will.
        pixels[row] = np.asarray(scene.to_pil().resize((input_size, input_size), Image.Resampling.BILINEAR))
        labels[row] = scene.labels
        for index, obj in enumerate(scene.objects):
            boxes[row, index], points[row, index] = obj.box, obj.point
            values = (obj.color, obj.shape, obj.texture, obj.size, obj.relation or "none")
            for column, (value, options) in enumerate(zip(values, ATTRIBUTES.values(), strict=True)):
                attributes[row, index, column] = options.index(value)
            if not obj.describable:
                attributes[row, index, -1] = -100
        keys = ("captions", "category", "describable")
        texts.append(json.dumps([{key: getattr(obj, key) for key in keys} for obj in scene.objects]))
    return pixels, labels, boxes, points, attributes, texts
