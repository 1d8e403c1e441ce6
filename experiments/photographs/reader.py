"""Begins the mixer's reader of features where ridge regression puts it: at the words of what the eyes alone can tell.

The neck learns what masks need, and colors are not among it: from its output over a box a linear map tells half of the
colors of scenes, from the features that it is given 98 in 100. So the mixer reads these too (`feature_channels`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import nn

from sca_hf.data.region import record_image
from sca_hf.modeling.detail_sca import box_weights, region_means
from sca_hf.training.recipe.schema import Recipe

from .recipe import idle_trainer
from .start import words_of
from .swapped_names import SwappedNamesTrainer


# Of features, which have about unit size.
_RIDGE = 300.0
# How surely it is one or the other at first, as a logit.
_CHOICE = 16.0
# As wide as the mixer reads them: without the edges of a box.
_EDGE = 0.2
_REGIONS_PER_IMAGE = 8


def add_reader(model: Any) -> None:
    """Has the mixer read all features of the model's image encoder; they add nothing yet."""
    config, mixer = model.config, model.mixer
    width = config.sam_config.vision_config.hidden_size
    config.sam_config.feature_channels = config.mixer_config.feature_channels = width
    read = config.mixer_config.hidden_size + 1
    mixer.feature_reader = nn.Linear(width, read).to(mixer.language_project.weight)
    nn.init.zeros_(mixer.feature_reader.weight)
    nn.init.zeros_(mixer.feature_reader.bias)


@torch.no_grad()
def fit_reader(model: Any, processor: Any, recipe: Recipe, regions: int = 16_000, seed: int = 0) -> int:
    """Adds a reader and fits it to regions of a recipe's training data, augmented as there; returns how many.

    A region asks for the words of its category. Where categories are COCO's names it asks for the class scores, which
    say these.
    """
    add_reader(model.eval())
    records = idle_trainer(model, processor, recipe).train_dataset
    rng = np.random.default_rng(seed)
    features, names = [], []
    while len(names) < regions:
        for index in rng.permutation(len(records))[: regions // _REGIONS_PER_IMAGE].tolist():
            record = records[index]
            chosen = rng.permutation(len(record["regions"]))[:_REGIONS_PER_IMAGE]
            shown = [record["regions"][k] for k in chosen]
            features.append(_features(model, processor, record_image(record), [list(row["box"]) for row in shown]))
            known = record.get("source") in {*SwappedNamesTrainer.sources, "described"}
            names += [None if known else row["category"] for row in shown]
            if len(names) >= regions:
                break
        records.set_epoch(records.epoch + 1)
    begin_reader(model, processor.tokenizer, torch.cat(features), names)
    return len(names)


@torch.no_grad()
def begin_reader(model: Any, tokenizer: Any, x: torch.Tensor, names: list[str | None]) -> None:
    """Fits the reader to features (n, D) and the names that they ask for; None: what class scores say."""
    reader, counts = model.mixer.feature_reader, Counter(names)
    known = torch.tensor([name is None for name in names])
    weights = torch.tensor([counts[name] ** -0.5 for name in names], dtype=x.dtype)
    told = (~known).nonzero()[:, 0]
    words = words_of(model, tokenizer, names_told := sorted(set(names) - {None})).double()
    targets = words[[names_told.index(names[k]) for k in told.tolist()]]
    share = known.double().mean()
    says = _ridge(x[told], targets, weights[told] / weights[told].mean())
    chooses = _ridge(
        x, _CHOICE * (2 * known[:, None].double() - 1), torch.where(known, 0.5 / share, 0.5 / (1 - share))
    )
    solution = torch.cat([says, chooses], 1)
    reader.weight.copy_(solution[:-1].T)
    reader.bias.copy_(solution[-1])


def _features(model: Any, processor: Any, image: Any, boxes: list[list[float]]) -> torch.Tensor:
    """Means of the encoder's features (n, D) over the middles of boxes."""
    inputs, frame = processor(image, input_boxes=[boxes], return_tensors="pt"), model.config.image_frame
    maps = model.encode_images(inputs["pixel_values"]).intermediate_embeddings
    features = maps[int(model.mixer.class_reader is not None)]
    found = inputs["input_boxes"][0].float()
    weights = box_weights(found.lerp(found.roll(2, 1), _EDGE), frame.side, frame.grid)
    return region_means(features, torch.zeros(len(boxes), dtype=torch.long), weights).double()


def _ridge(x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted ridge regression with a free last row, the bias: (D + 1, C)."""
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    cost = torch.full((x.shape[1],), _RIDGE, dtype=x.dtype)
    cost[-1] = 0
    weighted = (x * weights[:, None]).T
    return torch.linalg.solve(weighted @ x + torch.diag(cost), weighted @ targets)
