"""The floor of a call on this machine: its matrix products alone, timed on the spot for the same shapes.

A ratio to other code says as much about the CPU as about the code. What a call takes beyond its products and
convolutions (normalization, activations, copies, Python) is what can still be gained.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .measure import seconds_of


# Each product runs for at least so many seconds, of which the mean counts.
_ENOUGH = 0.01
_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}
_ATTENTION = "_scaled_dot_product"


class Products(TorchDispatchMode):
    """Counts the products of what runs inside, by their operands' shapes, strides and precision."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _PRODUCTS:
            self._count(func, *args)
        elif name.startswith(_ATTENTION) and "backward" not in name:
            query, key, value = args[:3]
            self._count(torch.ops.aten.matmul.default, query, key.transpose(-1, -2))
            scores = (*query.shape[:-1], key.shape[-2])
            shape = (scores, _dense(scores), query.dtype)
            self.found[torch.ops.aten.matmul.default, (shape, _layout(value))] += 1
        return func(*args, **(kwargs or {}))

    def _count(self, func: Any, *args: Any) -> None:
        self.found[func, tuple(_layout(one) if isinstance(one, torch.Tensor) else _frozen(one) for one in args)] += 1


def floor(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds that the products of a call take, one after the other, with operands that nothing else has touched."""
    with torch.no_grad(), Products() as products:
        call()
    total = 0.0
    for (product, operands), count in products.found.items():
        arguments = [_random(one, device) if _is_layout(one) else _thawed(one) for one in operands]
        total += count * _seconds(lambda: product(*arguments), device)  # noqa: B023, called at once
    return total


def _seconds(product: Callable[[], Any], device: torch.device) -> float:
    product()
    times, begun = 1, time.perf_counter()
    with torch.no_grad():
        while True:
            spent = seconds_of(lambda: [product() for _ in range(times)], device)[0]  # noqa: B023, called at once
            if spent >= _ENOUGH or time.perf_counter() - begun > 1:
                return spent / times
            times *= 2


def _layout(tensor: torch.Tensor) -> tuple[Any, ...]:
    # Of an expanded tensor a whole one of its shape is taken: a product reads it as often.
    stride = _dense(tuple(tensor.shape)) if 0 in tensor.stride() else tuple(tensor.stride())
    return (tuple(tensor.shape), stride, tensor.dtype)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.empty(shape, device="meta").stride())


def _is_layout(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], torch.dtype)


def _random(layout: tuple[Any, ...], device: torch.device) -> torch.Tensor:
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device=device).normal_(0, 0.1)


def _frozen(value: Any) -> Any:
    return ("list", *value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value[1:]) if isinstance(value, tuple) and value[:1] == ("list",) else value
