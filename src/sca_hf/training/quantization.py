"""A frozen language model held in 4 or 8 bits per weight: gradients still pass through it to the mixer.

Linear layers are replaced in place, from the weights that are there; embeddings and the head stay as they are. Saves
hold the mixer (and adapters) alone, so a checkpoint loads beside the full language model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


Quantize = Callable[[nn.Linear], nn.Module]


def quantize_language_model(model: Any, kind: str) -> int:
    """Replaces the linear layers of a model's language model, which must stay frozen from here on.

    Args:
        model: A `ScaForConditionalGeneration`, changed in place.
        kind: The form, "bitsandbytes-4bit" (NF4), "bitsandbytes-8bit" or "torchao-int8" (weights only).

    Returns:
        The number of layers replaced.
    """
    if kind not in _KINDS:
        raise ValueError(f"quantization is {kind!r}, expected one of {', '.join(_KINDS)}.")
    quantize = _KINDS[kind]()
    language_model = model.language_model
    head, device = language_model.get_output_embeddings(), language_model.device
    layers = [(name, layer) for name, layer in language_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    layers = [(name, layer) for name, layer in layers if layer is not head]
    if any(map(is_quantized, language_model.parameters())):
        raise ValueError("the language model is already quantized.")
    if not layers:
        raise ValueError(f"{type(language_model).__name__} has no linear layers except its head: nothing to quantize.")
    for name, layer in layers:
        quantized = quantize(_as_linear(layer)).to(device)
        language_model.set_submodule(name, quantized.requires_grad_(False).train(layer.training))
    return len(layers)


def is_quantized(parameter: torch.Tensor) -> bool:
    """Whether a parameter is packed, so that it can be neither trained nor cast."""
    return not parameter.is_floating_point() or type(parameter.data) is not torch.Tensor


def _as_linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    """GPT-2 keeps its linear layers transposed."""
    if isinstance(layer, nn.Linear):
        return layer
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
    linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear


def _torchao() -> Quantize:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("quantize_language_model torchao-int8 needs torchao: pip install torchao.") from error

    def quantize(layer: nn.Linear) -> nn.Module:
        quantize_(layer.requires_grad_(False), Int8WeightOnlyConfig())
        return layer

    return quantize


def _bitsandbytes_4bit() -> Quantize:
    bnb = _bitsandbytes()

    def quantize(layer: nn.Linear) -> nn.Module:
        size = (layer.in_features, layer.out_features)
        options = dict(compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta")
        packed = bnb.nn.Linear4bit(*size, layer.bias is not None, **options)
        packed.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=packed)
        packed.bias = layer.bias
        # On a CPU it would pack its weights once more for inference, and gradients no longer pass.
        packed.support_avx512bf16_for_cpu = False
        return packed

    return quantize


def _bitsandbytes_8bit() -> Quantize:
    bnb = _bitsandbytes()

    def quantize(layer: nn.Linear) -> nn.Module:
        size = (layer.in_features, layer.out_features)
        packed = bnb.nn.Linear8bitLt(
            *size, layer.bias is not None, has_fp16_weights=False, threshold=6.0, device="meta"
        )
        packed.weight = bnb.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
        packed.bias = layer.bias
        return packed

    return quantize


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise ImportError("quantize_language_model needs bitsandbytes here: pip install bitsandbytes.") from error
    return bitsandbytes


_KINDS: dict[str, Callable[[], Quantize]] = {
    "bitsandbytes-4bit": _bitsandbytes_4bit,
    "bitsandbytes-8bit": _bitsandbytes_8bit,
    "torchao-int8": _torchao,
}
