"""Base models: the SAM and the language model of a composite, wherever they come from, and how each is pinned."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_sca import SUPPORTED_SAM_TYPES, ScaConfig, without_dropout


SAM = "sam"
LANGUAGE_MODEL = "language_model"
# Attribute of the model -> Auto class that loads it, field of the configuration.
BASES = {SAM: (AutoModel, "sam_config"), LANGUAGE_MODEL: (AutoModelForCausalLM, "text_config")}
# Loading arguments that say where files are.
HUB_ARGUMENTS = ("cache_dir", "token", "local_files_only", "proxies", "revision", "subfolder", "force_download")


def load_part(
    model_class: type, name: str, source: Any, kwargs: dict[str, Any], drop_dropout: bool = False
) -> tuple[PreTrainedModel, dict[str, str] | None]:
    """Load one base from wherever the user says; returns it and where it came from (None: unknown)."""
    if isinstance(source, PreTrainedModel):
        part = source if source.config.model_type != ScaConfig.model_type else getattr(source, name)
        # It may have been changed since it was loaded, so that no folder or commit stands for it.
        return part, None
    where = source_of(source, kwargs)
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
    if "revision" in where:
        hub["revision"] = where["revision"]
    if PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type") == ScaConfig.model_type:
        whole = model_class.from_pretrained(source, **{**kwargs, **hub, "config": None})
        return getattr(whole, name), {**where, "part": name}
    trust = kwargs.get("trust_remote_code")
    config = kwargs.get("config") or AutoConfig.from_pretrained(source, trust_remote_code=trust, **hub)
    if name == SAM and config.model_type not in SUPPORTED_SAM_TYPES:
        raise ValueError(
            f"{source} has model_type {config.model_type!r}; SAM may be {' or '.join(map(repr, SUPPORTED_SAM_TYPES))}."
        )
    if drop_dropout:
        config = without_dropout(config)
    return _load_base(name, source, {**kwargs, **hub, "config": config}), where


def _load_base(name: str, source: Any, kwargs: dict[str, Any]) -> PreTrainedModel:
    """Load a SAM or a language model by its own Auto class, as strictly as our own weights."""
    strict, lenient = kwargs.pop("strict", True), kwargs.pop("ignore_mismatched_sizes", False)
    dtype = as_dtype(kwargs.get("dtype"))
    half = name == SAM and dtype in (torch.float16, torch.bfloat16)
    if half:
        kwargs["dtype"] = torch.float32
    part, info = BASES[name][0].from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loading_info(info, source, strict, lenient)
    return cast_but_positions(part, dtype) if half else part


def load_pinned(
    model_class: type, name: str, source: dict[str, str], repository: Path, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Load one base of a mixer-only repository, exactly as pinned."""
    if "repo_id" in source:
        pinned: dict[str, Any] = {key: source[key] for key in ("revision", "subfolder") if key in source}
        part, _ = load_part(model_class, name, source["repo_id"], {**kwargs, **pinned})
        return part, source
    # A folder moves with the repository beside it.
    candidates = (Path(source["path"]), repository.parent / Path(source["path"]).name)
    folder = next((path for path in candidates if path.is_dir()), None)
    mend = f"pass bases={{{name!r}: folder or repository id}} to from_pretrained."
    if folder is None:
        raise FileNotFoundError(
            f"{repository} needs its {name} from the folder {source['path']}, which is absent: {mend}"
        )
    if hash_weights(folder) != source["sha256"]:
        raise ValueError(f"the weights in {folder} are not those that {repository} was trained with ({name}): {mend}")
    part, _ = load_part(model_class, name, folder, kwargs)
    return part, {**source, "path": str(folder.resolve())}


def hash_weights(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's weight files."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not files:
        raise FileNotFoundError(f"{folder} holds no weight files.")
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def source_of(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, str]:
    """Where a model comes from: a folder, or a repository with the commit that its revision stands for now."""
    subfolder = kwargs.get("subfolder") or ""
    if os.path.isdir(path):
        return {"path": str((Path(path) / subfolder).resolve())}
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs and key != "force_download"}
    commit = extract_commit_hash(cached_file(path, "config.json", **hub), None)
    where = {"repo_id": str(path), "revision": commit or kwargs.get("revision") or "main"}
    return {**where, "subfolder": subfolder} if subfolder else where


def complete_sources(sources: dict[str, dict[str, str] | None]) -> dict[str, dict[str, str]] | None:
    """The sources of both bases, or None where one of them is unknown."""
    known = {name: source for name, source in sources.items() if source}
    return known if known.keys() == BASES.keys() else None


def check_loading_info(info: dict[str, Any], path: Any, strict: bool, ignore_mismatched_sizes: bool) -> None:
    """Raise with the names of all weights that did not fit."""
    faults = []
    if strict:
        faults += [f"missing: {name}" for name in sorted(info["missing_keys"])]
        faults += [f"unexpected: {name}" for name in sorted(info["unexpected_keys"])]
    if not ignore_mismatched_sizes:
        faults += [
            f"mis-shaped: {name}: {list(there)} in the file, {list(here)} in the model"
            for name, there, here in sorted(info["mismatched_keys"])
        ]
    faults += [f"unreadable: {message}" for message in info.get("error_msgs") or ()]
    if not faults:
        return
    shown = "\n".join("  " + fault for fault in faults[:40])
    rest = f"\n  and {len(faults) - 40} more" if len(faults) > 40 else ""
    raise RuntimeError(
        f"{len(faults)} weights of {path} do not fit the model that its configuration describes:\n{shown}{rest}\n"
        "Nothing was initialised in their place. If config.json is not the one saved with these weights, restore it; "
        "strict=False (missing, unexpected) or ignore_mismatched_sizes=True (mis-shaped) load the rest deliberately."
    )


def cast_but_positions(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast a model, but not SAM's random Fourier features: in half precision they lose positions."""
    features = [module.positional_embedding for module in model.modules() if hasattr(module, "positional_embedding")]
    kept = [tensor.detach().clone() for tensor in features]
    model.to(dtype)
    for tensor, values in zip(features, kept, strict=True):
        tensor.data = values
    return model


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


__all__ = [
    "BASES",
    "cast_but_positions",
    "check_loading_info",
    "complete_sources",
    "hash_weights",
    "load_part",
    "load_pinned",
    "source_of",
]
