"""Turns region records into a training batch, through the public processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from transformers.utils import logging

from ..data.prompts import DRAWN_KINDS, PromptSource, draw_prompt
from ..data.region import RegionRecordError, record_image
from ..processing.captions_sca import learned
from ..processing.masks_sca import mask_coverage
from .draws import draw_generator


logger = logging.get_logger(__name__)

# The original trained on boxes alone, and its points are worse for it.
TRAINING_SHARES = {"box": 0.4, "jittered_box": 0.1, "point": 0.3, "points": 0.1, "mask": 0.1}


@dataclass
class RegionCollator:
    """Draws regions, prompts and texts from region records and hands them to a `ScaProcessor`.

    Args:
        processor: The `ScaProcessor`, which makes the tensors that the model takes.
        prompt_probabilities: How often a region is prompted in each of the ways of `DRAWN_KINDS`, see
            `sca_hf.data.prompts`; the numbers need not add up to 1. None: `TRAINING_SHARES`, in evaluation the box.
            A region without a mask whose turn is `mask` gets its box, unless no other kind is asked for: then it is
            an error.
        regions_per_image: How many regions are drawn per image in training; None takes all.
        box_jitter: The standard deviation of each edge of a jittered box, as a fraction of the box's side.
        outside_points: The maximal number of points outside the region among `points`.
        task: What to predict, in place of each record's own task. Captions with lengths or
            languages are learned as such.
        training: Whether to draw. False takes every region, in order, with its first text, or the first in a language
            that is drawn; points and jittered boxes are drawn where `prompt_probabilities` asks for them. All that by
            the `image_id`, the same at every evaluation.
        mask_labels: Whether to return `mask_labels` (B, R, s, s) float32: the fraction of each cell of the padded
            frame that the region's mask covers; NaN throughout where it has none.
        mask_label_size: The number s of cells along each side. None: 4h, as the low-resolution masks have.

    A record is the mapping of `sca_hf.data.region`; one that has `image_embedding` (C, h, w) in place of `image` makes
    a batch of `image_embeddings`, so that the image encoder need not run. What is drawn depends on the record's
    `draw`, see `SeededDataset`; without it on torch's generator, and so on the seed and on what was drawn before.
    """

    processor: Any
    prompt_probabilities: Mapping[str, float] | None = None
    regions_per_image: int | None = 16
    box_jitter: float = 0.1
    outside_points: int = 0
    task: str | None = None
    training: bool = True
    mask_labels: bool = False
    mask_label_size: int | None = None

    def __post_init__(self) -> None:
        weights = self.prompt_probabilities
        if weights is None:
            weights = TRAINING_SHARES if self.training else {"box": 1.0}
        values = np.array(list(weights.values()), np.float64)
        if not set(weights) <= set(DRAWN_KINDS) or not (values >= 0).all() or not 0 < values.sum() < np.inf:
            raise ValueError(
                f"prompt_probabilities is {dict(weights)}, expected positive numbers for {', '.join(DRAWN_KINDS)}"
            )
        if self.regions_per_image is not None and self.regions_per_image < 1:
            raise ValueError(f"regions_per_image is {self.regions_per_image}, expected at least 1, or None for all")
        self._kinds = [kind for kind, weight in weights.items() if weight > 0]
        self._probabilities = values[values > 0] / values.sum()

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        prompts: dict[str, list[Any]] = {"input_boxes": [], "input_points": [], "input_labels": [], "input_masks": []}
        sources, captions, tasks, said = [], [], [], []
        for record in records:
            rng = self._generator(record)
            tasks.append(self.task or record["task"])
            sources.append(self._choose(record, rng))
            drawn = [self._prompt(source, rng) for source in sources[-1]]
            for name, values in prompts.items():
                values.append([prompt.get(name) for prompt in drawn])
            texts, lengths, languages = zip(
                *(self._text(source, tasks[-1], rng) for source in sources[-1]), strict=True
            )
            captions.append(list(texts))
            said.append({"length": lengths, "language": languages})
        given = {name: value for name, value in prompts.items() if any(p is not None for v in value for p in v)}
        images, embeddings = _images(records)
        for name in ("length", "language"):
            given |= self._said(name, [one[name] for one in said])
        batch = dict(self.processor(**images, **given, captions=captions, task=tasks, return_tensors="pt"))
        if self.mask_labels:
            batch["mask_labels"] = self._mask_labels(sources, batch)
        return batch | embeddings

    def _generator(self, record: Mapping[str, Any]) -> np.random.Generator:
        if not self.training:
            return np.random.default_rng(crc32(str(record.get("image_id")).encode()))
        if record.get("draw") is not None:
            return draw_generator(record["draw"])
        return np.random.default_rng(int(torch.randint(2**31, ())))

    def _choose(self, record: Mapping[str, Any], rng: np.random.Generator) -> list[PromptSource]:
        where, regions = f"image {record.get('image_id', '?')}", record["regions"]
        if not regions:
            raise RegionRecordError(f"{where} has no regions; remove such records from the data set.")
        if self.training:
            regions = [regions[k] for k in rng.permutation(len(regions))[: self.regions_per_image]]
        size = (record["width"], record["height"])
        return [PromptSource(region, size, f"{where}, region {region.get('region_id', '?')}") for region in regions]

    def _prompt(self, source: PromptSource, rng: np.random.Generator) -> dict[str, Any]:
        kind = self._kinds[int(rng.choice(len(self._kinds), p=self._probabilities))]
        if self._kinds == ["mask"] and source.mask is None:
            raise RegionRecordError(
                f"{source.where} has no mask, but prompt_probabilities only allows masks; add boxes."
            )
        return draw_prompt(kind, source, rng, self.box_jitter, self.outside_points)

    def _said(self, name: str, values: list[Sequence[str | None]]) -> dict[str, Any]:
        """The processor's argument for captions with lengths or languages; none where the model learns none."""
        if not any(map(any, values)):
            return {}
        if learned(self.processor.tasks, name):
            return {name: values}
        logger.warning_once(
            f"captions of these data have {name}s, but the model has no tasks for them (add_{name}s, or model.{name}s "
            "in a recipe, adds some): all are learned alike."
        )
        return {}

    def _text(self, source: PromptSource, task: str, rng: np.random.Generator) -> tuple[str, str | None, str | None]:
        """One of the region's texts, and its length and its language where they are said."""
        texts: list[str] = source.region.get("captions") or []
        if task != "caption":
            texts = [source.region["category"]] if source.region.get("category") else []
        if not texts:
            raise RegionRecordError(f"{source.where} has no text for the task {task!r}.")
        chosen = int(rng.integers(len(texts))) if self.training else 0
        known = source.region if task == "caption" else {}
        tags: Sequence[str | None] = known.get("languages") or ()
        if not self.training and len(set(tags)) > 1:
            chosen = tags.index(list(dict.fromkeys(tags))[rng.integers(len(set(tags)))])
        length, language = ((known.get(name) or {chosen: None})[chosen] for name in ("lengths", "languages"))
        return texts[chosen], length, language

    def _mask_labels(self, sources: Sequence[Sequence[PromptSource]], batch: Mapping[str, Any]) -> torch.Tensor:
        side = self.mask_label_size or self.processor.mask_size
        labels = torch.full((*batch["region_mask"].shape, side, side), float("nan"))
        frame = batch["pixel_values"].shape[-1] if "pixel_values" in batch else batch["reshaped_input_sizes"].max()
        resized = batch["reshaped_input_sizes"].tolist()
        for row, regions in enumerate(sources):
            for column, source in enumerate(regions):
                if source.mask is not None:
                    size = source.mask.shape
                    covered = mask_coverage(source.mask, size, resized[row], int(frame), side, source.where)
                    labels[row, column] = torch.from_numpy(covered)
        return labels


def _images(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Returns what tells the processor of the images, and the image embeddings where records have them."""
    cached = [record.get("image_embedding") is not None for record in records]
    if not any(cached):
        return {"images": [record_image(record) for record in records]}, {}
    if not all(cached):
        missing = records[cached.index(False)].get("image_id", "?")
        raise RegionRecordError(f"image {missing} has no image_embedding, unlike others in its batch.")
    embeddings = torch.stack([torch.as_tensor(record["image_embedding"]) for record in records]).float()
    sizes = [(record["height"], record["width"]) for record in records]
    return {"original_sizes": sizes}, {"image_embeddings": embeddings}
