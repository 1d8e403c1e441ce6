"""LoRA adapters on the language model: added for training, restored with a checkpoint, merged for good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from ..environment import install_command
from ..modeling.adapters_sca import ADAPTER_FOLDER, ADAPTER_WEIGHTS, has_adapter, made_by_peft
from .quantization import is_quantized


def add_lora(
    model: Any, rank: int = 16, alpha: float = 32.0, target_modules: Sequence[str] | None = None, dropout: float = 0.0
) -> list[str]:
    """Adds LoRA adapters (arXiv 2106.09685) to a model's language model; at first they change nothing.

    Args:
        model: A `ScaForConditionalGeneration`, changed in place.
        rank: The rank of the two matrices of each adapter.
        alpha: An adapter's output is scaled by `alpha / rank`.
        target_modules: The names of linear layers within the language model. None: PEFT's own choice for the family,
            mostly the query and value projections.
        dropout: The dropout on the inputs of the adapters.

    Returns:
        Names of the adapted layers.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError(f"LoRA needs peft: {install_command('train')}") from error
    language_model = model.language_model
    if has_adapter(language_model):
        raise ValueError("the language model already has adapters; merge them first with merge_lora(model).")
    targets = None if target_modules is None else list(target_modules)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    try:
        language_model.add_adapter(config)
    except ValueError as error:
        language_model._hf_peft_config_loaded = False
        layers = sorted({name.rpartition(".")[2] for name, part in language_model.named_modules() if _is_linear(part)})
        raise ValueError(f"{error} The language model's linear layers are {', '.join(layers)}.") from error
    adapted = _adapted_layers(language_model)
    words = language_model.get_input_embeddings().weight
    if any(layer.get_base_layer().weight is words for _, layer in adapted):
        raise ValueError(
            "target_modules names the head, whose weight is tied to the word embeddings: its adapters could not be "
            "merged."
        )
    return [name for name, _ in adapted]


def merge_lora(model: Any) -> None:
    """Makes adapters a part of the language model's own weights; the model says the same as before, to rounding.

    Thereafter no repository that the model came from stands for its language model: it is saved whole.
    """
    language_model = model.language_model
    if not has_adapter(language_model):
        raise ValueError("the language model has no adapters to merge.")
    if made_by_peft(language_model):
        language_model = language_model.get_base_model()
    adapted = _adapted_layers(language_model)
    if not adapted:
        raise ValueError("the language model has adapters other than LoRA, which cannot be merged.")
    if any(is_quantized(layer.get_base_layer().weight) for _, layer in adapted):
        raise ValueError("adapters cannot be merged into packed weights: load the unpacked checkpoint first.")
    model.language_model = language_model
    for name, layer in adapted:
        layer.merge(safe_merge=True)
        language_model.set_submodule(name, layer.get_base_layer())
    del language_model.peft_config
    language_model._hf_peft_config_loaded = False
    model.config.language_model_adapter = False
    model.base_sources = None
    model.include_base_models = True


def restore_adapter(model: Any, checkpoint: Path) -> None:
    """Loads the adapter weights of a checkpoint into the adapters that a model has."""
    from peft import set_peft_model_state_dict

    file = checkpoint / ADAPTER_FOLDER / ADAPTER_WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(
            f"{checkpoint} has no adapters ({file.relative_to(checkpoint)}): it belongs to another run."
        )
    result = set_peft_model_state_dict(model.language_model, load_file(file))
    lacking = [name for name in result.missing_keys if ".lora_" in name]
    if lacking or result.unexpected_keys:
        raise ValueError(f"the adapters in {checkpoint} do not match: {(lacking + list(result.unexpected_keys))[:3]}.")


def _adapted_layers(language_model: nn.Module) -> list[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    return [(name, layer) for name, layer in language_model.named_modules() if isinstance(layer, LoraLayer)]


def _is_linear(module: nn.Module) -> bool:
    # GPT-2 calls its transposed linear layers Conv1D.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
