"""What may be published: a saved model's folder, looked at file by file before any of it is loaded or uploaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open

from ..modeling.base_models_sca import ADAPTER_FOLDER
from ..modeling.configuration_sca import ScaConfig
from ..modeling.validation_sca import check_shard_index


# What training leaves beside a model and nobody needs to load it; said, and left out.
TRAINING_STATE = {"optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "checkpoint_seal.json"}
_TRAINING_PREFIXES = ("rng_state", "global_step", "checkpoint-", "scaler.pt")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5"}
_KNOWN = {
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "README.md", "LICENSE", "NOTICE", "recipe.yaml"),
    *("model.safetensors", "model.safetensors.index.json", "metrics.json", "evaluation.json"),
}
_KNOWN_SUFFIXES = {".safetensors", ".md", ".txt", ".png", ".jpg", ".webp", ".svg"}
_COMMIT = re.compile(r"[0-9a-f]{40}")
HANDLER = "handler.py"


class PublishError(ValueError):
    """Something about a folder that must be mended before it is published."""


@dataclass
class FolderFacts:
    """What was found in a folder.

    Attributes:
        files: names, relative, of all that is to be published.
        left_out: names of what is not, with the reason.
        config: as loaded by our class.
        bases: where SAM and the language model came from, where that is known; as in the configuration.
    """

    folder: Path
    config: ScaConfig
    files: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    bases: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "mixer" if self.config.base_model_repos else "whole"


def check_folder(folder: Path) -> FolderFacts:
    """Look at every file of a model's folder; refuse what must not be published.

    Raises:
        PublishError: with the file and the mend.
    """
    if not (folder / "config.json").is_file():
        raise PublishError(f"{folder} holds no config.json: give the folder of a saved model.")
    facts = FolderFacts(folder, _config(folder))
    facts.bases = dict(facts.config.base_model_repos or {})
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise PublishError(f"{path} is a link to {path.readlink()}: publish copies, not links.")
        if path.is_file():
            _sort(facts, name)
    _check_code(facts)
    _check_processor(folder)
    _check_weights(facts)
    return facts


def check_base_repositories(facts: FolderFacts, api: HfApi, private: bool) -> dict[str, Any]:
    """Whether others can fetch what a mixer-only folder names; returns the licence of each base, None where unsaid.

    Raises:
        PublishError: a base is a folder, is not pinned to a commit, or is not to be seen.
    """
    needed = facts.kind == "mixer"
    licences: dict[str, Any] = {}
    for name, source in facts.bases.items():
        if "path" in source:
            if needed:
                raise PublishError(
                    f"{facts.folder} takes its {name} from {source['path']}, a folder that nobody else has: publish "
                    "with --kind whole, or publish that model first and load it from its repository."
                )
            continue
        where = f"{source['repo_id']} at {source['revision']}"
        if needed and not _COMMIT.fullmatch(source["revision"]):
            raise PublishError(f"{facts.folder} takes its {name} from {where}, which is no commit and may change.")
        try:
            info = api.model_info(source["repo_id"], revision=source["revision"])
        except HfHubHTTPError as error:
            reason = "no such repository" if isinstance(error, RepositoryNotFoundError) else str(error)
            raise PublishError(
                f"{facts.folder} takes its {name} from {where}, which is not to be seen: {reason}."
            ) from error
        if needed and info.private and not private:
            raise PublishError(f"{where} ({name}) is private: others could not load this model. Use --private.")
        licences[name] = getattr(info.card_data, "license", None)
    return licences


def handler_code() -> bytes:
    """What answers Inference Endpoints in every published repository."""
    return (resources.files("sca_hf.hub") / "templates" / HANDLER).read_bytes()


def package_code() -> dict[str, bytes]:
    """The files that travel with a model, by name, as this package has them."""
    rooms = [resources.files("sca_hf") / room for room in ("modeling", "processing")]
    return {file.name: file.read_bytes() for room in rooms for file in room.iterdir() if file.name.endswith("_sca.py")}


def _config(folder: Path) -> ScaConfig:
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PublishError(f"{folder / 'config.json'} is not JSON: {error}.") from error
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind != ScaConfig.model_type:
        raise PublishError(f"{folder} is a {kind!r} model, not {ScaConfig.model_type!r}.")
    return ScaConfig.from_pretrained(folder)


def _sort(facts: FolderFacts, name: str) -> None:
    """Take a file, leave it out, or refuse it."""
    path = PurePosixPath(name)
    inside = path.parts[0]
    if path.name in TRAINING_STATE or inside.startswith(_TRAINING_PREFIXES):
        facts.left_out[name] = "state of training"
    elif inside.startswith(".") or inside == "__pycache__":
        facts.left_out[name] = "hidden"
    elif path.suffix in _PICKLES:
        raise PublishError(f"{facts.folder / name} may hold a pickle, which runs code when it is loaded: remove it.")
    elif path.suffix == ".py" or _is_known(path):
        facts.files.append(name)
    else:
        raise PublishError(f"{facts.folder / name} is no part of a saved model: move it elsewhere.")


def _is_known(path: PurePosixPath) -> bool:
    if path.parts[0] == ADAPTER_FOLDER:
        return path.suffix in (".safetensors", ".json", ".md")
    return len(path.parts) == 1 and (path.name in _KNOWN or path.suffix in _KNOWN_SUFFIXES)


def _check_code(facts: FolderFacts) -> None:
    """The copies must be this package's own: what people run must be what was reviewed and tested."""
    own = {**package_code(), HANDLER: handler_code()}
    copies = [name for name in facts.files if name.endswith(".py")]
    for name in copies:
        if name not in own:
            raise PublishError(f"{facts.folder / name} is no code of this package: remove it.")
        if (facts.folder / name).read_bytes() != own[name]:
            raise PublishError(
                f"{facts.folder / name} differs from this package's: it was saved by another version or changed. Load "
                "the model and save it anew."
            )
    needed = _imported(own, {"configuration_sca.py", "modeling_sca.py", "pipeline_sca.py", "processing_sca.py"})
    if absent := sorted(needed - set(copies)):
        raise PublishError(
            f"{facts.folder} lacks the code files {', '.join(absent)}: save model and processor with save_pretrained."
        )


def _imported(code: dict[str, bytes], names: Iterable[str]) -> set[str]:
    """Those files and all they import, by the same rule as the library's copier."""
    from transformers.dynamic_module_utils import get_relative_imports

    found: set[str] = set()
    rooms = [resources.files("sca_hf") / room for room in ("modeling", "processing")]
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        path = next(room / name for room in rooms if (room / name).is_file())
        waiting += [f"{module}.py" for module in get_relative_imports(str(path))]
    return found


def _check_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise PublishError(f"{folder} has no processor: save it there with ScaProcessor.save_pretrained.")


def _check_weights(facts: FolderFacts) -> None:
    """Weights can be read, and are numbers."""
    names = [name for name in facts.files if name.endswith(".safetensors")]
    index = facts.folder / "model.safetensors.index.json"
    if index.is_file():
        listed = check_shard_index(index)
        if absent := sorted(set(listed) - set(names)):
            raise PublishError(f"{index} lists {', '.join(absent)}, absent from {facts.folder}.")
    elif "model.safetensors" not in names:
        raise PublishError(f"{facts.folder} holds no model.safetensors.")
    for name in names:
        for key, tensor in _tensors(facts.folder / name):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise PublishError(f"{facts.folder / name}: {key} holds values that are no numbers (NaN or infinite).")


def _tensors(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise PublishError(f"{path} cannot be read: {error}.") from error
