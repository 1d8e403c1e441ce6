"""Learning to read what NanoDet says, not what the photographs of a split happen to show.

Some 70 photographs show many people, few bears and no toaster, so a mixer that is trained on them learns the looks of
people and never the word "toaster". But what NanoDet finds has scores of COCO's 80 names, and the first channels of
what the eyes see are these too. So in half of the photographs the scores change places, and the captions with them: a
person scores, and is called, a toaster. Whoever wants to be right then has to read the scores, and learns each name
equally often.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sca_hf.training import ScaTrainer

from .names import NAMES
from .words import caption_of


_PLACES = {text: place for place, name in enumerate(NAMES) for text in (name, caption_of(name))}
_SHARE = 0.5
_ORDER = "score_order"


class SwappedNames:
    """Changes the captions of some records, and notes the order of scores that goes with them.

    Args:
        collator: A `RegionCollator`.
        sources: Names of the sets whose captions are COCO's names and nothing else.
    """

    def __init__(self, collator: Any, sources: Sequence[str]) -> None:
        self.collator, self.sources = collator, frozenset(sources)

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        orders, given = [], []
        for record in records:
            order = torch.arange(len(NAMES))
            if record.get("source") in self.sources and torch.rand(()) < _SHARE:
                order = torch.randperm(len(NAMES))
                record = {**record, "regions": [renamed(region, order) for region in record["regions"]]}
            orders.append(order)
            given.append(record)
        return {**self.collator(given), _ORDER: torch.stack(orders)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["collator"], name)


def renamed(region: Mapping[str, Any], order: torch.Tensor) -> dict[str, Any]:
    """A region that is called as its scores say after `scores[:, order]`.

    Raises:
        ValueError: It is not called by one of COCO's names.
    """
    # Name k takes the score of order[k]; so what was called order[k] is called k.
    places = torch.argsort(order).tolist()
    texts = region.get("captions") or []
    if unknown := [text for text in texts if text not in _PLACES]:
        raise ValueError(f"{unknown[0]!r} is not a caption of one of COCO's names; leave its set out.")
    return {**region, "captions": [caption_of(NAMES[places[_PLACES[text]]]) for text in texts]}


class SwappedNamesTrainer(ScaTrainer):
    """Trains with `SwappedNames` for sets of COCO's names; of a model whose eyes begin with NanoDet."""

    sources = ("coco", "coco2", "coco_names", "coco2_names", "litter_names", "sign_names")

    def __init__(self, model: Any, args: Any, **kwargs: Any) -> None:
        super().__init__(model, args, **kwargs)
        self.data_collator = SwappedNames(self.data_collator, self.sources)
        self._order: torch.Tensor | None = None
        model.sam.vision_encoder.encoder.register_forward_hook(self._change_places)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Has the scores of this batch change places."""
        self._order = inputs.pop(_ORDER, None)
        try:
            return super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            self._order = None

    def _change_places(self, module: nn.Module, given: Any, output: Any) -> Any:
        if self._order is None:
            return None
        features = output.last_hidden_state
        index = self._order[:, :, None, None].expand(-1, -1, *features.shape[2:])
        scores = features[:, : len(NAMES)].gather(1, index)
        output.last_hidden_state = torch.cat([scores, features[:, len(NAMES) :]], dim=1)
        if (found := output.detections) is not None:
            scores = found[..., 4:].gather(2, self._order[:, None].expand(-1, found.shape[1], -1))
            output.detections = torch.cat([found[..., :4], scores], dim=2)
        return output
