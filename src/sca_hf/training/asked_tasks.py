"""Captions of a length, or in a language, that is asked for: each has a task of its own, `caption:de:detailed`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..processing.captions_sca import LENGTHS, learned
from ..processing.languages_sca import language_tag


logger = logging.getLogger(__name__)
MAX_TOKENS = 200
_TASK = "caption"


def add_lengths(model: Any, lengths: Sequence[str | int] = LENGTHS) -> list[str]:
    """Gives a model a task for each length of captions, in place; until trained, each writes what `caption` does.

    Captions may then have up to 200 tokens, as far as the language model has positions for them.

    Args:
        model: A `ScaForConditionalGeneration` with the task `caption`. Lengths that it has already stay as they are;
            each language that it has gets the new ones too.
        lengths: Of "short", "sentence" and "detailed", and numbers of words.

    Returns:
        Names of the modules that must be trained to gain anything. The processor must be built again.
    """
    for length in lengths:
        if length not in LENGTHS and not (type(length) is int and 1 <= length <= MAX_TOKENS):
            raise ValueError(
                f"length is {length!r}, expected {', '.join(LENGTHS)} or a number of words, 1 to {MAX_TOKENS}."
            )
    spoken = [_TASK, *(f"{_TASK}:{tag}" for tag in learned(model.config.mixer_config.tasks, "language"))]
    trained = _add_tasks(model, ((f"{name}:{length}", name) for name in spoken for length in lengths), "lengths")
    longest = min(MAX_TOKENS, model.longest_caption() or MAX_TOKENS)
    if longest < MAX_TOKENS:
        logger.warning("The language model has positions for captions of %d tokens; longer ones are cut.", longest)
    model.config.max_caption_length = max(longest, model.config.max_caption_length)
    model.generation_config.max_new_tokens = model.config.max_caption_length
    return trained


def add_languages(model: Any, languages: Sequence[str]) -> list[str]:
    """Gives a model a task for captions in each language, in place; until trained, each writes what `caption` does.

    Captions whose language is not said stay those of `caption` itself. Scripts that the language model's tokenizer
    knows by bytes take several tokens for each letter: `max_caption_length` may have to grow.

    Args:
        model: A `ScaForConditionalGeneration` with the task `caption`. Languages that it has already stay as they are;
            each new one gets the lengths that it has.
        languages: Tags of BCP 47, such as "de", "zh-Hans" and "pt-BR".

    Returns:
        Names of the modules that must be trained to gain anything. The processor must be built again.
    """
    if isinstance(languages, str):
        raise ValueError(f"languages is the text {languages!r}, expected a list of tags such as ['en', 'de'].")
    ends = ["", *(f":{length}" for length in learned(model.config.mixer_config.tasks, "length"))]
    wanted = ((f"{_TASK}:{language_tag(tag)}{end}", f"{_TASK}{end}") for tag in languages for end in ends)
    return _add_tasks(model, wanted, "languages")


def _add_tasks(model: Any, wanted: Iterable[tuple[str, str]], what: str) -> list[str]:
    """Adds tasks, each with the tokens of the one that it starts from; those that are there stay."""
    mixer, tasks = model.mixer, list(model.config.mixer_config.tasks)
    if _TASK not in tasks:
        raise ValueError(f"{what} are of the task {_TASK!r}, but the model has only {', '.join(tasks)}.")
    new = {name: start for name, start in wanted if name not in tasks}
    tokens = mixer.task_tokens.weight
    rows = tokens.detach().unflatten(0, (len(tasks), -1))
    rows = torch.cat([rows, rows[[tasks.index(start) for start in new.values()]]]).flatten(0, 1)
    mixer.task_tokens = nn.Embedding(*rows.shape, _weight=rows).requires_grad_(tokens.requires_grad)
    for config in (mixer.config, model.config.mixer_config):
        config.tasks = [*tasks, *new]
    return ["mixer.task_tokens"]
