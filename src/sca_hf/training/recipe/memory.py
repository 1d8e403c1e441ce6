"""How much GPU memory a recipe takes, and what to change where it is too much; needs no weights and no GPU."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ...modeling.configuration_sca import ScaConfig
from ..arguments import PRESETS, SECOND_LOOK, ScaTrainingArguments
from ..presets import check_quantizable, prepare_model
from .simulation import StepMemory, checkpoint_arguments, emptied, simulate_step, without_contents


# Assumed, as it cannot be known here: CUDA's context with the kernels of PyTorch and cuBLAS's workspace.
CUDA_BYTES = 600 * 2**20
# Bytes that an optimizer keeps for each byte of a float32 weight; 8-bit states have a quarter of that.
_STATES = {"adamw": 2.0, "ademamix": 3.0, "lion": 1.0, "sgd": 0.0, "adagrad": 1.0, "rmsprop": 1.0, "adafactor": 0.0}
# 4-bit weights come with two scales for every 64 or 256 of them (arXiv 2305.14314).
_QUANTISED_BYTES = {"bitsandbytes-4bit": 0.516, "bitsandbytes-8bit": 1.0, "torchao-int8": 1.0}
# What the Trainer would refuse on a machine that is not the one to train on, and what does not change memory here.
_LEFT_OUT = {"bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "deepspeed", "fsdp", "fsdp_config", "use_cpu"}
_LEFT_OUT |= {"torch_compile", "ddp_backend", "report_to", "accelerator_config", "parallelism_config"}
# A set whose images have more regions than this is rare; `regions_per_image: null` means all of them.
_ALL_REGIONS = 64
# Names of parts and where models have them, not all of which every model has.
_PARTS = {
    "SAM": "sam",
    "mixer": "mixer",
    "language model": "language_model",
    "detail encoder": "detail_encoder",
    "second look": "second_look",
}


@dataclass
class PartMemory:
    """Weights of one part of the model.

    bytes_by_dtype: The bytes of its parameters and buffers in each precision.
    parameters, trained: The numbers of parameters; tied ones count once.
    """

    name: str
    parameters: int
    trained: int
    bytes_by_dtype: dict[str, int]

    @property
    def bytes(self) -> int:
        """All of them."""
        return sum(self.bytes_by_dtype.values())


@dataclass
class MemoryEstimate:
    """Memory of one GPU while training; all in bytes.

    Attributes:
        parts: The weights of SAM, the mixer and the language model.
        gradients, optimizer: The gradients and optimizer states of what is trained.
        step: The activations and workspace of one step.
        setting: The images, regions per image and tokens per caption of that step, precision.
        embedding_bytes: The size of one image in the embedding cache.
        cached: Whether the recipe uses that cache.
        notes: What was assumed.
    """

    parts: list[PartMemory]
    gradients: int
    optimizer: int
    step: StepMemory
    setting: dict[str, Any]
    embedding_bytes: int
    cached: bool
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Everything at the worst moment of a step."""
        weights = sum(part.bytes for part in self.parts)
        # While the optimizer steps the activations are gone, and it makes copies of what it updates.
        moment = max(self.step.kept + self.step.workspace, self.gradients)
        return weights + self.gradients + self.optimizer + moment + CUDA_BYTES


def estimate_memory(build: Callable[[ScaTrainingArguments], Any], training: Mapping[str, Any]) -> MemoryEstimate:
    """Estimates the memory of training a model.

    Args:
        build: Makes the model that is to be trained, on the meta device.
        training: Fields of [`ScaTrainingArguments`].
    """
    notes: list[str] = []
    half = torch.bfloat16 if training.get("bf16") or training.get("fp16") else None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the library's own names for arguments change
        plain = {name: value for name, value in training.items() if name not in _LEFT_OUT}
        args = ScaTrainingArguments(output_dir=folder, report_to="none", use_cpu=True, **plain)
        model = build(args)
        dtype, config = str(model.mixer.dtype).removeprefix("torch."), model.config
        _prepare(model, args, half)
        with without_contents():
            emptied(model)
            batch = _batch(config, args)
            step = simulate_step(model, batch, half, args.agreement_weight > 0)
    regions, tokens = batch["input_ids"].shape[1:]
    parts = list(part_memories(model, args.quantize_language_model))
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    embedding = 2 * config.image_frame.width * config.image_frame.grid**2
    states = _optimizer_share(args.optim, notes)
    if args.regions_per_image is None:
        notes.append(f"regions_per_image is null: assuming an image with {_ALL_REGIONS} regions.")
    if training.get("deepspeed") or training.get("fsdp"):
        notes.append("Sharding over GPUs (DeepSpeed, FSDP) is not subtracted.")
    return MemoryEstimate(
        parts=parts,
        gradients=trained,
        optimizer=round(states * trained),
        step=step,
        setting={
            "images": args.per_device_train_batch_size,
            "regions": regions,
            "tokens": tokens,
            "precision": f"{'bf16' if training.get('bf16') else 'fp16'} autocast" if half else dtype,
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "checkpointed": bool(args.gradient_checkpointing),
        },
        embedding_bytes=embedding,
        cached=bool(args.embedding_cache),
        notes=notes,
    )


