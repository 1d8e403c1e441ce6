"""The configuration of the model that a recipe trains, without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from ...model_names import resolve_model
from ...modeling.base_models_sca import cast_but_positions
from ...modeling.configuration_sca import ScaConfig, text_embedding_size
from ...modeling.modeling_sca import ScaForConditionalGeneration
from ...processing.processing_sca import ScaProcessor
from ..arguments import PRESETS, ScaTrainingArguments
from ..image_size import add_detail_encoder, set_image_size, with_image_size
from .known_configs import known_config
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


def build_model(section: ModelSection, args: ScaTrainingArguments) -> tuple[Any, ScaProcessor, list[str]]:
    """Returns the model of a recipe, its processor, and the modules that begin anew and must be trained."""
    dtype = getattr(torch, as_dtype_name(section.dtype))
    # A frozen language model is loaded as it will be held: twice the bytes might not fit.
    frozen = args.frozen_dtype if "language_model" not in PRESETS[args.preset].trained else None
    text_dtype = getattr(torch, frozen) if frozen else dtype
    options: dict[str, Any] = {}
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    where: dict[str, Any]
    anew: list[str] = []
    if section.from_ is not None:
        source, where = resolve_model(section.from_), {"revision": section.revision or "main"}
        model = ScaForConditionalGeneration.from_pretrained(source, **where, **options)
        processor = ScaProcessor.from_pretrained(source, **where)
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        anything_settings = processor.anything_settings
        _cast(model, dtype, text_dtype)
    else:
        model = ScaForConditionalGeneration.from_sam_text_pretrained(
            resolve_model(str(section.sam)),
            resolve_model(str(section.language_model)),
            mixer_config=dict(section.mixer),
            sam_revision=section.sam_revision or "main",
            text_revision=section.language_model_revision or "main",
            dtype=dtype,
            text_dtype=text_dtype,
            **options,
        )
        tokenizer = _tokenizer(section.language_model, section.language_model_revision)
        image_processor = anything_settings = None
        anew = ["mixer"]
    if section.swap_language_model is not None:
        where = {"revision": section.swap_language_model_revision or "main"}
        source = resolve_model(section.swap_language_model)
        anew += model.swap_language_model(source, dtype=text_dtype, **where, **options)
        tokenizer = _tokenizer(section.swap_language_model, section.swap_language_model_revision)
    if section.swap_image_encoder is not None:
        where = {"revision": section.swap_image_encoder_revision or "main"}
        anew += model.swap_image_encoder(resolve_model(section.swap_image_encoder), dtype=dtype, **where, **options)
        image_processor = anything_settings = None  # they were for the other one
    if section.image_size is not None:
        anew += set_image_size(model, section.image_size, section.patch_size)
        image_processor = None
    if section.detail_widths is not None:
        anew += add_detail_encoder(model, section.detail_widths)
    for name, value in section.config_fields.items():
        setattr(model.config, name, value)
    if section.max_caption_length is not None:
        model.generation_config.max_new_tokens = section.max_caption_length
    model.check_tokenizer(tokenizer)
    processor = ScaProcessor.from_config(model.config, tokenizer, image_processor, anything_settings)
    return model, processor, list(dict.fromkeys(anew))


def _cast(model: Any, dtype: torch.dtype, text_dtype: torch.dtype) -> None:
    """Gives each part its precision, whatever it was stored in."""
    cast_but_positions(model.sam, dtype)
    model.mixer.to(dtype)
    if model.detail_encoder is not None:
        model.detail_encoder.to(dtype)
    model.language_model.to(text_dtype)


def _tokenizer(name: str | None, revision: str | None) -> Any:
    return AutoTokenizer.from_pretrained(resolve_model(str(name)), revision=revision or "main")
