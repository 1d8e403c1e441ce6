"""Loading and saving: never a guessed weight, whole repositories and such that hold the mixer only.

A *whole* repository holds every weight. A *mixer-only* repository holds what training changed; its configuration
names, in `base_model_repos`, where SAM and the language model come from, each pinned to the commit (or, for a folder,
to the content) that the mixer was trained with.
"""

import copy
import hashlib
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils.hub import cached_file, extract_commit_hash

from .configuration_sca import SUPPORTED_SAM_TYPES, ScaConfig, ScaMixerConfig, without_dropout
from .generation_sca import caption_generation_config


SAM = "sam"
LANGUAGE_MODEL = "language_model"
_BASES = {SAM: (AutoModel, "sam_config"), LANGUAGE_MODEL: (AutoModelForCausalLM, "text_config")}

# Which of the library's loading arguments a base of a mixer-only repository is loaded with too. Never `revision`: each
# base has a pinned one of its own.
_FORWARDED = ("cache_dir", "token", "local_files_only", "proxies", "max_memory", "offload_folder")
_HUB = ("cache_dir", "token", "local_files_only", "proxies", "revision", "subfolder", "force_download")


class ScaLoadingMixin:
    """`from_pretrained`, `save_pretrained` and construction from parts, for [`ScaForConditionalGeneration`]."""

    # What a save without `include_bases` writes; training sets it to False.
    _include_bases: bool = True
    # Where each base was loaded from: what `save_pretrained(include_bases=False)` writes into the configuration.
    base_sources: dict[str, dict[str, str]] | None = None

    @property
    def include_bases(self) -> bool:
        """Whether a save holds SAM and the language model; False makes mixer-only checkpoints, in the Trainer too."""
        return self._include_bases

    @include_bases.setter
    def include_bases(self, value: bool) -> None:
        if not value:
            self._check_mixer_only()
        self._include_bases = value
        # The Trainer compares this with what a checkpoint lacks before it warns of missing weights.
        self._keys_to_ignore_on_save = set() if value else {key for key in self.state_dict() if _is_base_key(key)}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        bases: dict[str, str | os.PathLike[str] | PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a whole or a mixer-only repository; weights that do not fit raise, with their names.

        Args:
            pretrained_model_name_or_path: folder or repository id.
            strict: False lets missing weights be initialised at random and unexpected ones be left out.
            ignore_mismatched_sizes: True initialises weights of another shape at random.
            bases: for a mixer-only repository: a model, folder or repository id to take `"sam"` or
                `"language_model"` from in place of the pinned one.
            kwargs: as for the library's `from_pretrained`.
        """
        path = pretrained_model_name_or_path
        peeked = _peek(cls.config_class, path, config, kwargs)
        repos = getattr(peeked, "base_model_repos", None)
        if bases and not repos:
            raise ValueError(f"bases= belongs to a mixer-only repository, but {path} names no base models.")
        of_bases = _take_base_arguments(peeked, kwargs) if repos else {}
        model, info = super().from_pretrained(
            path, *model_args, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        _check_loading_info(info, path, strict, ignore_mismatched_sizes)
        if repos:
            model._load_bases(repos, bases or {}, Path(path), of_bases)
        elif path is not None:
            model.base_sources = {part: {**_source(path, kwargs), "part": part} for part in _BASES}
        # The library makes new parameters of what it reads, and they take gradients.
        model._freeze_base_models()
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        state_dict: dict[str, torch.Tensor] | None = None,
        include_bases: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a repository: weights, configurations, generation configuration and the code that loads them.

        Args:
            save_directory: folder to write.
            state_dict: weights to write in place of the model's own.
            include_bases: True writes every weight. False writes the mixer only, with the names of the repositories,
                and the commits or content hashes, that SAM and the language model come from. None does what
                `self.include_bases` says.
            kwargs: as for the library's `save_pretrained`.
        """
        include_bases = self.include_bases if include_bases is None else include_bases
        # Names of weights are the library's own here; nothing is written back under names a base once had.
        kwargs.setdefault("save_original_format", False)
        for config, part in self._parts():
            config.dtype = next(part.parameters()).dtype
        ignored, self._keys_to_ignore_on_save = self._keys_to_ignore_on_save, set()
        repos = self.config.base_model_repos
        try:
            self.config.base_model_repos = None
            if not include_bases:
                self._check_mixer_only()
                state_dict = self.state_dict() if state_dict is None else state_dict
                state_dict = {key: value for key, value in state_dict.items() if not _is_base_key(key)}
                self.config.base_model_repos = self._pinned_bases(Path(save_directory))
            self._describe_code()
            super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored
            self.config.base_model_repos = repos

    @classmethod
    def from_sam_text_pretrained(
        cls,
        sam: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        mixer_config: ScaMixerConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Join a SAM and a causal language model by a new, untrained mixer.

        Args:
            sam: SAM or SAM-HQ: repository id, folder or loaded model. A whole SCA repository gives its SAM.
            text: causal language model: repository id, folder or loaded model. A whole SCA repository gives its own.
            mixer_config: the mixer's sizes; widths follow from the two parts.
            kwargs: `sam_*` and `text_*` go to the loading of that part (`sam_revision=`, `text_dtype=`, ...),
                `dtype`, `attn_implementation`, `cache_dir`, `token` and `local_files_only` to both, and any field of
                [`ScaConfig`] to the configuration.
        """
        sam_kwargs, text_kwargs, fields = _sort_arguments(kwargs)
        freeze = fields.get("freeze_base_models", True)
        sam_model, sam_source = _load_part(cls, SAM, sam, sam_kwargs)
        language_model, text_source = _load_part(cls, LANGUAGE_MODEL, text, text_kwargs, drop_dropout=freeze)
        config = ScaConfig(
            sam_config=sam_model.config, mixer_config=mixer_config, text_config=language_model.config, **fields
        )
        model = cls(config, build_bases=False)
        dtype = _explicit(kwargs.get("dtype"))
        model.to(device=sam_model.device, dtype=_as_dtype(dtype))
        model.generation_config = caption_generation_config(language_model)
        model._attach(sam_model, language_model)
        model.base_sources = {SAM: sam_source, LANGUAGE_MODEL: text_source} if sam_source and text_source else None
        return model.eval()

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise if the tokenizer knows ids for which the language model has no embedding."""
        rows = self.get_input_embeddings().weight.shape[0]
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if largest >= rows:
            raise ValueError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has ids up to {largest}, but the language "
                f"model embeds only {rows} tokens: it is another model's tokenizer, or tokens were added and "
                f"model.resize_token_embeddings({largest + 1}) was not called."
            )

    def _load_bases(
        self,
        repos: dict[str, dict[str, str]],
        bases: dict[str, Any],
        repository: Path,
        arguments: dict[str, dict[str, Any]],
    ) -> None:
        """Fetch and attach the base models that a mixer-only repository names."""
        unknown = bases.keys() - _BASES.keys()
        if unknown:
            raise ValueError(f"bases= takes {' and '.join(_BASES)}, got {', '.join(sorted(unknown))}.")
        parts, sources = {}, {}
        for name, (_, config_name) in _BASES.items():
            config = copy.deepcopy(getattr(self.config, config_name))
            # The Auto classes have taken these two out of the arguments and put them into the configuration.
            own = {"attn_implementation": config._attn_implementation, "dtype": self.config.dtype, **arguments[name]}
            own = {"config": config, **{key: value for key, value in own.items() if value is not None}}
            if name in bases:
                parts[name], sources[name] = _load_part(type(self), name, bases[name], own)
            else:
                parts[name], sources[name] = _load_pinned(type(self), name, repos[name], repository, own)
        self._attach(**parts)
        self.mixer.to(self.sam.device)
        self.base_sources = sources if all(sources.values()) else None
        # A mixer-only model stays one when it is saved again.
        if self.base_sources and not self._trainable_base_weights():
            self.include_bases = False
        self.eval()

    def _attach(self, sam: PreTrainedModel, language_model: PreTrainedModel) -> None:
        """Make loaded models parts of this one, in the state in which a whole repository would hold them."""
        self.attach_base_models(sam, language_model)
        # `generate` takes what our configuration leaves open from the language model's, which no repository of ours
        # keeps: a model must not caption otherwise after saving and loading.
        language_model.generation_config = GenerationConfig.from_model_config(language_model.config)

    def _parts(self) -> list[tuple[PreTrainedConfig, torch.nn.Module]]:
        parts = ((self.config.sam_config, self.sam), (self.config.mixer_config, self.mixer))
        return [*parts, (self.config.text_config, self.language_model)]

    def _check_mixer_only(self) -> None:
        trained = self._trainable_base_weights()
        if trained:
            raise ValueError(
                f"{len(trained)} weights of SAM or the language model are trainable ({', '.join(trained[:3])}); a "
                "mixer-only repository would lose them: save with include_bases=True or freeze them first."
            )
        if not self.base_sources:
            raise ValueError(
                "this model was not loaded from repositories or folders, so a mixer-only repository could not name "
                "its SAM and language model: save with include_bases=True."
            )

    def _trainable_base_weights(self) -> list[str]:
        return [name for name, weight in self.named_parameters() if weight.requires_grad and _is_base_key(name)]

    def _pinned_bases(self, save_directory: Path) -> dict[str, dict[str, str]]:
        pinned, hashes = {}, {}
        for name, source in self.base_sources.items():
            pinned[name] = dict(source)
            path = source.get("path")
            if path is None:
                continue
            if Path(path) == save_directory.resolve():
                raise ValueError(
                    f"{save_directory} holds the {name} that this model needs; a mixer-only save would overwrite it. "
                    "Save elsewhere or with include_bases=True."
                )
            hashes[path] = hashes.get(path) or hash_weights(Path(path))
            pinned[name]["sha256"] = hashes[path]
        return pinned

    def _describe_code(self) -> None:
        """Have the library copy our code, and name in the configuration what it loads from the copies."""
        # Imported here so that the file is copied with this one, wherever this one lies.
        from .pipeline_sca import TASK, RegionCaptioningPipeline

        if not self.is_remote_code():
            type(self).register_for_auto_class("AutoModel")
            type(self.config).register_for_auto_class("AutoConfig")
        pipeline = f"{RegionCaptioningPipeline.__module__.split('.')[-1]}.{RegionCaptioningPipeline.__name__}"
        self.config.custom_pipelines = {TASK: {"impl": pipeline, "pt": ["AutoModel"], "type": "multimodal"}}
        reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        names = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMaskGeneration")
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **dict.fromkeys(names, reference)}


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


