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
from sca_hf.training import ScaTrainer, ScaTrainingArguments
from sca_hf.training.recipe.run import build_datasets
from sca_hf.training.recipe.schema import Recipe

from .start import words_of
from .swapped_names import SwappedNamesTrainer


# Of features, which have about unit size.
_RIDGE = 30.0
# As wide as the mixer reads them: without the edges of a box.
_EDGE = 0.2
_REGIONS_PER_IMAGE = 8


def add_reader(model: Any) -> nn.Linear:
    """Has the mixer read all features of the model's image encoder; they add nothing yet."""
    config, mixer = model.config, model.mixer
    width = config.sam_config.vision_config.hidden_size
    config.sam_config.feature_channels = config.mixer_config.feature_channels = width
    model.sam.vision_encoder.given_channels = width
    mixer.feature_reader = nn.Linear(width, config.mixer_config.hidden_size).to(mixer.language_project.weight)
    nn.init.zeros_(mixer.feature_reader.weight)
    nn.init.zeros_(mixer.feature_reader.bias)
    return mixer.feature_reader


@torch.no_grad()
def fit_reader(model: Any, processor: Any, recipe: Recipe, regions: int = 12_000, seed: int = 0) -> int:
    """Adds a reader and fits it to regions of a recipe's training data, augmented as there; returns how many.

    A region asks for the words of its category. Where categories are COCO's names it asks for none: the class scores
    say these.
    """
    reader = add_reader(model.eval())
    train, _ = build_datasets(recipe.data)
    arguments = ScaTrainingArguments(
        recipe.output, **{**recipe.training, "eval_strategy": "no", "load_best_model_at_end": False}
    )
    records = ScaTrainer(model, arguments, train_dataset=train, processing_class=processor).train_dataset
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
    x, targets = torch.cat(features), _targets(model, processor.tokenizer, names)
    counts = Counter(names)
    weights = torch.tensor([counts[name] ** -0.5 for name in names], dtype=x.dtype)
    weights *= len(names) / weights.sum()
    solution = _ridge(x, targets, weights)
    reader.weight.copy_(solution[:-1].T)
    reader.bias.copy_(solution[-1])
    return len(names)


def _features(model: Any, processor: Any, image: Any, boxes: list[list[float]]) -> torch.Tensor:
    """Means of the encoder's features (n, D) over the middles of boxes."""
    inputs, frame = processor(image, input_boxes=[boxes], return_tensors="pt"), model.config.image_frame
    maps = model.encode_images(inputs["pixel_values"]).intermediate_embeddings
    found = inputs["input_boxes"][0].float()
    weights = box_weights(found.lerp(found.roll(2, 1), _EDGE), frame.side, frame.grid)
    return region_means(maps[0], torch.zeros(len(boxes), dtype=torch.long), weights).double()


def _targets(model: Any, tokenizer: Any, names: list[str | None]) -> torch.Tensor:
    """The words of each name, (n, C); zeros where there is none."""
    known = sorted({name for name in names if name is not None})
    said = dict(zip(known, words_of(model, tokenizer, known).double(), strict=True))
    nothing = torch.zeros(model.config.mixer_config.hidden_size, dtype=torch.double)
    return torch.stack([nothing if name is None else said[name] for name in names])


def _ridge(x: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted ridge regression with a free last row, the bias: (D + 1, C)."""
    x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    cost = torch.full((x.shape[1],), _RIDGE, dtype=x.dtype)
    cost[-1] = 0
    weighted = (x * weights[:, None]).T
    return torch.linalg.solve(weighted @ x + torch.diag(cost), weighted @ targets)
