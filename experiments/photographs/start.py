"""The model that training for photographs starts from: pretrained eyes, a new neck, and the other parts of sca-tiny.

    python -m experiments.photographs.start --towers runs/photographs/towers --output runs/photographs/seed-0/start \
        --language runs/photographs/seed-0/language/text

NanoDet's 80 class scores are the first channels of what the towers give. With --pass-names the new neck leads each in
a direction of its own, so that the mixer can read names from the first step on.
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


NAMES = 80


@torch.no_grad()
def pass_names(neck: Any) -> None:
    """Leads the first channels of a neck's input through it, each in a direction at right angles to the others.

    neck: A `SamVisionNeck` with at least 80 channels of output; its 3 x 3 convolution begins near the identity.
    """
    width = neck.conv1.out_channels
    directions = torch.linalg.qr(torch.randn(width, NAMES))[0]
    neck.conv1.weight[:, :NAMES] = directions[..., None, None]
    neck.conv2.weight[:, :, 1, 1] += torch.eye(width)


def start_model(towers: Path, output: Path, seed: int = 0, language: Path | None = None, passed: bool = False) -> Path:
    """Saves sca-tiny with other eyes; its detail encoder, which sees drawings, is left out.

    Args:
        towers: folder of an image encoder.
        output: folder to write.
        seed: of what is new.
        language: folder of another language model and its tokenizer; None keeps that of sca-tiny.
        passed: lead NanoDet's names through the neck, if it is among the towers.
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
    if passed and getattr(encoder.config, "towers", [""])[0] == "nanodet_g":
        pass_names(model.sam.vision_encoder.neck)
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
    parser.add_argument("--pass-names", action="store_true", help="lead NanoDet's names through the neck")
    options = parser.parse_args()
    print(start_model(options.towers, options.output, options.seed, options.language, options.pass_names))


if __name__ == "__main__":
    main()
