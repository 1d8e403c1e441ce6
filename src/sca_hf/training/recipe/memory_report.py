"""What `sca-hf estimate` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...modeling.configuration_sca import ScaConfig
from ..arguments import ScaTrainingArguments
from .build import Configurations, build_empty_model, empty_model
from .memory import CUDA_BYTES, MemoryEstimate, PartMemory, estimate_memory, part_memories, smaller_settings
from .schema import Recipe


def report_recipe(recipe: Recipe, beside: Path, gpu_memory: int | None, images: int | None) -> str:
    """The estimate of a recipe as a table.

    Args:
        beside: The folder of the recipe, and of those whose output it may start from.
        gpu_memory: The bytes to compare the total with; the report says what to change where it does not fit.
        images: The number of images that the embedding cache would hold.
    """
    parts = Configurations(beside)

    def build(args: ScaTrainingArguments) -> Any:
        return build_empty_model(recipe.model, args, parts)

    estimate = estimate_memory(build, recipe.training)
    lines = [*format_estimate(estimate), "", _cache_line(estimate, images)]
    if gpu_memory is not None:
        lines += ["", _fit(estimate, gpu_memory)]
        if estimate.total > gpu_memory:
            lines += _advice(smaller_settings(build, recipe.training, gpu_memory), gpu_memory)
    return "\n".join([*lines, *(f"Note: {note}" for note in dict.fromkeys([*parts.notes, *estimate.notes]))])


def format_estimate(estimate: MemoryEstimate) -> list[str]:
    """A line for each item, in GiB."""
    setting, step = estimate.setting, estimate.step
    regions = setting["images"] * setting["regions"]
    rows = []
    for part in estimate.parts:
        precision = " + ".join(sorted(part.bytes_by_dtype))
        trained = f", {part.trained:,} trained" if part.trained else ", frozen"
        rows.append((f"weights: {part.name}", part.bytes, f"{part.parameters:,} parameters{trained}; {precision}"))
    rows.append(("gradients", estimate.gradients, ""))
    rows.append(("optimizer states", estimate.optimizer, setting["optimizer"]))
    for name, size in step.saved.items():
        each = f"{_mib(size / regions)} per region" if name in ("mask decoder", "mixer", "language model") else ""
        rows.append((f"activations: {name}", size, each))
    encoder = f"image encoder alone: {_mib(step.encoder_peak)}" if step.encoder_peak else ""
    rows.append(("workspace at the peak", step.workspace, encoder))
    rows.append(("CUDA context", CUDA_BYTES, "assumed"))
    rows.append(("total", estimate.total, ""))
    head = (
        f"{setting['images']} image{'s' if setting['images'] > 1 else ''} x {setting['regions']} regions x "
        f"{setting['tokens']} tokens, {setting['precision']}"
        f"{', gradient checkpointing' if setting['checkpointed'] else ''}, one GPU"
    )
    width = max(len(name) for name, _, _ in rows)
    return [head, *(f"{name:<{width}}  {size / 2**30:8.3f} GiB  {what}".rstrip() for name, size, what in rows)]


def _cache_line(estimate: MemoryEstimate, images: int | None) -> str:
    each = f"embedding cache on disk: {_mib(estimate.embedding_bytes)} per image"
    if images is not None:
        each += f", {images * estimate.embedding_bytes / 2**30:.1f} GiB for {images:,}"
    return each + ("" if estimate.cached else " (training.embedding_cache is not set)")


def _fit(estimate: MemoryEstimate, limit: int) -> str:
    size = f"{limit / 2**30:g} GiB"
    if estimate.total <= limit:
        return f"Fits {size}, {(limit - estimate.total) / 2**30:.1f} GiB to spare."
    return f"Does not fit {size}: {(estimate.total - limit) / 2**30:.1f} GiB too much. Changes, one after the other:"


def _advice(tried: list[tuple[str, int]], limit: int) -> list[str]:
    lines = [f"  {change:<56} {total / 2**30:8.1f} GiB" for change, total in tried]
    if not tried or tried[-1][1] > limit:
        lines.append("  Not enough: use a smaller language model or image encoder, or shard over several GPUs.")
    return lines


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


# Title, precision of the weights, form that the language model is quantized to.
PRECISIONS = (
    ("float32", torch.float32, None),
    ("bfloat16", torch.bfloat16, None),
    ("+ LM int8", torch.bfloat16, "bitsandbytes-8bit"),
    ("+ LM 4-bit", torch.bfloat16, "bitsandbytes-4bit"),
)


def weight_memories(config: ScaConfig) -> dict[str, list[PartMemory]]:
    """Returns what each part's weights and buffers take, by precision."""
    model = empty_model(config).requires_grad_(False)
    memories = {}
    for title, dtype, quantized in PRECISIONS:
        memories[title] = list(part_memories(model.to(dtype), quantized))
    return memories


def report_model(config: ScaConfig, gpu_memory: int | None = None) -> str:
    """A table of the weights by part and precision, in MiB.

    Args:
        gpu_memory: The bytes to compare each precision with.
    """
    memories = weight_memories(config)
    names = [part.name for part in next(iter(memories.values()))]
    rows = [["weights, MiB", *memories]]
    for index, name in enumerate(names):
        rows.append([name, *(f"{parts[index].bytes / 2**20:,.1f}" for parts in memories.values())])
    totals = [sum(part.bytes for part in parts) for parts in memories.values()]
    rows.append(["total", *(f"{total / 2**20:,.1f}" for total in totals)])
    if gpu_memory is not None:
        room = [f"{(gpu_memory - total) / 2**20:,.1f}" if total <= gpu_memory else "too large" for total in totals]
        rows.append([f"left of {gpu_memory / 2**30:g} GiB", *room])
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}" + "".join(f"{cell:>14}" for cell in row[1:]) for row in rows]
    embedding = config.image_frame.width * config.image_frame.grid**2 * 4
    note = f"An encoded image takes {embedding / 2**20:.1f} MiB in float32. The language model is quantized as in"
    return "\n".join([*lines, f"{note} bitsandbytes; activations and CUDA come on top."])
