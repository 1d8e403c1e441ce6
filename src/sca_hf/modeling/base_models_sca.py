"""Base models: the SAM and the language model of a composite, wherever they come from, and how each is pinned."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import transformers
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, modeling_utils
from transformers.utils import is_gguf_available
from transformers.utils.hub import cached_file, extract_commit_hash

from .adapters_sca import ADAPTER_FOLDER, is_adapter_key
from .configuration_sca import ScaConfig, without_dropout
from .families_sca import as_segmenter, config_from, family_of, segmenter_config
from .placement_sca import part_of
from .validation_sca import check_numbers, check_references, is_finite, sizes


SAM = "sam"
LANGUAGE_MODEL = "language_model"
# Attribute of the model -> Auto class that loads it, field of the configuration.
BASE_MODELS = {SAM: (AutoModel, "sam_config"), LANGUAGE_MODEL: (AutoModelForCausalLM, "text_config")}
# Loading arguments that say where files are.
HUB_ARGUMENTS = ("cache_dir", "token", "local_files_only", "proxies", "revision", "subfolder", "force_download")
# Loading arguments that the base models of a mixer-only repository get too. Never `revision`: each has a pinned one of
# its own.
_FORWARDED = ("cache_dir", "token", "local_files_only", "proxies", "max_memory", "offload_folder")
_GGUF = ".gguf"


# One for the process, whichever copy of this file is imported first: a repository brings its own.
_LOADING = vars(modeling_utils).setdefault("_sca_loading", threading.RLock())
# The library replaces its functions while it builds an empty model, which takes moments.
_PATIENCE_SECONDS = 30.0
_Function = TypeVar("_Function", bound=Callable[..., Any])


def one_at_a_time(function: _Function) -> _Function:
    """Let only one thread of the process load or build models.

    While it does so, the library replaces functions of its own for all threads, and two that overlap never put them
    back: every later load would miss its tied weights (transformers #41782).
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _LOADING:
            return function(*args, **kwargs)

    return cast(_Function, run)


def wait_for_the_library() -> None:
    """Wait while another thread builds a model that is not ours; raise if such threads have overlapped."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while PreTrainedModel.tie_weights.__name__ != "tie_weights":
        if time.monotonic() > deadline:
            raise RuntimeError(
                "transformers can no longer tie weights in this process: other models were loaded in threads at the "
                "same time (transformers #41782). Restart, and load models one after the other; models of this class "
                "wait for each other."
            )
        time.sleep(0.05)


@one_at_a_time
def load_part(
    model_class: type, name: str, source: Any, kwargs: dict[str, Any], drop_dropout: bool = False
) -> tuple[PreTrainedModel, dict[str, str] | None]:
    """Load one base model from wherever the user says, and return it with its source (None: unknown)."""
    if isinstance(source, PreTrainedModel):
        part = source if source.config.model_type != ScaConfig.model_type else getattr(source, name)
        own = type(part).config_class
        if name == SAM and own is not None and part.config.model_type != own.model_type:
            # The library may give an image model the configuration of the video model whose weights it has.
            part.config = config_from(as_segmenter(part.config.to_dict(), own.model_type))
        if getattr(part, "quantization_method", None) == "gguf":
            if not all(weight.is_floating_point() for weight in part.parameters()):
                raise ValueError(
                    f"the {name} holds the packed weights of a GGUF file, which nothing can save: pass the file "
                    "itself (folder/file.gguf), or load it with quantization_config=GgufConfig(dequantize=True)."
                )
            part.hf_quantizer.remove_quantization_config(part)  # a mark that is left of weights already unpacked
        # It may have been changed since it was loaded, so that no folder or commit stands for it; of a plain encoder's
        # segmenter only the encoder has to be found again.
        return part, getattr(part, "encoder_source", None)
    if len(_NESTED) >= _MOST_NESTED:
        raise ValueError(
            f"the base models of {_NESTED[0]} come from repositories that take theirs from others, {_MOST_NESTED} "
            f"times ({source} is the last); a repository must not name itself. Save it with include_base_models=True."
        )
    _NESTED.append(str(source))
    try:
        return _load_part(model_class, name, source, kwargs, drop_dropout)
    finally:
        _NESTED.pop()


# Bases that are being loaded, each for the one before it: a repository that names itself would have no last one.
_NESTED: list[str] = []
_MOST_NESTED = 3


def _load_part(
    model_class: type, name: str, source: Any, kwargs: dict[str, Any], drop_dropout: bool
) -> tuple[PreTrainedModel, dict[str, str]]:
    source, kwargs = split_gguf(source, kwargs)
    video = kwargs.pop("video", False)
    where = source_of(source, kwargs)
    hub = {key: kwargs[key] for key in (*HUB_ARGUMENTS, "gguf_file") if key in kwargs}
    if "revision" in where:
        hub["revision"] = where["revision"]
    stored = PreTrainedConfig.get_config_dict(source, **hub)[0]
    check_numbers(stored)
    if not kwargs.get("trust_remote_code"):
        check_references(stored)
    if kwargs.get("config") is not None:
        _check_architecture(name, source, kwargs["config"], stored)
    if stored.get("model_type") == ScaConfig.model_type:
        places = kwargs.get("device_map")
        if isinstance(places, Mapping) and set(places) != {""}:
            # What is not asked for stays on disk.
            fields = {"detail_encoder": "detail_widths", "second_look": "second_look_size"}
            others = {SAM, LANGUAGE_MODEL, "mixer", *(part for part, field in fields.items() if stored.get(field))}
            places = {f"{name}.{key}".rstrip("."): place for key, place in places.items()}
            kwargs = {**kwargs, "device_map": dict.fromkeys(others - {name}, "disk") | places}
        whole = model_class.from_pretrained(source, **{**kwargs, **hub, "config": None})
        return getattr(whole, name), {**where, "part": name}
    trust = kwargs.get("trust_remote_code")
    config = kwargs.get("config")
    if config is None and name == SAM and stored.get("model_type"):
        config = segmenter_config(stored, source, video)
    elif config is None and "gguf_file" in kwargs:
        config = config_from(stored)  # reading such a file again takes seconds
    config = config or AutoConfig.from_pretrained(source, trust_remote_code=bool(trust), **hub)
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
    if "gguf_file" in kwargs and (packed := getattr(transformers, "GgufConfig", None)):
        # Plain weights: the library can save no others of such a file, and casts and adapters need them.
        kwargs.setdefault("quantization_config", packed(dequantize=True))
    part, info = BASE_MODELS[name][0].from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    check_loading_info(info, source, strict, lenient)
    # What lies on disk is looked at when it is read.
    held = [(n, weight) for n, weight in part.named_parameters() if weight.is_floating_point() and not weight.is_meta]
    if broken := [n for n, weight in held if not is_finite(weight)]:
        raise ValueError(f"{broken[0]} of {source} holds infinite values or NaN: the file is damaged.")
    return keep_precision(part).to(dtype) if half else part


def split_gguf(source: Any, kwargs: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Read the name of a GGUF file as the library does, as its folder or repository and `gguf_file=`.

    Args:
        source: what a model or tokenizer is loaded from: also `folder/file.gguf` or `owner/name/file.gguf`.
        kwargs: arguments of its loading.

    Raises:
        ValueError: the folder holds GGUF files alone, and none of them is named.
        ImportError: the package that reads such files is missing.
    """
    kwargs = {key: value for key, value in (kwargs or {}).items() if key != "gguf_file" or value is not None}
    name = os.fspath(source)
    if name.endswith(_GGUF) and "gguf_file" not in kwargs and not os.path.isdir(name):
        parts = name.split("/")
        if os.path.isfile(name):
            source, kwargs["gguf_file"] = os.path.dirname(name) or ".", os.path.basename(name)
        elif len(parts) > 2 and parts[0] not in ("", ".", "..") and not os.path.isdir(os.path.dirname(name)):
            source, kwargs["gguf_file"] = "/".join(parts[:2]), "/".join(parts[2:])
        else:
            raise FileNotFoundError(f"there is no file {name}.")
    if "gguf_file" in kwargs and not is_gguf_available():
        raise ImportError(f"{kwargs['gguf_file']} of {source} is a GGUF file, which needs gguf: pip install gguf.")
    folder = Path(os.fspath(source), kwargs.get("subfolder") or "")
    found = [] if "gguf_file" in kwargs else sorted(path.name for path in folder.glob(f"*{_GGUF}"))
    if found and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no config.json but GGUF files: pass gguf_file=, of {', '.join(found)}.")
    return source, kwargs


def take_base_arguments(config: PreTrainedConfig, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Turn the arguments of a mixer-only repository into those of its mixer; return those of each base model."""
    requested = explicit(kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None))
    shared = {name: kwargs[name] for name in _FORWARDED if kwargs.get(name) is not None}
    device_map, quantization = kwargs.pop("device_map", None), kwargs.pop("quantization_config", None)
    if device_map is not None:
        own = {key: place for key, place in device_map.items() if key.split(".")[0] not in BASE_MODELS}
        if family_of(config.sam_config).base:
            places = set(device_map.values())
            if len(places) > 1 or "disk" in places:
                raise ValueError(
                    "a mixer-only repository of a plain encoder is loaded on one device (device_map={'': 0}); save it "
                    "with include_base_models=True to divide it."
                )
            own = {"": places.pop()}
        kwargs["device_map"] = own
    kwargs.update(build_base_models=False, dtype=requested or config.mixer_config.dtype or "auto")
    arguments = {}
    for part, (_, config_name) in BASE_MODELS.items():
        arguments[part] = {**shared, "device_map": None if device_map is None else part_of(device_map, part)}
        arguments[part]["dtype"] = requested or getattr(config, config_name).dtype
        arguments[part] = {name: value for name, value in arguments[part].items() if value is not None}
    if quantization is not None:
        arguments[LANGUAGE_MODEL]["quantization_config"] = quantization
    return arguments


def explicit(dtype: Any) -> Any:
    """A precision that was asked for; None where the library is to choose."""
    return None if dtype == "auto" else dtype


def load_pinned(
    model_class: type, name: str, source: dict[str, str], repository: str, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Load one base model of a mixer-only repository, exactly as pinned and never with code of its own.

    Args:
        name: `"sam"` or `"language_model"`.
        source: where it is, as the configuration says.
        repository: folder or repository id of the mixer.
        kwargs: arguments of its loading.

    Raises:
        OSError: the base model cannot be loaded; the message says why, and what to do.
        ValueError: it is not the one that the mixer was trained with.
    """
    kwargs = {**kwargs, "trust_remote_code": False}
    remedy = f"pass base_models={{{name!r}: a folder or repository id}} to from_pretrained"
    if "repo_id" in source:
        keys = ("revision", "subfolder", "gguf_file")
        pinned: dict[str, Any] = {key: source[key] for key in keys if key in source}
        try:
            part, _ = load_part(model_class, name, source["repo_id"], {**kwargs, **pinned})
        except OSError as error:
            raise OSError(
                f"{repository} needs its {name} from {source['repo_id']} at revision {source['revision']}, and "
                f"{_why_not_there(error)} To use an identical copy: {remedy}."
            ) from error
        return part, source
    if not os.path.isdir(repository):
        # Not even looked for: the name is a stranger's.
        raise ValueError(
            f"{repository} takes its {name} from a folder on the machine where it was saved ({source['path']}): its "
            f"author should have published that too. If you have it: {remedy}."
        )
    # A folder moves with the repository beside it.
    candidates = (Path(source["path"]), Path(repository).parent / Path(source["path"]).name)
    gguf = source.get("gguf_file")
    folder = next((path for path in candidates if (path / gguf if gguf else path).exists()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{repository} needs its {name} from the {'file' if gguf else 'folder'} "
            f"{os.path.join(source['path'], gguf or '')}, which does not exist: {remedy}."
        )
    # Repositories of before the code counted have the hash of the weights alone.
    if source["sha256"] not in (hash_folder(folder, gguf_file=gguf), hash_folder(folder, (), gguf)):
        raise ValueError(
            f"the weights or settings in {folder} are not those that {repository} was trained with ({name}): {remedy}."
        )
    part, _ = load_part(model_class, name, folder, {**kwargs, **({"gguf_file": gguf} if gguf else {})})
    return part, {**source, "path": str(folder.resolve())}


def _why_not_there(error: BaseException) -> str:
    """Say why a repository's files cannot be loaded, and what helps, as the end of a sentence."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    known: tuple[tuple[type, str], ...] = (
        (GatedRepoError, "that repository is gated: accept its terms on its page, then log in (hf auth login)."),
        (
            RepositoryNotFoundError,
            "the Hub has no such repository: it was removed or renamed, or is private (log in).",
        ),
        (RevisionNotFoundError, "the repository no longer has this revision: its history was changed."),
        (LocalEntryNotFoundError, "it is not in the cache and the Hub cannot be reached: load it online once."),
        (EntryNotFoundError, "the repository is missing a file of a model."),
    )
    for kind, reason in known:
        if any(isinstance(one, kind) for one in causes):
            return reason
    return f"it cannot be loaded: {error}."


def _check_architecture(name: str, source: Any, config: PreTrainedConfig, stored: dict[str, Any]) -> None:
    """Refuse a base model of another kind or size than the one that the mixer was trained with.

    Args:
        config: the base model's configuration, as the mixer's repository has it.
        stored: what the base model's own repository says; of a whole SCA repository, its part counts.
    """
    if stored.get("model_type") == ScaConfig.model_type:
        stored = stored.get(BASE_MODELS[name][1]) or {}
    encoder = getattr(config, "encoder_config", None)
    if name == SAM and encoder is not None and stored.get("model_type") != config.model_type:
        # The encoder alone, or with a text tower.
        config, fields = encoder, {"model_type": encoder.model_type, **stored.get("vision_config", stored)}
    else:
        fields = as_segmenter(stored, config.model_type) if name == SAM else stored
    kind = fields.get("model_type")
    differences = [f"model_type {kind!r} instead of {config.model_type!r}"]
    if kind == config.model_type:
        there, here = (dict(sizes(one)) for one in (config_from(fields), config))
        differences = [
            f"{key} {there.get(key)} instead of {here[key]}" for key in here if there.get(key, here[key]) != here[key]
        ]
    if differences:
        raise ValueError(
            f"{source} has another architecture than the {name} that the mixer was trained with: "
            f"{', '.join(differences[:5])}. Use that one, or train a mixer for this one."
        )


def hash_folder(
    folder: Path, others: tuple[str, ...] = ("*.json", f"{ADAPTER_FOLDER}/*"), gguf_file: str | None = None
) -> str:
    """SHA-256 over the names and contents of all of a folder's files that decide what its model computes.

    Its code does not: that of a base model is never run, and a processor saved beside it brings its own.

    Args:
        others: patterns of those beside the weights.
        gguf_file: a file that holds the whole model; no other counts.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if gguf_file is not None:
        files, others = [folder / gguf_file], ()
    if not files:
        raise FileNotFoundError(f"{folder} has no weight files.")
    # Of what a training writes beside them, nothing counts.
    kept = ("config.json", "generation_config.json", "adapter_config.json")
    more = [file for pattern in others for file in sorted(folder.glob(pattern))]
    files += [
        file for file in more if file.suffix != ".json" or file.name in kept or file.name.endswith(".index.json")
    ]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            name = file.relative_to(folder).as_posix()
            total.update(f"{name}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def source_of(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, str]:
    """Where a model comes from: a folder, or a repository with the commit that its revision stands for now."""
    subfolder, gguf = kwargs.get("subfolder") or "", kwargs.get("gguf_file")
    named = {"gguf_file": gguf} if gguf else {}
    if os.path.isdir(path):
        return {"path": str((Path(path) / subfolder).resolve()), **named}
    hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs and key != "force_download"}
    commit = extract_commit_hash(cached_file(path, gguf or "config.json", **hub), None)
    if commit is None:
        raise OSError(f"{path} has no commit in the cache: load it once from the Hub.")
    where = {"repo_id": str(path), "revision": commit, **named}
    return {**where, "subfolder": subfolder} if subfolder else where


def complete_sources(sources: dict[str, dict[str, str] | None]) -> dict[str, dict[str, str]] | None:
    """The sources of both base models, or None where one of them is unknown."""
    known = {name: source for name, source in sources.items() if source}
    return known if known.keys() == BASE_MODELS.keys() else None


def base_prefixes(config: ScaConfig) -> tuple[str, str]:
    """How the names of the weights begin that a mixer-only repository does not hold."""
    return f"{SAM}.{family_of(config.sam_config).base}", f"{LANGUAGE_MODEL}."


def sample_base_weights(model: Any) -> dict[str, torch.Tensor]:
    """Some values of each weight of SAM and the language model, by the name that it has without adapters around it.

    Weights that are packed, cut up or on no device have none, nor those that every repository of the model holds.
    """
    samples = {}
    for name, weight in model.named_parameters():
        plain = type(weight.data) is torch.Tensor and weight.is_floating_point() and weight.device.type != "meta"
        if plain and name.startswith(base_prefixes(model.config)) and not is_adapter_key(name):
            values = weight.detach().reshape(-1)
            step = max(1, len(values) // 16)
            samples[name.replace("base_model.model.", "").replace(".base_layer.", ".")] = values[::step].clone().cpu()
    return samples


def changed_weights(before: Mapping[str, torch.Tensor], now: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of those whose values are others, by more than a cast to another precision, or one to and fro."""
    changed = []
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        casts = (old.to(between).to(new.dtype) for between in (new.dtype, torch.bfloat16, torch.float16))
        if not any(torch.equal(cast, new) for cast in casts):
            changed.append(name)
    return sorted(changed)


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
        "They were not initialized instead. If config.json is not the one saved with these weights, restore it; "
        "strict=False (missing, unexpected) or ignore_mismatched_sizes=True (mis-shaped) load the rest anyway."
    )


def keep_precision(model: PreTrainedModel) -> PreTrainedModel:
    """Let casts to half precision, of a model or of any part of it, leave alone what loses positions in it.

    Those are SAM's random Fourier features (at 1024 px bfloat16 moves a box by 4 px) and the frequencies of rotary
    embeddings, which the library's loading keeps in float32 too.
    """
    for module in model.modules():
        frequencies = any("inv_freq" in name for name, _ in module.named_buffers(recurse=False))
        if (features := getattr(module, "positional_embedding", None)) is not None and features.is_meta:
            # What is then fetched from disk for each call takes the precision that is noted here.
            features.data = features.data.float()
        if frequencies or features is not None:
            # Of the instance, so that the base models' classes stay the library's.
            module._apply = partial(_apply_in_float32, module)
    return model


def _apply_in_float32(module: torch.nn.Module, change: Callable[..., Any], recurse: bool = True) -> torch.nn.Module:
    names = [*module._parameters, *module._buffers]
    before = {name: tensor.data for name in names if (tensor := getattr(module, name)) is not None}
    type(module)._apply(module, change, recurse)
    half = (torch.float16, torch.bfloat16)
    for name, values in before.items():
        now = getattr(module, name)
        if now.dtype in half and values.is_floating_point() and values.dtype not in half:
            now.data = values.to(now.device, torch.float32)
    return module


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


__all__ = [
    "BASE_MODELS",
    "base_prefixes",
    "keep_precision",
    "one_at_a_time",
    "wait_for_the_library",
    "changed_weights",
    "check_loading_info",
    "complete_sources",
    "explicit",
    "hash_folder",
    "load_part",
    "load_pinned",
    "sample_base_weights",
    "source_of",
    "split_gguf",
    "take_base_arguments",
]
