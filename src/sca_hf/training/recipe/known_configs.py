"""Configurations of the base models that our recipes name, for estimates where the Hub cannot be reached.

Facts of the published `config.json` files; what is left out is the library's default. Training never reads them.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


def _sam(model_type: str, width: int, layers: int, heads: int, global_layers: list[int]) -> dict[str, Any]:
    vision = dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        global_attn_indexes=global_layers,
        mlp_dim=4 * width,
    )
    decoder = {"mask_decoder_config": {"vit_dim": width}} if model_type == "sam_hq" else {}
    return dict(model_type=model_type, vision_config=vision, **decoder)


_GPT2 = dict(model_type="gpt2", vocab_size=50257, n_positions=1024)
_SAM_SIZES = {
    "base": (768, 12, 12, [2, 5, 8, 11]),
    "large": (1024, 24, 16, [5, 11, 17, 23]),
    "huge": (1280, 32, 16, [7, 15, 23, 31]),
}
KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    **{f"facebook/sam-vit-{size}": _sam("sam", *shape) for size, shape in _SAM_SIZES.items()},
    **{f"syscv-community/sam-hq-vit-{size}": _sam("sam_hq", *shape) for size, shape in _SAM_SIZES.items()},
    "openai-community/gpt2": dict(_GPT2, n_embd=768, n_layer=12, n_head=12),
    "openai-community/gpt2-large": dict(_GPT2, n_embd=1280, n_layer=36, n_head=20),
    "openlm-research/open_llama_3b_v2": dict(
        model_type="llama",
        vocab_size=32000,
        hidden_size=3200,
        intermediate_size=8640,
        num_hidden_layers=26,
        num_attention_heads=32,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "microsoft/phi-2": dict(
        model_type="phi",
        vocab_size=51200,
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        num_attention_heads=32,
        partial_rotary_factor=0.4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    ),
    "mistralai/Mistral-7B-v0.1": dict(
        model_type="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=32768,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
}
# Old names that the Hub still leads to these.
_ALIASES = {"gpt2": "openai-community/gpt2", "gpt2-large": "openai-community/gpt2-large"}


def known_config(name: str) -> PreTrainedConfig | None:
    """The configuration of a repository in the table, or None."""
    values = KNOWN_CONFIGS.get(_ALIASES.get(name, name))
    if values is None:
        return None
    return AutoConfig.for_model(**values)