def _prepare(model: Any, args: ScaTrainingArguments, autocast: torch.dtype | None) -> None:
    """Changes a model on the meta device as a run would, but for quantizing it, which needs weights."""
    if args.quantize_language_model:
        check_quantizable(model, args)
    quantized, args.quantize_language_model = args.quantize_language_model, None
    with torch.device("meta"):
        prepare_model(model, args)
    args.quantize_language_model = quantized
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(checkpoint_arguments(autocast))
    model.train()


def _batch(config: ScaConfig, args: ScaTrainingArguments) -> dict[str, Any]:
    """The largest batch that the collator makes: every caption as long as it may be, every region a box."""
    images, regions = args.per_device_train_batch_size, args.regions_per_image or _ALL_REGIONS
    frame = config.image_frame
    ids = torch.zeros(images, regions, config.max_caption_length, dtype=torch.long)
    batch: dict[str, Any] = dict(
        input_boxes=torch.zeros(images, regions, 4),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=torch.zeros_like(ids),
        region_chunk_size=images * regions,
    )
    if args.embedding_cache:
        batch["image_embeddings"] = torch.zeros(images, frame.width, frame.grid, frame.grid)
    else:
        batch["pixel_values"] = torch.zeros(images, frame.channels, frame.side, frame.side)
    if args.mask_loss_weight:
        side = frame.side if SECOND_LOOK in PRESETS[args.preset].trained else frame.mask_side
        batch["mask_labels"] = torch.zeros(images, regions, side, side)
    return batch


def part_memories(model: Any, quantized: str | None) -> Iterator[PartMemory]:
    """Yields what the weights of each part take, the frozen language model held in a form."""
    for name, attribute in _PARTS.items():
        module = getattr(model, attribute)
        if module is None:
            continue
        parameters = list(module.parameters())
        share = _quantized_share(module, quantized) if attribute == "language_model" else {}
        sizes: dict[str, int] = {}
        for tensor in [*parameters, *module.buffers()]:
            dtype = share.get(id(tensor), str(tensor.dtype).removeprefix("torch."))
            per_value = _QUANTISED_BYTES.get(dtype, tensor.element_size())
            sizes[dtype] = sizes.get(dtype, 0) + round(tensor.numel() * per_value)
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        yield PartMemory(name, sum(p.numel() for p in parameters), trained, sizes)


def _quantized_share(language_model: Any, form: str | None) -> dict[int, str]:
    """Weights that are held quantized: those of linear layers but the head's."""
    if form is None:
        return {}
    head = language_model.get_output_embeddings()
    kinds = (nn.Linear,) if form.startswith("torchao") else (nn.Linear, Conv1D)  # torchao leaves GPT-2's layers alone
    layers = [part for part in language_model.modules() if isinstance(part, kinds) and part is not head]
    return {id(layer.weight): form for layer in layers if not layer.weight.requires_grad}


def _optimizer_share(optimizer: Any, notes: list[str]) -> float:
    name = str(getattr(optimizer, "value", optimizer)).removeprefix("paged_")
    kind = next((kind for kind in _STATES if name.startswith(kind)), None)
    if kind is None:
        notes.append(f"Unknown optimizer {name}: assuming states as large as AdamW's.")
        return _STATES["adamw"]
    bits = 4 if "4bit" in name else 8 if "8bit" in name or name == "adamw_bnb_8bit" else 32
    return _STATES[kind] * bits / 32


def smaller_settings(
    build: Callable[[ScaTrainingArguments], Any], training: Mapping[str, Any], limit: int
) -> list[tuple[str, int]]:
    """Changes that bring a recipe below `limit` bytes, each upon the last, with the total that each leads to.

    They are ordered by what they cost: precision of frozen weights, half precision, time, then what is learned from
    in a step.
    """
    changed, tried = dict(training), []
    for name, value in _savings(training):
        if changed.get(name) == value:
            continue
        changed[name] = value
        try:
            total = estimate_memory(build, changed).total
        except ValueError:  # nothing is frozen that could be held in half precision
            changed[name] = training.get(name)
            if name not in training:
                del changed[name]
            continue
        tried.append((f"--training.{name}={str(value).lower()}", total))
        if total <= limit:
            break
    return tried


def _savings(training: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "frozen_dtype", "bfloat16"
    if not training.get("fp16"):
        yield "bf16", True
    yield "gradient_checkpointing", True
    defaults = {f.name: f.default for f in dataclasses.fields(ScaTrainingArguments)}
    if training.get("per_device_train_batch_size", defaults["per_device_train_batch_size"]) > 1:
        yield "per_device_train_batch_size", 1
    regions = training.get("regions_per_image", defaults["regions_per_image"]) or _ALL_REGIONS
    for fewer in (16, 8, 4):
        if regions > fewer:
            yield "regions_per_image", fewer
    yield "quantize_language_model", "bitsandbytes-4bit"
