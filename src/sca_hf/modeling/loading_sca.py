"""Loading and saving: never a guessed weight, of whole repositories and of mixer-only ones.

A *whole* repository holds every weight. A *mixer-only* repository holds what training changed; its configuration
names, in `base_model_repos`, where SAM and the language model come from, each pinned to the commit (or, for a folder,
to the content) that the mixer was trained with.
"""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .adapters_sca import (
    ADAPTER_FOLDER,
    check_savable_adapter,
    has_adapter,
    is_adapter_key,
    load_adapter,
    made_by_peft,
    save_adapter,
)
from .base_models_sca import (
    BASE_MODELS,
    HUB_ARGUMENTS,
    LANGUAGE_MODEL,
    SAM,
    as_dtype,
    base_prefixes,
    changed_weights,
    check_loading_info,
    complete_sources,
    explicit,
    hash_folder,
    keep_precision,
    load_part,
    load_pinned,
    one_at_a_time,
    sample_base_weights,
    source_of,
    take_base_arguments,
    wait_for_the_library,
)
from .families_sca import family_of
from .generation_sca import check_generation_numbers
from .placement_sca import computes_bfloat16, execution_device, resolve_device_map
from .validation_sca import FORMAT_VERSION, check_settings_files, check_weight_files


logger = logging.get_logger(__name__)


