"""Runs a training step on tensors without contents and counts the memory that would be alive, byte for byte.

PyTorch's fake tensors have shapes, precisions and storages, but no data: a step of a model of billions of parameters
takes seconds and no memory. It is the model's own forward and backward that run, so that nothing is left to formulas.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..agreement import captions_agreement_loss


# What autocast runs in float32 on CUDA, as far as it runs in half precision on the CPU that stands in for it here
# (aten/src/ATen/autocast_mode.h).
_SINGLE_PRECISION = {"layer_norm", "group_norm", "rms_norm", "softmax", "log_softmax", "pow", "__pow__", "exp", "log"}
_SINGLE_PRECISION |= {"rsqrt", "reciprocal", "softplus", "sum", "prod", "cumsum", "norm", "logsumexp"}


@dataclass
class StepMemory:
    """Bytes of one step beside weights, gradients and optimizer states.

    Attributes:
        saved: what each part keeps for the backward pass, and what it hands on: "image encoder", "mask decoder" (with
            the prompts), "mixer", "language model" (with the loss).
        encoder_peak: The peak while the image encoder ran.
        forward_peak, backward_peak: The peak during each.
    """

    saved: dict[str, int] = field(default_factory=dict)
    encoder_peak: int = 0
    forward_peak: int = 0
    backward_peak: int = 0

    @property
    def kept(self) -> int:
        """What is alive between forward and backward."""
        return sum(self.saved.values())

    @property
    def workspace(self) -> int:
        """What the worst moment takes beyond `kept`."""
        return max(self.forward_peak, self.backward_peak) - self.kept


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still alive; works on real tensors as on fake ones."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default and isinstance(args[0], FakeTensor):
            # Fake tensors hold no labels to count: all of them, the maximum.
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.int64)
        # Arguments that were there before are not counted, nor what is only another view of them.
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage, made: bool = True) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        # Forgotten when it goes, counted or not: another storage may be made at its address.
        size = storage.nbytes() if made else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size

    def take_peak(self) -> int:
        """Returns the peak and starts a new one."""
        peak, self.peak = self.peak, self.now
        return peak


class _CudaAutocast(TorchFunctionMode):
    """Runs in float32 the operations that CUDA's autocast runs in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _SINGLE_PRECISION:
            args, kwargs = tree_map(_as_single, (args, kwargs))
        return func(*args, **(kwargs or {}))


def _as_single(value: Any) -> Any:
    half = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value


def checkpoint_arguments(autocast: torch.dtype | None) -> dict[str, Any]:
    """Of gradient checkpointing under simulation: what is recomputed follows CUDA's rules too."""
    if autocast is None:
        return {"use_reentrant": False}
    return {"use_reentrant": False, "context_fn": lambda: (nullcontext(), _CudaAutocast())}


@contextmanager
def without_contents() -> Iterator[None]:
    """Makes every new tensor a fake one, on a device that is called cpu."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cpu"):
        yield


def emptied(model: nn.Module) -> None:
    """Gives a model of the meta device parameters and buffers as `without_contents` makes them, in place.

    Adapters and precisions are settled before: PyTorch does not let fake parameters be moved or cast.
    """
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                if id(old) not in seen:  # tied ones stay one
                    new = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=old.requires_grad)
                    seen[id(old)] = old, new
                store[name] = seen[id(old)][1]


def simulate_step(
    model: nn.Module, batch: Mapping[str, Any], autocast: torch.dtype | None = None, agreement: bool = False
) -> StepMemory:
    """Runs forward and backward once and says what was alive when.

    Args:
        model: A `ScaForConditionalGeneration` in training mode; its gradients are made first, as they are when they
            accumulate, and are not counted.
        batch: The arguments of `forward`, with labels.
        autocast: The half precision to run in, by CUDA's rules. None runs as the weights are.
        agreement: Whether the loss has the term of the listener, of captions that have nothing in common.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    memory, live = StepMemory(), LiveBytes()
    marks: dict[str, int] = {}

    def mark(name: str) -> Any:
        def hook(*_: Any) -> None:
            marks[name] = live.now

        return hook

    def end_of_encoder(*_: Any) -> None:
        memory.encoder_peak = live.peak
        marks["image encoder"] = live.now

    parts: Any = model
    hooks = [
        parts.sam.vision_encoder.register_forward_hook(end_of_encoder),
        parts.mixer.register_forward_pre_hook(mark("mask decoder")),
        parts.mixer.register_forward_hook(mark("mixer")),
    ]
    with ExitStack() as stack:
        for hook in hooks:
            stack.callback(hook.remove)
        stack.enter_context(live)
        if autocast is not None:
            stack.enter_context(torch.autocast("cpu", dtype=autocast))
            stack.enter_context(_CudaAutocast())
        loss = _loss(model, batch, autocast, agreement)
        marks["language model"] = live.now
        memory.forward_peak = live.take_peak()
        loss.backward()
        memory.backward_peak = live.peak
    last = 0
    for name in ("image encoder", "mask decoder", "mixer", "language model"):
        memory.saved[name] = marks.get(name, last) - last
        last = marks.get(name, last)
    return memory


def _loss(model: Any, batch: Mapping[str, Any], autocast: torch.dtype | None, agreement: bool) -> torch.Tensor:
    """The loss alone: the Trainer lets go of the other outputs too, after it has cast all of them to float32."""
    output = model(**batch)
    if agreement:
        images, regions, tokens = batch["input_ids"].shape
        captions = [[[region] * tokens for region in range(regions)]] * images
        output["loss"] = output.loss + captions_agreement_loss(model.language_model, output.prefix_embeds, captions)
    if autocast is not None:
        tree_map(lambda value: value.float() if isinstance(value, torch.Tensor) else value, dict(output))
    return output.loss
