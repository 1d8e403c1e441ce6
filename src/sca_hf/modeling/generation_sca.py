"""Captions from prefixes: the library's own `generate` on the language model, in as few calls as memory allows.

Also the language model's head at chosen positions only (with large vocabularies it costs as much as all layers), and
how many regions run at once: enough to keep the device busy, no more than its memory (a CPU: its cache) holds.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationConfig, PreTrainedModel


DEFAULT_NEW_TOKENS = 20
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def caption_generation_config(language_model: PreTrainedModel) -> GenerationConfig:
    """The language model's own generation defaults, for captions: greedy, at most 20 new tokens, structured output.

    Only the whole model's configuration is saved, so end tokens and padding of the language model must be in it.
    """
    config = copy.deepcopy(language_model.generation_config)
    # A chat model's sampling settings are not meant for captions.
    defaults = GenerationConfig()
    for name in _SAMPLING:
        setattr(config, name, getattr(defaults, name, None))
    config.do_sample = False
    config.max_length, config.max_new_tokens = None, DEFAULT_NEW_TOKENS
    config.return_dict_in_generate = True
    return config


def resolve_generation_config(
    own: GenerationConfig, given: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Merge the call's settings over the model's.

    Returns:
        The configuration, and the keywords that are not part of it.
    """
    config = copy.deepcopy(own if given is None else given)
    if given is not None:
        config.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
    extra = config.update(**kwargs)
    if "max_length" in kwargs:
        raise ValueError("max_length would count the prefix vectors too; give max_new_tokens.")
    if config.pad_token_id is None and config.eos_token_id is not None:
        config.pad_token_id = _as_list(config.eos_token_id)[0]
    return config, extra


def continue_prefixes(
    language_model: PreTrainedModel,
    prefixes: torch.Tensor,
    config: GenerationConfig,
    with_scores: bool,
    batch_size: int | None,
    extra: dict[str, Any],
) -> tuple[torch.LongTensor, torch.Tensor | None]:
    """Caption N regions.

    Args:
        prefixes: (N, A, L, D); all of one length, so no padding is needed.
        with_scores: also score the captions.
        batch_size: regions per call of the language model; None fits the memory.
        extra: further arguments of the library's `generate`.

    Returns:
        Ids (N, n, T) with n = A * `num_return_sequences`, heads outermost, and scores (N, n) or None.
    """
    heads, length, _ = prefixes.shape[1:]
    config = copy.deepcopy(config)
    config.return_dict_in_generate, config.output_logits = True, with_scores
    if batch_size is None:
        new_tokens = config.max_new_tokens
        rows = language_model_rows(language_model, length + new_tokens, new_tokens, with_scores)
        batch_size = max(1, rows // (heads * max(config.num_beams or 1, config.num_return_sequences or 1)))
    sequences, scores = [], []
    # A frozen language model may be held in half precision beside a float32 mixer.
    prefixes = prefixes.to(language_model.get_input_embeddings().weight.dtype)
    with _nothing_padded(language_model):
        for part in prefixes.split(batch_size):
            rows = part.flatten(0, 1)  # (part * A, L, D)
            output = language_model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device),
                generation_config=config,
                **extra,
            )
            sequences.append(output.sequences.unflatten(0, (len(part), -1)))
            if with_scores:
                scores.append(caption_scores(output, config.eos_token_id).unflatten(0, (len(part), -1)))
    longest = max(ids.shape[2] for ids in sequences)
    pad = config.pad_token_id or 0
    ids = torch.cat([F.pad(ids, (0, longest - ids.shape[2]), value=pad) for ids in sequences])
    # The library's beam search fills with the first end token where the padding id is 0.
    ids = ids.masked_fill(_after_end(ids, config.eos_token_id), pad)
    return ids, torch.cat(scores) if with_scores else None


@contextmanager
def _nothing_padded(language_model: PreTrainedModel) -> Iterator[None]:
    """Rows are of one length; a model that knows a padding id looks for it in every step's tokens all the same.

    GPT-2 does, which waits for the device and warns. The Trainer copies the tokenizer's id into the configuration.
    """
    config = language_model.config
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        yield
        return
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = padding


def caption_scores(output: Any, eos_token_id: int | list[int] | None) -> torch.Tensor:
    """Mean log-probability of each sequence's tokens up to and including its first end token.

    The same for greedy search, beams and sampling: probabilities are the language model's own, before any processor.

    Args:
        output: of the library's `generate` with `output_logits=True`: `sequences` (rows, T), `logits` T x (beams, V),
            with beams also `beam_indices`.

    Returns:
        (rows,) float32.
    """
    ids = output.sequences
    beams = getattr(output, "beam_indices", None)
    rows = torch.arange(len(ids), device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    total = torch.zeros(len(ids), device=ids.device)
    count = torch.zeros(len(ids), device=ids.device)
    ends = torch.tensor(_as_list(eos_token_id), device=ids.device, dtype=ids.dtype)
    for step in range(ids.shape[1]):
        logits = output.logits[step].float()
        source = rows if beams is None else beams[:, step].clamp(min=0)
        chosen = logits[source, ids[:, step]] - logits.logsumexp(dim=-1)[source]
        total += torch.where(ended, 0.0, chosen)
        count += ~ended
        ended |= torch.isin(ids[:, step], ends)
    return total / count


def _after_end(ids: torch.Tensor, eos_token_id: int | list[int] | None) -> torch.Tensor:
    """Which positions of `ids` (..., T) come after the first end token."""
    ends = torch.tensor(_as_list(eos_token_id), device=ids.device, dtype=ids.dtype)
    is_end = torch.isin(ids, ends).long()
    return is_end.cumsum(dim=-1) > is_end


def _as_list(ids: int | list[int] | torch.Tensor | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)


@contextmanager
def lm_head_at(language_model: nn.Module, positions: torch.Tensor | None) -> Iterator[None]:
    """Within, the head reads only some of the positions that its language model hands to it.

    What a family does to logits after its head (scaling, soft capping) is done to each of them alone, so the logits
    (n, V) that come out are those of the whole.

    Args:
        positions: (n,) rows of the flattened (rows * T) positions. None: all of them.
    """
    if positions is None:
        yield
        return
    head = language_model.get_output_embeddings()
    handle = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].flatten(0, -2).index_select(0, positions), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def scatter_logits(logits: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Logits (n, V) at their places among `count` positions, (count, V); zero elsewhere."""
    return logits.new_zeros(count, logits.shape[-1]).index_copy(0, positions, logits)


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
    """Free memory of an accelerator in bytes."""
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


__all__ = [
    "lm_head_at",
    "scatter_logits",
    "language_model_rows",
    "region_chunk_size",
    "caption_generation_config",
    "caption_scores",
    "continue_prefixes",
    "resolve_generation_config",
]
