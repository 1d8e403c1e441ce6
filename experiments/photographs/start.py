"""The model that training for photographs starts from: pretrained eyes, a new neck, and the other parts of sca-tiny.

    python -m experiments.photographs.start --towers runs/photographs/towers --output runs/photographs/seed-0/start \
        --language runs/photographs/seed-0/language/text

The mixer reads what NanoDet finds beside its image.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from sca_hf import ScaProcessor
from sca_hf.captioning import load
from sca_hf.files import staged
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.modeling.mixer_sca import ClassReader

from .names import NAMES


# What mixed queries, which say nothing yet, are worth beside words.
_QUIET = 0.1
# How much more the likelier of two classes counts, as a power: nearly only the likeliest is said.
_SHARP = 8.0


def begin_words(model: Any, tokenizer: Any, language: Path) -> None:
    """Gives a model another language model, in its folder with this tokenizer, and begins all that leads to it."""
    model.swap_language_model(str(language))
    say_words(model, tokenizer)
    if "nanodet_g" in getattr(model.sam.config.encoder_config, "towers", ()):
        read_names(model, tokenizer)


@torch.no_grad()
def say_words(model: Any, tokenizer: Any) -> None:
    """Begins the mixer's way to the language model such that it says what it is given, and its tasks are words.

    A random way is nearly singular: vectors that it turned into words were thousands long, and drowned all queries.
    """
    mixer, words = model.mixer, model.get_input_embeddings().weight
    torch.nn.init.orthogonal_(mixer.language_project.weight, gain=_QUIET)
    mixer.language_project.bias.copy_(words[tokenizer.pad_token_id])
    config = mixer.config
    tasks = torch.stack([words[tokenizer(f" {task}")["input_ids"]].mean(0) for task in config.tasks])
    mixer.task_tokens.weight.copy_(tasks.repeat_interleave(config.num_task_tokens, 0))


def words_of(model: Any, tokenizer: Any, names: Sequence[str]) -> torch.Tensor:
    """What `language_project` turns into the words of each name, added up as in language.py: (n, C)."""
    words, project = model.get_input_embeddings().weight, model.mixer.language_project.weight
    said = torch.stack([words[tokenizer(f" {name}")["input_ids"]].sum(0) for name in names])  # (n, D)
    return torch.linalg.lstsq(project, said.T).solution.T


@torch.no_grad()
def read_names(model: Any, tokenizer: Any) -> None:
    """Has the mixer read what NanoDet finds: each class begins with the vector that says its name's words.

    model: A `ScaForConditionalGeneration` whose image encoder has NanoDet, changed in place.
    """
    mixer, config = model.mixer, model.config
    config.sam_config.class_channels = config.mixer_config.class_channels = len(NAMES)
    mixer.class_reader = ClassReader(len(NAMES), config.mixer_config.hidden_size).to(mixer.language_project.weight)
    torch.nn.init.constant_(mixer.class_reader.scale.weight, _SHARP)
    said = words_of(model, tokenizer, NAMES)
    mixer.class_reader.vectors.weight.copy_((said - said.mean(0)).T)  # nothing where every score is the same


def start_model(towers: Path, output: Path, seed: int = 0, language: Path | None = None) -> Path:
    """Saves sca-tiny with other eyes; its detail encoder, which sees drawings, is left out.

    Args:
        towers: folder of an image encoder.
        output: folder to write.
        seed: of what is new.
        language: folder of another language model and its tokenizer; None keeps that of sca-tiny.
    """
    model, processor = load("sca-tiny")
    torch.manual_seed(seed)
    encoder = AutoModel.from_pretrained(towers, dtype=torch.float32)
    model.detail_encoder = model.config.detail_widths = None
    model.confidence_head = model.config.confidence_size = None
    model.swap_image_encoder(ScaEncoderModel.from_encoder(encoder, model.sam))
    tokenizer = processor.tokenizer
    if language is not None:
        tokenizer = AutoTokenizer.from_pretrained(language)
        begin_words(model, tokenizer, language)
    model.config.scope = None
    return save(output, model, ScaProcessor.from_config(model.config, tokenizer))


def save(output: Path, model: Any, processor: Any) -> Path:
    """Saves a model with all of its parts and its processor into a folder, which exists once it is whole."""
    with staged(output) as folder:
        model.save_pretrained(folder, include_base_models=True)
        processor.save_pretrained(folder)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", type=Path, required=True, help="folder of experiments.photographs.towers")
    parser.add_argument("--language", type=Path, help="folder of a language model (default: that of sca-tiny)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(start_model(options.towers, options.output, options.seed, options.language))


if __name__ == "__main__":
    main()
