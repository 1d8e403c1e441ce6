"""The checkpoint format of the SCA authors (class `ScaMultitaskV2Model`, 2023), translated into this package's.

Everything here is pure: dictionaries and names in, dictionaries and names out. Their configuration nests SAM's three
parts and the language model beside each other, and their state dict is SAM's with the mixer inside the mask decoder.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from ..modeling.configuration_sca import ScaConfig


ORIGINAL_MODEL_TYPE = "sca"
ORIGINAL_ARCHITECTURE = "ScaMultitaskV2Model"

# What only this format has, one key of each part.
_SIGNATURE = (
    "mask_decoder.additional_transformer.layer_norm_final_attn.weight",
    "mask_decoder.caption_tokens.weight",
    "language_project.weight",
    "task_tokens.weight",
)

# Longest prefix first: the mixer lived inside SAM's mask decoder.
_PREFIXES = (
    ("mask_decoder.additional_transformer.", "mixer.transformer."),
    ("mask_decoder.caption_tokens.", "mixer.caption_tokens."),
    ("mask_decoder.", "sam.mask_decoder."),
    ("prompt_encoder.", "sam.prompt_encoder."),
    ("vision_encoder.", "sam.vision_encoder."),
    ("shared_image_embedding.", "sam.shared_image_embedding."),
    ("task_tokens.", "mixer.task_tokens."),
    ("language_project.", "mixer.language_project."),
    ("language_model.", "language_model."),
)

# Buffers that language models of 2023 saved and that today's compute by themselves.
_STALE = re.compile(r"^language_model\..*\.(attn\.(masked_)?bias|attention\.(masked_)?bias|rotary_emb\.inv_freq)$")

# Phi as `transformers` 4.36 had it keeps q, k and v of one head side by side; Microsoft's own file of 2023 keeps all
# of q, then all of k, then all of v, under other names.
_FUSED_PER_HEAD = re.compile(r"^(language_model\.model\.layers\.\d+\.self_attn\.)query_key_value\.(weight|bias)$")
_FUSED_STACKED = re.compile(r"^(language_model\.model\.layers\.\d+\.self_attn\.)Wqkv\.(weight|bias)$")
_MICROSOFT_PHI = (
    (re.compile(r"^language_model\.transformer\.embd\.wte\."), "language_model.model.embed_tokens."),
    (re.compile(r"^language_model\.transformer\.h\.(\d+)\.ln\."), r"language_model.model.layers.\1.input_layernorm."),
    (
        re.compile(r"^language_model\.transformer\.h\.(\d+)\.mixer\.out_proj\."),
        r"language_model.model.layers.\1.self_attn.dense.",
    ),
    (re.compile(r"^language_model\.transformer\.h\.(\d+)\.mixer\."), r"language_model.model.layers.\1.self_attn."),
    (re.compile(r"^language_model\.transformer\.h\.(\d+)\."), r"language_model.model.layers.\1."),
    (re.compile(r"^language_model\.lm_head\.ln\."), "language_model.model.final_layernorm."),
    (re.compile(r"^language_model\.lm_head\.linear\."), "language_model.lm_head."),
)

# Fields of every configuration of 2023 that say nothing about a model's shape. Generation settings among them are
# not kept: captions are generated with this package's own generation configuration.
# fmt: off
_GENERIC_FIELDS = frozenset((
    "return_dict", "output_hidden_states", "output_attentions", "torchscript", "torch_dtype", "use_bfloat16",
    "tf_legacy_loss", "pruned_heads", "is_encoder_decoder", "is_decoder", "cross_attention_hidden_size",
    "add_cross_attention", "tie_encoder_decoder", "max_length", "min_length", "do_sample", "early_stopping",
    "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "chunk_size_feed_forward", "output_scores", "return_dict_in_generate",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "suppress_tokens", "begin_suppress_tokens", "architectures", "finetuning_task", "id2label", "label2id",
    "tokenizer_class", "prefix", "sep_token_id", "decoder_start_token_id", "task_specific_params", "problem_type",
    "_name_or_path", "_commit_hash", "_attn_implementation_internal", "transformers_version", "auto_map",
    "use_cache", "gradient_checkpointing",
))
# fmt: on

# Their captions kept the BOS that these language models' tokenizers put in front, as the first word to predict.
_TRAINED_WITH_BOS = ("llama", "mistral")

_PHI_FIELDS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_key_value_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "attn_pdrop": "attention_dropout",
}
_STABLELM_FIELDS = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}


class OriginalFormatError(ValueError):
    """A checkpoint that is not, or not wholly, in the authors' format; the message names what does not fit."""


