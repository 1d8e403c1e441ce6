"""Fits a model's confidence head: how sure it may be that a region is of what it was trained on.

It compares regions that the model was trained on with regions of pictures from elsewhere, by the model's own caption
queries. Pictures that the fit does not see set the boundary and tell how well it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from ..data.notes import NOTES
from ..modeling.mixer_sca import ScaConfidenceHead


logger = logging.get_logger(__name__)

# The fraction of outside regions, of pictures left out of the fit, that the boundary calls unsure.
UNSURE_OUTSIDE = 0.985
# If more of its own regions are unsure than this, the model cannot tell its world from others.
_MAX_UNSURE_INSIDE = 0.25
_BATCH, _STEPS, _ROWS, _LEARNING_RATE, _WEIGHT_DECAY = 8, 3000, 256, 3e-3, 1.0
# One picture in so many is left out of the fit.
_LEFT_OUT = 5


@dataclass
class ConfidenceFit:
    """How well a confidence head tells regions apart whose pictures it was not fitted on.

    Attributes:
        inside: The number of such regions of the model's own world.
        outside: The number of such regions from elsewhere.
        unsure_inside: The fraction of the former that is called unsure.
        unsure_outside: The fraction of the latter that is called unsure.
    """

    inside: int
    outside: int
    unsure_inside: float
    unsure_outside: float

    def to_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"confidence: unsure about {self.unsure_outside:.1%} of {self.outside} outside regions and "
            f"{self.unsure_inside:.1%} of {self.inside} of its own"
        )


def fit_confidence(
    model: Any,
    collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]],
    inside: Any,
    outside: Any,
    regions: int = 6000,
    size: int = 128,
    seed: int = 0,
    mistakes: Any = None,
) -> ConfidenceFit:
    """Gives a model a confidence head, in place of one that it has; call it when training is over.

    Args:
        model: A `ScaForConditionalGeneration`, as it will be saved.
        collator: A `RegionCollator` that draws prompts as in training.
        inside: What the model was trained on: region records by index, augmented as in training, so a `SeededDataset`.
        outside: Region records by index, of pictures that show other things. As many random boxes are added to their
            regions.
        regions: How many regions of each are looked at.
        size: The inner width of the head.
        seed: The seed of what is drawn and of the first weights.
        mistakes: Region records by index, of regions that the model captions wrongly, from pictures that it was not
            trained on. They count as outside in the fit; the boundary is set without them.

    Raises:
        ValueError: There is only one picture on a side, so none can be left out of the fit.
    """
    rng = np.random.default_rng(seed)
    known, own = _look(model, collator, inside, regions, rng, "the training data")
    other, strange = _look(model, collator, outside, regions, rng, "data.outside", boxes=True)
    if mistakes is not None:
        other = torch.cat([other, *_look(model, collator, mistakes, regions // 3, rng, "mistakes")])
    head = _fit(known, other, size, seed)
    with torch.no_grad():
        own, strange = head.logits(own), head.logits(strange)
        boundary = strange.quantile(UNSURE_OUTSIDE)
        head.output.bias -= boundary
    model.config.confidence_size = size
    model.confidence_head = head.to(model.mixer.device, model.mixer.dtype).requires_grad_(False)
    unsure = [(logits < boundary).float().mean().item() for logits in (own, strange)]
    if unsure[0] > _MAX_UNSURE_INSIDE:
        logger.warning(
            f"The model is unsure about {unsure[0]:.0%} of its own regions: it can hardly tell them from those of "
            "the outside pictures. Do those show the same things?"
        )
    return ConfidenceFit(len(own), len(strange), *unsure)


@torch.no_grad()
def _look(
    model: Any, collator: Any, records: Any, count: int, rng: np.random.Generator, name: str, boxes: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean caption queries (n, C) of regions to fit, and of those of the pictures that are left out."""
    features: list[torch.Tensor] = []
    pictures: list[str] = []
    order: list[int] = []
    training = model.training
    model.eval()
    while len(pictures) < count:
        if len(order) < _BATCH:
            if hasattr(records, "set_epoch") and features:
                records.set_epoch(records.epoch + 1)
            order = [*order, *rng.permutation(len(records)).tolist()]
        batch = [_unread(records[order.pop()], rng, boxes) for _ in range(min(_BATCH, len(order)))]
        inputs = {key: value.to(model.device) for key, value in collator(batch).items()}
        inputs = {key: value for key, value in inputs.items() if key not in ("labels", "mask_labels")}
        queries = model(**inputs, output_masks=False).query_embeds.float().mean(dim=(2, 3))  # (B, R, C)
        real = inputs["region_mask"]
        features.append(queries[real].cpu())
        pictures += [
            str(record["image_id"]) for record, row in zip(batch, real, strict=True) for _ in range(row.sum())
        ]
    model.train(training)
    names = sorted(set(pictures), key=lambda picture: (crc32(picture.encode()), picture))
    if len(names) < 2:
        raise ValueError(
            f"{name} has one picture, but a confidence needs several, since some are held out of its fit."
        )
    left_out = set(names[: max(1, len(names) // _LEFT_OUT)])
    aside = torch.tensor([picture in left_out for picture in pictures])
    everything = torch.cat(features)
    return everything[~aside], everything[aside]


def _unread(record: Mapping[str, Any], rng: np.random.Generator, boxes: bool) -> dict[str, Any]:
    """Returns a record whose regions have a text that does not matter, with as many boxes anywhere beside them."""
    regions = [{**region, "captions": ["?"], **dict.fromkeys(NOTES)} for region in record["regions"]]
    if boxes:
        size = np.array([record["width"], record["height"]])
        corners = np.sort(rng.random((max(1, len(regions)), 2, 2)) * (size - 1), axis=1)
        corners[:, 1] += 1  # at least a pixel wide
        regions += [{"box": box, "mask": None, "captions": ["?"]} for box in corners.reshape(-1, 4).tolist()]
    return {**record, "regions": regions, "task": "caption"}


def _fit(known: torch.Tensor, other: torch.Tensor, size: int, seed: int) -> ScaConfidenceHead:
    """Fits a head on features (n, C) of both kinds; what standardizes them goes into its first layer."""
    mean, deviation = (known.mean(0) + other.mean(0)) / 2, (known.std(0) + other.std(0)) / 2
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = ScaConfidenceHead(known.shape[1], size)
    optimizer = torch.optim.AdamW(head.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    half = _ROWS // 2
    targets = torch.cat([torch.ones(half), torch.zeros(half)])
    for _ in range(_STEPS):
        rows = [part[torch.randint(len(part), (half,), generator=generator)] for part in (known, other)]
        loss = F.binary_cross_entropy_with_logits(head.logits((torch.cat(rows) - mean) / deviation), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        head.hidden.weight /= deviation
        head.hidden.bias -= head.hidden.weight @ mean
    return head
