"""What to train: the presets, the learning rates that go with them, and parameter groups by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.utils import logging

from ..modeling.base_models_sca import is_adapter_key


logger = logging.get_logger(__name__)

_DECODER = "sam.mask_decoder"
# What is SCA's own, and takes part in every preset; most models have no detail encoder.
_OWN = ("mixer", "detail_encoder")
# Without a mask loss these get no gradient, and under DDP nothing may idle.
_MASK_HEADS = tuple(
    f"{_DECODER}.{name}"
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
    )
)
# The paper (arXiv 2312.00869, ablation of learning rates, CIDEr on Visual Genome, mixer at 1e-4): GPT-2 of 127 M gains
# from 1e-6 (134.7 against 132.3 frozen); GPT2-large of 774 M is best frozen (136.0), least harmed at 1e-7 (135.6).
_LARGE_LANGUAGE_MODEL = 300_000_000  # between the two sizes measured
_SMALL_RATIO, _LARGE_RATIO = 1e-2, 1e-3
# Our choice: finetune what was trained before more gently than what was not.
_MASK_DECODER_RATIO = 0.1


@dataclass(frozen=True)
class Preset:
    """Dotted names of the modules to train; `with_adapters` adds LoRA layers to the language model."""

    trained: tuple[str, ...]
    with_adapters: bool = False

    @property
    def trains_bases(self) -> bool:
        """Whether weights of SAM or the language model change."""
        return any(name not in _OWN for name in self.trained)

    @property
    def trains_masks(self) -> bool:
        """Whether the mask loss has something to train."""
        return any(name in ("sam", _DECODER) for name in self.trained)


PRESETS = {
    # As published: SAM and the language model stay as they are.
    "mixer": Preset(_OWN),
    # A large language model that must learn other words.
    "mixer+lora": Preset(_OWN, with_adapters=True),
    # A small language model.
    "mixer+lm": Preset((*_OWN, "language_model")),
    # Masks of another kind than SAM's; needs masks in the records.
    "mixer+mask_decoder": Preset((*_OWN, _DECODER)),
    # Small models: SAM's encoder runs backwards too.
    "all": Preset((*_OWN, "sam", "language_model")),
}


def apply_preset(model: Any, name: str, mask_loss_weight: float | None = None) -> Preset:
    """Freezes and thaws the parts of a model, and says so in its configuration.

    Args:
        model: `ScaForConditionalGeneration`; adapters that it has take gradients under "mixer+lora" only.
        name: of `PRESETS`.
        mask_loss_weight: for the model's configuration; None leaves that as it is.
    """
    preset = PRESETS[name]
    weight = model.config.mask_loss_weight if mask_loss_weight is None else mask_loss_weight
    if name == "mixer+mask_decoder" and not weight > 0:
        raise ValueError(f"the preset {name} learns from masks: set mask_loss_weight above 0 (SAM's own loss has 1).")
    if mask_loss_weight and not preset.trains_masks:
        raise ValueError(f"mask_loss_weight is {mask_loss_weight}, but the preset {name} trains nothing of masks.")
    if preset.trains_masks and not weight > 0:
        logger.warning("SAM is trained by captions alone (mask_loss_weight is 0): its masks will drift.")
    idle = _MASK_HEADS if preset.trains_masks and not weight > 0 else ()
    for parameter_name, parameter in model.named_parameters():
        adapter = is_adapter_key(parameter_name)
        trained = preset.with_adapters if adapter else _within(parameter_name, preset.trained)
        # SAM's Fourier features are random and stay so, though the library keeps them as a parameter.
        trained = trained and not parameter_name.endswith(".positional_embedding")
        parameter.requires_grad_(trained and parameter.is_floating_point() and not _within(parameter_name, idle))
    model.config.freeze_base_models = not preset.trains_bases
    if mask_loss_weight is not None:
        model.config.mask_loss_weight = mask_loss_weight
    return preset


def default_learning_rates(model: Any, name: str, learning_rate: float) -> dict[str, float]:
    """Learning rates of the modules that a preset trains at another rate than the mixer's `learning_rate`."""
    if name == "mixer+mask_decoder":
        return {_DECODER: _MASK_DECODER_RATIO * learning_rate}
    if name != "mixer+lm":
        return {}
    size = sum(parameter.numel() for parameter in model.language_model.parameters())
    if size < _LARGE_LANGUAGE_MODEL:
        return {"language_model": _SMALL_RATIO * learning_rate}
    logger.warning(
        f"The language model has {size / 1e6:.0f} M parameters; the paper found one of 774 M best frozen. It is "
        f"trained at {_LARGE_RATIO:g} of the mixer's learning rate, which did least harm there."
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
        decayed: names of the parameters with weight decay.
        module_learning_rates: by dotted name of a module or parameter; the longest name that fits a parameter counts.
    """
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    _check_modules(parameters, module_learning_rates)
    decay_names = {plain_name(name) for name in decayed}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {
        (module, decay): [] for module in ("", *module_learning_rates) for decay in (True, False)
    }
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            fitting = [module for module in module_learning_rates if _within(name, (module,))]
            groups[max(fitting, key=len, default=""), name in decay_names].append(parameter)
    return [
        {
            "params": members,
            "lr": module_learning_rates.get(module, learning_rate),
            "weight_decay": weight_decay if decay else 0.0,
        }
        for (module, decay), members in groups.items()
        if members
    ]


def _check_modules(parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float]) -> None:
    for module, rate in rates.items():
        members = [parameter for name, parameter in parameters.items() if _within(name, (module,))]
        if not members:
            raise ValueError(
                f"module_learning_rates names {module!r}, but the model has no such module; its parts are "
                f"{', '.join(sorted({'.'.join(name.split('.')[:2]) for name in parameters}))}."
            )
        if not any(parameter.requires_grad for parameter in members):
            raise ValueError(f"module_learning_rates names {module!r}, which is frozen: choose another preset.")
        if not rate > 0:
            raise ValueError(f"module_learning_rates has {rate} for {module!r}, expected a positive number.")


def plain_name(name: str) -> str:
    """A parameter's name without what wrappers (DDP, FSDP, compilation, checkpointing) put into it."""
    wrappers = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
    return ".".join(part for part in name.split(".") if part not in wrappers)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)
