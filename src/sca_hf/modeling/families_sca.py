"""Families of promptable segmenters: what their configurations say of the square that images are brought to.

The arithmetic in which they differ is in segmenters_sca.py; a new family is an entry here and, if need be, there.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from .encoder_configuration_sca import IMAGENET, ScaEncoderConfig


logger = logging.get_logger(__name__)
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class ImageFrame:
    """The square that images are brought to.

    Attributes:
        side: of the square, in pixels.
        patch: side of the part of it that one embedding stands for, in pixels.
        channels: of the pixels.
        width: C of the embeddings.
        resize: `"pad"` keeps an image's shape and pads it below and right, `"stretch"` does not.
        image_mean: mean of each channel, in [0, 1], for normalization.
        image_std: standard deviation of each channel.
    """

    side: int
    patch: int
    channels: int
    width: int
    resize: Literal["pad", "stretch"]
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]

    @property
    def grid(self) -> int:
        """Embeddings along each side of the square."""
        return self.side // self.patch

    @property
    def mask_side(self) -> int:
        """Side of low-resolution masks, four times the grid."""
        return 4 * self.grid


@dataclass(frozen=True)
class SegmenterFamily:
    """What the models of one family have in common.

    Attributes:
        title: for messages.
        since: version of transformers that has it.
        sizes: name of the part of the configuration that tells side and patch size of the square.
        resize: as in [`ImageFrame`].
        colors: mean and standard deviation, as in [`ImageFrame`].
        extra_maps: feature maps beside the embeddings, which masks need and captions do not; -1 for any number.
        learns: parts that are new and learn, although the rest is frozen.
        base: the part that a mixer-only repository names and does not hold; all of it by default.
    """

    title: str
    since: str
    sizes: str = "prompt_encoder_config"
    resize: Literal["pad", "stretch"] = "stretch"
    colors: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    extra_maps: int = 2
    learns: tuple[str, ...] = ()
    base: str = ""


PLAIN_ENCODER = ScaEncoderConfig.model_type
FAMILIES: dict[str, SegmenterFamily] = {
    "sam": SegmenterFamily("SAM", "4.29", "vision_config", "pad", extra_maps=0),
    "sam_hq": SegmenterFamily("SAM-HQ", "4.52", "vision_config", "pad", extra_maps=-1),
    "sam2": SegmenterFamily("SAM 2", "4.56"),
    "sam2_video": SegmenterFamily("SAM 2", "4.56"),
    "edgetam": SegmenterFamily("EdgeTAM", "4.57"),
    "edgetam_video": SegmenterFamily("EdgeTAM", "4.57"),
    "sam3_tracker": SegmenterFamily("SAM 3's tracker", "5.0", colors=_HALF),
    "sam3_tracker_video": SegmenterFamily("SAM 3's tracker", "5.0", colors=_HALF),
    # Our own: see encoder_sca.py.
    PLAIN_ENCODER: SegmenterFamily(
        "a plain image encoder",
        "5.0",
        "vision_config",
        extra_maps=0,
        learns=("vision_encoder.neck",),
        base="vision_encoder.encoder",
    ),
}
# Published model type -> the one that it is read as, unless another is wanted, and where its configuration is in the
# published one. Image models have all that pictures need, 31 of SAM 2's 39 million parameters; but that of SAM 3 would
# add its embedding of no memory to a map that it drops.
_READ_AS: dict[str, tuple[str, str | None]] = {
    "sam2_video": ("sam2", None),
    "edgetam_video": ("edgetam", None),
    "sam3_video": ("sam3_tracker_video", "tracker_config"),
}
_PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
_TRACKERS = ("sam2_video", "edgetam_video", "sam3_tracker_video")


def family_of(config: PreTrainedConfig | dict[str, Any], what: str = "sam_config") -> SegmenterFamily:
    """The family of a segmenter's configuration, or of its dict; others are refused.

    Raises:
        ValueError: no segmenter is of this model type, or the installed transformers lacks it.
    """
    kind = config.get("model_type") if isinstance(config, dict) else config.model_type
    family = FAMILIES.get(str(kind))
    if family is None:
        hint = " (its tracker, sam3_tracker, can be)" if str(kind).startswith("sam3") else ""
        raise ValueError(
            f"{what} has model_type {kind!r}, which cannot be prompted here{hint}; supported are "
            f"{', '.join(map(repr, FAMILIES))}."
        )
    if kind not in CONFIG_MAPPING:
        raise ValueError(
            f"{what} has model_type {kind!r}, which needs transformers {family.since} or newer: "
            "pip install -U transformers."
        )
    return family


def as_segmenter(stored: dict[str, Any], wanted: str | None = None) -> dict[str, Any]:
    """The configuration of the segmenter that a published configuration is read as, as a dict.

    Args:
        stored: the published `config.json`.
        wanted: the model type to read; None for the one that pictures need.
    """
    kind = str(stored.get("model_type"))
    if kind not in _READ_AS:
        family_of(stored, "the segmenter's configuration")
    read_as, part = _READ_AS.get(kind, (kind, None))
    inner = stored.get(part) if part else stored
    if read_as == kind or wanted == kind or not isinstance(inner, dict):
        return stored
    # Sizes alone, as the rest belongs to what is left out.
    sizes = {name: dict(inner[name]) for name in _PARTS if isinstance(inner.get(name), dict)}
    for name in _PARTS[1:]:
        sizes.get(name, {}).pop("model_type", None)
    return {**({} if part is None else inner), **sizes, "model_type": read_as}


def image_frame(config: PreTrainedConfig) -> ImageFrame:
    """The square of a segmenter's configuration.

    Raises:
        ValueError: its parts do not fit each other, or it is not square.
    """
    family = family_of(config)
    sizes, vision = getattr(config, family.sizes), config.vision_config
    # sam_hq_vision_model -> sam; some published parts name no type.
    stem, own = str(vision.model_type).split("_")[0], config.model_type.split("_")[0].replace("segment", "sam")
    if stem not in ("", own):
        raise ValueError(f"vision_config is a {vision.model_type!r}, which is not a part of a {config.model_type!r}.")
    side, patch = (_one(getattr(sizes, name), f"{family.sizes}.{name}") for name in ("image_size", "patch_size"))
    if side % patch:
        raise ValueError(f"{family.sizes}.image_size is {side}, expected a multiple of patch_size {patch}.")
    maps = getattr(vision, "backbone_feature_sizes", None)
    grid = side // patch
    prompted = getattr(config.prompt_encoder_config, "image_embedding_size", grid)
    if prompted != grid:
        raise ValueError(
            f"sam_config.prompt_encoder_config.image_embedding_size is {prompted!r:.100}, expected {grid}: "
            f"{family.sizes}.image_size {side} by patch_size {patch}."
        )
    # Of a pyramid the embeddings are the third; a tracker may keep a coarser one that nothing reads.
    needed = [[grid * times] * 2 for times in (4, 2, 1)] if family.extra_maps == 2 else None
    if needed and [list(size) for size in (maps or ())[:3]] != needed:
        raise ValueError(
            f"vision_config ({vision.model_type}) has backbone_feature_sizes {maps}, but {family.title} of "
            f"prompt_encoder_config.image_size {side} and patch_size {patch} needs {needed}."
        )
    backbone = getattr(vision, "backbone_config", None) or vision
    return ImageFrame(
        side=side,
        patch=patch,
        channels=getattr(backbone, "num_channels", 3),
        width=config.mask_decoder_config.hidden_size,
        resize=family.resize,
        image_mean=tuple(getattr(config, "image_mean", family.colors[0])),
        image_std=tuple(getattr(config, "image_std", family.colors[1])),
    )


def segmenter_config(stored: dict[str, Any], source: Any, video: bool = False) -> PreTrainedConfig:
    """The configuration under which a published segmenter is read; refuse what cannot be prompted by regions.

    Args:
        stored: the published `config.json`.
        source: where it is from, for messages.
        video: read a video model whole, to follow objects.
    """
    try:
        kind = stored.get("model_type")
        config = config_from(as_segmenter(stored, kind if video and kind in _TRACKERS else None))
        image_frame(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return config


def config_from(fields: dict[str, Any]) -> PreTrainedConfig:
    """The configuration object of a dict that names its model type; warn of fields that only another family has."""
    fields = dict(fields)
    model_type = fields.pop("model_type")
    # Published configurations have such fields, so that they cannot be refused.
    for name in fields if model_type in FAMILIES else ():
        others = [kind for kind in FAMILIES if kind in CONFIG_MAPPING and hasattr(CONFIG_MAPPING[kind], name)]
        if others and model_type not in others:
            logger.warning_once(f"{name} is a field of {' and '.join(others)}: a {model_type!r} ignores it.")
    parts = getattr(CONFIG_MAPPING[model_type], "sub_configs", {}) if model_type in _TRACKERS else {}
    for name in _PARTS[1:]:
        # transformers 5.17 makes the dict of a mask decoder into a prompt encoder.
        if isinstance(fields.get(name), dict) and name in parts:
            fields[name] = parts[name](**{key: value for key, value in fields[name].items() if key != "model_type"})
    return AutoConfig.for_model(model_type, **fields)


def _one(size: Any, name: str) -> int:
    """A size in any of the library's forms, of a square."""
    sizes = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sizes) != 1 or not all(isinstance(one, int) and one > 0 for one in sizes):
        raise ValueError(f"sam_config.{name} is {size!r}, expected one positive size: only squares are supported.")
    return sizes.pop()


__all__ = [
    "FAMILIES",
    "PLAIN_ENCODER",
    "ImageFrame",
    "SegmenterFamily",
    "as_segmenter",
    "config_from",
    "family_of",
    "image_frame",
    "segmenter_config",
]
