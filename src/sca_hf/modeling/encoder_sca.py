"""Any image encoder of the library in the place of SAM's own: its patches, a neck to learn, SAM's prompts and decoder.

For comparing encoders, as the paper does with CLIP, DINOv2, MAE and EVA. The decoder is that of a SAM, or new and
untrained; with `mixer_config.query_type = "roi"` captions of boxes do not depend on it.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, SamConfig, SamModel
from transformers.models.sam.modeling_sam import SamVisionNeck

from .encoder_configuration_sca import ScaEncoderConfig, ScaTowersConfig
from .towers_sca import ScaTowersModel


class PlainVisionEncoder(nn.Module):
    """Patches of an encoder as a grid, brought to the decoder's width by SAM's kind of neck."""

    def __init__(self, config: ScaEncoderConfig) -> None:
        super().__init__()
        self.grid = config.prompt_encoder_config.image_embedding_size
        inner: Any = config.encoder_config
        ours = inner.model_type == ScaTowersConfig.model_type  # by name: see build_segmenter
        self.encoder = ScaTowersModel._from_config(inner) if ours else AutoModel.from_config(inner)
        self.neck = SamVisionNeck(config.vision_config)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor]:
        """(B, 3, H, W) normalized pixels to embeddings (B, C, h, w)."""
        known, options = inspect.signature(self.encoder.forward).parameters, {}
        if "interpolate_pos_encoding" in known:
            options["interpolate_pos_encoding"] = True
        if "noise" in known:
            # MAE hides patches and shuffles the others by noise.
            self.encoder.config.mask_ratio = 0.0
            options["noise"] = torch.arange(self.grid**2, device=pixel_values.device).expand(len(pixel_values), -1)
        patches = self.encoder(pixel_values, **options).last_hidden_state
        if patches.ndim == 4:  # (B, D, h, w)
            patches = patches.permute(0, 2, 3, 1)
        elif patches.shape[1] >= self.grid**2:
            # Class and register tokens are in front of the patches, in every family.
            patches = patches[:, -(self.grid**2) :].unflatten(1, (self.grid, self.grid))
        if patches.shape[1:3] != (self.grid, self.grid):
            raise ValueError(
                f"the image encoder gives {tuple(patches.shape[1:-1])} features, expected a grid of {self.grid} x "
                f"{self.grid}: its configuration names another patch size than it has."
            )
        return (self.neck(patches),)


class ScaEncoderModel(SamModel):
    """An image encoder with a neck, and SAM's prompt encoder and mask decoder."""

    config_class = ScaEncoderConfig
    _no_split_modules: list[str] = []

    def __init__(self, config: ScaEncoderConfig) -> None:
        super().__init__(config)
        self.vision_encoder = PlainVisionEncoder(config)
        self.post_init()

    @classmethod
    def from_encoder(
        cls,
        encoder: PreTrainedModel,
        sam: SamModel | None = None,
        image_size: int | None = None,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
    ) -> "ScaEncoderModel":
        """Put an encoder in front of the decoder of a SAM, or of a new one; what comes out stands for a SAM anywhere.

        Args:
            encoder: an image encoder of the library, for instance `CLIPVisionModel` or `Dinov2Model`.
            sam: whose prompt encoder and mask decoder are copied. None: new ones, which must be trained.
            image_size: side of the square input in pixels; None for the encoder's own. Others are interpolated.
            image_mean: mean of each channel that the encoder's images are normalized by; None: what its configuration
                says, or that of ImageNet.
            image_std: standard deviation of each channel.

        Raises:
            ValueError: the encoder's patches do not divide the image, or its configuration names other colors.
        """
        kind = encoder.config.model_type
        side, patch = (getattr(encoder.config, name, None) for name in ("image_size", "patch_size"))
        side = image_size or side
        if not isinstance(side, int) or not isinstance(patch, int):
            raise ValueError(f"the encoder ({kind}) must have an image_size and a patch_size of one number each.")
        hidden = getattr(encoder.config, "hidden_sizes", None)
        if hidden:
            # Of a pyramid the configuration names the first stage's.
            patch *= 2 ** (len(hidden) - 1)
        if side % patch:
            raise ValueError(f"image_size is {side}, expected a multiple of {patch}, the patch size of {kind}.")
        if isinstance(encoder, ScaTowersModel):
            encoder.config.check_size(side)
        old = sam.config.to_dict() if sam is not None else SamConfig().to_dict()
        width = old["mask_decoder_config"]["hidden_size"]
        sizes = dict(image_size=side, patch_size=patch)
        inner = hidden[-1] if hidden else encoder.config.hidden_size
        vision = dict(sizes, hidden_size=inner, output_channels=width, num_pos_feats=width // 2, num_hidden_layers=0)
        prompts = {**old["prompt_encoder_config"], **sizes, "image_embedding_size": side // patch}
        colors = {"image_mean": image_mean, "image_std": image_std}
        for name, values in colors.items():
            own = getattr(encoder.config, name, None)
            if values is not None and own is not None and list(values) != list(own):
                raise ValueError(f"{name} is {list(values)}, but the encoder ({kind}) takes {list(own)}.")
            colors[name] = own if values is None else values
        config = ScaEncoderConfig(
            vision_config=vision,
            prompt_encoder_config=prompts,
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


AutoModel.register(ScaEncoderConfig, ScaEncoderModel, exist_ok=True)


__all__ = ["ScaEncoderModel"]
