"""Makes a model ready for a run: quantized or in half precision where frozen, with adapters, frozen by its preset."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.utils import logging

from ..modeling.base_models_sca import as_dtype, has_adapter, is_adapter_key
from .arguments import ScaTrainingArguments
from .checkpoint.run_identity import preserve_rng_state
from .lora import add_lora
from .presets import PRESETS, Preset, apply_preset
from .quantization import is_quantized, quantize_language_model


logger = logging.get_logger(__name__)


def prepare_model(model: Any, args: ScaTrainingArguments) -> Preset:
    """Changes `model` in place into what `args` describe; the arguments follow where the preset decides."""
    if args.quantize_language_model and not any(map(is_quantized, model.language_model.parameters())):
        _quantize(model, args)
    if PRESETS[args.preset].with_adapters and not has_adapter(model.language_model):
        # Drawn from the run's seed alone: the same in every process, whatever was drawn before.
        with preserve_rng_state():
            torch.manual_seed(args.seed)
            add_lora(model, args.lora_rank, args.lora_alpha, args.lora_target_modules)
    preset = apply_preset(model, args.preset, args.mask_loss_weight)
    # Whoever makes batches need not ask the model whether they are to hold masks.
    args.mask_loss_weight = model.config.mask_loss_weight if preset.trains_masks else None
    hold_frozen(model, args.frozen_dtype)
    choose_save_form(model, preset, args.save_form)
    if args.frozen_dtype and model.include_base_models:
        logger.warning(f"Checkpoints hold every weight, the frozen ones rounded to {args.frozen_dtype}.")
    if args.ddp_find_unused_parameters is None:
        # A batch seldom holds every kind of prompt, and each has weights of its own; elsewhere all weights are used.
        args.ddp_find_unused_parameters = args.preset == "all"
    return preset


def _quantize(model: Any, args: ScaTrainingArguments) -> None:
    if any(name == "language_model" for name in PRESETS[args.preset].trained):
        raise ValueError(f"the preset {args.preset} trains the language model, which cannot be quantized then.")
    if args.save_form == "whole" or not model.base_sources:
        raise ValueError(
            "a quantized language model is not saved, only the name of the repository or folder that it came from: "
            "leave out save_form whole, and load the model from where its parts can be named."
        )
    if args.frozen_dtype:
        model.language_model.to(as_dtype(args.frozen_dtype))
    quantize_language_model(model, cast(str, args.quantize_language_model))


def hold_frozen(model: Any, dtype: str | None) -> None:
    """Casts the image encoder and the language model, as far as they are frozen; adapters stay as they are."""
    if dtype is None:
        return
    frozen = [part for part in (model.sam.vision_encoder, model.language_model) if not _trains_own_weights(part)]
    if not frozen:
        raise ValueError(f"frozen_dtype is {dtype}, but neither the image encoder nor the language model is frozen.")
    for part in frozen:
        for parameter in part.parameters():
            if not parameter.requires_grad and not is_quantized(parameter):
                parameter.data = parameter.data.to(as_dtype(dtype))


def choose_save_form(model: Any, preset: Preset, form: str | None) -> None:
    """Decides whether saves hold the mixer alone; one that would lose weights or name no bases is an error."""
    if form == "whole" and preset.with_adapters:
        raise ValueError("save_form whole cannot hold adapters: merge_lora(model) after training, then save it whole.")
    if preset.with_adapters and not model.base_sources:
        raise ValueError(
            "adapters are saved with the name of the language model that they belong to, but this model's was built "
            "here or given as a loaded model: save_pretrained the whole model and load it again first."
        )
    if form is None:
        form = "whole" if preset.trains_bases or not model.base_sources else "mixer"
        if form == "whole" and not preset.trains_bases:
            logger.warning(
                "Checkpoints hold every weight: the model's SAM and language model come from no repository."
            )
    model.include_base_models = form == "whole"


def _trains_own_weights(part: torch.nn.Module) -> bool:
    return any(p.requires_grad and not is_adapter_key(name) for name, p in part.named_parameters())
