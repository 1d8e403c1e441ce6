"""How to make one caption of many frames: ways of choosing or averaging, on a moving version of `scenes`.

    python -m experiments.video_pooling --seeds 0 1 2 --page docs/experiments.md

Objects move and turn, a bar passes in front of them, and each frame is blurred and noisy in its own measure. Masks of
the objects are given; the model is sca-tiny, which has never seen a clip. A caption counts for an attribute that the
scene states of the object (size is left out: it changes at the border).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from experiments.pages import command_line, seed_table, show
from sca_hf.captioning import load
from sca_hf.data import scenes as drawn
from sca_hf.processing.masks_sca import mask_extent


FRAMES, OBJECTS_FROM = 6, 20  # pixels that must be seen of an object
ATTRIBUTES = ("color", "shape", "texture", "relation")
MARKS = ("<!-- video pooling -->", "<!-- end of video pooling -->")


def moving_scene(scene: drawn.Scene) -> list[tuple[Image.Image, np.ndarray]]:
    """Draws a scene as a clip: per frame its picture and its labels (H, W), 0 for background and bar."""
    rng = np.random.default_rng((scene.seed, 7))
    ground, _ = drawn._draw_background(np.random.default_rng(scene.seed))
    speeds = rng.uniform(-4, 4, (len(scene.objects), 2))
    turns = np.deg2rad(rng.uniform(-4, 4, len(scene.objects)))
    bar, width, step = rng.uniform(-60, drawn.IMAGE_SIZE), int(rng.uniform(50, 80)), rng.choice([-24, 24])
    clip = []
    for frame in range(FRAMES):
        image, labels = ground.copy(), np.zeros(ground.shape[:2], np.uint8)
        for index, obj in enumerate(scene.objects):
            center = np.add(obj.center, speeds[index] * frame)
            moved = replace(obj, center=(float(center[0]), float(center[1])), tilt=obj.tilt + turns[index] * frame)
            window, x, y = drawn._window(moved)
            distance = drawn._signed_distance(obj.shape, x, y, obj.radius * drawn._SHAPE_SCALE[obj.shape])
            alpha = np.clip(0.5 - distance, 0, 1)[..., None].astype(np.float32)
            # An object keeps its colors and its texture: the same numbers are drawn in every frame.
            surface = drawn._paint(np.random.default_rng((scene.seed, index, 1)), obj, x, y)
            image[window] += alpha * (surface - image[window])
            labels[window][distance < 0] = index + 1
        left = int(bar + step * frame)
        image[:, max(0, left) : max(0, left + width)] = 120
        labels[:, max(0, left) : max(0, left + width)] = 0
        noise = rng.normal(0, rng.uniform(0, 30), image.shape)
        picture = Image.fromarray(np.clip(image + noise + 0.5, 0, 255).astype(np.uint8))
        clip.append((picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))), labels))
    return clip


def queries_of(model: Any, processor: Any, image: Image.Image, boxes: Sequence[Sequence[float]]) -> torch.Tensor:
    """Caption queries (N, A, Q, C) of regions of one picture."""
    inputs = processor(image, input_boxes=[[list(box) for box in boxes]])
    return model.region_queries(**{k: v for k, v in inputs.items() if "sizes" not in k})


def by_area(queries: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """The average weighted by visible area, as `caption_video` makes it."""
    return (queries * (areas / areas.sum()).view(-1, 1, 1, 1)).sum(0)


POOLINGS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "first frame": lambda queries, areas, scores: queries[0],
    "frame seen most": lambda queries, areas, scores: queries[areas.argmax()],
    "best caption score": lambda queries, areas, scores: queries[scores.argmax()],
    "mean of queries": lambda queries, areas, scores: queries.mean(0),
    "mean by visible area": lambda queries, areas, scores: by_area(queries, areas),
}


def score(said: str, obj: drawn.SceneObject) -> dict[str, bool]:
    """Whether each attribute that the scene states of an object is right in a caption."""
    read, truth = drawn.read_caption(said), drawn.read_caption(obj.captions[0])
    return {name: read[name] == truth[name] for name in ATTRIBUTES if truth[name] is not None}


def run_seed(model: Any, processor: Any, seed: int, count: int) -> tuple[dict[str, dict[str, float]], int]:
    """Scores of every way on `count` test scenes, and the number of objects."""
    right: dict[str, dict[str, list[bool]]] = {
        name: {a: [] for a in ATTRIBUTES} for name in ("clean still", *POOLINGS)
    }
    objects = 0
    for scene in tqdm(drawn.scenes("test", count, 50_000 + seed * count), f"seed {seed}", count, disable=None):
        seen: dict[int, list[tuple[torch.Tensor, float]]] = {}
        for picture, labels in moving_scene(scene):
            masks = {k: labels == k + 1 for k, obj in enumerate(scene.objects) if obj.describable}
            masks = {k: mask for k, mask in masks.items() if mask.sum() >= OBJECTS_FROM}
            if masks:
                found = queries_of(model, processor, picture, [mask_extent(mask) for mask in masks.values()])
                for (k, mask), one in zip(masks.items(), found, strict=True):
                    seen.setdefault(k, []).append((one, float(mask.sum())))
        for k, frames in seen.items():
            obj, objects = scene.objects[k], objects + 1
            queries, areas = torch.stack([one for one, _ in frames]), torch.tensor([area for _, area in frames])
            scores = model.caption_queries(queries)["caption_scores"][:, 0]
            still = queries_of(model, processor, scene.to_pil(), [list(obj.box)])
            pooled = [still[0], *(choose(queries, areas, scores) for choose in POOLINGS.values())]
            texts = processor.batch_decode(model.caption_queries(torch.stack(pooled))["sequences"])
            for name, text in zip(right, texts, strict=True):
                for attribute, is_right in score(text[0] if isinstance(text, list) else text, obj).items():
                    right[name][attribute].append(is_right)
    return {name: {a: float(np.mean(values)) for a, values in row.items()} for name, row in right.items()}, objects


def table(results: Sequence[dict[str, dict[str, float]]]) -> str:
    """Means and standard deviations over seeds, as Markdown."""
    rows = {name: [[one[name][a] for a in ATTRIBUTES] for one in results] for name in results[0]}
    return seed_table(ATTRIBUTES, rows)


def main() -> None:
    parser = command_line(__doc__, output=False)
    parser.add_argument("--model", default="sca-tiny")
    parser.add_argument("--scenes", type=int, default=60, help="of each seed (default: %(default)s)")
    options = parser.parse_args()
    model, processor = load(options.model)
    results, objects = zip(*(run_seed(model, processor, seed, options.scenes) for seed in options.seeds), strict=True)
    text = f"{table(results)}\n\n{sum(objects)} objects in {options.scenes * len(results)} clips of {FRAMES} frames."
    show(text, options.page, MARKS)


if __name__ == "__main__":
    main()
