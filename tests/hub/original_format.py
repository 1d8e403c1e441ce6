"""Checkpoints in the authors' format, made from tiny models of ours by the inverse of the conversion."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


_THEIRS = (
    ("mixer.transformer.", "mask_decoder.additional_transformer."),
    ("mixer.caption_tokens.", "mask_decoder.caption_tokens."),
    ("mixer.task_tokens.", "task_tokens."),
    ("mixer.language_project.", "language_project."),
    ("sam.", ""),
    ("language_model.", "language_model."),
)


def original_state_dict(model):
    """The model's weights under the names that `ScaMultitaskV2Model.state_dict()` has."""
    state = {}
    for name, tensor in model.state_dict().items():
        ours, theirs = next((ours, theirs) for ours, theirs in _THEIRS if name.startswith(ours))
        state[theirs + name.removeprefix(ours)] = tensor.clone()
    return state


def original_config(model):
    """The configuration as transformers 4.36 would have written it, leftovers of the time included."""
    config, mixer = model.config, model.config.mixer_config
    sam = config.sam_config.to_dict()
    leftovers = {"torchscript": False, "torch_dtype": None, "max_length": 20, "num_beams": 1, "pruned_heads": {}}
    text = {**config.text_config.to_dict(), **leftovers}
    rope = text.pop("rope_parameters", None) or {}
    text.update({name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope})
    decoder = {
        **sam["mask_decoder_config"],
        "additional_num_hidden_layers": mixer.num_hidden_layers,
        "num_caption_tokens": mixer.num_caption_tokens,
        "num_caption_heads": mixer.num_caption_heads,
        "model_type": "",
    }
    return {
        **leftovers,
        "model_type": "sca",
        "architectures": None,
        "vision_config": {**sam["vision_config"], **leftovers, "projection_dim": 512, "model_type": ""},
        "prompt_encoder_config": {**sam["prompt_encoder_config"], "model_type": ""},
        "mask_caption_decoder_config": decoder,
        "text_config": text,
        "num_task_tokens": mixer.num_task_tokens,
        "use_decoder_only_language_model": True,
    }


def write_checkpoint(folder: Path, config, state, kind="safetensors", shards=1):
    """Write `config.json` and weights: `kind` is "safetensors" or "bin"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    save = (lambda part, path: save_file(part, path, {"format": "pt"})) if kind == "safetensors" else torch.save
    if shards == 1:
        save(state, folder / (stem + suffix))
        return folder
    names, weight_map = list(state), {}
    for shard in range(shards):
        file = f"{stem}-{shard + 1:05}-of-{shards:05}{suffix}"
        part = {name: state[name] for name in names[shard::shards]}
        save(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
