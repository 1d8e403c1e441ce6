"""The listener as a term of the loss: a caption should tell its region apart from the others of its picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..modeling.listener_sca import pair_log_likelihoods


def agreement_loss(
    language_model: Any, prefixes: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Returns the mean of -log p(region | its true caption) among the regions of its picture that are in the batch.

    Captions weigh as their tokens, as in the caption loss. Regions with the same caption are not told apart: any of
    them is right. A picture whose regions all have one caption has nothing to tell.

    Args:
        language_model: The model's own.
        prefixes: (B, R, A, L, D), `prefix_embeds` of a forward pass; of several caption heads the best one counts.
        labels: (B, R, T) token ids, -100 where nothing is to be predicted.
        num_items: The number of labels that the sum is divided by; None for those here.
    """
    captions = [[[token for token in ids if token != -100] for ids in regions] for regions in labels.tolist()]
    return captions_agreement_loss(language_model, prefixes, captions, num_items)


def captions_agreement_loss(
    language_model: Any,
    prefixes: torch.Tensor,
    captions: Sequence[Sequence[Sequence[int]]],
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """[`agreement_loss`] of captions as lists of ids: B of R each, empty where a region has none."""
    heads, count = prefixes.shape[2], len(captions[0])
    groups, owners = [], torch.zeros(len(captions), count, count, dtype=torch.bool)  # (B, R, J)
    for image, regions in enumerate(captions):
        said = list(map(tuple, regions))
        columns = {ids: column for column, ids in enumerate(dict.fromkeys(filter(None, said)))}
        if len(columns) < 2:
            continue
        for region, ids in enumerate(said):
            if ids:
                owners[image, region, columns[ids]] = True
        rows = [(image * len(said) + region) * heads for region, ids in enumerate(said) if ids]
        texts = [(list(ids), column) for ids, column in columns.items()]
        groups.append(([row + head for row in rows for head in range(heads)], texts))
    if not groups:
        return prefixes.sum() * 0.0  # all processes go backwards
    heard = pair_log_likelihoods(language_model, prefixes.flatten(0, 2), groups, count)
    heard = heard.to(prefixes.device).view(*prefixes.shape[:3], -1).amax(dim=2)  # (B, R, J)
    owners, lowest = owners.to(heard.device), torch.finfo(heard.dtype).min
    chance = heard.masked_fill(~owners.any(2, keepdim=True), lowest).log_softmax(dim=1)
    right = chance.masked_fill(~owners, lowest).logsumexp(dim=1, keepdim=True)  # (B, 1, J)
    tokens = torch.tensor([[[len(ids)] for ids in regions] for regions in captions], device=heard.device)
    if num_items is None:
        num_items = tokens.sum().clamp(min=1)
    return -(right.masked_fill(~owners.any(1, keepdim=True), 0.0) * (tokens * owners)).sum() / num_items
