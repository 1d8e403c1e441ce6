"""Turns region records into a training batch, through the public processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch


PROMPT_KINDS = ("box", "point", "mask")


@dataclass
class RegionCollator:
    """Draws regions, prompts and texts from region records and hands them to a `ScaProcessor`.

    Args:
        processor: makes the tensors that the model takes.
        prompt_shares: how often a region is prompted by its box, by one point or by its mask. A point is one of the
            record's own inside points; a region without points, or without a mask, is prompted by its box.
        max_regions: regions drawn per image, all of them when None.
        box_jitter: standard deviation of each box edge, as a share of the box's side.
        task: says what to predict, in place of each record's own task.
        training: without it every region comes in order, unmoved, with its first text.

    A record is the mapping of `sca_hf.data.region`; one that has `image_embedding` (C, h, w) in place of `image` makes
    a batch of `image_embeddings`, so that the image encoder need not run.
    """

    processor: Any
    prompt_shares: Mapping[str, float] = field(default_factory=lambda: {"box": 0.5, "point": 0.4, "mask": 0.1})
    max_regions: int | None = None
    box_jitter: float = 0.0
    task: str | None = None
    training: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.prompt_shares) - set(PROMPT_KINDS)
        if unknown or not self.prompt_shares or min(self.prompt_shares.values()) < 0:
            raise ValueError(
                f"prompt_shares is {dict(self.prompt_shares)}, expected positive shares of {', '.join(PROMPT_KINDS)}"
            )

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        # Seeded from torch's generator, so that the Trainer's seed settles what is drawn.
        rng = np.random.default_rng(int(torch.randint(2**31, ())) if self.training else 0)
        prompts: dict[str, list[Any]] = {"input_boxes": [], "input_points": [], "input_labels": [], "input_masks": []}
        captions, tasks = [], []
        for record in records:
            task = self.task or record["task"]
            regions = self._choose(record["regions"], rng)
            size = (record["width"], record["height"])
            drawn = [self._prompt(region, size, rng) for region in regions]
            for name, values in prompts.items():
                values.append([prompt.get(name) for prompt in drawn])
            captions.append([self._text(region, task, rng) for region in regions])
            tasks.append(task)
        given = {name: value for name, value in prompts.items() if any(p is not None for v in value for p in v)}
        batch = self.processor(**self._images(records), **given, captions=captions, task=tasks, return_tensors="pt")
        if "image_embedding" in records[0]:
            batch["image_embeddings"] = torch.stack([record["image_embedding"] for record in records]).float()
        return dict(batch)

    def _images(self, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if "image_embedding" in records[0]:
            return {"original_sizes": [(record["height"], record["width"]) for record in records]}
        return {"images": [record["image"] for record in records]}

    def _choose(self, regions: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> list[Mapping[str, Any]]:
        if not self.training:
            return list(regions[: self.max_regions])
        return [regions[k] for k in rng.permutation(len(regions))[: self.max_regions]]

    def _prompt(self, region: Mapping[str, Any], size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
        kinds, shares = list(self.prompt_shares), np.array(list(self.prompt_shares.values()))
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        inside = [p for p, label in zip(region.get("points") or (), region.get("labels") or (), strict=True) if label]
        if kind == "point" and inside:
            return {"input_points": [inside[int(rng.integers(len(inside)))]], "input_labels": [1]}
        if kind == "mask" and region.get("mask") is not None:
            return {"input_masks": region["mask"]}
        box = np.asarray(region["box"], np.float64)
        if self.training and self.box_jitter:
            sides = np.tile(box[2:] - box[:2], 2)
            box = (box + rng.normal(0, self.box_jitter, 4) * sides).clip(0, np.tile(size, 2))
        return {"input_boxes": box.tolist()}

    def _text(self, region: Mapping[str, Any], task: str, rng: np.random.Generator) -> str:
        texts = region["captions"] if task == "caption" else [region["category"]]
        if not texts or texts[0] is None:
            raise ValueError(f"region {region['region_id']} has no text for the task {task!r}")
        return texts[int(rng.integers(len(texts))) if self.training else 0]
