"""Draws the prompts on which the tiny SAM learns: boxes, points, masks and mixtures, from scenes with exact masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sca_hf.data.prompts import PromptSource, draw_prompt
from sca_hf.processing.masks_sca import mask_coverage
from sca_hf.processing.prompts_sca import build_prompts

from .scene_cache import ATTRIBUTES, MAX_OBJECTS, SceneArrays


IMAGE_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGE_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
# Kinds of `draw_prompt` that a region is shown by at once, and how often.
_PROMPTS = {
    ("jittered_box",): 0.38,
    ("mask",): 0.07,
    ("jittered_box", "mask"): 0.025,
    ("jittered_box", "point"): 0.025,
    ("mask_center_point",): 0.175,
    ("point",): 0.175,
    ("points",): 0.15,
}
_RELATION_COLUMN = list(ATTRIBUTES).index("relation")
_MIRRORED = np.array([0, 2, 1, 3, 4])  # none, right, left, above, below


@dataclass
class PromptCollator:
    """Turns scene indices into one batch: pictures, and groups of prompted regions with what is true of them.

    A group holds what `build_prompts` returns, `coverage` (B, R, 4h, 4w) in 0..1 and `attributes` (B, R, 5). With
    `training=False` the prompts are the exact box, in a second group the deepest point, of every object; nothing is
    mirrored, and `full_masks` (B, R, H, W) come along.
    """

    scenes: SceneArrays
    mask_side: int
    regions_per_image: int = 8
    box_jitter: float = 0.04
    training: bool = True

    def __call__(self, indices: list[int]) -> dict[str, Any]:
        # Seeded from torch's generator, so that the Trainer's seed settles what is drawn.
        rng = np.random.default_rng(int(torch.randint(2**31, ())) if self.training else 0)
        views = [_View.of(self.scenes, index, self.training and rng.random() < 0.5) for index in indices]
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).permute(0, 3, 1, 2)
        pixel_values = (pixels / 255 - IMAGE_MEAN) / IMAGE_STD
        if self.training:
            chosen = [_choose(len(view.boxes), self.regions_per_image, rng) for view in views]
            drawn = [[self._draw(view, k, rng) for k in row] for view, row in zip(views, chosen, strict=True)]
            groups = [self._group(views, chosen, drawn)]
        else:
            groups = [self._exact(views, kind) for kind in ("box", "point")]
        return {"pixel_values": pixel_values, "scene_index": torch.tensor(indices), "groups": groups}

    def _draw(self, view: _View, k: int, rng: np.random.Generator) -> dict[str, Any]:
        """Returns the prompt of one region as arguments of the processor."""
        kinds = list(_PROMPTS)[rng.choice(len(_PROMPTS), p=list(_PROMPTS.values()))]
        height, width = view.labels.shape
        source = PromptSource({"box": view.boxes[k], "mask": view.labels == k + 1}, (width, height), "scene")
        prompt: dict[str, Any] = {}
        for kind in kinds:
            prompt |= draw_prompt(kind, source, rng, self.box_jitter, outside_points=2)
        if "input_masks" in prompt and rng.random() < 0.5:  # a user's mask is seldom exact
            step = height // self.mask_side
            prompt["input_masks"] = np.roll(prompt["input_masks"], step * rng.integers(-1, 2, 2), (0, 1))
        return prompt

    def _exact(self, views: list[_View], kind: str) -> dict[str, torch.Tensor]:
        chosen = [[min(k, len(view.boxes) - 1) for k in range(MAX_OBJECTS)] for view in views]
        prompts: list[list[dict[str, Any]]] = [[] for _ in views]
        for view, row, shown in zip(views, chosen, prompts, strict=True):
            for k in row:
                box, point = {"input_boxes": view.boxes[k].tolist()}, {"input_points": [view.points[k].tolist()]}
                shown.append(box if kind == "box" else point)
        group = self._group(views, chosen, prompts)
        masks = [[view.labels == k + 1 for k in row] for view, row in zip(views, chosen, strict=True)]
        group["full_masks"] = torch.from_numpy(np.array(masks))
        repeated = [[k >= len(view.boxes) for k in range(MAX_OBJECTS)] for view in views]
        group["attributes"][torch.tensor(repeated)] = -100
        return group

    def _group(
        self, views: list[_View], chosen: list[Any], prompts: list[list[dict[str, Any]]]
    ) -> dict[str, torch.Tensor]:
        side, size = self.scenes.pixels.shape[1], views[0].labels.shape
        names = ("input_points", "input_labels", "input_boxes", "input_masks")
        nested = {name: [[prompt.get(name) for prompt in row] for row in prompts] for name in names}
        given = {name: rows for name, rows in nested.items() if any(p is not None for row in rows for p in row)}
        batch = len(views)
        built = build_prompts([size] * batch, [(side, side)] * batch, side, self.mask_side, **given)
        coverage = [
            [mask_coverage(view.labels == k + 1, size, (side, side), side, self.mask_side) for k in row]
            for view, row in zip(views, chosen, strict=True)
        ]
        attributes = [view.attributes[list(row)] for view, row in zip(views, chosen, strict=True)]
        truth = {"coverage": np.array(coverage, np.float32), "attributes": np.stack(attributes)}
        return {name: torch.from_numpy(np.asarray(value)) for name, value in {**built, **truth}.items()}


@dataclass
class _View:
    """One scene as the batch sees it, perhaps mirrored; coordinates in pixels of the original image."""

    pixels: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    attributes: np.ndarray

    @classmethod
    def of(cls, scenes: SceneArrays, index: int, mirrored: bool) -> _View:
        count = int((scenes.boxes[index, :, 2] > 0).sum())
        view = cls(
            scenes.pixels[index],
            scenes.labels[index],
            scenes.boxes[index, :count].copy(),
            scenes.points[index, :count].copy(),
            scenes.attributes[index, :count].copy(),
        )
        if mirrored:
            width = view.labels.shape[1]
            view.pixels, view.labels = view.pixels[:, ::-1], view.labels[:, ::-1]
            view.boxes[:, [0, 2]] = width - view.boxes[:, [2, 0]]
            view.points[:, 0] = width - 1 - view.points[:, 0]
            relation = view.attributes[:, _RELATION_COLUMN]
            view.attributes[:, _RELATION_COLUMN] = np.where(relation < 0, relation, _MIRRORED[np.maximum(relation, 0)])
        return view


def _choose(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `wanted` object indices, repeating only when there are too few."""
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]
