"""Captions from prefixes: the library's own `generate` on the language model, in as few calls as memory allows.

Also the language model's head at chosen positions only (with large vocabularies it costs as much as all layers), and
how many regions run at once: enough to keep the device busy, no more than its memory (a CPU: its cache) holds.
"""

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from .placement_sca import execution_device


DEFAULT_NEW_TOKENS = 20
# What the library's language models call tables with a row for each position.
_POSITIONS = re.compile(r"(^|[._])(wpe|pos|positions?|positional)([._]|$)")
# Arguments of the library's `generate` that go on to it as they are.
GENERATE_ARGUMENTS = frozenset(inspect.signature(GenerationMixin.generate).parameters) | {"tokenizer"}
GENERATE_ARGUMENTS -= {"self", "inputs", "kwargs"}
# Those of its arguments and settings that a caption, which continues vectors and no tokens, cannot honor.
_IMPOSSIBLE = {
    **dict.fromkeys(
        ("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        "captions are generated in parts, whose scores, logits and states are not kept: caption_scores has the mean "
        "log-probability of each, and forward(..., input_ids=sequences) returns logits, and states on request",
    ),
    **dict.fromkeys(
        ("assistant_model", "assistant_tokenizer", "assistant_early_exit", "prompt_lookup_num_tokens", "use_mtp"),
        "assisted generation drafts from prompt tokens, and a caption has none",
    ),
    **dict.fromkeys(
        ("negative_prompt_ids", "negative_prompt_attention_mask", "guidance_scale"),
        "guidance compares with prompt tokens, and a caption has none",
    ),
    **dict.fromkeys(
        ("encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "token_healing", "forced_bos_token_id"),
        "it reads prompt tokens, and a caption has none",
    ),
    "custom_generate": "custom generation code would not return what captions are built from",
    "trust_remote_code": "generate loads no code; pass it to from_pretrained",
    "min_length": "it would count the prefix vectors too; use min_new_tokens",
    "max_length": "it would count the prefix vectors too; use max_new_tokens",
}
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


def caption_generation_config(language_model: PreTrainedModel) -> GenerationConfig:
    """The language model's own generation defaults, for captions: greedy, at most 20 new tokens, structured output.

    Only the whole model's configuration is saved, so end tokens and padding of the language model must be in it.
    """
    config = copy.deepcopy(language_model.generation_config)
    # A chat model's sampling settings are not meant for captions.
    defaults = GenerationConfig()
    for name in (*_SAMPLING, *_IMPOSSIBLE):
        if hasattr(config, name):
            setattr(config, name, getattr(defaults, name, None))
    config.do_sample = False
    config.max_new_tokens = DEFAULT_NEW_TOKENS
    config.return_dict_in_generate = True
    return config


# Of beams or tokens: settings come from a repository too.
_MOST = 4096
_NUMBERS = re.compile(
    r"(max|min|num|top|typical|no_repeat|encoder_no)_\w+(?<!_schedule)|temperature|\w+_(token_id|penalty|cutoff|size)"
)


def resolve_generation_config(
    own: GenerationConfig, given: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Merge the call's settings over the model's.

    Returns:
        The configuration, and the keywords that are not part of it.

    Raises:
        ValueError: a setting of the library's `generate` that captions cannot honor.
    """
    if given is not None and not isinstance(given, GenerationConfig):
        raise TypeError(f"generation_config must be a GenerationConfig, got {type(given).__name__}.")
    config = copy.deepcopy(own if given is None else given)
    if given is not None:
        # Beside max_new_tokens and min_new_tokens the library ignores the other two.
        for new, whole in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
            if getattr(given, new) is not None:
                setattr(config, whole, None)
        config.update(**own.to_dict(), defaults_only=True, allow_custom_entries=True)
    extra = config.update(**kwargs)
    _refuse_impossible({**vars(config), **extra})
    # A language model's own configuration may say so for its training.
    if kwargs.get("use_cache") is False or (given is not None and given.use_cache is False):
        raise ValueError(
            "use_cache=False is not supported: a caption continues prefix vectors, which only the cache keeps."
        )
    if config.max_new_tokens is None:
        config.max_new_tokens = DEFAULT_NEW_TOKENS
    if config.pad_token_id is None and config.eos_token_id is not None:
        config.pad_token_id = _as_list(config.eos_token_id)[0]
    return config, extra


def check_generation_numbers(settings: Mapping[str, Any]) -> None:
    """Refuse settings of `generate` that are not numbers, or not of a size that any caption needs."""
    for name, value in settings.items():
        counts = name in ("num_beams", "num_return_sequences", "max_new_tokens")
        if counts and value is not None and (type(value) is not int or not 1 <= value <= _MOST):
            raise ValueError(f"{name} is {value!r:.80}, expected a whole number from 1 to {_MOST}.")
        inner = value if isinstance(value, list) and name.endswith("eos_token_id") else [value]
        if _NUMBERS.fullmatch(name) and not all(one is None or isinstance(one, (int, float)) for one in inner):
            raise ValueError(f"{name} is {value!r:.80}, expected a number.")


def _refuse_impossible(settings: dict[str, Any]) -> None:
    harmless = {**GenerationConfig._get_default_generation_params(), "guidance_scale": 1, "max_length": None}
    check_generation_numbers(settings)
    for name, reason in _IMPOSSIBLE.items():
        value = settings.get(name)
        if value is not None and value is not False and value != harmless.get(name):
            shown = value if isinstance(value, (bool, int, float, str)) else type(value).__name__
            raise ValueError(f"{name}={shown} is not supported: {reason}.")
    if settings.get("cache_implementation") == "paged":
        raise ValueError("cache_implementation='paged' is not supported: it only batches token prompts.")
    if settings.get("stop_strings") and settings.get("tokenizer") is None:
        raise ValueError("stop_strings need the tokenizer: also pass tokenizer=processor.tokenizer.")


def position_limit(language_model: nn.Module) -> int | None:
    """How many positions a language model has: vectors and tokens, of all kinds together, that it can read.

    Only what has a table of them has an end. Rotary and other computed positions go on, less well, beyond the
    `max_position_embeddings` of the training (the library says so when it happens), as do those of recurrent models.
    """
    limits = [
        module.num_embeddings - max(getattr(module, "offset", 0), (module.padding_idx or -1) + 1)
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITIONS.search(name)
    ]
    limits += [
        len(table)
        for name, table in language_model.named_buffers()
        if table.ndim == 2 and table.is_floating_point() and _POSITIONS.search(name.rpartition(".")[2])
    ]
    if language_model.config.model_type == "mpt":
        limits.append(language_model.config.max_seq_len)
    return min(limits, default=None)


def check_positions(language_model: nn.Module, prefix: int, tokens: int, what: str) -> None:
    """Raise if a language model has fewer positions than `prefix` vectors and so many `tokens` take.

    Args:
        what: where the number of tokens comes from, for the message.
    """
    limit = position_limit(language_model)
    if limit is not None and prefix + tokens > limit:
        raise ValueError(
            f"the prefix of {prefix} vectors and {tokens} tokens ({what}) need {prefix + tokens} positions, but the "
            f"language model ({language_model.config.model_type}) has {limit}: at most {max(limit - prefix, 0)} "
            "tokens fit."
        )


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
    config, stops = copy.deepcopy(config), _Stops.taken_from(config, extra)
    config.return_dict_in_generate, config.output_logits, config.stop_strings = True, with_scores, None
    if batch_size is None:
        new_tokens = config.max_new_tokens
        rows = language_model_rows(language_model, length + new_tokens, new_tokens, with_scores)
        batch_size = max(1, rows // (heads * max(config.num_beams or 1, config.num_return_sequences or 1)))
    if extra.get("streamer") is not None and len(prefixes) > batch_size:
        raise ValueError(
            f"a streamer supports one call of the language model, but {len(prefixes)} regions need several calls of "
            f"{batch_size}: pass fewer regions, or language_model_batch_size={len(prefixes)}."
        )
    sequences, scores = [], []
    # A frozen language model may be held in half precision beside a float32 mixer, and elsewhere.
    dtype = language_model.get_input_embeddings().weight.dtype
    prefixes = prefixes.to(execution_device(language_model), dtype)
    pad = config.pad_token_id or 0
    with _nothing_padded(language_model):
        for start, part in zip(range(0, len(prefixes), batch_size), prefixes.split(batch_size), strict=True):
            rows = part.flatten(0, 1)  # (part * A, L, D)
            output = language_model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device),
                generation_config=config,
                **_for_part(extra, start * heads, stops),
            )
            after = _after_end(output, config.eos_token_id, stops)
            sequences.append(output.sequences.masked_fill(after, pad).unflatten(0, (len(part), -1)))
            if with_scores:
                scores.append(caption_scores(output, after).unflatten(0, (len(part), -1)))
    longest = max(ids.shape[2] for ids in sequences)
    ids = torch.cat([F.pad(ids, (0, longest - ids.shape[2]), value=pad) for ids in sequences])
    return ids, torch.cat(scores) if with_scores else None


def _for_part(extra: dict[str, Any], first: int, stops: "_Stops | None") -> dict[str, Any]:
    """Arguments of the library's `generate` for the rows from `first` on."""
    extra = dict(extra)
    if (allowed := extra.get("prefix_allowed_tokens_fn")) is not None:
        extra["prefix_allowed_tokens_fn"] = lambda row, ids: allowed(first + row, ids)
    if stops is not None:
        stops.lengths = None
        extra["stopping_criteria"] = StoppingCriteriaList([stops])
    return extra


class _Stops(StoppingCriteria):
    """Stops rows as all of `criteria` together do, and notes how long each was then: the library goes on with it."""

    def __init__(self, criteria: StoppingCriteriaList) -> None:
        self.criteria = criteria
        self.lengths: torch.Tensor | None = None

    @classmethod
    def taken_from(cls, config: GenerationConfig, extra: dict[str, Any]) -> "_Stops | None":
        """The stop strings and stopping criteria of a call, or None where it has neither."""
        criteria = StoppingCriteriaList(extra.get("stopping_criteria") or ())
        if config.stop_strings:
            criteria.append(StopStringCriteria(extra["tokenizer"], config.stop_strings))
        return cls(criteria) if criteria else None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        stopped = self.criteria(input_ids, scores, **kwargs)
        if self.lengths is None or len(self.lengths) != len(stopped):
            self.lengths = torch.full_like(stopped, torch.iinfo(torch.long).max, dtype=torch.long)
        lengths = torch.full_like(self.lengths, input_ids.shape[1]).where(stopped, self.lengths)
        self.lengths = self.lengths.minimum(lengths)
        return stopped


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


def caption_scores(output: Any, after_end: torch.Tensor) -> torch.Tensor:
    """Mean log-probability of each sequence's tokens up to where it ended.

    The same for greedy search, beams and sampling: probabilities are the language model's own, before any processor.

    Args:
        output: of the library's `generate` with `output_logits=True`: `sequences` (rows, T), `logits` T x (beams, V),
            with beams also `beam_indices`.
        after_end: (rows, T) whether a position comes after the end of its sequence.

    Returns:
        (rows,) float32.
    """
    ids = output.sequences
    beams = getattr(output, "beam_indices", None)
    rows = torch.arange(len(ids), device=ids.device)
    total = torch.zeros(len(ids), device=ids.device)
    for step in range(ids.shape[1]):
        logits = output.logits[step].float()
        source = rows if beams is None else beams[:, step].clamp(min=0)
        chosen = logits[source, ids[:, step]] - logits.logsumexp(dim=-1)[source]
        total += torch.where(after_end[:, step], 0.0, chosen)
    return total / (~after_end).sum(dim=1)


def _after_end(output: Any, eos_token_id: int | list[int] | None, stops: _Stops | None) -> torch.Tensor:
    """Which positions (rows, T) come after the first end token, or after what stopped their sequence."""
    ids = output.sequences
    ends = torch.tensor(_as_list(eos_token_id), device=ids.device, dtype=ids.dtype)
    is_end = torch.isin(ids, ends).long()
    after = is_end.cumsum(dim=-1) > is_end
    beams = getattr(output, "beam_indices", None)
    if beams is not None:
        # The library's beam search fills with the first end token where the padding id is 0.
        return after | (beams[:, : ids.shape[1]] < 0)
    if stops is not None and stops.lengths is not None:
        after |= torch.arange(ids.shape[1], device=ids.device) >= stops.lengths[:, None].to(ids.device)
    return after


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
        lambda _, inputs: (inputs[0].flatten(0, -2).index_select(0, positions.to(inputs[0].device)), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def checkpoint_without_dropout(layer: nn.Module) -> None:
    """Let a layer of a frozen language model be checkpointed, without dropout."""
    # A checkpointed layer looks at its own flag; what is inside it stays in evaluation mode.
    layer.training = True
    # OPT's layers apply dropout themselves, under the same flag.
    if isinstance(getattr(layer, "dropout", None), float):
        layer.dropout = 0.0


def scatter_logits(logits: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Logits (n, V) at their places among `count` positions, (count, V); zero elsewhere."""
    return logits.new_zeros(count, logits.shape[-1]).index_copy(0, positions.to(logits.device), logits)


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
    config, device = language_model.config, execution_device(language_model)
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
    "GENERATE_ARGUMENTS",
    "check_positions",
    "checkpoint_without_dropout",
    "position_limit",
    "lm_head_at",
    "scatter_logits",
    "language_model_rows",
    "region_chunk_size",
    "caption_generation_config",
    "caption_scores",
    "continue_prefixes",
    "resolve_generation_config",
]
