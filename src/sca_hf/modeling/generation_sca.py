"""Captions from prefixes: the library's own `generate` on the language model, in as few calls as the memory allows."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, PreTrainedModel

from .memory_sca import language_model_rows


DEFAULT_NEW_TOKENS = 20
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def caption_generation_config(language_model: PreTrainedModel) -> GenerationConfig:
    """The language model's own generation defaults, for captions: greedy, at most 20 new tokens, structured output.

    Only the whole model's configuration is saved, so end tokens and padding of the language model must be in it.
    """
    config = copy.deepcopy(language_model.generation_config)
    # How a chat model samples its answers says nothing of captions.
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
    """Merge what the call says over what the model says.

    Returns:
        The configuration, and the keywords that are no part of one.
    """
    config = copy.deepcopy(own if given is None else given)
    if given is not None:
        config.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
    extra = config.update(**kwargs)
    if "max_length" in kwargs:
        raise ValueError("max_length would count the prefix vectors too; say max_new_tokens.")
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


__all__ = ["caption_generation_config", "caption_scores", "continue_prefixes", "resolve_generation_config"]
