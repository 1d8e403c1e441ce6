"""Pretrains a model's detail encoder, alone and first, to tell regions by their names.

Its convolutions are a small part of what a step of the whole model computes, so alone they learn several times as
fast; the model then learns to say what they see. The paper of SCA pretrains on names too (section 3.4), its mixer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from ..data.prompts import PromptSource, draw_prompt
from ..data.region import RegionRecordError, record_image
from ..files import differences, staged
from ..modeling.detail_sca import ScaDetailEncoder, box_weights
from ..modeling.validation_sca import is_finite
from .draws import draw_generator
from .stopping import DivergedError


# Where finished weights lie in the folder of a run.
DETAILS = "details"
_WEIGHTS = "detail_encoder.safetensors"
_SETTINGS = "settings"
_NO_NAME = -100
_OF_THE_RUN = ("use_cpu", "ddp_backend", "ddp_timeout", "dataloader_num_workers", "disable_tqdm")
_LEARNING_RATE = 3e-3
_LABEL_SMOOTHING = 0.05


def pretrain_detail_encoder(
    model: Any,
    processor: Any,
    records: Any,
    output_dir: str | Path,
    steps: int = 1500,
    batch_size: int = 8,
    regions_per_image: int = 8,
    box_jitter: float = 0.04,
    seed: int = 0,
    like: TrainingArguments | None = None,
) -> None:
    """Trains `model.detail_encoder` in place, by the library's Trainer, to name regions from their boxes.

    A linear layer on the encoder's features, averaged over each region's box, learns with it and is thrown away.

    Args:
        model: A `ScaForConditionalGeneration` with a detail encoder, see `add_detail_encoder`.
        processor: The model's `ScaProcessor`.
        records: A `SeededDataset`, augmented; regions are told apart by `category`.
        output_dir: The folder for the finished weights. Weights that are there already are loaded, and no step is
            made; it is an error if they were trained with other settings or other names.
        steps: The number of optimizer steps, with a cosine schedule.
        batch_size: The number of images per step and process.
        regions_per_image: How many regions are drawn per image and step.
        box_jitter: The standard deviation of each edge of a box, as a fraction of the box's side.
        seed: The seed of weights and order.
        like: The arguments of the run that this is part of; devices, workers and whether progress is shown are taken
            from it. Processes of one run must agree on these.
    """
    encoder = model.detail_encoder
    if encoder is None:
        raise ValueError("the model has no detail encoder to train: add_detail_encoder(model, widths) first.")
    if not hasattr(records, "__len__"):
        raise ValueError("a detail encoder needs a data set whose names are known in advance, not a streamed one.")
    file = Path(output_dir) / DETAILS / _WEIGHTS
    names = region_names(records.dataset)
    settings: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "regions_per_image": regions_per_image}
    settings |= {"box_jitter": box_jitter, "seed": seed, "names": names}
    if file.exists():
        _check_settings(file, settings)
    else:
        collator = NamedRegionCollator(processor, names, regions_per_image, box_jitter)
        _train(encoder, records, collator, file, settings, like)
    encoder.load_state_dict(load_file(file))


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    """Raises where the weights that are there were trained with other settings."""
    with safe_open(file, "pt") as stored:
        before = json.loads((stored.metadata() or {}).get(_SETTINGS, "{}"))
    if changed := differences(before, settings):
        raise ValueError(
            f"{file} was trained with other settings ({'; '.join(changed)}): remove {file.parent} to train it again."
        )


def _train(
    encoder: ScaDetailEncoder,
    records: Any,
    collator: NamedRegionCollator,
    file: Path,
    settings: Mapping[str, Any],
    like: TrainingArguments | None,
) -> None:
    """Trains the encoder and writes its weights, whole or not at all."""
    args = TrainingArguments(
        output_dir=str(file.parent),
        max_steps=settings["steps"],
        per_device_train_batch_size=settings["batch_size"],
        learning_rate=_LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, settings["steps"] // 10),
        weight_decay=0.02,
        adam_beta2=0.98,
        save_strategy="no",
        logging_steps=50,
        report_to="none",
        remove_unused_columns=False,
        seed=settings["seed"],
        **{name: getattr(like, name) for name in _OF_THE_RUN if like is not None},
    )
    frozen = [parameter for parameter in encoder.parameters() if not parameter.requires_grad]
    training = encoder.training
    encoder.requires_grad_(True)
    encoder.learns_statistics = True
    try:
        set_seed(args.seed)  # the Trainer does so after the layer of the names is made
        naming = RegionNaming(encoder, len(collator.names))
        trainer = Trainer(naming, args, train_dataset=records, data_collator=collator)
        trainer.train()
        if not all(is_finite(value) for value in encoder.state_dict().values()):
            raise DivergedError(
                f"Pretraining of the detail encoder diverged within {args.max_steps} steps: its weights are not "
                "finite, and none are saved. Train it with a larger batch, or on other data."
            )
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            with staged(file.parent) as folder:
                weights = {name: value.contiguous() for name, value in encoder.state_dict().items()}
                save_file(weights, folder / file.name, {_SETTINGS: json.dumps(settings)})
        trainer.accelerator.wait_for_everyone()
    finally:
        encoder.learns_statistics = False
        encoder.train(training)
        for parameter in frozen:
            parameter.requires_grad_(False)


class RegionNaming(nn.Module):
    """A detail encoder and a linear layer that names regions by their mean features."""

    def __init__(self, encoder: ScaDetailEncoder, names: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.projection.in_features, names)

    def forward(
        self, pixel_values: torch.Tensor, boxes: torch.Tensor, labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Loss and logits (B, R, names) for boxes (B, R, 4) in pixels of the input; labels (B, R), -100 for none."""
        logits = self.head(box_means(self.encoder(pixel_values), boxes, pixel_values.shape[-1]))
        loss = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=_NO_NAME, label_smoothing=_LABEL_SMOOTHING
        )
        return {"loss": loss, "logits": logits}


