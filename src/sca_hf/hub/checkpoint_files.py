"""Reading a checkpoint folder: safetensors or torch files, whole or in shards, never by running what they hold."""

import json
import os
import pickle
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file


# In the order of preference.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SMALL_FILES = ("*.json", "*.model", "*.txt", "*.safetensors")


class CheckpointError(ValueError):
    """A folder or file that holds no readable checkpoint; the message says which and what to do."""


def fetch_checkpoint(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint: `source` itself, or the download of the repository that it names."""
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{source} is a folder; a revision ({revision!r}) belongs to a repository id only.")
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the weights.")
    try:
        path = Path(snapshot_download(str(source), revision=revision, allow_patterns=list(_SMALL_FILES)))
        if not any(path.glob("*.safetensors")):
            snapshot_download(str(source), revision=revision, allow_patterns=["pytorch_model*.bin"])
    except HFValidationError as error:
        raise CheckpointError(f"{source} is neither a folder nor a repository id.") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{source} is no folder, and no such repository could be fetched: {error}") from error
    return path


def read_config(folder: Path) -> dict:
    """The `config.json` of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} must hold one JSON object, got a {type(config).__name__}.")
    return config


def read_state_dict(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint folder, on the CPU, in the precision it was saved in."""
    for whole, sharded in zip(_WHOLE, _SHARDED, strict=True):
        if (folder / whole).is_file():
            return _read_file(folder / whole)
        if (folder / sharded).is_file():
            return _read_shards(folder / sharded)
    raise CheckpointError(f"{folder} has no weights; looked for {', '.join((*_WHOLE, *_SHARDED))}.")


def _read_shards(index_path: Path) -> dict[str, torch.Tensor]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index_path} is not an index of shards (a JSON object with a weight_map).") from error
    state: dict[str, torch.Tensor] = {}
    for name in names:
        path = index_path.parent / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{index_path} names the shard {name!r}, which is not beside it.")
        state.update(_read_file(path))
    absent = [name for name in weight_map if name not in state]
    if absent:
        raise CheckpointError(
            f"the shards of {index_path} lack {len(absent)} of its weights: {', '.join(absent[:10])}"
        )
    return state


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, EOFError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors, and nothing else is ever loaded from it: {error}"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got a {type(state).__name__}.")
    if wrong := [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(f"{path} must hold tensors only; these are none: {', '.join(wrong[:5])}.")
    return state
