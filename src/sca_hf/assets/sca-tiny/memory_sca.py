"""How many regions run at once: enough to keep the device busy, no more than its memory (a CPU: its cache) holds."""

import torch
from transformers import PreTrainedModel


# One region at a time at 1024 px: measured 1.1 times faster than 2, 1.5 times faster than 8, which leave the cache.
_CPU_IMAGE_TOKEN_BYTES = 4 << 20
# Some 160 rows of a GPT-2 of 124 M parameters, without scores: measured 3 times faster per row than 8 rows, 1.06 times
# faster than 64, and still less than its share of what SAM's encoder needs at 1024 px.
_CPU_LANGUAGE_MODEL_BYTES = 512 << 20
# On an accelerator: at 1024 px some 64 regions, in single precision, whose products are large enough for any of them.
_ACCELERATOR_BYTES = 2 << 30
# Other accelerators than CUDA do not tell how much memory is free.
_UNKNOWN_FREE_BYTES = 4 << 30
# Copies of a region's image tokens that live at once: keys, projection, attention, update, norm.
_IMAGE_TOKEN_COPIES = 8


def free_bytes(device: torch.device) -> int:
    """Memory that is free on an accelerator."""
    if device.type == "cuda":
        unused_cache = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused_cache
    return _UNKNOWN_FREE_BYTES


def region_chunk_size(image_tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> int:
    """Regions that run through SAM's decoder and the mixer at once, for hw `image_tokens` of C `width`."""
    per_region = image_tokens * width * dtype.itemsize
    if device.type == "cpu":
        return max(1, _CPU_IMAGE_TOKEN_BYTES // per_region)
    return max(1, min(free_bytes(device) // 2, _ACCELERATOR_BYTES) // (_IMAGE_TOKEN_COPIES * per_region))


def language_model_rows(language_model: PreTrainedModel, length: int, new_tokens: int, keep_logits: bool) -> int:
    """Sequences that the language model continues at once: its key-value cache and logits must fit.

    Args:
        length: tokens in all, prefix and caption.
        new_tokens: tokens of the caption; with `keep_logits` each keeps its float32 logits until the end of the call.
    """
    config, device = language_model.config, language_model.device
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    cached_width = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    cache = 2 * config.num_hidden_layers * length * cached_width * language_model.dtype.itemsize
    logits = 4 * config.vocab_size * ((new_tokens if keep_logits else 0) + 3)
    if device.type == "cpu":
        budget = _CPU_LANGUAGE_MODEL_BYTES
    else:
        # A step reads all weights, however few the rows: rows may take as much memory as the weights do.
        budget = min(free_bytes(device) // 2, max(_ACCELERATOR_BYTES, language_model.get_memory_footprint()))
    return max(1, budget // (cache + logits))


__all__ = ["language_model_rows", "region_chunk_size"]
