"""What to train: the presets, the learning rates that go with them, and parameter groups by module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from transformers.utils import logging

from ..model_names import BUNDLED_MODELS, bundled_model
from ..modeling.adapters_sca import has_adapter, is_adapter_key, made_by_peft
from ..modeling.base_models_sca import as_dtype
from ..modeling.families_sca import family_of
from .adapters import add_lora
from .arguments import MASK_DECODER, PRESETS, SECOND_LOOK, Preset, ScaTrainingArguments
from .checkpoint.fingerprint import preserve_rng_state
from .quantization import is_quantized, quantize_language_model


logger = logging.get_logger(__name__)

# Without a mask loss these get no gradient, and under DDP nothing may idle.
_MASK_HEADS = tuple(
    f"{MASK_DECODER}.{name}"
    for name in (
        "output_hypernetworks_mlps",
        "iou_prediction_head",
        "upscale_conv1",
        "upscale_conv2",
        "upscale_layer_norm",
        # Of SAM-HQ.
        "hq_token",
        "hq_mask_mlp",
        "compress_vit_conv1",
        "compress_vit_conv2",
        "compress_vit_norm",
        "encoder_conv1",
        "encoder_conv2",
        "encoder_norm",
        "mask_conv1",
        "mask_conv2",
        "mask_norm",
        # Of SAM 2 and its relatives.
        "conv_s0",
        "conv_s1",
    )
)
# Parts of trackers that no picture teaches: whether an object is there, and what they remember of a clip.
_UNTAUGHT = (
    f"{MASK_DECODER}.pred_obj_score_head",
    *(
        f"sam.{name}"
        for name in (
            "memory_attention",
            "memory_encoder",
            "memory_temporal_positional_encoding",
            "no_memory_positional_encoding",
            "mask_downsample",
            "object_pointer_proj",
            "temporal_positional_encoding_projection_layer",
            "no_object_pointer",
            "occlusion_spatial_embedding_parameter",
            "spatial_perceiver",
        )
    ),
)
# The paper (arXiv 2312.00869, ablation of learning rates, CIDEr on Visual Genome, mixer at 1e-4): GPT-2 of 127 M gains
# from 1e-6 (134.7 against 132.3 frozen); GPT2-large of 774 M is best frozen (136.0), least harmed at 1e-7 (135.6).
_LARGE_LANGUAGE_MODEL = 300_000_000  # between the two sizes measured
_SMALL_RATIO, _LARGE_RATIO = 1e-2, 1e-3
# Our choice: finetune what was trained before more gently than what was not.
_MASK_DECODER_RATIO = 0.1


def apply_preset(
    model: Any, name: str, mask_loss_weight: float | None = None, mask_loss_type: str | None = None
) -> Preset:
    """Freezes and unfreezes the parts of a model, and notes in its configuration what is frozen.

    Args:
        model: A `ScaForConditionalGeneration`; adapters that it has take gradients under "mixer+lora" only.
        name: The preset's name in `PRESETS`.
        mask_loss_weight: The weight for the model's configuration; None leaves that as it is.
        mask_loss_type: The kind of mask loss for the configuration; None leaves that as it is.
    """
    preset = PRESETS[name]
    weight = model.config.mask_loss_weight if mask_loss_weight is None else mask_loss_weight
    if SECOND_LOOK in preset.trained and model.second_look is None:
        raise ValueError(
            f"the preset {name} trains a second look, which the model does not have: give it one with "
            "add_second_look, or in a recipe with model.second_look_size."
        )
    if name in ("mixer+mask_decoder", SECOND_LOOK) and not weight > 0:
        raise ValueError(f"the preset {name} learns from masks: set mask_loss_weight above 0 (SAM's own loss has 1).")
    if mask_loss_weight and not preset.trains_masks:
        raise ValueError(f"mask_loss_weight is {mask_loss_weight}, but the preset {name} does not train masks.")
    if preset.trains_masks and not weight > 0:
        logger.warning("SAM is trained on captions only (mask_loss_weight is 0): its masks will drift.")
    idle = _UNTAUGHT + (_MASK_HEADS if preset.trains_masks and not weight > 0 else ())
    captions = "mixer" in preset.trained
    new = tuple(f"sam.{part}" for part in family_of(model.config.sam_config).learns if captions)
    for parameter_name, parameter in model.named_parameters():
        adapter = is_adapter_key(parameter_name)
        trained = preset.with_adapters if adapter else _within(parameter_name, (*preset.trained, *new))
        # SAM's Fourier features are random and stay so, though the library keeps them as a parameter.
        trained = trained and not parameter_name.endswith(".positional_embedding")
        parameter.requires_grad_(trained and parameter.is_floating_point() and not _within(parameter_name, idle))
    model.config.freeze_base_models = not preset.trains_base_models
    if captions and model.confidence_head is not None:
        logger.warning(
            "The model's confidence is dropped: it was fitted before this training. Fit a new one with data.outside "
            "in a recipe, or fit_confidence."
        )
        model.confidence_head = model.config.confidence_size = None
    if mask_loss_weight is not None:
        model.config.mask_loss_weight = mask_loss_weight
    if mask_loss_type is not None:
        model.config.mask_loss_type = mask_loss_type
    return preset


def default_learning_rates(model: Any, name: str, learning_rate: float) -> dict[str, float]:
    """Learning rates of the modules that a preset trains at another rate than the mixer's `learning_rate`."""
    if name == "mixer+mask_decoder":
        return {MASK_DECODER: _MASK_DECODER_RATIO * learning_rate}
    if name != "mixer+lm":
        return {}
    size = sum(parameter.numel() for parameter in model.language_model.parameters())
    if size < _LARGE_LANGUAGE_MODEL:
        return {"language_model": _SMALL_RATIO * learning_rate}
    logger.warning(
        f"The language model has {size / 1e6:.0f} M parameters; the paper found one with 774 M best frozen. It is "
        f"trained at {_LARGE_RATIO:g} of the mixer's learning rate, which hurt least there."
    )
    return {"language_model": _LARGE_RATIO * learning_rate}


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    decayed: list[str],
    module_learning_rates: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Groups what takes gradients by module and by weight decay; the default learning rate's groups come first.

    Args:
        decayed: The names of the parameters with weight decay.
        module_learning_rates: The learning rates by dotted name of a module or parameter; the longest name that fits
            a parameter counts.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    _check_modules(parameters, module_learning_rates)
    decay_names = {plain_name(name) for name in decayed}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (module, decay): [] for module in ("", *module_learning_rates) for decay in (True, False)
    }
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            groups[_module_of(name, module_learning_rates), name in decay_names].append(parameter)
    return [
        {
            "params": members,
            "lr": module_learning_rates.get(module, learning_rate),
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (module, decay), members in groups.items()
        if members
    ]


def _module_of(name: str, rates: Mapping[str, float]) -> str:
    """The longest of the modules with rates that a parameter is in, or an empty name."""
    return max((module for module in rates if _within(name, (module,))), key=len, default="")


def _check_modules(parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
    for module, rate in rates.items():
        members = [parameter for name, parameter in parameters.items() if _within(name, (module,))]
        if not members:
            raise ValueError(
                f"module_learning_rates names {module!r}, but the model has no such module; its parts are "
                f"{', '.join(sorted({'.'.join(name.split('.')[:2]) for name in parameters}))}."
            )
        if rate and not any(parameter.requires_grad for parameter in members):
            raise ValueError(f"module_learning_rates names {module!r}, which is frozen: choose another preset.")
        if not rate >= 0:
            raise ValueError(f"module_learning_rates has {rate} for {module!r}, expected 0 (frozen) or more.")


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers (DDP, FSDP, compilation, checkpointing) put into it."""
    wrappers = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def prepare_model(model: Any, args: ScaTrainingArguments) -> Preset:
    """Changes `model` in place into what `args` describe; the arguments follow where the preset decides."""
    if made_by_peft(model):
        raise ValueError(
            "ScaTrainer got PEFT's wrapper: pass the model itself, whose language model preset='mixer+lora' adapts "
            "(or model.language_model = get_peft_model(model.language_model, config)); transformers' own Trainer "
            "takes the wrapper of the whole model."
        )
    model.check_adapters()
    if args.quantize_language_model and not any(map(is_quantized, model.language_model.parameters())):
        check_quantizable(model, args)
        if args.frozen_dtype:
            model.language_model.to(as_dtype(args.frozen_dtype))
        quantize_language_model(model, args.quantize_language_model)
    if PRESETS[args.preset].with_adapters and not has_adapter(model.language_model):
        # Drawn from the run's seed alone: the same in every process, whatever was drawn before.
        with preserve_rng_state():
            torch.manual_seed(args.seed)
            add_lora(model, args.lora_rank, args.lora_alpha, args.lora_target_modules)
    if not PRESETS[args.preset].with_adapters and any(
        weight.requires_grad and is_adapter_key(name) for name, weight in model.named_parameters()
    ):
        logger.warning(f"The preset {args.preset} freezes the language model's adapters; mixer+lora trains them.")
    preset = apply_preset(model, args.preset, args.mask_loss_weight, args.mask_loss_type)
    rates = cast(dict[str, float], args.module_learning_rates or {})
    for name, parameter in model.named_parameters():
        if rates.get(_module_of(plain_name(name), rates)) == 0:
            parameter.requires_grad_(False)
    # Whoever makes batches need not ask the model whether they are to hold masks.
    args.mask_loss_weight = model.config.mask_loss_weight if preset.trains_masks else None
    hold_frozen(model, args.frozen_dtype)
    choose_save_form(model, preset, args.save_form)
    if args.frozen_dtype and model.include_base_models:
        logger.warning(f"Checkpoints contain every weight, the frozen ones rounded to {args.frozen_dtype}.")
    if args.ddp_find_unused_parameters is None:
        # A batch seldom holds every kind of prompt, and each has weights of its own; elsewhere all weights are used.
        args.ddp_find_unused_parameters = args.preset == "all"
    return preset


def check_quantizable(model: Any, args: ScaTrainingArguments) -> None:
    """Raises where the language model of a run cannot be held in 4 or 8 bits."""
    if any(name == "language_model" for name in PRESETS[args.preset].trained):
        raise ValueError(f"the preset {args.preset} trains the language model, so it cannot be quantized.")
    if args.save_form == "whole" or not model.base_sources:
        raise ValueError(
            "a quantized language model is not saved, only the name of its repository or folder: remove save_form "
            "whole, and load the model from a source that names its parts."
        )


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
    """Decides whether saves hold the mixer alone; one that would lose weights or name no base models is an error."""
    if form == "whole" and preset.with_adapters:
        raise ValueError(
            "save_form whole cannot store adapters: merge_lora(model) after training, then save it whole."
        )
    if preset.with_adapters and not model.base_sources:
        raise ValueError(
            "adapters are saved with the name of their language model, but this one was built here or passed as a "
            "loaded model: save the whole model with save_pretrained and load it again first."
        )
    if form is None:
        form = "whole" if preset.trains_base_models or not model.base_sources else "mixer"
        quantized = any(map(is_quantized, model.language_model.parameters()))
        if form == "mixer" and not preset.with_adapters and not quantized and _comes_with_this_package(model):
            # Small, and what is trained from it is to be moved and published, away from this installation.
            form = "whole"
        elif form == "whole" and not preset.trains_base_models:
            logger.warning(
                "Checkpoints contain every weight: the model's SAM and language model do not come from a repository."
            )
    model.include_base_models = form == "whole"


def _comes_with_this_package(model: Any) -> bool:
    """Whether SAM or a language model that is saved with the model belongs to a bundled model."""
    bundled = {str(bundled_model(name).resolve()) for name in BUNDLED_MODELS}
    return not any(map(is_quantized, model.language_model.parameters())) and any(
        source.get("path") in bundled for source in model.base_sources.values()
    )


def _trains_own_weights(part: torch.nn.Module) -> bool:
    return any(p.requires_grad and not is_adapter_key(name) for name, p in part.named_parameters())
