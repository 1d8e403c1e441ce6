"""The model that a recipe trains: the same steps with weights, to train it, and without, to estimate its memory."""

from __future__ import annotations

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from ...model_names import resolve_model
from ...modeling.base_models_sca import (
    BASE_MODELS,
    LANGUAGE_MODEL,
    SAM,
    keep_precision,
    split_gguf,
    without_dropout,
)
from ...modeling.composing_sca import __name__ as swap_warnings
from ...modeling.configuration_sca import ScaConfig
from ...modeling.families_sca import segmenter_config
from ...modeling.generation_sca import check_positions
from ...modeling.modeling_sca import ScaForConditionalGeneration
from ...processing.processing_sca import ScaProcessor
from ..arguments import PRESETS, ScaTrainingArguments
from ..asked_tasks import add_languages, add_lengths
from ..image_size import add_detail_encoder, add_second_look, set_image_size
from .known_configs import known_config
from .schema import ModelSection, load_recipe


_FROM_TABLE = " could not be reached: using its configuration from a table in this package."


class Weights:
    """Where a recipe's models come from when they are to be trained: folders and repositories with weights."""

    def whole_model(self, name: str, revision: str, options: dict[str, Any]) -> Any:
        """Returns a saved SCA model."""
        check_whole(name, revision)
        return ScaForConditionalGeneration.from_pretrained(resolve_model(name), revision=revision, **options)

    def base_model(self, part: str, name: str, revision: str, dtype: torch.dtype) -> Any:
        """Returns a SAM or a language model, or what the model loads it from."""
        return resolve_model(name)

    def name_sources(self, model: Any) -> None:
        """Notes where SAM and the language model came from; loading has done so."""


class Configurations(Weights):
    """Where they come from when only shapes matter: configurations, of which models without contents are made.

    Args:
        beside: The folder of other recipes, for a `model.from` that is the output of one of them and not there yet.

    Attributes:
        notes: What had to be taken from elsewhere than where the recipe says.
    """

    def __init__(self, beside: Path | None = None) -> None:
        self.beside = beside
        self.notes: list[str] = []
        self._read: dict[tuple[str, str], PreTrainedConfig] = {}

    def whole_model(self, name: str, revision: str, options: dict[str, Any]) -> Any:
        """Returns a model as the saved one, or the one that an earlier stage will save, on the meta device."""
        config = self._stage_config(name) or check_whole(name, revision)
        return empty_model(config)

    def base_model(self, part: str, name: str, revision: str, dtype: torch.dtype) -> Any:
        """Returns a SAM or a language model on the meta device, alone or as a part of a whole SCA repository."""
        auto_class, config_name = BASE_MODELS[part]
        config = self._config(name, revision)
        if config.model_type == ScaConfig.model_type:
            config = getattr(config, config_name)
        config = (
            without_dropout(deepcopy(config)) if part == LANGUAGE_MODEL else segmenter_config(config.to_dict(), name)
        )
        with torch.device("meta"):
            if part == SAM:
                return keep_precision(auto_class.from_config(config)).to(dtype)
            return auto_class.from_config(config, dtype=dtype)

    def name_sources(self, model: Any) -> None:
        """Notes that both parts could be loaded from where they are named."""
        model.base_sources = {name: {"path": ""} for name in BASE_MODELS}

    def _config(self, name: str, revision: str) -> PreTrainedConfig:
        known = None if Path(name).is_dir() else known_config(name)
        if (name, revision) not in self._read:
            offline = any(note.endswith(_FROM_TABLE) for note in self.notes)  # each try takes half a minute
            try:
                if known is not None and offline:
                    raise OSError
                place, named = split_gguf(resolve_model(name), {"revision": revision})
                config = AutoConfig.from_pretrained(place, trust_remote_code=False, **named)
            except OSError:
                if known is None:
                    raise
                config = known
                self.notes.append(f"{name}{_FROM_TABLE}")
            self._read[name, revision] = config
        return self._read[name, revision]

    def _stage_config(self, name: str) -> ScaConfig | None:
        """The configuration that an earlier stage is going to write, from its recipe."""
        if self.beside is None or Path(resolve_model(name)).exists():
            return None
        for path in sorted(self.beside.glob("*.yaml")):
            try:
                recipe = load_recipe(path)
            except ValueError:
                continue  # another kind of file
            if Path(recipe.output) / "model" == Path(name):
                self.notes.append(f"{name} does not exist yet: using the model that {path.name} will produce.")
                return assemble(recipe.model, torch.float32, torch.float32, self)[0].config
        return None


def build_model(section: ModelSection, args: ScaTrainingArguments) -> tuple[Any, ScaProcessor, list[str]]:
    """Returns the model of a recipe, its processor, and the modules that are new and must be trained."""
    model, new = assemble(section, *dtypes(section, args), Weights())
    tokenizer = image_processor = anything_settings = None
    kept: dict[str, Any] = {}
    if section.from_ is not None:
        processor = ScaProcessor.from_pretrained(resolve_model(section.from_), revision=section.revision or "main")
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        anything_settings = processor.anything_settings
        kept = {"find_threshold": processor.find_threshold}
    if section.swap_image_encoder is not None:
        image_processor = anything_settings = None  # they were for the other one
    if section.image_size is not None:
        image_processor = None
    for name in ("language_model", "swap_language_model"):
        if source := getattr(section, name):
            revision = getattr(section, f"{name}_revision") or "main"
            place, named = split_gguf(resolve_model(source), {"revision": revision})
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **named)
            kept = {}  # it was for what the other one says
    model.check_tokenizer(tokenizer)
    processor = ScaProcessor.from_config(model.config, tokenizer, image_processor, anything_settings, **kept)
    return model, processor, new


