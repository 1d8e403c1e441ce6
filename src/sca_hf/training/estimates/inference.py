"""What a model's weights take when it only answers, in each precision that it can be loaded in."""

from __future__ import annotations

import torch

from ...modeling.configuration_sca import ScaConfig
from ...modeling.modeling_sca import ScaForConditionalGeneration
from .memory import PartMemory, grid_side, part_memories


# Title, precision of the weights, form that the language model is quantized to.
PRECISIONS = (
    ("float32", torch.float32, None),
    ("bfloat16", torch.bfloat16, None),
    ("+ LM int8", torch.bfloat16, "bitsandbytes-8bit"),
    ("+ LM 4-bit", torch.bfloat16, "bitsandbytes-4bit"),
)


def weight_memories(config: ScaConfig) -> dict[str, list[PartMemory]]:
    """Returns what each part's weights and buffers take, by precision."""
    with torch.device("meta"):
        model = ScaForConditionalGeneration(config).requires_grad_(False)
    memories = {}
    for title, dtype, quantized in PRECISIONS:
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        memories[title] = list(part_memories(model, quantized))
    return memories


def report_model(config: ScaConfig, gpu_memory: int | None = None) -> str:
    """A table of the weights by part and precision, in MiB.

    Args:
        gpu_memory: bytes to compare each precision with.
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
    embedding = config.sam_config.vision_config.output_channels * grid_side(config) ** 2 * 4
    note = f"An encoded image takes {embedding / 2**20:.1f} MiB in float32. The language model is quantized as by"
    return "\n".join([*lines, f"{note} bitsandbytes; activations and CUDA come on top."])
