"""The model that training for photographs starts from: pretrained eyes, a new neck, and the other parts of sca-tiny.

python -m experiments.photographs.start --towers runs/towers --output runs/start
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModel

from sca_hf import ScaProcessor
from sca_hf.captioning import load
from sca_hf.modeling.encoder_sca import ScaEncoderModel


def start_model(towers: Path, output: Path, seed: int = 0) -> Path:
    """Saves sca-tiny with other eyes; its detail encoder, which sees drawings, is left out."""
    model, processor = load("sca-tiny")
    torch.manual_seed(seed)
    encoder = AutoModel.from_pretrained(towers, dtype=torch.float32)
    model.detail_encoder = model.config.detail_widths = None
    model.confidence_head = model.config.confidence_size = None
    model.swap_image_encoder(ScaEncoderModel.from_encoder(encoder, model.sam))
    model.config.scope = None
    model.save_pretrained(output, include_base_models=True)
    ScaProcessor.from_config(model.config, processor.tokenizer).save_pretrained(output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--towers", type=Path, required=True, help="folder of experiments.photographs.towers")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(start_model(options.towers, options.output, options.seed))


if __name__ == "__main__":
    main()
