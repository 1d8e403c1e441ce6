"""Configurations of image encoders in SAM's place, apart from their models: whoever reads a model's needs them."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, SamConfig


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Channels that each tower gives.
_WIDTHS = {"nanodet_g": 80 + 3 * (128 + 128 + 4 + 1), "efficientnet_lite0": 40 + 112 + 320}


class ScaEncoderConfig(SamConfig):
    """Configuration of [`ScaEncoderModel`]: a SAM's, whose `vision_config` has sizes and neck alone.

    Args:
        encoder_config: of any image encoder of the library (a config object or its dict).
        image_mean: mean of each channel, in [0, 1], by which the encoder's images are normalized.
        image_std: standard deviation of each channel.
        class_channels: of so many classes the encoder finds things (`output_detections`), which it gives beside the
            embeddings, as the first of `intermediate_embeddings`: (B, n, 4 + classes), boxes and scores.
        feature_channels: the first so many channels of the encoder's features are given there too, (B, D, h, w).
    """

    model_type = "segment_caption_anything_encoder"
    sub_configs = {**SamConfig.sub_configs, "encoder_config": AutoConfig}

    encoder_config: dict | PreTrainedConfig | None = None
    image_mean: list[float] | tuple[float, ...] = IMAGENET[0]
    image_std: list[float] | tuple[float, ...] = IMAGENET[1]
    class_channels: int = 0
    feature_channels: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, dict):
            fields = dict(self.encoder_config)
            if "model_type" not in fields:
                raise ValueError("encoder_config needs a 'model_type' to tell which image encoder it describes.")
            self.encoder_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        super().__post_init__(**kwargs)


class ScaTowersConfig(PreTrainedConfig):
    """Configuration of [`ScaTowersModel`].

    Args:
        towers: which encoders, in the order of their features: `"nanodet_g"`, `"efficientnet_lite0"`, or both.
        image_size: side of the square input in pixels, a multiple of 32 times `reduction`.
        patch_size: side of what one feature stands for, in pixels: 8, 16 or 32 times `reduction`.
        reduction: side of the squares of pixels whose means the towers see. The input may be finer than that for a
            [`ScaSecondLook`].
        image_mean: mean of each channel, in [0, 1], by which the input is normalized.
        image_std: standard deviation of each channel.
        classifier: EfficientNet-Lite0 keeps its last layers, for [`ScaTowersModel.classify`].
    """

    model_type = "segment_caption_anything_towers"

    towers: list[str] | tuple[str, ...] = ("nanodet_g", "efficientnet_lite0")
    image_size: int = 384
    patch_size: int = 16
    reduction: int = 1
    image_mean: list[float] | tuple[float, ...] = IMAGENET[0]
    image_std: list[float] | tuple[float, ...] = IMAGENET[1]
    classifier: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self.towers, self.image_mean, self.image_std = list(self.towers), list(self.image_mean), list(self.image_std)
        if not self.towers or len(set(self.towers)) < len(self.towers) or not set(self.towers) <= set(_WIDTHS):
            raise ValueError(f"towers is {self.towers}, expected some of {', '.join(map(repr, _WIDTHS))}, each once.")
        self.check_size(self.image_size)
        patches = [size * self.reduction for size in (8, 16, 32)]
        if self.patch_size not in patches:
            raise ValueError(
                f"patch_size is {self.patch_size}, expected {', '.join(map(str, patches[:2]))} or {patches[2]}."
            )
        if self.classifier and "efficientnet_lite0" not in self.towers:
            raise ValueError("classifier needs the tower 'efficientnet_lite0'.")
        super().__post_init__(**kwargs)

    def check_size(self, side: int) -> None:
        """Refuse a square whose maps of different strides would not lie on each other."""
        if self.reduction < 1:
            raise ValueError(f"reduction is {self.reduction}, expected at least 1.")
        if side <= 0 or side % (32 * self.reduction):
            raise ValueError(
                f"image_size is {side}, expected a multiple of {32 * self.reduction} for {' and '.join(self.towers)}."
            )

    @property
    def hidden_size(self) -> int:
        """D, channels of all towers together."""
        return sum(_WIDTHS[name] for name in self.towers)


for _config in (ScaEncoderConfig, ScaTowersConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)


__all__ = ["ScaEncoderConfig", "ScaTowersConfig"]
