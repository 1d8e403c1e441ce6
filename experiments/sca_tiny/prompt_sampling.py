"""Draws the prompts on which the tiny SAM learns: boxes, points, masks and mixtures, from scenes with exact masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .scene_cache import ATTRIBUTES, MAX_OBJECTS, SceneArrays


IMAGE_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGE_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_RELATION_COLUMN = list(ATTRIBUTES).index("relation")
_MIRRORED = np.array([0, 2, 1, 3, 4])  # none, right, left, above, below


@dataclass
class PromptCollator:
    """Turns scene indices into one batch: pictures, and groups of regions that share one prompt layout.

    The first group is prompted by boxes (or masks), the second by points. With `training=False` the prompts are the
    exact box and the deepest point of every object, nothing is mirrored, and the full masks come along.
    """

    scenes: SceneArrays
    mask_side: int
    regions_per_group: int = 4
    box_jitter: float = 0.04
    training: bool = True

    def __call__(self, indices: list[int]) -> dict[str, Any]:
        # Seeded from torch's generator, so that the Trainer's seed settles what is drawn.
        rng = np.random.default_rng(int(torch.randint(2**31, ())) if self.training else 0)
        views = [_View.of(self.scenes, index, self.training and rng.random() < 0.5) for index in indices]
        pixels = torch.from_numpy(np.stack([view.pixels for view in views])).permute(0, 3, 1, 2)
        pixel_values = (pixels / 255 - IMAGE_MEAN) / IMAGE_STD
        batch = {"pixel_values": pixel_values, "scene_index": torch.tensor(indices)}
        if not self.training:
            return batch | {"groups": [self._exact(views, kind) for kind in ("box", "point")]}
        kinds = [
            rng.choice(["box", "mask", "box+mask", "box+point"], p=[0.76, 0.14, 0.05, 0.05]),
            rng.choice(["point", "points"], p=[0.7, 0.3]),
        ]
        return batch | {"groups": [self._draw(views, str(kind), rng) for kind in kinds]}

    def _draw(self, views: list[_View], kind: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        chosen = [(view, k) for view in views for k in _choose(len(view.boxes), self.regions_per_group, rng)]
        scale = views[0].scale
        group = self._targets(chosen, len(views))
        if "box" in kind:
            jitter = [rng.normal(0, self.box_jitter, 4) for _ in chosen]
            boxes = [view.boxes[k] + j * np.tile(np.ptp(view.boxes[k].reshape(2, 2), 0), 2) for (view, k), j in
                     zip(chosen, jitter, strict=True)]  # fmt: skip
            group["boxes"] = _tensor(np.stack(boxes) * scale, len(views), 4)
        if "point" in kind:
            positives, negatives = (1, 0) if kind != "points" else (int(rng.integers(1, 4)), int(rng.integers(0, 3)))
            points = [view.draw_points(k, positives, negatives, rng) for view, k in chosen]
            group["points"] = _tensor(np.stack(points) * scale, len(views), positives + negatives, 2)
            group["labels"] = torch.tensor([1] * positives + [0] * negatives).expand(group["points"].shape[:-1])
        if "mask" in kind:
            coverage = group["coverage"]
            if rng.random() < 0.5:  # a user's mask is seldom exact
                coverage = coverage.roll(tuple(rng.integers(-1, 2, 2).tolist()), (-2, -1))
            group["masks"] = (2 * coverage - 1) * 10
        return group

    def _exact(self, views: list[_View], kind: str) -> dict[str, torch.Tensor]:
        chosen = [(view, min(k, len(view.boxes) - 1)) for view in views for k in range(MAX_OBJECTS)]
        group = self._targets(chosen, len(views))
        scale = views[0].scale
        if kind == "box":
            group["boxes"] = _tensor(np.stack([view.boxes[k] for view, k in chosen]) * scale, len(views), 4)
        else:
            group["points"] = _tensor(np.stack([view.points[k] for view, k in chosen]) * scale, len(views), 1, 2)
            group["labels"] = torch.ones(group["points"].shape[:-1], dtype=torch.long)
        group["full_masks"] = torch.from_numpy(np.stack([view.labels == k + 1 for view, k in chosen]))
        group["full_masks"] = group["full_masks"].unflatten(0, (len(views), -1))
        repeated = [k >= len(view.boxes) for view in views for k in range(MAX_OBJECTS)]
        group["attributes"][torch.tensor(repeated).view(len(views), -1)] = -100
        return group

    def _targets(self, chosen: list[tuple[_View, int]], batch: int) -> dict[str, torch.Tensor]:
        """Returns the mask coverage (B, R, 4h, 4w) in 0..1 and the attribute indices (B, R, 5)."""
        step = chosen[0][0].labels.shape[0] // self.mask_side
        masks = np.stack([view.labels == k + 1 for view, k in chosen])
        coverage = masks.reshape(len(chosen), self.mask_side, step, self.mask_side, step).mean(
            (2, 4), dtype=np.float32
        )
        attributes = np.stack([view.attributes[k] for view, k in chosen])
        return {
            "coverage": torch.from_numpy(coverage).unflatten(0, (batch, -1)),
            "attributes": torch.from_numpy(attributes).unflatten(0, (batch, -1)),
        }


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

    @property
    def scale(self) -> float:
        return self.pixels.shape[0] / self.labels.shape[0]

    def draw_points(self, k: int, positives: int, negatives: int, rng: np.random.Generator) -> np.ndarray:
        """Returns (positives + negatives, 2) xy; the first is the deepest pixel half of the time."""
        mask = self.labels == k + 1
        points = [random_pixel(mask, rng) for _ in range(positives)]
        if rng.random() < 0.5:
            points[0] = self.points[k]
        left, top, right, bottom = self.boxes[k].astype(int)
        near = np.zeros_like(mask)
        near[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12] = True
        points += [random_pixel(near & ~mask, rng) for _ in range(negatives)]
        return np.stack(points)


def _choose(count: int, wanted: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `wanted` object indices, repeating only when there are too few."""
    return np.concatenate([rng.permutation(count) for _ in range(-(-wanted // count))])[:wanted]


def random_pixel(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    flat = np.flatnonzero(mask)
    y, x = divmod(int(flat[rng.integers(len(flat))]), mask.shape[1])
    return np.array([x, y], np.float32)


def _tensor(values: np.ndarray, batch: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(batch, -1, *shape)
