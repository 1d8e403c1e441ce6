"""Configuration of Segment and Caption Anything: SAM, the text feature mixer and a causal language model.

The library looks up a model's class by that of its configuration, and parts the code of two folders of one name by the
text of this file and of the files that it names. Without the next line, a second folder whose other files differ would
run the code of the first (transformers #45632):

    from .modeling_sca import ScaForConditionalGeneration
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .families_sca import ImageFrame, config_from, family_of, image_frame
from .losses_sca import MASK_LOSSES
from .validation_sca import check_base_models, check_format, check_numbers, check_references


# A configuration must not make a load ask for absurd amounts of memory.
_MAX_DETAIL_WIDTH = 4096
_RANGES: dict[str, tuple[Any, int, int]] = {
    "confidence_size": (int, 1, 4096),
    "second_look_size": (int, 32, 1024),
    "second_look_context": ((int, float), 1, 8),
}

# What a `scope` may say, in the order in which it is shown.
SCOPE_FIELDS = {"knows": str, "trained_on": str, "limits": str, "languages": list, "licenses": dict, "narrow": bool}
_MAX_TEXT = 1000

# How a mixer may be wired; the first of each is the published one.
_CHOICES = {
    "query_type": ("learned", "mask_tokens", "roi"),
    "token_source": ("decoder", "prompt", "none"),
    "image_source": ("decoder", "encoder"),
}

# What the library's language models call their dropout probabilities.
_DROPOUT_FIELDS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "hidden_dropout",
    "embd_dropout",
    "layerdrop",
)


class ScaMixerConfig(PreTrainedConfig):
    """Configuration of [`ScaTextFeatureMixer`] (arXiv 2312.00869, section 3.2); the defaults are the published ones.

    Args:
        hidden_size: width C of the tokens; equals the width of SAM's mask decoder.
        num_hidden_layers: two-way layers.
        num_attention_heads: heads of every attention.
        mlp_dim: inner width of each layer's feed-forward part.
        attention_downsample_rate: token-image attention runs at `hidden_size / attention_downsample_rate`.
        hidden_act: activation of the feed-forward part, as in SAM `"relu"`.
        layer_norm_eps: epsilon inside the layers; the final norm keeps torch's default, as SAM's does.
        num_caption_tokens: caption queries Q per caption head.
        num_caption_heads: captions A predicted for each region.
        num_task_tokens: learned vectors in front of the queries that tell the language model the task.
        tasks: names of the tasks, in the order of their rows.
        text_hidden_size: width D of the language model's input embeddings.
        initializer_range: standard deviation of new weights.
        query_type: what becomes the prefix. `"learned"` queries, as published; `"mask_tokens"`, the segmenter's tokens
            of its three masks, one caption head each; `"roi"`, the image embeddings in `roi_size` x `roi_size` parts
            of the region's box. The last two set `num_caption_tokens` and `num_caption_heads`, and need no layers.
        token_source: the segmenter's tokens beside the queries: those that its `"decoder"` left, as published, the
            `"prompt"` as it was encoded, or `"none"`.
        image_source: the image that is read: what the `"decoder"` made of it, as published, or the `"encoder"`.
        roi_size: parts along each side of a box.
        class_channels: what the image encoder finds of so many classes, see [`ScaEncoderConfig`], is read too: each
            class has a vector, and their mean, weighted by the scores of what is found where the region is, is added
            to every mixed query ([`ClassReader`]).
        feature_channels: so many channels of the image encoder's features are read too: through a linear layer, their
            mean in the region is added to every mixed query. A neck that learned masks leaves out what masks need not
            tell, colors for example. With class scores the layer also says which share of either is added.
    """

    model_type = "segment_caption_anything_mixer"

    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    hidden_act: str = "relu"
    layer_norm_eps: float = 1e-6
    num_caption_tokens: int = 8
    num_caption_heads: int = 1
    num_task_tokens: int = 6
    tasks: list[str] | tuple[str, ...] = ("recognition", "caption")
    text_hidden_size: int = 768
    initializer_range: float = 0.02
    query_type: str = "learned"
    token_source: str = "decoder"
    image_source: str = "decoder"
    roi_size: int = 6
    class_channels: int = 0
    feature_channels: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        _check_kinds(vars(self), {name: getattr(type(self), name, None) for name in vars(self)}, "mixer_config.")
        self.tasks = list(self.tasks)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {' or '.join(map(repr, known))}.")
        if self.query_type == "mask_tokens":
            self.num_caption_tokens, self.num_caption_heads = 1, 3
        elif self.query_type == "roi":
            self.num_caption_tokens, self.num_caption_heads = self.roi_size**2, 1
        for name in ("num_hidden_layers", "num_caption_tokens", "num_caption_heads", "num_task_tokens", "roi_size"):
            smallest = 0 if name == "num_hidden_layers" and self.query_type != "learned" else 1
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be at least {smallest}, got {getattr(self, name)}.")
        for name in ("class_channels", "feature_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks must be distinct names and at least one, got {self.tasks}.")
        inner = self.hidden_size // self.attention_downsample_rate
        if self.hidden_size % self.num_attention_heads or inner % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size} and "
                f"hidden_size / attention_downsample_rate={inner}."
            )
        super().__post_init__(**kwargs)

    @property
    def is_published(self) -> bool:
        """Whether the mixer is wired as in the paper, whatever its sizes."""
        more = self.class_channels or self.feature_channels
        return not more and all(getattr(self, name) == known[0] for name, known in _CHOICES.items())

    @property
    def prefix_length(self) -> int:
        """Vectors in front of the text: task tokens, then caption queries (14 as published)."""
        return self.num_task_tokens + self.num_caption_tokens


class ScaConfig(PreTrainedConfig):
    """Configuration of [`ScaForConditionalGeneration`].

    Args:
        sam_config: whole configuration of a SAM or SAM-HQ model (a config object or its dict).
        mixer_config: [`ScaMixerConfig`] or its dict. A width left out is taken from the two other parts.
        text_config: configuration of any causal language model of the library.
        label_smoothing: label smoothing of the caption loss.
        mask_loss_weight: weight of the mask loss where `mask_labels` are given; 0 leaves it out.
        mask_loss_type: which one, `"sam"` or `"region"`, see [`mask_losses`].
        caption_add_bos: the captions that the model was trained on begin with the tokenizer's BOS.
        max_caption_length: tokens a training caption is cut to, its EOS included.
        freeze_base_models: SAM and the language model take no gradients.
        detail_widths: channels of the stages of a [`ScaDetailEncoder`]; each halves the image, all together as often
            as SAM's patches do. None: without one, as published.
        base_model_repos: for a mixer-only repository, where `"sam"` and `"language_model"` come from; written by
            `save_pretrained`, see [`~ScaForConditionalGeneration.save_pretrained`].
        language_model_adapter: for a mixer-only repository, that it also holds adapters of the language model.
        confidence_size: inner width of a [`ScaConfidenceHead`]; None: without one, as published.
        second_look_size: side in pixels of the crops on which a [`ScaSecondLook`] draws masks again; None: without
            one, as published.
        second_look_context: how much wider and higher than a region its crop is.
        scope: what the model knows, for people and programs: a dict with any of `trained_on`, `knows` and `limits`
            (texts), `languages` (list of texts), `licenses` (dict of texts by part), and `narrow` (bool): whether it
            is lost on pictures of the world at large, which commands then say.
        format_version: version of the repository's format; a newer one than this code knows is refused, never misread.
    """

    model_type = "segment_caption_anything"
    # What an evaluation need not gather over processes: only `logits` stay.
    keys_to_ignore_at_inference = [
        "pred_masks",
        "iou_scores",
        "object_score_logits",
        "second_masks",
        "second_boxes",
        "second_iou_scores",
        "mask_losses",
        "query_embeds",
        "prefix_embeds",
        "image_embeddings",
        "hidden_states",
        "attentions",
    ]
    sub_configs = {"sam_config": AutoConfig, "mixer_config": ScaMixerConfig, "text_config": AutoConfig}

    sam_config: dict | PreTrainedConfig | None = None
    mixer_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    label_smoothing: float = 0.1
    mask_loss_weight: float = 0.0
    mask_loss_type: str = "sam"
    caption_add_bos: bool = False
    max_caption_length: int = 20
    freeze_base_models: bool = True
    detail_widths: list[int] | tuple[int, ...] | None = None
    confidence_size: int | None = None
    second_look_size: int | None = None
    second_look_context: float = 1.5
    scope: dict | None = None
    base_model_repos: dict | None = None
    language_model_adapter: bool = False
    # A repository without the field has the first format.
    format_version: int = 1
    initializer_range: float = 0.02
    # Each part ties its own weights as its own configuration says.
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        check_format(self.format_version, "the configuration")
        check_references({**vars(self), **kwargs})
        _check_kinds(vars(self), {name: getattr(type(self), name, None) for name in vars(self)}, "")
        if not __name__.startswith("transformers_modules."):
            # The library runs what a configuration names as remote code only; here the pipeline is registered.
            kwargs.pop("custom_pipelines", None)
        check_base_models(self.base_model_repos)
        check_numbers({**vars(self), **kwargs})
        check_scope(self.scope)
        self.sam_config = _whole_config(self.sam_config, "sam_config", default="sam")
        self.text_config = _whole_config(self.text_config, "text_config", default="gpt2")
        image_frame(self.sam_config)  # refuses what cannot be prompted
        for name, (kinds, low, high) in _RANGES.items():
            value = getattr(self, name)
            known = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
            if not known and (value is not None or getattr(type(self), name, None) is not None):
                raise ValueError(f"{name} is {value!r:.100}, expected {low} to {high}.")
        if self.mask_loss_type not in MASK_LOSSES:
            raise ValueError(f"mask_loss_type is {self.mask_loss_type!r}, expected one of {', '.join(MASK_LOSSES)}.")
        if self.detail_widths is not None:
            self.detail_widths = list(self.detail_widths)
            check_detail_widths(self.detail_widths, self.sam_config)
        widths = {
            "hidden_size": self.sam_config.mask_decoder_config.hidden_size,
            "text_hidden_size": text_embedding_size(self.text_config),
            **{name: getattr(self.sam_config, name, 0) for name in ("class_channels", "feature_channels")},
        }
        mixer = self.mixer_config or {}
        if isinstance(mixer, PreTrainedConfig):
            mixer = mixer.to_dict()
        self.mixer_config = ScaMixerConfig(**{**widths, **mixer})
        for name, width in widths.items():
            if getattr(self.mixer_config, name) != width:
                raise ValueError(
                    f"mixer_config.{name}={getattr(self.mixer_config, name)} does not fit the other parts, which need "
                    f"{width}."
                )
        super().__post_init__(**kwargs)

    @property
    def image_frame(self) -> ImageFrame:
        """The square that images are brought to, see [`ImageFrame`]."""
        return image_frame(self.sam_config)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's configuration."""
        return self.text_config