def _peek(config_class: type, path: Any, config: Any, kwargs: dict[str, Any]) -> PreTrainedConfig | None:
    """The configuration that a load is going to use."""
    if path is None or isinstance(config, PreTrainedConfig):
        return config if path is not None else None
    hub = {name: kwargs[name] for name in _HUB if name in kwargs}
    return config_class.from_pretrained(path if config is None else config, **hub)


def _take_base_arguments(config: PreTrainedConfig, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Change the loading arguments of a mixer-only repository into those of its mixer; return those of each base."""
    requested = _explicit(kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None))
    shared = {name: kwargs[name] for name in _FORWARDED if kwargs.get(name) is not None}
    device_map, quantization = kwargs.pop("device_map", None), kwargs.pop("quantization_config", None)
    kwargs.update(build_bases=False, dtype=requested or config.mixer_config.dtype or "auto")
    arguments = {}
    for part, (_, config_name) in _BASES.items():
        arguments[part] = {**shared, "device_map": _device_map_of(part, device_map)}
        arguments[part]["dtype"] = requested or getattr(config, config_name).dtype
        arguments[part] = {name: value for name, value in arguments[part].items() if value is not None}
    if quantization is not None:
        arguments[LANGUAGE_MODEL]["quantization_config"] = quantization
    return arguments


def _check_loading_info(info: dict[str, Any], path: Any, strict: bool, ignore_mismatched_sizes: bool) -> None:
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


def _load_part(
    model_class: type, name: str, source: Any, kwargs: dict[str, Any], drop_dropout: bool = False
) -> tuple[PreTrainedModel, dict[str, str] | None]:
    """Load one base from wherever the user says; returns it and where it came from (None: unknown)."""
    if isinstance(source, PreTrainedModel):
        part = source if source.config.model_type != ScaConfig.model_type else getattr(source, name)
        return part, _source_of_model(name, source)
    where = _source(source, kwargs)
    hub = {key: kwargs[key] for key in _HUB if key in kwargs}
    hub.update({key: where[key] for key in ("revision",) if key in where})
    if PreTrainedConfig.get_config_dict(source, **hub)[0].get("model_type") == ScaConfig.model_type:
        whole = model_class.from_pretrained(source, **{**kwargs, **hub, "config": None})
        return getattr(whole, name), {**where, "part": name}
    config = kwargs.get("config") or AutoConfig.from_pretrained(source, **hub)
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
    dtype = _as_dtype(kwargs.get("dtype"))
    half = name == SAM and dtype in (torch.float16, torch.bfloat16)
    if half:
        kwargs["dtype"] = torch.float32
    part, info = _BASES[name][0].from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    _check_loading_info(info, source, strict, lenient)
    return _to_half(part, dtype) if half else part


def _load_pinned(
    model_class: type, name: str, source: dict[str, str], repository: Path, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Load one base of a mixer-only repository, exactly as pinned."""
    if "repo_id" in source:
        pinned = {key: source[key] for key in ("revision", "subfolder") if key in source}
        part, _ = _load_part(model_class, name, source["repo_id"], {**kwargs, **pinned})
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
    part, _ = _load_part(model_class, name, folder, kwargs)
    return part, {**source, "path": str(folder.resolve())}


def _source(path: str | os.PathLike[str], kwargs: dict[str, Any]) -> dict[str, str]:
    """Where a model comes from: a folder, or a repository with the commit that its revision stands for now."""
    subfolder = kwargs.get("subfolder") or ""
    if os.path.isdir(path):
        return {"path": str((Path(path) / subfolder).resolve())}
    hub = {key: kwargs[key] for key in _HUB if key in kwargs and key != "force_download"}
    commit = extract_commit_hash(cached_file(path, "config.json", **hub), None)
    where = {"repo_id": str(path), "revision": commit or kwargs.get("revision") or "main"}
    return {**where, "subfolder": subfolder} if subfolder else where


def _source_of_model(name: str, model: PreTrainedModel) -> dict[str, str] | None:
    """Where an already loaded model came from, if it can be told."""
    known = getattr(model, "base_sources", None)
    if known:
        return known.get(name)
    path = model.config.name_or_path
    return {"path": str(Path(path).resolve())} if path and os.path.isdir(path) else None


def _sort_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Split keyword arguments into those for SAM, for the language model and for the configuration."""
    both = ("dtype", "attn_implementation", "cache_dir", "token", "local_files_only", "device_map")
    shared = {name: kwargs[name] for name in both if name in kwargs}
    sam_kwargs, text_kwargs, fields = dict(shared), dict(shared), {}
    allowed = inspect.signature(ScaConfig.__init__).parameters.keys() - {"sam_config", "text_config", "mixer_config"}
    for name, value in kwargs.items():
        if name in shared:
            continue
        if name in allowed:
            fields[name] = value
        elif name.startswith("sam_"):
            sam_kwargs[name.removeprefix("sam_")] = value
        elif name.startswith("text_"):
            text_kwargs[name.removeprefix("text_")] = value
        else:
            raise TypeError(
                f"from_sam_text_pretrained has no argument {name!r}; sam_{name} or text_{name} would go to one part."
            )
    return sam_kwargs, text_kwargs, fields


def _device_map_of(name: str, device_map: Any) -> Any:
    """The part of a device map that concerns one base."""
    if not isinstance(device_map, dict):
        return device_map
    own = {key.removeprefix(name).lstrip("."): value for key, value in device_map.items() if key.split(".")[0] == name}
    return own or ({"": device_map[""]} if "" in device_map else None)


def _to_half(sam: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Cast SAM, but not its random Fourier features: in half precision they lose positions."""
    features = [module.positional_embedding for module in sam.modules() if hasattr(module, "positional_embedding")]
    kept = [tensor.detach().clone() for tensor in features]
    sam.to(dtype)
    for tensor, values in zip(features, kept, strict=True):
        tensor.data = values
    return sam


def _explicit(dtype: Any) -> Any:
    return None if dtype == "auto" else dtype


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    return getattr(torch, dtype, None) if isinstance(dtype, str) else dtype


def _is_base_key(key: str) -> bool:
    return key.startswith((f"{SAM}.", f"{LANGUAGE_MODEL}."))


__all__ = ["ScaLoadingMixin", "hash_weights"]
