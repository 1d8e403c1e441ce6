"""What a saved model consists of, without loading its weights."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_safetensors_metadata
from safetensors import safe_open

from ..model_names import check_repository
from ..modeling.configuration_sca import SCOPE_FIELDS, ScaConfig
from ..modeling.modeling_sca import ScaForConditionalGeneration
from ..modeling.validation_sca import check_settings_files, check_weights
from ..processing.processing_sca import ScaProcessor


# Beside the model's.
_PROCESSOR = "processor_config.json"


@dataclass
class PartInfo:
    """One part of a model: what it is, and its parameters, tied ones counted once."""

    name: str
    description: str
    parameters: int
    trainable: int
    source: str


@dataclass
class RepositoryInfo:
    """What `sca-hf info` prints.

    Attributes:
        kind: `"whole"`, or `"mixer-only"`: SAM and the language model come from other repositories.
        parts: SAM, mixer, language model.
        stored: number of stored values by precision, as in the weight files.
        loaded: precision of each part as `from_pretrained` loads it without further arguments.
        tasks: names of the tasks.
        scope: what it knows, as [`ScaConfig`] has it; empty where nobody said.
    """

    name: str
    kind: str
    parts: list[PartInfo]
    stored: dict[str, int]
    loaded: str
    tasks: list[str]
    scope: dict[str, Any]

    def __str__(self) -> str:
        width = max(len(part.description) for part in self.parts)
        total, trainable = (sum(getattr(part, key) for part in self.parts) for key in ("parameters", "trainable"))
        lines = [
            f"{self.name}: {self.kind} repository, tasks {', '.join(self.tasks)}",
            f"{'part':<15} {'what':<{width}} {'parameters':>14} {'trainable':>14}  from",
        ]
        lines += [
            f"{p.name:<15} {p.description:<{width}} {p.parameters:>14,} {p.trainable:>14,}  {p.source}"
            for p in self.parts
        ]
        lines.append(f"{'total':<15} {'':<{width}} {total:>14,} {trainable:>14,}")
        stored = ", ".join(f"{count:,} in {dtype}" for dtype, count in sorted(self.stored.items()))
        lines.append(f"stored: {stored or 'no weights'}; loaded as {self.loaded}")
        return "\n".join([*lines, *scope_lines(self.scope)])


def scope_lines(scope: Mapping[str, Any] | None) -> list[str]:
    """What a model knows, a line for each field that its `scope` has, for a terminal, a card or a page."""
    lines = []
    for field in SCOPE_FIELDS:
        value = (scope or {}).get(field)
        if isinstance(value, Mapping):
            value = "; ".join(f"{part} {of}" for part, of in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        if value and isinstance(value, str):  # whether it is narrow is `scope_notice`'s to say
            lines.append(f"{field.replace('_', ' ')}: {value}")
    return lines


def scope_notice(name: str, scope: Mapping[str, Any] | None) -> str | None:
    """What to say before a model of narrow scope is used; None of others."""
    if not scope or not scope.get("narrow"):
        return None
    knows = scope.get("knows") or f"only {scope.get('trained_on') or 'its training data'}"
    return f"{name} knows {knows.rstrip('.')}. {scope.get('limits', '')}".strip()


def read_config(name: str, revision: str | None = None) -> ScaConfig:
    """Reads the configuration of a folder or repository id; refuses one of another kind of model."""
    where = {} if revision is None else {"revision": revision}
    config = ScaConfig.from_pretrained(check_repository(name, revision), **where)
    if config.model_type != ScaConfig.model_type:
        raise ValueError(f"{name} is a {config.model_type!r} model, not {ScaConfig.model_type!r}.")
    return config


def describe_repository(name: str, revision: str | None = None) -> RepositoryInfo:
    """Reads configuration and weight headers of a folder or repository id, at a branch, tag or commit."""
    config = read_config(name, revision)
    base_models = config.base_model_repos or {}
    with torch.device("meta"):
        model = ScaForConditionalGeneration(config)
    parts = [
        PartInfo(label, description, *_count(module.parameters()), _source(base_models.get(attribute)))
        for label, attribute, module, description in (
            ("SAM", "sam", model.sam, _describe_sam(config)),
            ("mixer", "mixer", model.mixer, _describe_mixer(config)),
            ("language model", "language_model", model.language_model, _describe_text(config)),
            ("detail encoder", "detail_encoder", model.detail_encoder, f"convolutions of {config.detail_widths}"),
            ("second look", "second_look", model.second_look, f"crops of {config.second_look_size} pixels"),
            ("confidence", "confidence_head", model.confidence_head, f"one layer of {config.confidence_size}"),
        )
        if module is not None
    ]
    loaded = str(config.dtype or torch.float32).removeprefix("torch.")
    kind = "mixer-only" if base_models else "whole"
    tasks, scope = list(config.mixer_config.tasks), config.scope or {}
    stored = _stored(check_repository(name), revision)
    return RepositoryInfo(name, kind, parts, stored, loaded, tasks, scope)


def _count(parameters: Iterable[torch.nn.Parameter]) -> tuple[int, int]:
    everything = list(parameters)
    return sum(p.numel() for p in everything), sum(p.numel() for p in everything if p.requires_grad)


def _source(base: dict[str, str] | None) -> str:
    if base is None:
        return "this repository"
    version = base.get("revision") or base.get("sha256") or ""
    return f"{base.get('repo_id') or base.get('path')} @ {version[:12]}"


def _describe_sam(config: ScaConfig) -> str:
    sam, side = config.sam_config, config.image_frame.side
    vision = getattr(sam.vision_config, "backbone_config", None) or sam.vision_config
    stages = getattr(vision, "blocks_per_stage", None)
    layers = sum(stages) if stages else getattr(vision, "num_hidden_layers", None)
    shape = f", {layers} layers x {vision.hidden_size}" if layers else ""
    return f"{sam.model_type}{shape}, {side} px"


def _describe_mixer(config: ScaConfig) -> str:
    mixer = config.mixer_config
    text = f"{mixer.num_hidden_layers} layers x {mixer.hidden_size}, {mixer.num_caption_tokens} caption queries"
    if mixer.is_published:
        return text
    text += f", queries {mixer.query_type}, tokens of {mixer.token_source}, image of {mixer.image_source}"
    text += f", finds of {mixer.class_channels} classes" * bool(mixer.class_channels)
    return text + f", {mixer.feature_channels} features of the encoder" * bool(mixer.feature_channels)


def _describe_text(config: ScaConfig) -> str:
    text = config.text_config
    return f"{text.model_type}, {text.num_hidden_layers} layers x {text.hidden_size}, {text.vocab_size:,} tokens"


def _stored(name: str, revision: str | None) -> dict[str, int]:
    if not Path(name).is_dir():
        counted = get_safetensors_metadata(name, revision=revision).parameter_count
        return {str(dtype): count for dtype, count in counted.items()}
    counts = Counter[str]()
    for file in sorted(Path(name).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (no mapping)
                part = tensors.get_slice(key)
                counts[part.get_dtype()] += math.prod(part.get_shape())
    return dict(counts)


def check_saved_model(folder: str | Path, with_processor: bool = True) -> None:
    """Opens all that was saved of a model; it must be there, readable and finite.

    Args:
        folder: The folder of the model.
        with_processor: Whether its processor was saved there too.
    """
    folder = Path(folder)
    check_settings_files(folder)
    ScaConfig.from_pretrained(folder)
    if with_processor:
        if not (folder / _PROCESSOR).is_file():
            raise FileNotFoundError(f"{folder} holds no {_PROCESSOR}.")
        ScaProcessor.from_pretrained(folder)
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors).")
    for file in files:
        check_weights(file, packed=True)
