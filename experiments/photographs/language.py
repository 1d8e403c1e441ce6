"""A language model that has the words of photographs: sca-tiny's, whose tokenizer cuts "refrigerator" into pieces.

As there it learns from keywords followed by a text (experiments/sca_tiny/language.py), so that it says what a prefix
holds; beside objects of scenes there are the names of COCO, of TACO and of the small sets, each word a token, and the
longer captions that some regions have. What class scores and features say is the same for all queries, so in most
texts the words of a name are added up in every slot. What reads pictures is never sure: such a sum is louder or
softer, and has less of two other texts' names in it, and noise. So the model learns to say what is loudest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from sca_hf.data.scenes import describe, read_caption
from sca_hf.files import read_json
from sca_hf.training.checkpoint.trainer import WholeCheckpoints

from ..sca_tiny.language import TASKS, KeywordTexts, LanguageSettings, random_object, train_language_model
from .small_sets import IMAGES
from .words import SYNONYMS, caption_of


# How many texts have a name's words added up; how loud these are, and others at most; noise in the sum and in each
# slot. The readers, fitted, have 0.6 to 0.9 of the words, and what else they say is a third to two thirds as long.
_SUMMED, _LOUDNESS, _OTHERS, _NOISE = 0.75, (0.5, 1.2), 0.4, (0.06, 0.1)
SETTINGS = {"steps": 2_500, "vocabulary_size": 1_536, "max_tokens": 24}
_SCENES = 0.4
# How often the tokenizer sees each name: whole words win over the pieces that they share with others.
_REPEATS = 100


class NamedTexts(KeywordTexts):
    """Objects of scenes, and things of photographs: the tokens of a name as keywords, then the name or a caption."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, settings: LanguageSettings, captions: Mapping[str, Sequence[str]]
    ) -> None:
        super().__init__(tokenizer, settings)
        self.names, self.captions = list(captions), captions

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.settings.seed, index, 1))
        task = TASKS[int(rng.random() < 0.75)]
        if rng.random() < _SCENES:
            thing = random_object(rng)
            name, text = thing.category, describe(thing, rng)[0] if task == "caption" else thing.category
            prefix = self.prefix(task, thing, read_caption(text)["reference_color"] is not None)
            own = slice(self.settings.num_task_tokens + 1, self.settings.num_task_tokens + 4)
        else:
            name = self.names[rng.integers(len(self.names))]
            text = self.captions[name][rng.integers(len(self.captions[name]))] if task == "caption" else name
            prefix, own = self.name_prefix(task, name), slice(self.settings.num_task_tokens, None)
        summed = self.tokenizer(f" {name}")["input_ids"][: self.settings.num_keywords]
        if rng.random() < _SUMMED:
            prefix[own] = [self.tokenizer.pad_token_id] * len(prefix[own])
        else:
            summed = []
        row = self.row(prefix, text)
        return {**row, "summed": torch.tensor(summed + [-1] * (self.settings.num_keywords - len(summed)))}

    def name_prefix(self, task: str, name: str) -> list[int]:
        """Returns the ids of the task slots and of the keyword slots, which hold a name, cut where it is too long."""
        count = self.settings.num_keywords
        slots = self.tokenizer(" " + name)["input_ids"][:count]
        slots += [self.tokenizer.pad_token_id] * (count - len(slots))
        return [self._id(task)] * self.settings.num_task_tokens + slots


class SummedWords(WholeCheckpoints):
    """Adds the vectors of the tokens `summed` (B, K; -1: none) to every slot, as a mixer that reads classes does."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The language model's loss on the texts behind such prefixes."""
        words, ids, summed = model.get_input_embeddings(), inputs.pop("input_ids"), inputs.pop("summed")
        first = LanguageSettings.num_task_tokens
        last = first + LanguageSettings.num_keywords
        added = (words(summed.clamp(min=0)) * (summed >= 0)[..., None]).sum(1, keepdim=True)  # (B, 1, D)
        embeds = words(ids).clone()
        rows, device = len(ids), embeds.device
        said = added * torch.empty(rows, 1, 1, device=device).uniform_(*_LOUDNESS)
        for _ in range(2):
            said = said + added[torch.randperm(rows, device=device)] * _OTHERS * torch.rand(rows, 1, 1, device=device)
        for noise, parts in zip(_NOISE, (1, last - first), strict=True):
            said = said + noise * torch.randn(rows, parts, embeds.shape[2], device=device)
        embeds[:, first:last] += said * (summed[:, :1, None] >= 0)
        return super().compute_loss(model, {**inputs, "inputs_embeds": embeds}, *args, **kwargs)


def all_captions(split: Path) -> dict[str, list[str]]:
    """Returns every name that the model must be able to say, with its captions.

    split: folder of experiments.photographs.data, with the small sets.
    """
    captions = {name: [caption_of(name)] for name in SYNONYMS}
    for name in IMAGES:
        for row in read_json(split / f"{name}.train.json", dict)["categories"]:
            captions.setdefault(row["name"], [row["name"]])
    content = read_json(split / "coco_permissive.train_described.json", dict)
    names = {row["id"]: row["name"] for row in content["categories"]}
    for row in content["annotations"]:
        # A long caption in four is enough: it tells more than the keywords do.
        captions[names[row["category_id"]]] += [*[caption_of(names[row["category_id"]])] * 3, *row["captions"]]
    return captions


def train_language(folder: Path, split: Path, steps: int | None = None, seed: int = 0) -> Path:
    """Trains tokenizer and language model in `folder`, resuming from the last checkpoint; returns their folder."""
    settings = LanguageSettings(**SETTINGS, seed=seed)
    settings.steps = min(settings.steps, steps or settings.steps)
    settings.batch_size = min(settings.batch_size, 96 if steps is None else 8)
    captions = all_captions(split)
    more = [text for name, told in captions.items() for text in (name, f" {name}", *told) for _ in range(_REPEATS)]
    return train_language_model(
        folder, settings, more, lambda tokenizer, chosen: NamedTexts(tokenizer, chosen, captions), SummedWords
    )
