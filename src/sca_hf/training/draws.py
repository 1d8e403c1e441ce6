"""Where training's randomness comes from: (seed, epoch, index) of a record, never a generator that others also move.

So a record is augmented, prompted and named the same way whatever the batch, the worker or the process it falls to,
and a run that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch


Draw = tuple[int, int, int]
RecordAugmentation = Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]


class Stream(IntEnum):
    """What is drawn for a record; each has numbers of its own, so that one does not shift another."""

    PROMPTS = 0
    AUGMENTATION = 1


def draw_generator(draw: Sequence[int], stream: Stream = Stream.PROMPTS) -> np.random.Generator:
    """Returns the generator of a record's `draw`, (seed, epoch, index)."""
    return np.random.default_rng([*draw, stream])


class DrawnRecords(torch.utils.data.Dataset):
    """A map-style data set whose records say what they are drawn by: `record["draw"]` is (seed, epoch, index).

    Args:
        dataset: region records by index, see `sca_hf.data.region`.
        seed: of all draws.
        augmentation: applied to every record, see `sca_hf.data.augmentation`; None leaves them as they are.

    `set_epoch` reaches workers that are already running, as those of `persistent_workers` are.
    """

    def __init__(self, dataset: Any, seed: int, augmentation: RecordAugmentation | None = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(f"DrawnRecords needs a data set with a length and an index, got {type(dataset).__name__}.")
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected a number from 0 on.")
        self.dataset, self.seed, self.augmentation = dataset, int(seed), augmentation
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that records are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draws anew from here on; the Trainer's data loader calls it."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected a number from 0 on.")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        draw = (self.seed, self.epoch, index)
        record = {**self.dataset[index], "draw": draw}
        if self.augmentation is None:
            return record
        return self.augmentation(record, draw_generator(draw, Stream.AUGMENTATION))
