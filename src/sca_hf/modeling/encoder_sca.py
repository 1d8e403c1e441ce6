"""Any image encoder of the library in the place of SAM's own: its patches, a neck to learn, SAM's prompts and decoder.

For comparing encoders, as the paper does with CLIP, DINOv2, MAE and EVA. The decoder is that of a SAM, or new and
untrained; with `mixer_config.query_type = "roi"` captions of boxes do not depend on it.
"""

import inspect
import math
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, SamConfig, SamModel
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.sam.modeling_sam import SamVisionNeck
from transformers.utils import logging

from .base_models_sca import HUB_ARGUMENTS, check_loading_info, source_of
from .encoder_configuration_sca import ScaEncoderConfig, ScaTowersConfig
from .families_sca import PLAIN_ENCODER
from .towers_sca import ScaTowersModel


logger = logging.get_logger(__name__)

# Class and register tokens that a family may have in front of its patches.
_EXTRA_TOKENS = 16


class PlainVisionEncoder(nn.Module):
    """Patches of an encoder as a grid, brought to the decoder's width by SAM's kind of neck."""

    def __init__(self, config: ScaEncoderConfig) -> None:
        super().__init__()
        self.config, self.grid = config, config.prompt_encoder_config.image_embedding_size
        if (given := config.feature_channels) > (width := config.vision_config.hidden_size):
            raise ValueError(f"the encoder has {width} features, which cannot give {given} channels.")
        self.encoder = _built(config.encoder_config)
        if config.class_channels and "output_detections" not in inspect.signature(self.encoder.forward).parameters:
            kind = config.encoder_config.model_type
            raise ValueError(f"class_channels is {config.class_channels}, but the encoder ({kind}) finds nothing.")
        self.neck = SamVisionNeck(config.vision_config)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, 3, H, W) normalized pixels to embeddings (B, C, h, w); then detections (B, n, 4 + classes) and features
        (B, D, h, w), those of the two that the configuration asks for.
        """
        config = self.config
        options = {"output_detections": True} if config.class_channels else {}
        outputs = _outputs(self.encoder, pixel_values, self.grid, **options)
        patches, given = outputs.last_hidden_state, []
        if config.class_channels:
            given.append(outputs.detections)
        if patches.shape[2:] == (self.grid, self.grid):  # (B, D, h, w)
            patches = patches.permute(0, 2, 3, 1)
        elif patches.ndim == 3 and patches.shape[1] >= self.grid**2:
            # Class and register tokens are in front of the patches, in every family.
            patches = patches[:, -(self.grid**2) :].unflatten(1, (self.grid, self.grid))
        if patches.shape[1:3] != (self.grid, self.grid):
            raise ValueError(
                f"the image encoder gives {tuple(patches.shape[1:-1])} features, expected a grid of {self.grid} x "
                f"{self.grid}: its configuration names another patch size than it has."
            )
        if config.feature_channels:
            given.append(patches[..., : config.feature_channels].permute(0, 3, 1, 2))
        return (self.neck(patches), *given)


def _built(config: PreTrainedConfig) -> PreTrainedModel:
    """A new encoder; of ours the class is found by name, for the reason that build_segmenter has."""
    if config._attn_implementation == "sdpa":
        config._attn_implementation = None  # the default of all that have it; convolutions refuse the word
    return ScaTowersModel._from_config(config) if _is_ours(config) else AutoModel.from_config(config)


def _is_ours(config: PreTrainedConfig) -> bool:
    return config.model_type == ScaTowersConfig.model_type


def _outputs(encoder: nn.Module, pixel_values: torch.Tensor, grid: int, **options: Any) -> Any:
    """What an encoder makes of pixels (B, 3, H, W): `last_hidden_state` is (B, n, D), (B, D, h, w) or (B, h, w, D)."""
    known = inspect.signature(encoder.forward).parameters
    if "interpolate_pos_encoding" in known:
        options["interpolate_pos_encoding"] = True
    if "noise" in known:
        # MAE hides patches and shuffles the others by noise.
        encoder.config.mask_ratio = 0.0
        options["noise"] = torch.arange(grid**2, device=pixel_values.device).expand(len(pixel_values), -1)
    return encoder(pixel_values, **options)


class ScaEncoderModel(SamModel):
    """An image encoder with a neck, and SAM's prompt encoder and mask decoder."""

    config_class = ScaEncoderConfig
    _no_split_modules: list[str] = []

    def __init__(self, config: ScaEncoderConfig) -> None:
        super().__init__(config)
        self.vision_encoder = PlainVisionEncoder(config)
        self.post_init()

    @property
    def encoder_source(self) -> dict[str, str] | None:
        """Where the encoder comes from, if it was loaded by `from_encoder`."""
        return getattr(self.vision_encoder.encoder, "_source", None)

    @classmethod
    def from_pretrained(cls, source: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """Load a saved one; where `source` holds an encoder alone, put that into a new one of `config`."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        stored = {} if config is None else PreTrainedConfig.get_config_dict(source, **hub)[0]
        if stored.get("model_type", PLAIN_ENCODER) == PLAIN_ENCODER:
            return super().from_pretrained(source, *args, config=config, **kwargs)
        model, wants_info = cls(config), kwargs.pop("output_loading_info", False)
        model.vision_encoder.encoder, info = _read_encoder(source, config.encoder_config, kwargs)
        return (model.eval(), info) if wants_info else model.eval()

    @classmethod
    def from_encoder(
        cls,
        encoder: PreTrainedModel | str | os.PathLike[str],
        sam: SamModel | None = None,
        image_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        **kwargs: Any,
    ) -> "ScaEncoderModel":
        """Put an encoder in front of the decoder of a SAM, or of a new one; what comes out stands for a SAM anywhere.

        Args:
            encoder: an image encoder of the library: repository id, folder or loaded model, for instance a
                `Dinov2Model`. Of a model with a text tower (CLIP, SigLIP) the vision tower is taken. Only the first
                two can be named by a mixer-only repository.
            sam: whose prompt encoder and mask decoder are copied. None: new ones, which must be trained.
            image_size: side of the square input in pixels; None for the encoder's own. Others are interpolated.
            image_mean: mean of each channel that the encoder's images are normalized by; None: what its configuration
                or its repository's image processor says, or that of ImageNet.
            image_std: standard deviation of each channel.
            kwargs: arguments of the encoder's loading: `revision`, `dtype` (default: float32), ...

        Raises:
            ValueError: the encoder takes other images, or what it makes of them is not a square grid of whole patches,
                or its configuration names other colors.
            RuntimeError: weights of the encoder are missing.
        """
        encoder, read = _taken(encoder, {"dtype": torch.float32, **kwargs})
        colors: dict[str, Any] = {"image_mean": image_mean, "image_std": image_std}
        for name, values in colors.items():
            own, kind = getattr(encoder.config, name, None), encoder.config.model_type
            if values is not None and own is not None and list(values) != list(own):
                raise ValueError(f"{name} is {list(values)}, but the encoder ({kind}) takes {list(own)}.")
            colors[name] = values or own or read.get(name)
        side, grid, width = _grid_of(encoder, image_size)
        old = sam.config.to_dict() if sam is not None else SamConfig().to_dict()
        channels, sizes = old["mask_decoder_config"]["hidden_size"], dict(image_size=side, patch_size=side // grid)
        vision = dict(hidden_size=width, output_channels=channels, num_pos_feats=channels // 2, num_hidden_layers=0)
        config = ScaEncoderConfig(
            vision_config={**sizes, **vision},
            prompt_encoder_config={**old["prompt_encoder_config"], **sizes, "image_embedding_size": grid},
            mask_decoder_config=old["mask_decoder_config"],
            encoder_config=encoder.config,
            **{name: values for name, values in colors.items() if values is not None},
        )
        model = cls(config)
        model.vision_encoder.encoder = encoder
        if sam is not None:
            for name in ("prompt_encoder", "mask_decoder"):
                getattr(model, name).load_state_dict(getattr(sam, name).state_dict())
            model.shared_image_embedding.load_state_dict(sam.shared_image_embedding.state_dict())
        return model.eval()


def _read_encoder(source: Any, config: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load an encoder from a repository that may hold more, and what is said of its weights."""
    if config is None:
        config = AutoConfig.from_pretrained(source, **{k: v for k, v in kwargs.items() if k in HUB_ARGUMENTS})
        config = getattr(config, "vision_config", config)
    kwargs = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
    if kwargs.get("attn_implementation") == "sdpa":
        del kwargs["attn_implementation"]  # the default of all that have it; others, convolutions say, refuse the word
    kind = ScaTowersModel if _is_ours(config) else AutoModel
    encoder, info = kind.from_pretrained(source, config=config, **kwargs)
    if others := sorted(info["unexpected_keys"]):
        logger.warning(
            f"{len(others)} weights of {source} are not its image encoder's ({', '.join(others[:3])}, ...)."
        )
    # What pools the features is not asked; many repositories are of models without it.
    missing = {name for name in info["missing_keys"] if "pooler" not in name}
    return encoder, {**info, "unexpected_keys": set(), "missing_keys": missing}


def _taken(encoder: Any, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """An encoder from whatever it is given as, and the colors that its repository names."""
    if isinstance(encoder, PreTrainedModel):
        return (getattr(encoder, "vision_model", encoder) if hasattr(encoder.config, "vision_config") else encoder), {}
    found, info = _read_encoder(encoder, None, kwargs)
    check_loading_info(info, encoder, True, False)
    where = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    if commit := getattr(found.config, "_commit_hash", None):
        where["revision"] = commit
    found._source = source_of(encoder, where)
    return found, _colors(encoder, where)


def _colors(source: Any, where: dict[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation of the colors, as the image processor of a repository says."""
    try:
        fields, _ = ImageProcessingMixin.get_image_processor_dict(source, **where)
    except OSError:
        return {}
    return {name: fields[name] for name in ("image_mean", "image_std") if isinstance(fields.get(name), list)}


def _grid_of(encoder: PreTrainedModel, image_size: int | None) -> tuple[int, int, int]:
    """Side of an encoder's square input, of the grid of what it makes of it, and its width; by a trial."""
    config = encoder.config
    kind, side, patch = config.model_type, image_size, getattr(config, "patch_size", None)
    if side is None:
        side = getattr(config, "image_size", None)
        if isinstance(side, (list, tuple)) and len(set(side)) == 1:
            side = side[0]
    if not isinstance(side, int) or side < 1:
        raise ValueError(f"the encoder ({kind}) has no image_size of one number (it is {side!r}): pass image_size=.")
    if isinstance(patch, (list, tuple)) and len(set(patch)) > 1:
        raise ValueError(f"the encoder ({kind}) has patches of {patch} pixels, which are not square.")
    if isinstance(encoder, ScaTowersModel):
        config.check_size(side)
    guess = side // patch if isinstance(patch, int) else 0
    try:
        with torch.device("meta"), torch.no_grad():
            trial = _built(config).eval()
            shape = tuple(_outputs(trial, torch.zeros(1, 3, side, side), guess).last_hidden_state.shape)
    except Exception as error:  # whatever the library's models raise
        raise ValueError(
            f"the encoder ({kind}) cannot be used here: it must be an image encoder that takes square images of "
            f"{side} pixels in 3 channels, and nothing else ({type(error).__name__}: {error})."
        ) from error
    names = [set(model.state_dict()) for model in (encoder, trial)]
    if different := sorted(names[0] ^ names[1]):
        raise ValueError(
            f"the encoder is a {type(encoder).__name__}, expected a {type(trial).__name__} as AutoModel loads it: "
            f"only one has {different[0]}. Give its repository id or folder."
        )
    extra, tokens, width = 0, math.prod(shape[1:-1]), shape[-1]
    if len(shape) == 3:
        extra, grids = _EXTRA_TOKENS, [guess, math.isqrt(shape[1])]
    elif shape[2] == shape[3]:  # (B, D, h, w)
        tokens, width, grids = shape[2] ** 2, shape[1], [shape[2]]
    else:
        grids = [shape[1]]
    grid = next((n for n in grids if n > 0 and 0 <= tokens - n * n <= extra), 0)
    if not grid:
        raise ValueError(f"the encoder ({kind}) makes features {shape[1:]} of an image: they are not a square grid.")
    times, rest = divmod(side, grid * (patch if isinstance(patch, int) else 1))
    # A pyramid halves the patches of its stem. Without either, patches may have any size.
    if rest or (times & (times - 1) and (isinstance(patch, int) or not extra)):
        raise ValueError(
            f"image_size is {side}, which the {grid} x {grid} patches of the encoder ({kind}, patch_size {patch}) do "
            "not divide: choose a multiple of their size."
        )
    return side, grid, width


AutoModel.register(ScaEncoderConfig, ScaEncoderModel, exist_ok=True)


__all__ = ["ScaEncoderModel"]