class ScaLoadingMixin:
    """`from_pretrained`, `save_pretrained` and construction from parts, for [`ScaForConditionalGeneration`]."""

    # What a save without `include_base_models` writes; training sets it to False.
    _include_base_models: bool = True
    _base_sources: dict[str, dict[str, str]] | None = None
    # A few values of each weight that came from there.
    _base_samples: Mapping[str, torch.Tensor] = MappingProxyType({})

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the model. The first weight, which the library asks, is SAM's Fourier features in float32."""
        return self.mixer.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes, and takes its inputs; its weights may lie elsewhere."""
        return execution_device(self)

    @property
    def base_sources(self) -> dict[str, dict[str, str]] | None:
        """Source of each base model: what `save_pretrained(include_base_models=False)` writes into the configuration.

        Setting it says that SAM and the language model are those of the sources.
        """
        return self._base_sources

    @base_sources.setter
    def base_sources(self, sources: dict[str, dict[str, str]] | None) -> None:
        self._base_sources = sources
        self._base_samples = sample_base_weights(self) if sources else {}

    @property
    def include_base_models(self) -> bool:
        """Whether a save holds SAM and the language model; False makes mixer-only checkpoints, in the Trainer too."""
        return self._include_base_models

    @include_base_models.setter
    def include_base_models(self, value: bool) -> None:
        if not value:
            self._check_mixer_only()
        self._include_base_models = value
        # The Trainer compares this with what a checkpoint lacks before it warns of missing weights.
        self._keys_to_ignore_on_save = set() if value else {key for key in self.state_dict() if self._is_base_key(key)}

    @classmethod
    @one_at_a_time
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | os.PathLike[str] | None = None,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        base_models: dict[str, str | os.PathLike[str] | PreTrainedModel] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a whole or a mixer-only repository; weights that do not fit raise, with their names.

        Args:
            pretrained_model_name_or_path: folder or repository id.
            strict: False lets missing weights be initialized at random and unexpected ones be left out.
            ignore_mismatched_sizes: True initializes weights of another shape at random.
            base_models: for a mixer-only repository: a model, folder or repository id to take `"sam"` or
                `"language_model"` from in place of the pinned one.
            kwargs: as for the library's `from_pretrained`.
        """
        wait_for_the_library()
        path = pretrained_model_name_or_path
        peeked = _peek(cls.config_class, path, config, kwargs)
        repos = getattr(peeked, "base_model_repos", None)
        if base_models and not repos:
            raise ValueError(f"base_models= only applies to mixer-only repositories, but {path} names no base models.")
        if path is not None:
            # Plain tensors only; a format that can hold code is not even opened.
            kwargs.setdefault("use_safetensors", True)
            kwargs.setdefault("trust_remote_code", False)  # the class is known; what else is named is not needed
            where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            generation = check_settings_files(path, where).get("generation_config")
            check_generation_numbers(generation if isinstance(generation, dict) else {})
            packed = bool(kwargs.get("quantization_config") or getattr(peeked, "quantization_config", None))
            check_weight_files(path, where, lambda: _describe_weights(cls, peeked), packed)
            if kwargs.get("device_map") is not None:
                kwargs["device_map"] = _resolve_device_map(cls, peeked, kwargs)
        device_map = kwargs.get("device_map")
        base_arguments = take_base_arguments(peeked, kwargs) if repos else {}
        model, info = super().from_pretrained(
            path, *model_args, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        check_loading_info(info, path, strict, ignore_mismatched_sizes)
        if repos:
            where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
            model._load_base_models(repos, base_models or {}, base_arguments, where)
            if device_map is not None and (len(set(device_map.values())) > 1 or "disk" in device_map.values()):
                model.hf_device_map = device_map
        elif path is not None:
            model.base_sources = {part: {**source_of(path, kwargs), "part": part} for part in BASE_MODELS}
        if model.dtype == torch.bfloat16 and model.device.type == "cpu" and not computes_bfloat16():
            logger.warning_once("this CPU does not compute in bfloat16 itself: float32 is several times as fast here.")
        # The library makes new parameters of what it reads, and they take gradients.
        model._freeze_base_models()
        # Imported here because the library's pipelines import its Auto classes, and those, in our package, this file.
        from .pipeline_sca import register

        register()
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *args: Any,
        state_dict: dict[str, torch.Tensor] | None = None,
        include_base_models: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write a repository: weights, configurations, generation configuration and the code that loads them.

        Args:
            save_directory: folder to write.
            state_dict: weights to write in place of the model's own.
            include_base_models: True writes every weight. False writes the mixer only, with the names of the
                repositories, and the commits or content hashes, that SAM and the language model come from, and beside
                it adapters of the language model. None does what `self.include_base_models` says.
            kwargs: as for the library's `save_pretrained`.
        """
        include_base_models = self.include_base_models if include_base_models is None else include_base_models
        self._check_adapter(include_base_models, kwargs.get("push_to_hub", False))
        # Names of weights are the library's own here; nothing is written back under names a base once had.
        kwargs.setdefault("save_original_format", False)
        for config, part in self._parts():
            config.dtype = list(part.parameters())[-1].dtype
        ignored, self._keys_to_ignore_on_save = self._keys_to_ignore_on_save, set()
        repos = self.config.base_model_repos
        try:
            self.config.base_model_repos = None
            if not include_base_models:
                self._check_mixer_only()
                state_dict = self.state_dict() if state_dict is None else state_dict
                if self.config.language_model_adapter and kwargs.get("is_main_process", True):
                    own = _without_prefix(state_dict, f"{LANGUAGE_MODEL}.")
                    save_adapter(self.language_model, Path(save_directory) / ADAPTER_FOLDER, own)
                state_dict = {key: value for key, value in state_dict.items() if not self._is_base_key(key)}
                self.config.base_model_repos = self._pinned_base_models(Path(save_directory))
            with _own_class(self), nullcontext() if include_base_models else _without_quantization(self):
                self._describe_code()
                super().save_pretrained(save_directory, *args, state_dict=state_dict, **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored
            self.config.base_model_repos = repos

    def push_to_hub(self, repo_id: str, *args: Any, include_base_models: bool | None = None, **kwargs: Any) -> Any:
        """Upload what `save_pretrained` writes as one commit; the processor has a `push_to_hub` of its own.

        Args:
            repo_id: the repository, created if it does not exist.
            include_base_models: as in `save_pretrained`.
            kwargs: arguments of the library's `push_to_hub`.
        """
        kept = self.include_base_models
        if include_base_models is not None:
            self.include_base_models = include_base_models
        try:
            if not self.include_base_models:
                self.check_published_base_models()
            return super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.include_base_models = kept

    def check_published_base_models(self) -> None:
        """Raise if a mixer-only repository of this model would take SAM or the language model from a folder here."""
        folders = [source["path"] for source in (self.base_sources or {}).values() if "path" in source]
        if folders:
            raise ValueError(
                f"a mixer-only repository would name folders on this machine ({', '.join(folders)}), which nobody "
                "else has: push SAM and the language model and load them from there, or push with "
                "include_base_models=True."
            )

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

    def check_processor(self, processor: Any) -> None:
        """Raise unless a processor is this model's: image size, mask size, tasks in their order, tokenizer."""
        self.check_tokenizer(processor.tokenizer)
        frame, images = self.config.image_frame, processor.image_processor
        square = {"height": frame.side, "width": frame.side}
        expected = {"mask_size": frame.mask_side, "tasks": list(self.config.mixer_config.tasks)}
        found = {"size": dict(images.size), "mask_size": processor.mask_size, "tasks": processor.tasks}
        if frame.resize == "pad":
            expected |= {"size": {"longest_edge": frame.side}, "pad_size": square}
            found["pad_size"] = dict(getattr(images, "pad_size", None) or {})
        else:
            expected |= {"size": square}
        for name, value in expected.items():
            if found[name] != value:
                raise ValueError(
                    f"the processor's {name} is {found[name]}, but the model needs {value}: it is another model's "
                    "processor, or one of both was changed. ScaProcessor.from_config(model.config, tokenizer) makes "
                    "one that fits."
                )

    def _load_base_models(
        self,
        repos: dict[str, dict[str, str]],
        base_models: dict[str, Any],
        arguments: dict[str, dict[str, Any]],
        where: dict[str, Any],
    ) -> None:
        """Fetch and attach the base models that a mixer-only repository names, and its adapters; `where` it is."""
        unknown = base_models.keys() - BASE_MODELS.keys()
        if unknown:
            raise ValueError(f"base_models= takes {' and '.join(BASE_MODELS)}, got {', '.join(sorted(unknown))}.")
        parts: dict[str, PreTrainedModel] = {}
        sources: dict[str, dict[str, str] | None] = {}
        for name, (_, config_name) in BASE_MODELS.items():
            config = copy.deepcopy(getattr(self.config, config_name))
            # The Auto classes have taken these two out of the arguments and put them into the configuration.
            own = {"attn_implementation": config._attn_implementation, "dtype": self.config.dtype, **arguments[name]}
            own = {"config": config, **{key: value for key, value in own.items() if value is not None}}
            if name in base_models:
                parts[name], sources[name] = load_part(type(self), name, base_models[name], own)
            else:
                parts[name], sources[name] = load_pinned(type(self), name, repos[name], self.name_or_path, own)
        if self.sam is not None:
            # All of a plain encoder's segmenter but the encoder is here already.
            base, found = family_of(self.config.sam_config).base, parts[SAM]
            whole = found.config.model_type == self.config.sam_config.model_type
            self.sam.set_submodule(base, found.get_submodule(base) if whole else found)
            parts[SAM] = keep_precision(self.sam).to(as_dtype(arguments[SAM].get("dtype")))
        self._attach(**parts)
        if self.config.language_model_adapter:
            load_adapter(self.language_model, self.name_or_path, where)
        if "device_map" not in arguments[SAM]:
            for part in (self.mixer, self.detail_encoder, self.second_look):
                if part is not None:
                    part.to(execution_device(self.sam))
        self.base_sources = complete_sources(sources)
        # A mixer-only model stays one when it is saved again.
        if self.base_sources and not self._trainable_base_weights():
            self.include_base_models = False
        self.eval()

    def _parts(self) -> list[tuple[PreTrainedConfig, torch.nn.Module]]:
        parts = ((self.config.sam_config, self.sam), (self.config.mixer_config, self.mixer))
        return [*parts, (self.config.text_config, self.language_model)]

    def _check_adapter(self, include_base_models: bool, push_to_hub: bool) -> None:
        """Note whether the language model has adapters; refuse to save any in a way that would not load."""
        self.check_adapters()
        self.config.language_model_adapter = has_adapter(self.language_model)
        if self.config.language_model_adapter and include_base_models:
            raise ValueError(
                "the language model has adapters, which only a mixer-only repository can store: merge them "
                "(sca_hf.training.adapters.merge_lora) or save with include_base_models=False."
            )
        if include_base_models and getattr(self.language_model, "is_quantized", False):
            raise ValueError(
                f"the language model was loaded quantized ({self.language_model.quantization_method}), which a whole "
                "repository cannot store: save with include_base_models=False, which names where it came from, or "
                "unpack it (model.language_model.dequantize())."
            )
        if self.config.language_model_adapter and push_to_hub:
            raise ValueError("push_to_hub=True would not upload the adapters: save, then upload the folder.")

    def check_adapters(self) -> None:
        """Raise where PEFT wrapped more than the language model, or that in a way which a repository cannot hold."""
        known = has_adapter(self.language_model)
        for name, module in self.named_modules():
            if made_by_peft(module) and not (known and f"{name}.".startswith(f"{LANGUAGE_MODEL}.")):
                raise ValueError(
                    f"PEFT has added adapters to this model ({name}), which its own repository cannot store: save "
                    "them with the wrapper that get_peft_model returned (peft_model.save_pretrained; load with "
                    "PeftModel.from_pretrained(model, folder)), merge them (peft_model.merge_and_unload()), or adapt "
                    "the language model alone: model.language_model = get_peft_model(model.language_model, config)."
                )
        if known:
            check_savable_adapter(self.language_model)

    def _check_mixer_only(self) -> None:
        trained = self._trainable_base_weights()
        if trained:
            raise ValueError(
                f"{len(trained)} weights of SAM or the language model are trainable ({', '.join(trained[:3])}); a "
                "mixer-only repository would lose them: save with include_base_models=True or freeze them first."
            )
        if not self.base_sources:
            raise ValueError(
                "a mixer-only repository could not name this model's SAM and language model: they were built here or "
                "passed as loaded models. Save with include_base_models=True, or build from repositories or folders."
            )
        if changed := changed_weights(self._base_samples, sample_base_weights(self)):
            raise ValueError(
                f"{len(changed)} weights of SAM or the language model have changed since they were loaded "
                f"({', '.join(changed[:3])}), for instance by merged adapters; a mixer-only repository would load "
                "the original ones: save with include_base_models=True."
            )

    def _is_base_key(self, key: str) -> bool:
        return key.startswith(base_prefixes(self.config))

    def _trainable_base_weights(self) -> list[str]:
        return [
            name
            for name, weight in self.named_parameters()
            if weight.requires_grad and self._is_base_key(name) and not is_adapter_key(name)
        ]

    def _pinned_base_models(self, save_directory: Path) -> dict[str, dict[str, str]]:
        pinned: dict[str, dict[str, str]] = {}
        hashes: dict[str, str] = {}
        for name, source in (self.base_sources or {}).items():
            pinned[name] = dict(source)
            path = source.get("path")
            if path is None:
                continue
            if Path(path) == save_directory.resolve():
                raise ValueError(
                    f"{save_directory} holds the {name} that this model needs; a mixer-only save would overwrite it. "
                    "Save elsewhere or with include_base_models=True."
                )
            gguf = source.get("gguf_file")
            key = f"{path}/{gguf or ''}"
            hashes[key] = hashes.get(key) or hash_folder(Path(path), gguf_file=gguf)
            pinned[name]["sha256"] = hashes[key]
        return pinned

    def _describe_code(self) -> None:
        """Have the library copy our code, and name in the configuration what it loads from the copies."""
        # As in from_pretrained.
        from .pipeline_sca import TASK, RegionCaptioningPipeline

        if not self.is_remote_code():
            type(self).register_for_auto_class("AutoModel")
            type(self.config).register_for_auto_class("AutoConfig")
        pipeline = f"{RegionCaptioningPipeline.__module__.split('.')[-1]}.{RegionCaptioningPipeline.__name__}"
        self.config.custom_pipelines = {TASK: {"impl": pipeline, "pt": ["AutoModel"], "type": "multimodal"}}
        reference = f"{type(self).__module__.split('.')[-1]}.{type(self).__name__}"
        # Code that only knows the published wiring would read other captions and masks out of another.
        published = self.config.mixer_config.is_published and self.config.second_look_size is None
        self.config.format_version = 1 if published else FORMAT_VERSION
        names = ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMaskGeneration")
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **dict.fromkeys(names, reference)}


