"""The configuration of the model that a recipe trains, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from ...model_names import resolve_model
from ...modeling.configuration_sca import ScaConfig, text_embedding_size
from ..estimates.known_configs import known_config
from ..image_encoder import with_image_size
from .schema import ModelSection, load_recipe


_FROM_TABLE = " could not be reached: its configuration is taken from a table in this package."


def as_dtype_name(dtype: str) -> str:
    """Checks the name of a precision."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"model.dtype is {dtype!r}, expected float32 or bfloat16.")
    return dtype


def recipe_config(model: ModelSection, beside: Path | None = None) -> tuple[ScaConfig, list[str]]:
    """Returns the configuration, and what had to be taken from elsewhere than where the recipe says.

    Args:
        beside: folder of other recipes, for a `model.from` that is one's output and not there yet.
    """
    notes: list[str] = []
    if model.from_ is not None:
        config = _stage_config(model, beside, notes) or _own_config(model)
    else:
        config = ScaConfig(
            sam_config=_base_config(model.sam, model.sam_revision, "sam", notes),
            text_config=_base_config(model.language_model, model.language_model_revision, "language_model", notes),
            mixer_config=dict(model.mixer),
        )
    parts: dict[str, Any] = {"sam_config": config.sam_config, "text_config": config.text_config}
    mixer = config.mixer_config.to_dict()
    if model.swap_language_model:
        text = _base_config(model.swap_language_model, model.swap_language_model_revision, "language_model", notes)
        parts["text_config"], mixer["text_hidden_size"] = text, text_embedding_size(text)
    if model.swap_image_encoder:
        parts["sam_config"] = _base_config(model.swap_image_encoder, model.swap_image_encoder_revision, "sam", notes)
    if model.image_size:
        parts["sam_config"] = with_image_size(parts["sam_config"], model.image_size, model.patch_size)
    fields = {name: getattr(config, name) for name in ("label_smoothing", "max_caption_length", "mask_loss_weight")}
    fields["detail_widths"] = model.detail_widths or config.detail_widths
    return ScaConfig(**parts, mixer_config=mixer, **{**fields, **model.config_fields}), notes


def _own_config(model: ModelSection) -> ScaConfig:
    name = resolve_model(str(model.from_))
    config = ScaConfig.from_pretrained(name, revision=model.revision or "main")
    if config.model_type != ScaConfig.model_type:
        raise ValueError(f"{name} is a {config.model_type!r} model, not {ScaConfig.model_type!r}.")
    return config


def _stage_config(model: ModelSection, beside: Path | None, notes: list[str]) -> ScaConfig | None:
    """The configuration that an earlier stage is going to write, from its recipe."""
    name = str(model.from_)
    if beside is None or Path(resolve_model(name)).exists():
        return None
    for path in sorted(beside.glob("*.yaml")):
        try:
            recipe = load_recipe(path)
        except ValueError:
            continue  # another kind of file
        if Path(recipe.output) / "model" == Path(name):
            config, more = recipe_config(recipe.model, beside)
            notes += [f"{name} is not there yet: taken as {path.name} will make it.", *more]
            return config
    return None


def _base_config(name: str | None, revision: str | None, part: str, notes: list[str]) -> PreTrainedConfig:
    """The configuration of a SAM or language model, alone or as a part of a whole SCA repository."""
    known = None if Path(str(name)).is_dir() else known_config(str(name))
    if known is not None and any(note.endswith(_FROM_TABLE) for note in notes):
        notes.append(f"{name}{_FROM_TABLE}")
        return known  # the Hub was not there a moment ago, and each try takes half a minute
    try:
        config = AutoConfig.from_pretrained(resolve_model(str(name)), revision=revision or "main")
    except OSError:
        if known is None:
            raise
        notes.append(f"{name}{_FROM_TABLE}")
        return known
    if config.model_type == ScaConfig.model_type:
        return config.sam_config if part == "sam" else config.text_config
    return config
