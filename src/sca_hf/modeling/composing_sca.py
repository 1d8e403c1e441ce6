"""Composition: a model made of a SAM and a language model, and the change of either later."""

import inspect
import os
from typing import Any

from torch import nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import logging

from .base_models_sca import LANGUAGE_MODEL, SAM, as_dtype, complete_sources, keep_precision, load_part, one_at_a_time
from .configuration_sca import ScaConfig, ScaMixerConfig, check_detail_widths, text_embedding_size
from .families_sca import family_of
from .generation_sca import caption_generation_config
from .placement_sca import check_blocks, execution_device


logger = logging.get_logger(__name__)


class ScaComposingMixin:
    """Construction from parts and their replacement, for [`ScaForConditionalGeneration`]."""

    # Source of each base model: what `save_pretrained(include_base_models=False)` writes into the configuration.
    base_sources: dict[str, dict[str, str]] | None = None
    language_model: Any

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.language_model.get_decoder()

    @classmethod
    @one_at_a_time
    def from_sam_text_pretrained(
        cls,
        sam: str | os.PathLike[str] | PreTrainedModel,
        text: str | os.PathLike[str] | PreTrainedModel,
        mixer_config: ScaMixerConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Join a SAM and a causal language model by a new, untrained mixer.

        Args:
            sam: SAM, SAM-HQ, SAM 2, EdgeTAM or SAM 3's tracker, or an image encoder with a neck (`ScaEncoderModel`):
                repository id, folder or loaded model. A whole SCA repository gives its SAM.
            text: causal language model: repository id, folder or loaded model. A whole SCA repository gives its own.
                A GGUF file (`folder/file.gguf`, `owner/name/file.gguf`, or `text_gguf_file=`) is unpacked.
            mixer_config: the mixer's sizes; widths follow from the two parts.
            kwargs: `sam_*` and `text_*` go to the loading of that part (`sam_revision=`, `text_dtype=`, ...;
                `sam_video=True` reads a published video model whole, to follow objects through clips),
                `dtype`, `attn_implementation`, `cache_dir`, `token` and `local_files_only` to both, and any field of
                [`ScaConfig`] to the configuration.
        """
        sam_kwargs, text_kwargs, fields = _sort_arguments(kwargs)
        freeze = fields.get("freeze_base_models", True)
        sam_model, sam_source = load_part(cls, SAM, sam, sam_kwargs)
        language_model, text_source = load_part(cls, LANGUAGE_MODEL, text, text_kwargs, drop_dropout=freeze)
        config = ScaConfig(
            sam_config=sam_model.config, mixer_config=mixer_config, text_config=language_model.config, **fields
        )
        model = cls(config, build_base_models=False)
        model.to(device=execution_device(sam_model), dtype=as_dtype(kwargs.get("dtype")))
        model.generation_config = caption_generation_config(language_model)
        model._attach(sam_model, language_model)
        model.base_sources = complete_sources({SAM: sam_source, LANGUAGE_MODEL: text_source})
        return model.eval()

    def swap_language_model(self, text: str | os.PathLike[str] | PreTrainedModel, **kwargs: Any) -> list[str]:
        """Replace the language model; the projection into it and the task tokens start from scratch.

        SAM and the rest of the mixer, which has learned what regions look like, stay: a better start than none.

        Args:
            text: repository id, folder or loaded model; or a GGUF file, which is unpacked: `folder/file.gguf`,
                `owner/name/file.gguf`, or a folder or repository with `gguf_file=`.
            kwargs: arguments of its loading: `revision`, `dtype`, ... The default precision is that of the old
                language model; a frozen one that was saved in fewer bits stays as it came.

        Returns:
            Names of the modules to train before captions mean anything again; a warning says so too. The processor
            needs the new tokenizer.
        """
        frozen, chosen = self.config.freeze_base_models, "dtype" in kwargs
        self._default_to(self.language_model, kwargs)
        dtype = kwargs["dtype"]
        if frozen and not chosen:
            kwargs["dtype"] = "auto"
        language_model, source = load_part(type(self), LANGUAGE_MODEL, text, kwargs, drop_dropout=frozen)
        loaded_here = not isinstance(text, PreTrainedModel)
        if frozen and not chosen and loaded_here and language_model.dtype.itemsize > dtype.itemsize:
            keep_precision(language_model).to(dtype)
        mixer = self.mixer
        mixer.config.text_hidden_size = text_embedding_size(language_model.config)
        self.config.mixer_config.text_hidden_size = mixer.config.text_hidden_size
        fresh = type(mixer)._from_config(mixer.config).to(mixer.device, mixer.dtype)
        for name in ("language_project", "task_tokens"):
            trained = getattr(mixer, name).weight.requires_grad
            setattr(mixer, name, getattr(fresh, name).requires_grad_(trained))
        self.config.caption_add_bos = False
        self.generation_config = caption_generation_config(language_model)
        self._put_in_place(LANGUAGE_MODEL, language_model, source, kwargs)
        return _to_train_again(["mixer.language_project", "mixer.task_tokens"])

    def swap_image_encoder(self, sam: str | os.PathLike[str] | PreTrainedModel, **kwargs: Any) -> list[str]:
        """Replace SAM, encoder and mask decoder, by one of another size or family; the mixer is kept.

        Args:
            sam: repository id, folder or loaded model.
            kwargs: arguments of its loading: `revision`, `dtype` (default: that of the old SAM), ...

        Returns:
            Names of the modules to train before captions mean anything again, as the mixer has read another SAM's
            tokens; a warning says so too. Masks are right at once. Where the image size differs, the processor must
            be rebuilt.
        """
        self._default_to(self.sam, kwargs)
        sam_model, source = load_part(type(self), SAM, sam, kwargs)
        width = sam_model.config.mask_decoder_config.hidden_size
        if width != self.config.mixer_config.hidden_size:
            raise ValueError(
                f"the new SAM's mask decoder is {width} wide, but the mixer {self.config.mixer_config.hidden_size}: "
                "build a new model with from_sam_text_pretrained."
            )
        if self.config.detail_widths:
            check_detail_widths(self.config.detail_widths, sam_model.config)
        self._put_in_place(SAM, sam_model, source, kwargs)
        return _to_train_again(["mixer"])

    def _default_to(self, old: PreTrainedModel, kwargs: dict[str, Any]) -> None:
        """Default to the precision and attention of the base model that is replaced."""
        kwargs.setdefault("dtype", list(old.parameters())[-1].dtype)
        kwargs.setdefault("attn_implementation", old.config._attn_implementation)

    def _put_in_place(
        self, name: str, part: PreTrainedModel, source: dict[str, str] | None, kwargs: dict[str, Any]
    ) -> None:
        """Attach one new base model, on the device of the rest, and note where it came from."""
        if kwargs.get("device_map") is None and not getattr(part, "is_quantized", False):
            part.to(execution_device(self.mixer))
        self._attach(**{SAM: self.sam, LANGUAGE_MODEL: self.language_model, name: part})
        self.base_sources = complete_sources({**(self.base_sources or {}), name: source})
        # What a mixer-only save leaves out has other names now; without a source the weights must be in it.
        self.include_base_models = self.include_base_models or self.base_sources is None
        self.train(self.training)

    def attach_base_models(self, sam: PreTrainedModel, language_model: PreTrainedModel) -> None:
        """Make `sam` and `language_model`, which are not copied, parts of a model built without them."""
        places = getattr(sam, "hf_device_map", {})
        check_blocks({f"{SAM}.{name}".rstrip("."): place for name, place in places.items()})
        self.sam, self.language_model = keep_precision(sam), keep_precision(language_model)
        self.config.sam_config, self.config.text_config = sam.config, language_model.config
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        for part in (sam, language_model):
            self._no_split_modules |= set(part._no_split_modules or ())
        self._freeze_base_models()

    def _freeze_base_models(self) -> None:
        if self.config.freeze_base_models:
            for part in (self.sam, self.language_model):
                if part is not None:
                    part.requires_grad_(False)
            for name in family_of(self.config.sam_config).learns if self.sam is not None else ():
                self.sam.get_submodule(name).requires_grad_(True)

    def _attach(self, sam: PreTrainedModel, language_model: PreTrainedModel) -> None:
        """Make loaded models parts of this one, in the state in which a whole repository would hold them."""
        self.attach_base_models(sam, language_model)
        # `generate` takes what our configuration leaves open from the language model's, which no repository of ours
        # keeps: a model must not caption otherwise after saving and loading.
        language_model.generation_config = GenerationConfig.from_model_config(language_model.config)


def _to_train_again(names: list[str]) -> list[str]:
    logger.warning(f"Captions are meaningless until you train {' and '.join(names)}.")
    return names


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
                f"from_sam_text_pretrained has no argument {name!r}; use sam_{name} or text_{name} for one part."
            )
    return sam_kwargs, text_kwargs, fields


__all__ = ["ScaComposingMixin"]
