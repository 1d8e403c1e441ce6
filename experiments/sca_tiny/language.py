"""Stage 2: a tiny GPT-2 and its tokenizer, trained on keywords followed by a caption, so that a prefix can steer it.

An LM trained on captions alone and then frozen ignores whatever stands before them. This one learns that the places
which the mixer will fill (task tokens, then queries) hold what the caption must say, and what kind of text is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from sca_hf.data.scenes import COLORS, RELATIONS, SHAPES, SIZES, TEXTURES, SceneObject, describe, read_caption
from sca_hf.training.checkpoint.trainer import WholeCheckpoints

from .stages import save_whole, stage_arguments, train_from_last_checkpoint


PAD, EOS, UNK = "<|pad|>", "<|endoftext|>", "<|unk|>"
TASKS = ("recognition", "caption")


@dataclass
class LanguageSettings:
    """What the language stage may be asked for; the defaults are those of `sca-tiny`."""

    steps: int = 1_500
    batch_size: int = 96
    learning_rate: float = 2e-3
    vocabulary_size: int = 448
    num_task_tokens: int = 6
    num_keywords: int = 8
    max_tokens: int = 20
    save_steps: int = 500
    seed: int = 0


class KeywordTexts(torch.utils.data.Dataset):
    """Random objects as token ids: task slots, keyword slots, then the text; loss on the text only."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: LanguageSettings) -> None:
        self.tokenizer, self.settings = tokenizer, settings

    def __len__(self) -> int:
        return self.settings.steps * self.settings.batch_size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.settings.seed, index))
        task = TASKS[int(rng.random() < 0.75)]
        obj = random_object(rng)
        text = describe(obj, rng)[0] if task == "caption" else obj.category
        named = read_caption(text)["reference_color"] is not None
        return self.row(self.prefix(task, obj, named), text)

    def row(self, prefix: list[int], text: str) -> dict[str, torch.Tensor]:
        """Returns ids and labels of a prefix and a text, padded."""
        ids = [*self.tokenizer(text)["input_ids"][: self.settings.max_tokens - 1], self.tokenizer.eos_token_id]
        padding = self.settings.max_tokens - len(ids)
        input_ids = [*prefix, *ids, *[self.tokenizer.pad_token_id] * padding]
        labels = [*[-100] * len(prefix), *ids, *[-100] * padding]
        return {"input_ids": torch.tensor(input_ids), "labels": torch.tensor(labels)}

    def prefix(self, task: str, obj: SceneObject, named: bool = True) -> list[int]:
        """Returns the ids of the task slots and keyword slots; an empty slot holds the padding token.

        named: the text is to say which neighbour it speaks of.
        """
        words = [obj.size if obj.size != "medium" else None, obj.texture, obj.color, obj.shape]
        if obj.reference is not None:
            words += [obj.relation, *((obj.reference.color, obj.reference.shape) if named else ())]
        slots = [self._id(word) for word in words]
        slots += [self.tokenizer.pad_token_id] * (self.settings.num_keywords - len(slots))
        return [self._id(task)] * self.settings.num_task_tokens + slots

    def _id(self, word: str | None) -> int:
        if word is None:
            return self.tokenizer.pad_token_id
        ids = self.tokenizer(" " + word)["input_ids"]
        if len(ids) != 1:
            raise ValueError(f"the tokenizer cuts the keyword {word!r} into {len(ids)} tokens, expected one")
        return ids[0]


def random_object(rng: np.random.Generator) -> SceneObject:
    """Draws an object's attributes, and a neighbour half of the time, without drawing a picture."""

    def draw() -> SceneObject:
        color, shape, texture, size = (o[rng.integers(len(o))] for o in (tuple(COLORS), SHAPES, TEXTURES, SIZES))
        return SceneObject(color, shape, texture, size, center=(0.0, 0.0), radius=0.0, tilt=0.0)

    obj = draw()
    if rng.random() < 0.5:
        obj.relation, obj.reference = RELATIONS[rng.integers(len(RELATIONS))], draw()
    return obj


def train_tokenizer(settings: LanguageSettings, more: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """Learns a byte-level vocabulary with every word of the scenes as one token; any other text round-trips too.

    more: other texts to learn from.
    """
    rng = np.random.default_rng(settings.seed)
    words = [*COLORS, *SHAPES, *TEXTURES, *SIZES, *RELATIONS, *TASKS]
    texts = [caption for _ in range(4_000) for caption in describe(random_object(rng), rng)]
    texts += [space + word for word in words for space in ("", " ")] * 200
    texts += more
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, unk_token=UNK)


def tiny_gpt2_config(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    """Returns the configuration of the bundled language model."""
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # None for padding, as GPT-2 has it: with one the library looks for it at each step of generation, and warns.
    )


def train_language_model(
    folder: Path,
    settings: LanguageSettings,
    more: Iterable[str] = (),
    texts: Callable[[PreTrainedTokenizerFast, LanguageSettings], torch.utils.data.Dataset] = KeywordTexts,
    trainer_class: type[WholeCheckpoints] = WholeCheckpoints,
) -> Path:
    """Trains tokenizer and LM in `folder`, resuming from the last checkpoint, and returns their folder.

    Args:
        folder: for checkpoints, and the model in `text`.
        settings: of the stage.
        more: texts for the tokenizer beside those of scenes.
        texts: what the LM learns.
        trainer_class: of its trainer.
    """
    done = folder / "text"
    if done.exists():
        return done
    tokenizer = train_tokenizer(settings, more)
    torch.manual_seed(settings.seed)
    model = GPT2LMHeadModel(tiny_gpt2_config(tokenizer))
    arguments = stage_arguments(folder, settings, weight_decay=0.0, warmup_steps=50, remove_unused_columns=False)
    train_from_last_checkpoint(trainer_class(model, arguments, train_dataset=texts(tokenizer, settings)))
    return save_whole(done, tokenizer, model)
