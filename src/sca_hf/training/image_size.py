"""Another input size for a trained SAM: its tables of positions are interpolated, all other weights stay."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel, PreTrainedConfig


def with_image_size(config: PreTrainedConfig, side: int) -> PreTrainedConfig:
    """A copy of a SAM configuration for inputs of `side` pixels."""
    patch = config.vision_config.patch_size
    if side < patch or side % patch:
        raise ValueError(f"image_size is {side}, expected a multiple of the patch size {patch}.")
    config = copy.deepcopy(config)
    config.vision_config.image_size = config.prompt_encoder_config.image_size = side
    config.prompt_encoder_config.image_embedding_size = side // patch
    return config


def set_image_size(model: Any, side: int) -> list[str]:
    """Has a model take inputs of another size, in place; its processor must be made anew.

    A larger side shows smaller things and costs more; the image encoder has not seen it in training.

    Args:
        model: `ScaForConditionalGeneration`. No repository holds its SAM any longer: it is saved whole.
        side: longest side of the resized image in pixels, a multiple of the patch size.

    Returns:
        Names of the modules that do best with more training.
    """
    old = model.sam
    if old.config.vision_config.image_size == side:
        return []
    new = AutoModel.from_config(with_image_size(old.config, side))
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    weights = {name: _resampled(value, shapes[name]) for name, value in old.state_dict().items()}
    new.load_state_dict(weights)
    new.to(old.device)
    for fresh, known in zip(new.parameters(), old.parameters(), strict=True):
        fresh.data = fresh.data.to(known.dtype)
        fresh.requires_grad_(known.requires_grad)
    model.attach_base_models(new.train(old.training), model.language_model)
    model.base_sources = None
    model.include_bases = True
    return ["sam.vision_encoder", "mixer"]


def _resampled(value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Fits a table of positions, absolute (1, h, w, C) or relative (2 h - 1, C), to another grid."""
    if value.shape == shape:
        return value
    if value.ndim == 4:
        grid = value.permute(0, 3, 1, 2).float()
        resized = F.interpolate(grid, shape[1:3], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    else:
        resized = F.interpolate(value.t()[None].float(), shape[0], mode="linear", align_corners=False)[0].t()
    return resized.to(value.dtype)