@contextmanager
def _own_class(model: Any) -> Iterator[None]:
    """Restore the model's own class for a while: FSDP makes a subclass, and the library would save torch's code."""
    given = type(model)
    model.__class__ = next(kind for kind in given.__mro__ if not kind.__module__.startswith("torch."))
    try:
        yield
    finally:
        model.__class__ = given


@contextmanager
def _without_quantization(model: Any) -> Iterator[None]:
    """Hide how the base models are packed: the library would save their weights, and pack the mixer when it loads."""
    packed = ((model, "hf_quantizer"), *((c, "quantization_config") for c in (model.config, model.config.text_config)))
    kept = [(vars(part), name) for part, name in packed]
    values = [(fields, name, fields.pop(name)) for fields, name in kept if name in fields]
    try:
        yield
    finally:
        for fields, name, value in values:
            fields[name] = value


def _peek(config_class: type, path: Any, config: Any, kwargs: dict[str, Any]) -> PreTrainedConfig | None:
    """The configuration that a load is going to use."""
    if path is None or isinstance(config, PreTrainedConfig):
        return config if path is not None else None
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    folder = Path(path, hub.get("subfolder") or "")
    # The library would take the defaults for a configuration that is not there.
    if config is None and os.path.isdir(path) and not (folder / "config.json").is_file():
        inner = sorted(str(file.parent.relative_to(path)) for file in Path(path).glob("*/config.json"))
        hint = f"; with subfolder= one of {', '.join(inner)}" if inner else ""
        raise FileNotFoundError(f"{folder} holds no config.json; give the folder of a saved model{hint}.")
    try:
        return config_class.from_pretrained(path if config is None else config, **hub)
    except Exception as error:
        if isinstance(error, (OSError, ImportError)) or type(error) is ValueError:
            raise
        raise ValueError(
            f"{path}: a value of config.json is of a wrong type ({type(error).__name__}: {error}); restore it as it "
            "was saved."
        ) from error


def _describe_weights(model_class: type, config: Any) -> tuple[int, frozenset[str]]:
    """How many parameters a repository of this configuration holds, and which tensors hold other than floats."""
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(config), build_base_models=not config.base_model_repos)
    except Exception as error:  # whatever a wrong type or a zero leads to in the library's models
        raise ValueError(
            f"the configuration describes a model that cannot be built ({type(error).__name__}: {error}); restore "
            "config.json as it was saved."
        ) from error
    others = {name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()}
    return model.num_parameters(), frozenset(others)


def _resolve_device_map(model_class: type, config: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The device map of a load by names of modules, refused before weights are read if it cannot work."""
    dtype = as_dtype(explicit(kwargs.get("dtype") or kwargs.get("torch_dtype"))) or as_dtype(config.dtype)
    with torch.device("meta"):
        model = model_class(copy.deepcopy(config))
    return resolve_device_map(model.to(dtype), kwargs["device_map"], kwargs.get("max_memory"))


def _without_prefix(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


__all__ = ["ScaLoadingMixin"]