def build_empty_model(section: ModelSection, args: ScaTrainingArguments, parts: Configurations) -> Any:
    """Returns the model of a recipe on the meta device: shapes and precisions, no weights."""
    composing = logging.getLogger(swap_warnings)
    level = composing.level
    composing.setLevel(logging.ERROR)  # nobody is going to use the model: no advice on what to train first
    try:
        with torch.device("meta"):
            return assemble(section, *dtypes(section, args), parts)[0]
    finally:
        composing.setLevel(level)


def empty_model(config: ScaConfig) -> Any:
    """Returns a model of a configuration on the meta device, as if it had been loaded."""
    with torch.device("meta"):
        model = ScaForConditionalGeneration(deepcopy(config))
    Configurations().name_sources(model)
    return model


def assemble(
    section: ModelSection, dtype: torch.dtype, text_dtype: torch.dtype, parts: Weights
) -> tuple[Any, list[str]]:
    """Makes the model of a recipe, and names the modules that are new and must be trained.

    Args:
        section: What the recipe says of the model.
        dtype: The precision of SAM, mixer and detail encoder.
        text_dtype: The precision of the language model.
        parts: Where models come from.
    """
    options: dict[str, Any] = {}
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    new: list[str] = []

    def base(part: str, name: str, precision: torch.dtype) -> tuple[Any, str]:
        """The base model that a key of the recipe names, and its revision."""
        revision = getattr(section, f"{name}_revision") or "main"
        return parts.base_model(part, getattr(section, name), revision, precision), revision

    if section.from_ is not None:
        model = parts.whole_model(section.from_, section.revision or "main", options)
        _cast(model, dtype, text_dtype)
    else:
        (sam, sam_revision), (text, text_revision) = (
            base(SAM, "sam", dtype),
            base(LANGUAGE_MODEL, "language_model", text_dtype),
        )
        revisions = {"sam_revision": sam_revision, "text_revision": text_revision}
        model = ScaForConditionalGeneration.from_sam_text_pretrained(
            sam, text, dict(section.mixer), dtype=dtype, text_dtype=text_dtype, **revisions, **options
        )
        new = ["mixer"]
    if section.swap_language_model is not None:
        text, revision = base(LANGUAGE_MODEL, "swap_language_model", text_dtype)
        new += model.swap_language_model(text, dtype=text_dtype, revision=revision, **options)
    if section.swap_image_encoder is not None:
        sam, revision = base(SAM, "swap_image_encoder", dtype)
        new += model.swap_image_encoder(sam, dtype=dtype, revision=revision, **options)
    parts.name_sources(model)
    if section.image_size is not None:
        new += set_image_size(model, section.image_size, section.patch_size)
    if section.detail_widths is not None:
        new += add_detail_encoder(model, section.detail_widths)
    if section.second_look_size is not None:
        new += add_second_look(model, section.second_look_size, section.second_look_weights)
    new += _asked_tasks(model, section)
    for name, value in section.config_fields.items():
        setattr(model.config, name, value)
    if section.max_caption_length is not None:
        prefix, longest = model.config.mixer_config.prefix_length, section.max_caption_length
        check_positions(model.language_model, prefix, longest, "model.max_caption_length")
        model.generation_config.max_new_tokens = longest
    return model, list(dict.fromkeys(new))


def _asked_tasks(model: Any, section: ModelSection) -> list[str]:
    added = [] if section.lengths is None else add_lengths(model, section.lengths)
    return added + ([] if section.languages is None else add_languages(model, section.languages))


def dtypes(section: ModelSection, args: ScaTrainingArguments) -> tuple[torch.dtype, torch.dtype]:
    """Returns the precision of what is trained and that of the language model.

    A frozen language model is loaded as it will be held: twice the bytes might not fit.
    """
    dtype = getattr(torch, section.dtype, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"model.dtype is {section.dtype!r}, expected float32 or bfloat16.")
    frozen = args.frozen_dtype if "language_model" not in PRESETS[args.preset].trained else None
    return dtype, getattr(torch, frozen) if frozen else dtype


def check_whole(name: str, revision: str) -> ScaConfig:
    """Returns the configuration of a saved SCA model; another model's is refused."""
    source = resolve_model(name)
    stored = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
    if stored.get("model_type") != ScaConfig.model_type:
        raise ValueError(f"{name} is a {stored.get('model_type')!r} model, not {ScaConfig.model_type!r}.")
    return ScaConfig.from_pretrained(source, revision=revision)


def _cast(model: Any, dtype: torch.dtype, text_dtype: torch.dtype) -> None:
    """Gives each part its precision, whatever it was stored in."""
    model.sam.to(dtype)
    model.mixer.to(dtype)
    for part in (model.detail_encoder, model.second_look):
        if part is not None:
            part.to(dtype)
    model.language_model.to(text_dtype)