def text_embedding_size(text_config: PreTrainedConfig) -> int:
    """Width D of a language model's input embeddings (OPT projects its words to another width than its layers')."""
    return getattr(text_config, "word_embed_proj_dim", None) or text_config.hidden_size


def check_detail_widths(widths: Sequence[int], sam_config: PreTrainedConfig) -> None:
    """Raise if a detail encoder with such stages would not end on the grid of SAM's patches."""
    patch = image_frame(sam_config).patch
    if patch != 2 ** len(widths) or not all(1 <= width <= _MAX_DETAIL_WIDTH for width in widths):
        raise ValueError(
            f"detail_widths is {list(widths)}: each stage halves the image, so that SAM's patches of {patch} pixels "
            f"need {math.log2(patch):g} stages of 1 to {_MAX_DETAIL_WIDTH} channels."
        )


def check_scope(scope: Any) -> None:
    """Refuse a `scope` that is not short plain text: it is printed wherever the model is used."""
    if scope is None:
        return
    if not isinstance(scope, Mapping) or (unknown := sorted(set(map(str, scope)) - set(SCOPE_FIELDS))):
        got = unknown if isinstance(scope, Mapping) else scope
        raise ValueError(f"scope must be a mapping with any of {', '.join(SCOPE_FIELDS)}, got {got!r}.")
    for field, value in scope.items():
        kind = SCOPE_FIELDS[field]
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        texts = [*inner, *value] if isinstance(value, dict) else inner
        plain = all(isinstance(text, str) and text.isprintable() and len(text) <= _MAX_TEXT for text in texts)
        if not isinstance(value, kind) or len(texts) > _MAX_TEXT or not (plain or kind is bool):
            raise ValueError(
                f"scope[{field!r}] must be a {kind.__name__} of printable text of up to {_MAX_TEXT} characters, got "
                f"{str(value)[:80]!r}."
            )