def box_means(features: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Averages features (B, C, h, w) over boxes (B, R, 4) in pixels of the square input: (B, R, C)."""
    weights = box_weights(boxes, side, features.shape[-1])
    return torch.einsum("brhw,bchw->brc", weights.to(features.dtype), features)


def region_names(dataset: Any) -> list[str]:
    """All names of a data set's regions, in order; an error where a region has none."""
    texts = dataset.select_columns(["image_id", "regions"]) if hasattr(dataset, "select_columns") else dataset
    names = set()
    for record in texts:
        for region in record["regions"]:
            if not region.get("category"):
                raise RegionRecordError(
                    f"image {record['image_id']}, region {region.get('region_id', '?')} has no category, which the "
                    "detail encoder is trained on: name it, or set detail_steps to 0."
                )
            names.add(region["category"])
    return sorted(names)


@dataclass
class NamedRegionCollator:
    """Makes batches for [`RegionNaming`] of region records; see [`pretrain_detail_encoder`]."""

    processor: Any
    names: Sequence[str]
    regions_per_image: int = 8
    box_jitter: float = 0.04

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        boxes, labels = [], torch.full((len(records), self.regions_per_image), _NO_NAME)
        for row, record in enumerate(records):
            rng = draw_generator(record["draw"])
            where, size = f"image {record.get('image_id', '?')}", (record["width"], record["height"])
            chosen = [record["regions"][k] for k in rng.permutation(len(record["regions"]))[: self.regions_per_image]]
            sources = [PromptSource(region, size, where) for region in chosen]
            drawn = [draw_prompt("jittered_box", source, rng, self.box_jitter) for source in sources]
            boxes.append([prompt["input_boxes"] for prompt in drawn])
            labels[row, : len(chosen)] = torch.tensor([self.names.index(region["category"]) for region in chosen])
        inputs = self.processor(images=[record_image(record) for record in records], input_boxes=boxes)
        shown = inputs["input_boxes"].shape[1]
        return {"pixel_values": inputs["pixel_values"], "boxes": inputs["input_boxes"], "labels": labels[:, :shown]}
