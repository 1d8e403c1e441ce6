"""Store a trained model as it comes with the package: half the bytes, the same three lines, float32 in memory.

python -m experiments.sca_tiny.bundle runs/sca_tiny_real/model src/sca_hf/assets/sca-tiny
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from sca_hf.files import staged
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor


def bundle(source: Path, destination: Path) -> Path:
    """Save the whole model and its processor in `source` to `destination`, weights in float16.

    The configuration keeps float32, so that loading rounds nothing further and a CPU runs at full speed.
    """
    if destination.exists():
        raise FileExistsError(f"{destination} exists; remove it to bundle a model there again.")
    model = ScaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    # Tied tensors stay one: halved one by one they would be stored twice.
    halves = {tensor.data_ptr(): tensor.half() for tensor in model.state_dict().values()}
    weights = {name: halves[tensor.data_ptr()] for name, tensor in model.state_dict().items()}
    # Where the training data and checkpoints lay concerns nobody else, and differs from machine to machine.
    eyes = getattr(model.config.sam_config, "encoder_config", None)
    for config in (model.config, model.config.sam_config, model.config.text_config, eyes):
        if config is not None:
            config._name_or_path = ""
    model.config.freeze_base_models = True  # whatever its last stage trained, finetuning begins as published
    with staged(destination) as folder:
        model.save_pretrained(folder, state_dict=weights, include_base_models=True)
        ScaProcessor.from_pretrained(source).save_pretrained(folder)
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if stored["dtype"] != "float32":
            raise RuntimeError(f"the configuration was saved with dtype {stored['dtype']}, not float32.")
    return destination


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a trained model with its processor")
    parser.add_argument("destination", type=Path, help="folder to write, which must not exist")
    options = parser.parse_args(arguments)
    bundle(options.source, options.destination)


if __name__ == "__main__":
    main()
