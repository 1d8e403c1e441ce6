"""Tiny random models, tokenizers and images, made on the spot: for tests and for trying things out offline."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from .modeling.configuration_sca import ScaConfig
from .modeling.modeling_sca import ScaForConditionalGeneration
from .processing.processing_sca import ScaProcessor


IMAGE_SIZE = 64
VOCABULARY_SIZE = 320
CAPTIONS = (
    "a small striped red circle left of the green box",
    "a plain blue triangle",
    "the large dotted yellow ring above a black star",
    "a man riding a horse on the beach",
    "two green apples on a wooden table",
)

_SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
_GROUPED = dict(_SMALL, num_key_value_heads=2)
# Llama 3's stretched rotary positions; they are a buffer that no checkpoint holds.
_LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
# The library's configuration class of every language model family we name, at a tiny size.
TEXT_CONFIGS: dict[str, dict] = {
    "gpt2": dict(model_type="gpt2", n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "open_llama": dict(model_type="llama", tie_word_embeddings=False, **_SMALL),
    "llama3": dict(model_type="llama", tie_word_embeddings=True, rope_parameters=_LLAMA3_ROPE, **_GROUPED),
    "smollm": dict(model_type="llama", tie_word_embeddings=True, **_GROUPED),
    "phi2": dict(model_type="phi", partial_rotary_factor=0.5, **_SMALL),
    "mistral": dict(model_type="mistral", tie_word_embeddings=False, sliding_window=None, **_GROUPED),
    "zephyr": dict(model_type="mistral", tie_word_embeddings=False, sliding_window=16, **_GROUPED),
    "stablelm": dict(model_type="stablelm", **_GROUPED),
    "qwen3": dict(model_type="qwen3", head_dim=8, tie_word_embeddings=True, **_GROUPED),
    "gemma3": dict(
        _GROUPED,
        model_type="gemma3_text",
        head_dim=8,
        sliding_window=16,
        query_pre_attn_scalar=8,
        tie_word_embeddings=True,
    ),
    "opt": dict(_SMALL, model_type="opt", ffn_dim=64, word_embed_proj_dim=16),
    "gpt_neox": dict(model_type="gpt_neox", tie_word_embeddings=False, **_SMALL),
}


def tiny_sam_config(model_type: str = "sam", image_size: int = IMAGE_SIZE, width: int = 32) -> PreTrainedConfig:
    """A SAM or SAM-HQ of two vision layers, one windowed and one global, on an 8-pixel patch grid."""
    vision = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=8,
        output_channels=width,
        num_pos_feats=width // 2,
        window_size=4,
        global_attn_indexes=[1],
        # The library's default of 1e-10 would leave all images alike.
        initializer_range=0.02,
    )
    decoder = dict(hidden_size=width, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32)
    if model_type == "sam_hq":
        decoder["vit_dim"] = 32
    return AutoConfig.for_model(
        model_type,
        vision_config=vision,
        prompt_encoder_config=dict(hidden_size=width, image_size=image_size, patch_size=8),
        mask_decoder_config=decoder,
    )


def tiny_text_config(family: str = "gpt2", **overrides: Any) -> PreTrainedConfig:
    """A two-layer language model of a family in `TEXT_CONFIGS`, fitting [`tiny_tokenizer`]."""
    arguments = dict(TEXT_CONFIGS[family], vocab_size=VOCABULARY_SIZE, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    arguments.update(overrides)
    return AutoConfig.for_model(arguments.pop("model_type"), **arguments)


def tiny_config(family: str = "gpt2", sam_type: str = "sam", **overrides: Any) -> ScaConfig:
    """The published layout with three mixer layers, over a tiny SAM and language model.

    Overrides are fields of [`ScaConfig`]; those of `mixer_config` and `text_config` change single fields of the parts.
    """
    mixer = dict(num_hidden_layers=3, num_attention_heads=4, mlp_dim=64) | overrides.pop("mixer_config", {})
    text = tiny_text_config(family, **overrides.pop("text_config", {}))
    return ScaConfig(sam_config=tiny_sam_config(sam_type), text_config=text, mixer_config=mixer, **overrides)


def tiny_model(
    family: str = "gpt2", sam_type: str = "sam", seed: int = 0, **overrides: Any
) -> ScaForConditionalGeneration:
    """A random model in evaluation mode whose regions and captions all differ."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        model = ScaForConditionalGeneration(tiny_config(family, sam_type, **overrides)).eval()
        _spread(model)
    finally:
        torch.random.set_rng_state(state)
    return model


def save_tiny_model(folder: str | Path, model: ScaForConditionalGeneration | None = None, **options: Any) -> str:
    """Saves a tiny model, or this one, with its processor, and returns the folder; `options` as of [`tiny_model`]."""
    model = model or tiny_model(**options)
    model.save_pretrained(folder)
    ScaProcessor.from_config(model.config, tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def _spread(model: ScaForConditionalGeneration) -> None:
    """Weights of a fresh model are so small that every region gets the same caption: draw larger ones."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.6 / parameter.shape[-1] ** 0.25 * 0.6)
    for module in model.modules():
        if "PositionalEmbedding" in type(module).__name__ and hasattr(module, "positional_embedding"):
            module.positional_embedding.normal_(0.0, 0.5)


def tiny_tokenizer(**special_tokens: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained here; `unk_token=None` and the like leave a special token out."""
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special_tokens
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v is not None})


def tiny_image(seed: int = 0, size: tuple[int, int] = (80, 60)) -> Image.Image:
    """A picture of `size` (width, height) with a colored rectangle on noise."""
    generator = np.random.default_rng(seed)
    width, height = size
    pixels = generator.integers(0, 128, (height, width, 3), dtype=np.uint8)
    pixels[height // 4 : height // 2, width // 4 : width // 2] = generator.integers(128, 256, 3)
    return Image.fromarray(pixels)
