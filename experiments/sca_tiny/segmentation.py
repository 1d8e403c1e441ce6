"""Stage 1: a tiny SAM learns masks from boxes, points and masks, with throw-away attribute heads.

A tiny SAM trained on masks alone forgets color and texture, and no captioner can read them from it afterwards.
Linear heads on its features, dropped when the stage ends, keep them alive; what is saved is a plain `SamModel`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamPreTrainedModel

from sca_hf.modeling.grouping_sca import PromptGroup, RegionInputs
from sca_hf.modeling.losses_sca import mask_losses
from sca_hf.modeling.segmentation_sca import DecodedRegions, ImageEncoding, Masks, SamSegmenter
from sca_hf.training.checkpoint.trainer import WholeCheckpoints

from .prompt_sampling import PromptCollator
from .scene_cache import ATTRIBUTES, SceneArrays, load_scene_arrays
from .stages import save_whole, stage_arguments, train_from_last_checkpoint


POSITION_STD = 0.5
WARM_LOSS_STEPS = 400
# Masks first, learned in minutes and what attributes are read through; then attributes; last, once objects are known
# for what they are, relations between them. Weights of one head's loss.
MASK_STEPS, RELATION_STEPS = 1_500, 6_000
EARLY_WEIGHT, ATTRIBUTE_WEIGHT, RELATION_WEIGHT = 1 / 11, 4 / 11, 1.0
POOLED_ATTRIBUTES = ("color", "shape", "texture")


@dataclass
class SegmentationSettings:
    """What stage 1 may be asked for; the defaults are those of `sca-tiny`."""

    train_scenes: int = 24_000
    eval_scenes: int = 200
    steps: int = 12_000
    batch_size: int = 8
    learning_rate: float = 1e-3
    save_steps: int = 500
    eval_steps: int = 1_000
    seed: int = 0


def tiny_sam_config(image_size: int = 96, patch_size: int = 8, width: int = 128, depth: int = 6) -> SamConfig:
    """Returns the configuration of the bundled SAM; every layer attends globally, for windows gain nothing here."""
    vision = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": 4,
        "mlp_dim": 4 * width,
        "output_channels": width,
        "num_pos_feats": width // 2,
        "image_size": image_size,
        "patch_size": patch_size,
        "window_size": 0,
        "global_attn_indexes": list(range(depth)),
        "initializer_range": 0.02,  # the library's default, 1e-10, is for loading only
    }
    prompt = {"hidden_size": width, "image_size": image_size, "patch_size": patch_size}
    decoder = {"hidden_size": width, "mlp_dim": 2 * width, "num_attention_heads": 4, "iou_head_hidden_dim": width}
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


class SegmentationTrainee(SamPreTrainedModel):
    """A `SamModel` with linear attribute heads on its encoder output, its decoder keys and its first mask token."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.sam = SamModel(config)
        self.heads = nn.ModuleDict()
        width = config.mask_decoder_config.hidden_size
        for place in ("encoder", "decoder", "token"):
            names = ATTRIBUTES if place == "token" else POOLED_ATTRIBUTES
            self.heads[place] = nn.ModuleDict({name: nn.Linear(width, len(ATTRIBUTES[name])) for name in names})
        self.register_buffer("steps_done", torch.zeros(()))
        self.post_init()
        # At the library's scale a position is a random hash and nothing is learned about where things are.
        position = self.sam.shared_image_embedding.positional_embedding
        nn.init.normal_(position, std=POSITION_STD).requires_grad_(False)

    def forward(
        self, pixel_values: torch.Tensor, groups: list[dict[str, torch.Tensor]], scene_index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns the loss, and in evaluation `scores` (B, R, S), NaN where there is no region (see `score_names`).

        scene_index (B,) is not used: the Trainer computes metrics only where a batch has something it calls labels.
        """
        embeddings = self.sam.vision_encoder(pixel_values).last_hidden_state
        outputs = [decode_regions(self.sam, embeddings, group) for group in groups]
        losses, scores = [], []
        for group, decoded in zip(groups, outputs, strict=True):
            masks, ious = decoded["masks"], decoded["ious"]
            guesses = self._guess_attributes(embeddings, decoded, group["coverage"])
            balance = min(1.0, float(self.steps_done) / WARM_LOSS_STEPS)
            losses.append(segmentation_loss(masks, ious, group["coverage"], balance))
            losses[-1] = losses[-1] + self._attribute_loss(guesses, group)
            if "full_masks" in group:
                scores += [*_mask_scores(masks, ious, group), *_attribute_scores(guesses, group)]
        if self.training:
            self.steps_done += 1
        result = {"loss": torch.stack(losses).mean()}
        return result | {"scores": torch.stack(scores, -1)} if scores else result

    def _guess_attributes(
        self, embeddings: torch.Tensor, decoded: dict[str, torch.Tensor], coverage: torch.Tensor
    ) -> dict[tuple[str, str], torch.Tensor]:
        """Returns logits (B, R, classes) by place and attribute, pooled under the true mask except for the token."""
        weights = F.adaptive_avg_pool2d(coverage, embeddings.shape[-2:]).flatten(2)  # (B, R, hw)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        features = {
            "encoder": weights @ embeddings.flatten(2).transpose(1, 2),
            "decoder": (weights[:, :, None] @ decoded["keys"]).squeeze(2),
            "token": decoded["token"],
        }
        guesses = {(p, name): head(features[p]) for p, heads in self.heads.items() for name, head in heads.items()}
        shared = self.heads["token"]["relation"]
        return guesses | {(p, "relation"): shared(features[p]) for p in ("encoder", "decoder")}

    def _attribute_loss(
        self, guesses: dict[tuple[str, str], torch.Tensor], group: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        columns = dict(zip(ATTRIBUTES, group["attributes"].unbind(-1), strict=True))
        total = group["coverage"].new_zeros(())
        for (place, name), logits in guesses.items():
            if weight := self._head_weight(place, name):
                total = total + weight * F.cross_entropy(logits.flatten(0, 1), columns[name].flatten())
        return total

    def _head_weight(self, place: str, name: str) -> float:
        if name == "relation" and self.steps_done >= RELATION_STEPS:
            return RELATION_WEIGHT
        if name == "relation" and place != "token":
            return 0.0
        return ATTRIBUTE_WEIGHT if self.steps_done >= MASK_STEPS else EARLY_WEIGHT


def decode_regions(sam: SamModel, embeddings: torch.Tensor, group: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Runs SAM's decoder as the model does, keeping all four masks and the features that attributes are read from.

    embeddings: (B, C, h, w). Returns masks (B, R, 4, 4h, 4w), ious (B, R, 4), the first mask's token (B, R, C) and
    keys (B, R, hw, C).
    """
    inputs = RegionInputs(**{field.name: group[field.name] for field in fields(RegionInputs) if field.name in group})
    plan, input_masks = inputs.plan(embeddings)
    segmenter = SamSegmenter(sam, ImageEncoding(embeddings), input_masks)

    def read(_: PromptGroup, regions: DecodedRegions, masks: Masks) -> dict[str, torch.Tensor]:
        return {"token": regions.tokens[:, 1], "keys": regions.image_tokens}

    found, features = segmenter.segment_regions(plan, (False, True), len(plan), [read])
    result = {"masks": torch.cat([found[False][0], found[True][0]], 1)}
    result |= {"ious": torch.cat([found[False][1], found[True][1]], 1)}
    result |= features
    return {name: plan.padded(value) for name, value in result.items()}


def segmentation_loss(
    masks: torch.Tensor, ious: torch.Tensor, coverage: torch.Tensor, balance: float = 1.0
) -> torch.Tensor:
    """Returns the product's loss of the single mask and of the three candidates.

    masks: (B, R, 4, 4h, 4w) logits; ious: (B, R, 4); coverage: (B, R, 4h, 4w) in 0..1. Below a `balance` of 1 the rest
    is class-balanced cross-entropy: from scratch the other loss would first learn that every mask is empty.
    """
    logits, scores, target = masks.flatten(0, 1), ious.flatten(0, 1), coverage.flatten(0, 1)
    losses = [mask_losses(logits[:, part], scores[:, part], target) for part in (slice(0, 1), slice(1, None))]
    loss = (losses[0] + losses[1]).mean()
    if balance == 1:
        return loss
    target = target[:, None].expand_as(logits)
    inside = target.mean((-2, -1), keepdim=True).clamp(1e-4, 1 - 1e-4)
    weights = 0.5 * target / inside + 0.5 * (1 - target) / (1 - inside)
    return balance * loss + (1 - balance) * F.binary_cross_entropy_with_logits(logits, target, weights)


def _mask_scores(masks: torch.Tensor, ious: torch.Tensor, group: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Returns IoU (B, R) at the image's own size: of token 0, and of the best of the others by predicted IoU."""
    full, size = group["full_masks"], tuple(4 * s // 2 for s in masks.shape[-2:])
    best = 1 + ious[..., 1:].argmax(-1, keepdim=True)
    picked = torch.stack([masks[:, :, 0], masks.take_along_dim(best[..., None, None], 2).squeeze(2)], 2).flatten(0, 1)
    picked = F.interpolate(picked, size, mode="bilinear", align_corners=False)
    picked = F.interpolate(picked, full.shape[-2:], mode="bilinear", align_corners=False) > 0
    full = full.flatten(0, 1)[:, None]
    iou = (picked & full).sum((-2, -1)) / (picked | full).sum((-2, -1)).clamp(min=1)
    iou = iou.unflatten(0, masks.shape[:2])
    return list(iou.masked_fill(group["attributes"][..., :1] < 0, torch.nan).unbind(-1))


def _attribute_scores(
    guesses: dict[tuple[str, str], torch.Tensor], group: dict[str, torch.Tensor]
) -> list[torch.Tensor]:
    columns = dict(zip(ATTRIBUTES, group["attributes"].unbind(-1), strict=True))
    hits = [(logits.argmax(-1) == columns[name]).float() for (_, name), logits in guesses.items()]
    return [hit.masked_fill(columns[name] < 0, torch.nan) for (_, name), hit in zip(guesses, hits, strict=True)]


def score_names() -> list[str]:
    """Names the last axis of `scores`."""
    heads = [f"{p}_{name}" for p in ("encoder", "decoder") for name in POOLED_ATTRIBUTES]
    heads += [*(f"token_{name}" for name in ATTRIBUTES), "encoder_relation", "decoder_relation"]
    return [f"{prompt}_{name}" for prompt in ("box", "point") for name in ["iou", "best_iou", *heads]]


def _mean_scores(prediction: EvalPrediction) -> dict[str, float]:
    scores = np.asarray(prediction.predictions).reshape(-1, len(score_names()))
    return dict(zip(score_names(), np.nanmean(scores, 0).round(4).tolist(), strict=True))


class SceneIndices(torch.utils.data.Dataset):
    """The numbers 0 to count - 1: the collator looks the scenes up itself."""

    def __init__(self, scenes: SceneArrays) -> None:
        self.count = len(scenes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class _SegmentationTrainer(WholeCheckpoints):
    """The Trainer, with another collator for evaluation than for training."""

    eval_collator: PromptCollator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        return torch.utils.data.DataLoader(self.eval_dataset, self.args.eval_batch_size, collate_fn=self.eval_collator)


def train_segmentation(folder: Path, cache: Path, settings: SegmentationSettings) -> Path:
    """Trains stage 1 in `folder`, resuming from its last checkpoint; returns the folder of the plain `SamModel`."""
    done = folder / "sam"
    if done.exists():
        return done
    config = tiny_sam_config()
    size, side = config.vision_config.image_size, 4 * config.prompt_encoder_config.image_embedding_size
    train = load_scene_arrays(cache, "train", settings.train_scenes, size)
    validation = load_scene_arrays(cache, "validation", settings.eval_scenes, size)
    torch.manual_seed(settings.seed)
    arguments = stage_arguments(
        folder,
        settings,
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        remove_unused_columns=False,
        label_names=["scene_index"],
    )
    trainer = _SegmentationTrainer(
        model=SegmentationTrainee(config),
        args=arguments,
        data_collator=PromptCollator(train, side),
        train_dataset=SceneIndices(train),
        eval_dataset=SceneIndices(validation),
        compute_metrics=_mean_scores,
    )
    trainer.eval_collator = PromptCollator(validation, side, training=False)
    train_from_last_checkpoint(trainer)
    return save_whole(done, trainer.model.sam)
