"""Adapters on the language model (LoRA, by the library's PEFT integration), kept beside the mixer and loaded with it.

PEFT is not imported here: a repository without adapters loads without it.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file


# Folder within a mixer-only repository; at its top the library would take the repository for an adapter of something.
ADAPTER_FOLDER = "language_model_adapter"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def made_by_peft(module: torch.nn.Module | None) -> bool:
    """Whether PEFT put a module in the place of another: its wrapper of a model, or a layer with adapters."""
    return any(kind.__module__.startswith("peft.") for kind in type(module).__mro__)


def has_adapter(language_model: PreTrainedModel | None) -> bool:
    """Whether a language model has adapters that are not merged: the library's, or `get_peft_model` around it."""
    return bool(getattr(language_model, "_hf_peft_config_loaded", False)) or made_by_peft(language_model)


def check_savable_adapter(language_model: Any) -> None:
    """Refuse adapters of a language model that its repository could not give back."""
    kinds = [
        str(getattr(config.peft_type, "value", config.peft_type)) for config in language_model.peft_config.values()
    ]
    if kinds != ["LORA"]:
        raise ValueError(
            f"the language model has the adapters {', '.join(kinds)}, but a repository can have only one LORA "
            "adapter: delete the others (delete_adapter), or save the language model separately."
        )


def is_adapter_key(key: str) -> bool:
    """Whether a weight belongs to an adapter."""
    return ".lora_" in key


def save_adapter(language_model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write the adapter in PEFT's own form.

    Args:
        weights: the language model's weights by its own names; those that are not the adapter's are left out.
    """
    wrapped = made_by_peft(language_model)
    if wrapped:
        # What the wrapper holds is as if the library had added the adapter.
        weights = {key.removeprefix("base_model.model."): value for key, value in weights.items()}
        language_model = language_model.get_base_model()
        language_model._hf_peft_config_loaded = True
    name = next(iter(language_model.peft_config))
    own = language_model.get_adapter_state_dict(name, state_dict=weights)
    if wrapped:
        language_model._hf_peft_config_loaded = False
    folder.mkdir(parents=True, exist_ok=True)
    own = {f"base_model.model.{key}": value.detach().cpu().contiguous() for key, value in own.items()}
    save_file(own, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    language_model.peft_config[name].save_pretrained(folder)


def load_adapter(
    language_model: PreTrainedModel, repository: str | os.PathLike[str], arguments: dict[str, Any]
) -> None:
    """Give a language model the adapter that a mixer-only repository holds for it.

    Args:
        repository: folder or repository id.
        arguments: where its files are: `revision`, `token`, `cache_dir`, ...
    """
    files = [
        cached_file(repository, f"{ADAPTER_FOLDER}/{name}", **arguments) for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG)
    ]
    _check_config(Path(files[1]))
    try:
        language_model.load_adapter(str(Path(files[1]).parent))
    except ImportError as error:
        raise ImportError(
            f"{repository} has a language model with LoRA adapters: pip install peft, or have its author merge them "
            "(sca_hf.training.adapters.merge_lora) and save with include_base_models=True."
        ) from error


def _check_config(path: Path) -> None:
    """Refuse an adapter that is not a LoRA, or that names modules to import: PEFT would import them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        raise ValueError(f"{path} does not describe a LoRA adapter (peft_type LORA), the only kind that is loaded.")
    if named := [key for key in ("auto_mapping", "megatron_config") if content.get(key)]:
        raise ValueError(
            f"{path} has {named[0]}, which would import modules by name. The file has been tampered with."
        )


__all__ = [
    "ADAPTER_FOLDER",
    "check_savable_adapter",
    "has_adapter",
    "is_adapter_key",
    "load_adapter",
    "made_by_peft",
    "save_adapter",
]
