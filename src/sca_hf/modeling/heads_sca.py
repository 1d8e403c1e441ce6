"""The language model's head on chosen positions only: with large vocabularies it costs as much as all layers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def lm_head_at(language_model: nn.Module, positions: torch.Tensor | None) -> Iterator[None]:
    """Within, the head reads only some of the positions that its language model hands to it.

    What a family does to logits after its head (scaling, soft capping) is done to each of them alone, so the logits
    (n, V) that come out are those of the whole.

    Args:
        positions: (n,) rows of the flattened (rows * T) positions. None: all, as ever.
    """
    if positions is None:
        yield
        return
    head = language_model.get_output_embeddings()
    handle = head.register_forward_pre_hook(
        lambda _, inputs: (inputs[0].flatten(0, -2).index_select(0, positions), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def scatter_logits(logits: torch.Tensor, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Logits (n, V) at their places among `count` positions, (count, V); zero elsewhere."""
    return logits.new_zeros(count, logits.shape[-1]).index_copy(0, positions, logits)


__all__ = ["lm_head_at", "scatter_logits"]
