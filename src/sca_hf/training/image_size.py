"""Changes of a trained model's image encoder: another input size, and a convolutional branch beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModel, PreTrainedConfig

from ..modeling.configuration_sca import ScaConfig, check_detail_widths
from ..modeling.detail_sca import ScaDetailEncoder
from ..modeling.families_sca import family_of
from ..modeling.second_look_sca import ScaSecondLook
from ..processing.processing_sca import ScaProcessor


_WIDEST = 128  # of a detail encoder's stages, where nobody says otherwise
_FILTERS = "vision_encoder.patch_embed.projection.weight"


def with_image_size(config: PreTrainedConfig, side: int, patch_size: int | None = None) -> PreTrainedConfig:
    """A copy of a SAM configuration for inputs of `side` pixels, in patches of `patch_size`, by default as before."""
    family = family_of(config)
    if family.sizes != "vision_config":
        raise ValueError(
            f"{family.title} keeps the image size that it was trained with; only SAM and SAM-HQ take another."
        )
    old = config.vision_config.patch_size
    patch = patch_size or old
    if patch < old or patch % old:
        raise ValueError(f"patch_size is {patch}, expected a multiple of the old {old}.")
    if side < patch or side % patch:
        raise ValueError(f"image_size is {side}, expected a multiple of the patch size {patch}.")
    config = copy.deepcopy(config)
    config.vision_config.patch_size = config.prompt_encoder_config.patch_size = patch
    config.vision_config.image_size = config.prompt_encoder_config.image_size = side
    config.prompt_encoder_config.image_embedding_size = side // patch
    return config


def set_image_size(model: Any, side: int, patch_size: int | None = None) -> list[str]:
    """Changes a model to take inputs of another size, in place; its processor must be built again.

    A larger side shows smaller things and costs more; the image encoder has not seen it in training. With patches
    larger by as much, SAM costs and sees what it did, as it reads each patch at its old size: what the larger picture
    has more to show is left to a detail encoder, see `add_detail_encoder`.

    Args:
        model: A `ScaForConditionalGeneration`. No repository holds its SAM any longer: it is saved whole.
        side: The longest side of the resized image in pixels, a multiple of the patch size.
        patch_size: The new side of a patch, a multiple of the old one; None leaves it as it is.

    Returns:
        Names of the modules that do best with more training: none where the grid of patches stays, as then SAM sees
        what it did.
    """
    old, frame = model.sam, model.config.image_frame
    if frame.side == side and patch_size in (None, frame.patch):
        return []
    if patch_size not in (None, frame.patch) and model.detail_encoder is not None:
        raise ValueError("a model with a detail encoder must keep its patch size, which sets the encoder's grid.")
    new = AutoModel.from_config(with_image_size(old.config, side, patch_size))
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    weights = old.state_dict()
    filters = weights.pop(_FILTERS)
    weights = {name: _resampled(value, shapes[name]) for name, value in weights.items()}
    weights[_FILTERS] = _of_larger_patches(filters, shapes[_FILTERS])
    new.load_state_dict(weights)
    new.to(old.device)
    for fresh, known in zip(new.parameters(), old.parameters(), strict=True):
        fresh.data = fresh.data.to(known.dtype)
        fresh.requires_grad_(known.requires_grad)
    model.attach_base_models(new.train(old.training), model.language_model)
    model.base_sources = None
    model.include_base_models = True
    before, now = (sam.config.prompt_encoder_config.image_embedding_size for sam in (old, new))
    return [] if now == before else ["sam.vision_encoder", "mixer"]


def add_detail_encoder(model: Any, widths: Sequence[int]) -> list[str]:
    """Gives the mixer a convolutional view of each region's pixels, in place; until it is trained it adds nothing.

    With it a small model learns to tell fine things apart from few images; see `ScaDetailEncoder`.

    Args:
        model: A `ScaForConditionalGeneration` without one, or with one of these widths, which it keeps.
        widths: The channels of its stages, as the configuration's `detail_widths`.

    Returns:
        Names of the modules that must be trained to gain anything.
    """
    if model.detail_encoder is not None:
        if list(widths) == list(model.config.detail_widths):
            return []
        raise ValueError(f"the model already has a detail encoder with widths {list(model.config.detail_widths)}.")
    check_detail_widths(widths, model.config.sam_config)
    model.config.detail_widths = list(widths)
    model.detail_encoder = ScaDetailEncoder(model.config)
    model.detail_encoder.apply(model._init_weights)
    model.detail_encoder.to(model.mixer.device, model.mixer.dtype).train(model.training)
    return ["detail_encoder"]


_SECOND_LOOK = "second_look.net."


def add_second_look(model: Any, size: int, weights: str | Path | None = None, context: float = 1.5) -> list[str]:
    """Gives a model a second look at each region, in place; until it is trained its masks mean nothing.

    Args:
        model: A `ScaForConditionalGeneration` without one, or with one of this size, which it keeps.
        size: The side of the crops that are looked at, in pixels.
        weights: A safetensors file to start from: of a `PromptedUNet`, that may lack the channels of the prompts, or
            of a model that has a second look.
        context: How much wider and higher than a region its crop is.

    Returns:
        Names of the modules that must be trained to gain anything.
    """
    if model.second_look is not None:
        if (size, context) == (model.config.second_look_size, model.config.second_look_context) and weights is None:
            return []
        raise ValueError(f"the model already has a second look of {model.config.second_look_size} pixels.")
    model.config.second_look_size, model.config.second_look_context = size, context
    look = ScaSecondLook(ScaConfig.from_dict(model.config.to_dict()))  # which checks the values
    look.apply(model._init_weights)
    if weights is not None:
        known = load_file(weights)
        if _SECOND_LOOK + "fuse.weight" in known:  # of a whole model
            known = {name.removeprefix(_SECOND_LOOK): known[name] for name in known if name.startswith(_SECOND_LOOK)}
        first = known["down.0.enter.weight"].float()
        wanted = look.net.down[0].enter.weight.shape[1]
        # Channels that are new say nothing at first.
        known["down.0.enter.weight"] = F.pad(first, (0, 0, 0, 0, 0, wanted - first.shape[1]))
        look.net.load_state_dict({name: value.float() for name, value in known.items()})
    model.second_look = look.to(model.mixer.device, model.mixer.dtype).train(model.training)
    return ["second_look"]


def increase_input_resolution(model: Any, processor: Any, factor: int = 2) -> ScaProcessor:
    """Lets a small model read images `factor` times as large, with a new detail encoder, in place.

    SAM sees and costs what it did, see `set_image_size`; `sca_hf.training.detail_pretraining` trains the detail
    encoder.

    Args:
        model: A `ScaForConditionalGeneration` without a detail encoder.
        processor: The model's `ScaProcessor`.
        factor: How many times as large, a power of two.

    Returns:
        The processor of the changed model.
    """
    if model.detail_encoder is not None:
        raise ValueError("the model already has a detail encoder: pretrain_detail_encoder trains it further.")
    frame = model.config.image_frame
    set_image_size(model, factor * frame.side, factor * frame.patch)
    stages = (factor * frame.patch).bit_length() - 1
    add_detail_encoder(model, [max(8, _WIDEST >> stage) for stage in reversed(range(stages))])
    kept = {name: getattr(processor, name) for name in ("anything_settings", "find_threshold")}
    return ScaProcessor.from_config(model.config, processor.tokenizer, **kept)


def _of_larger_patches(filters: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Filters (C, 3, p, p) as such of larger patches, that answer to them as the old ones to their means."""
    factor = shape[-1] // filters.shape[-1]
    return filters.repeat_interleave(factor, -1).repeat_interleave(factor, -2) / factor**2


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