def check_format(config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse whatever is not a checkpoint of the published SCA architecture, by its keys and its configuration."""
    model_type = config.get("model_type")
    if model_type == ScaConfig.model_type:
        raise OriginalFormatError("this repository is already in the format of sca-hf; there is nothing to convert.")
    keys = set(keys)
    missing = [key for key in _SIGNATURE if key not in keys]
    if missing or model_type not in (None, "", ORIGINAL_MODEL_TYPE):
        raise OriginalFormatError(
            f"not a checkpoint of the SCA authors: model_type is {model_type!r} (expected {ORIGINAL_MODEL_TYPE!r}); "
            f"missing weights of that format: {', '.join(missing) or 'none'}."
        )
    # Their other variants share the names of these weights but compute something else with them.
    architecture = (config.get("architectures") or [ORIGINAL_ARCHITECTURE])[0]
    if architecture != ORIGINAL_ARCHITECTURE:
        raise OriginalFormatError(
            f"the checkpoint is of {architecture}, an experiment of the authors; only the published "
            f"{ORIGINAL_ARCHITECTURE} can be converted."
        )


def translate_config(original: Mapping[str, Any], caption_add_bos: bool | None = None) -> ScaConfig:
    """Build our configuration from theirs.

    Args:
        original: their `config.json`; fields equal to their defaults may be absent.
        caption_add_bos: None decides by the language model: Llama and Mistral were trained with BOS.
    """
    for part in ("vision_config", "prompt_encoder_config", "mask_caption_decoder_config", "text_config"):
        if not isinstance(original.get(part, {}), Mapping):
            raise OriginalFormatError(f"{part} of the configuration must be a dictionary, got {original[part]!r}.")
    decoder = {**_DECODER_DEFAULTS, **original.get("mask_caption_decoder_config", {})}
    text = translate_text_config(original.get("text_config", {}))
    sam_decoder = SamMaskDecoderConfig(**_known_fields(decoder, SamMaskDecoderConfig))
    mixer = {name: getattr(sam_decoder, name) for name in _SHARED_WITH_DECODER}
    mixer.update(
        num_hidden_layers=decoder["additional_num_hidden_layers"],
        num_caption_tokens=decoder["num_caption_tokens"],
        num_caption_heads=decoder["num_caption_heads"],
        num_task_tokens=original.get("num_task_tokens", 6),
        tasks=("recognition", "caption"),
        initializer_range=original.get("initializer_range", 0.02),
    )
    sam = SamConfig(
        vision_config=_known_fields(original.get("vision_config", {}), SamVisionConfig),
        prompt_encoder_config=_known_fields(original.get("prompt_encoder_config", {}), SamPromptEncoderConfig),
        mask_decoder_config=sam_decoder.to_dict(),
    )
    if caption_add_bos is None:
        caption_add_bos = text["model_type"] in _TRAINED_WITH_BOS
    return ScaConfig(sam_config=sam, mixer_config=mixer, text_config=text, caption_add_bos=caption_add_bos)


# Defaults of their decoder configuration; the published checkpoints had other values, written out.
_DECODER_DEFAULTS = {"additional_num_hidden_layers": 2, "num_caption_tokens": 1, "num_caption_heads": 1}
_SHARED_WITH_DECODER = (
    "hidden_size",
    "num_attention_heads",
    "mlp_dim",
    "attention_downsample_rate",
    "hidden_act",
    "layer_norm_eps",
)


def translate_text_config(original: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's configuration without the leftovers of 2023 and under the library's present names."""
    text = {name: value for name, value in original.items() if name not in _GENERIC_FIELDS}
    model_type = text.get("model_type") or "gpt2"
    if model_type == "phi-msft":
        model_type, text = "phi", _translate_microsoft_phi(text)
    elif model_type == "stablelm_epoch":
        model_type = "stablelm"
        text = {_STABLELM_FIELDS.get(name, name): value for name, value in text.items()}
    if model_type not in CONFIG_MAPPING:
        raise OriginalFormatError(
            f"text_config has model_type {model_type!r}, a language model that this transformers does not know."
        )
    return {**text, "model_type": model_type}


def _translate_microsoft_phi(text: dict[str, Any]) -> dict[str, Any]:
    text = {_PHI_FIELDS.get(name, name): value for name, value in text.items()}
    text = {name: value for name, value in text.items() if value is not None}
    text.setdefault("intermediate_size", 4 * text["hidden_size"])
    head_size = text["hidden_size"] // text["num_attention_heads"]
    text["partial_rotary_factor"] = text.pop("rotary_dim", 32) / head_size
    text.setdefault("tie_word_embeddings", False)
    leftovers = ("flash_attn", "flash_rotary", "fused_dense", "pad_vocab_size_multiple")
    return {name: value for name, value in text.items() if name not in leftovers}


def _known_fields(values: Mapping[str, Any], config_class: type) -> dict[str, Any]:
    """The fields of one part of SAM that the library still has; the others never had an effect."""
    known = config_class().to_dict().keys() - _GENERIC_FIELDS - {"model_type"}
    return {name: value for name, value in values.items() if name in known}


@dataclass
class KeyPlan:
    """What becomes of every key of an original state dict.

    Attributes:
        targets: original name -> our names, in the order of the parts the tensor is cut into (usually one).
        dropped: stale buffers, known by name.
        filled: our tied name absent from the file -> the name whose tensor it has.
    """

    targets: dict[str, list[str]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    filled: dict[str, str] = field(default_factory=dict)


def plan_keys(
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    ties: Mapping[str, str],
    model_type: str,
) -> KeyPlan:
    """Account for every original key and every expected one, or raise with the names of all that do not fit.

    Args:
        shapes: original name -> shape.
        expected: our name -> shape, of the model that the configuration describes.
        ties: our tied name -> the name whose tensor it has.
        model_type: of the language model, after translation.
    """
    plan = KeyPlan()
    faults: list[str] = []
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        targets = rename_key(name, model_type)
        if targets is None:
            faults.append(f"unknown: {name} {list(shape)}")
        elif _STALE.match(name) and targets[0] not in expected:
            plan.dropped.append(name)
        else:
            plan.targets[name] = targets
            for target, part in zip(targets, _part_shapes(shape, len(targets)), strict=True):
                faults += _misfits(name, target, part, expected.get(target), found.get(target))
                found[target] = name
    for target, source in ties.items():
        for absent, present in ((target, source), (source, target)):
            if absent in expected and absent not in found and present in found:
                plan.filled[absent] = present
    missing = [name for name in expected if name not in found and name not in plan.filled]
    faults.extend(f"missing: {name} {list(expected[name])}" for name in missing)
    if faults:
        raise OriginalFormatError(_describe(faults, missing))
    return plan


def _misfits(
    name: str, target: str, shape: tuple[int, ...], expected: tuple[int, ...] | None, taken: str | None
) -> list[str]:
    """What is wrong with a tensor of `shape` as our `target`; `taken` is the key that has given it already."""
    if expected is None:
        return [f"unknown: {name} {list(shape)} (no {target} in the model)"]
    if tuple(shape) != tuple(expected):
        return [f"mis-shaped: {name} gives {list(shape)}, the model has {list(expected)}"]
    return [f"duplicate: {name} and {taken} both map to {target}"] if taken else []


def rename_key(name: str, model_type: str) -> list[str] | None:
    """Our names for one original key: one, or three where it is a fused projection; None where it is unknown."""
    if model_type == "phi":
        for pattern, replacement in _MICROSOFT_PHI:
            name, count = pattern.subn(replacement, name)
            if count:
                break
        if fused := _FUSED_PER_HEAD.match(name) or _FUSED_STACKED.match(name):
            return [f"{fused[1]}{part}_proj.{fused[2]}" for part in "qkv"]
    for theirs, ours in _PREFIXES:
        if name.startswith(theirs):
            return [ours + name.removeprefix(theirs)]
    return None


def split_tensor(name: str, tensor: torch.Tensor, num_heads: int, parts: int) -> tuple[torch.Tensor, ...]:
    """Cut one original tensor into the `parts` that `rename_key` names.

    Args:
        name: original name; tells in which order a fused projection (3*D, ...) keeps its rows.
        num_heads: attention heads of the language model.
    """
    if parts == 1:
        return (tensor,)
    if ".query_key_value." in name:
        # (heads, 3, head, ...): q, k and v of a head lie together
        by_head = tensor.unflatten(0, (num_heads, parts, -1))
        return tuple(by_head[:, part].flatten(0, 1).contiguous() for part in range(parts))
    return tuple(part.contiguous() for part in tensor.chunk(parts))


def translate_state_dict(state: Mapping[str, torch.Tensor], plan: KeyPlan, num_heads: int) -> dict[str, torch.Tensor]:
    """Our state dict, tied entries filled in, from theirs and its plan."""
    ours: dict[str, torch.Tensor] = {}
    for name, targets in plan.targets.items():
        ours.update(zip(targets, split_tensor(name, state[name], num_heads, len(targets)), strict=True))
    ours.update({target: ours[source] for target, source in plan.filled.items()})
    return ours


def _part_shapes(shape: tuple[int, ...], parts: int) -> list[tuple[int, ...]]:
    if not shape or shape[0] % parts:
        return [shape] * parts
    return [(shape[0] // parts, *shape[1:])] * parts


def _describe(faults: list[str], missing: list[str]) -> str:
    shown, rest = faults[:40], len(faults) - 40
    lines = [f"{len(faults)} weights do not fit the configuration:", *("  " + fault for fault in shown)]
    if rest > 0:
        lines.append(f"  and {rest} more")
    if any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in missing):
        lines.append(
            "The language model's head is missing and its configuration (tie_word_embeddings) does not tie it to the "
            "embedding: convert from a checkpoint with the head."
        )
    return "\n".join(lines)
