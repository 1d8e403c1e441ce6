"""The model that training for photographs starts from: pretrained eyes, a new neck, and the other parts of sca-tiny.

    python -m experiments.photographs.start --towers runs/photographs/towers --output runs/photographs/seed-0/start \
        --language runs/photographs/seed-0/language/text

NanoDet's 80 class scores are the first channels of what the towers give. The mixer reads them beside its image.
"""

import argparse
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


# How much louder than the language model knows them the words of class scores are: beside them are other queries.
LOUD = 30.0


@torch.no_grad()
def read_names(model: Any, tokenizer: Any) -> None:
    """Has the mixer read NanoDet's class scores: each class begins with the vector that says its name's words.

    model: A `ScaForConditionalGeneration` whose image encoder begins with NanoDet, changed in place.
    """
    mixer, config = model.mixer, model.config
    config.sam_config.class_channels = config.mixer_config.class_channels = len(NAMES)
    model.sam.vision_encoder.given_channels = len(NAMES)
    mixer.class_reader = ClassReader(len(NAMES), config.mixer_config.hidden_size).to(mixer.language_project.weight)
    torch.nn.init.ones_(mixer.class_reader.scale.weight)
    words = model.get_input_embeddings().weight
    said = torch.stack([words[tokenizer(" " + name)["input_ids"]].mean(0) for name in NAMES])  # (80, D)
    said = LOUD * (said - said.mean(0))  # nothing where every score is the same
    # What language_project turns into these.
    mixer.class_reader.vectors.weight.copy_(torch.linalg.lstsq(mixer.language_project.weight, said.T).solution)


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
        model.swap_language_model(str(language))
        tokenizer = AutoTokenizer.from_pretrained(language)
    if getattr(encoder.config, "towers", [""])[0] == "nanodet_g":
        read_names(model, tokenizer)
    model.config.scope = None
    with staged(output) as folder:
        model.save_pretrained(folder, include_base_models=True)
        ScaProcessor.from_config(model.config, tokenizer).save_pretrained(folder)
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