def without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of a language model's configuration whose dropout probabilities are 0, for a model that is frozen."""
    config = copy.deepcopy(config)
    for field in _DROPOUT_FIELDS:
        if isinstance(getattr(config, field, None), (int, float)):
            setattr(config, field, 0.0)
    return config


def _whole_config(config: dict | PreTrainedConfig | None, name: str, default: str) -> PreTrainedConfig:
    """A configuration object of its own: sharing one with a loaded model would reset that model's attention."""
    if config is None:
        return AutoConfig.for_model(default)
    if isinstance(config, PreTrainedConfig):
        return copy.deepcopy(config)
    if not isinstance(config, dict):
        raise ValueError(f"{name} must be a configuration or a dict, got {config!r}.")
    if "model_type" not in config:
        raise ValueError(f"{name} needs a 'model_type' to tell which configuration class it belongs to.")
    arguments = dict(config)
    if name == "sam_config":
        family_of(config)
    model_type = arguments.pop("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"{name}.model_type is {model_type!r}, expected a text.")
    _check_kinds(arguments, AutoConfig.for_model(model_type).to_dict(), f"{name}.")
    try:
        return config_from({**arguments, "model_type": model_type})
    except Exception as error:  # whatever the library's checks raise
        if type(error) is ValueError:
            raise
        raise ValueError(f"{name} has a value of a wrong type or size ({type(error).__name__}: {error}).") from error


_KINDS: tuple[tuple[str, Any], ...] = (
    ("true or false", bool),
    ("a number", (int, float)),
    ("a text", str),
    ("a list", (list, tuple)),
    ("a mapping", dict),
)


def _check_kinds(fields: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> None:
    """Refuse a field whose value is of another kind than its default; lists may stand for a number each."""
    for name, value in fields.items():
        default = defaults.get(name)
        kind, types = next((one for one in _KINDS if isinstance(default, one[1])), ("", object))
        # Of the library's: one number for each layer, or several ids.
        numbers = isinstance(value, (list, tuple)) and kind == "a number" and where not in ("", "mixer_config.")
        wrong = not isinstance(value, types) or (isinstance(value, bool) and kind == "a number")
        if value is not None and wrong and not numbers:
            raise ValueError(f"{where}{name} of the configuration is {value!r:.100}, expected {kind}.")
        if isinstance(value, dict) and isinstance(default, dict):
            _check_kinds(value, default, f"{where}{name}.")


__all__ = ["SCOPE_FIELDS", "ScaConfig", "ScaMixerConfig", "check_scope"]
