"""Captions of a length that is asked for: a task of its own for each length, `caption:detailed` or `caption:12`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..processing.captions_sca import LENGTHS


logger = logging.getLogger(__name__)
MAX_TOKENS = 200
_TASK = "caption"


def add_lengths(model: Any, lengths: Sequence[str | int] = LENGTHS) -> list[str]:
    """Gives a model a task for each length of captions, in place; until trained, each writes what `caption` does.

    Captions may then have up to 200 tokens, as far as the language model has positions for them.

    Args:
        model: A `ScaForConditionalGeneration` with the task `caption`. Lengths that it has already stay as they are.
        lengths: Of "short", "sentence" and "detailed", and numbers of words.

    Returns:
        Names of the modules that must be trained to gain anything. The processor must be built again.
    """
    mixer, tasks = model.mixer, list(model.config.mixer_config.tasks)
    if _TASK not in tasks:
        raise ValueError(f"lengths are of the task {_TASK!r}, but the model has only {', '.join(tasks)}.")
    for length in lengths:
        if length not in LENGTHS and not (type(length) is int and 1 <= length <= MAX_TOKENS):
            raise ValueError(
                f"length is {length!r}, expected {', '.join(LENGTHS)} or a number of words, 1 to {MAX_TOKENS}."
            )
    new = [name for name in dict.fromkeys(f"{_TASK}:{length}" for length in lengths) if name not in tasks]
    count, old = mixer.config.num_task_tokens, mixer.task_tokens.weight
    first = tasks.index(_TASK) * count
    rows = torch.cat([old.detach(), old.detach()[first : first + count].repeat(len(new), 1)])
    mixer.task_tokens = nn.Embedding(*rows.shape, _weight=rows).requires_grad_(old.requires_grad)
    for config in (mixer.config, model.config.mixer_config):
        config.tasks = [*tasks, *new]
    longest = min(MAX_TOKENS, model.longest_caption() or MAX_TOKENS)
    if longest < MAX_TOKENS:
        logger.warning("The language model has positions for captions of %d tokens; longer ones are cut.", longest)
    model.config.max_caption_length = max(longest, model.config.max_caption_length)
    model.generation_config.max_new_tokens = model.config.max_caption_length
    return ["mixer.task_tokens"]
