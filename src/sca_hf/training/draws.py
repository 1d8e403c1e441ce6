"""Where training's randomness comes from: (seed, epoch, index) of a record, never a generator that others also move.

So a record is augmented, prompted and named the same way whatever the batch, the worker or the process it falls to,
and a run that was interrupted resumes as if it had not been.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any
from zlib import crc32

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


class _Drawn:
    """What drawn data sets share: a seed, an epoch that workers see too, and an augmentation."""

    def __init__(self, seed: int, augmentation: RecordAugmentation | None) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}, expected at least 0.")
        self.seed, self.augmentation = int(seed), augmentation
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that records are drawn for."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draws for another epoch from here on; the Trainer's data loader calls it."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, expected at least 0.")
        self._epoch.fill_(epoch)

    def _drawn(self, record: Mapping[str, Any], index: int) -> dict[str, Any]:
        draw = (self.seed, self.epoch, index)
        drawn = {**record, "draw": draw}
        if self.augmentation is None:
            return drawn
        return self.augmentation(drawn, draw_generator(draw, Stream.AUGMENTATION))


class SeededDataset(_Drawn, torch.utils.data.Dataset):
    """A map-style data set whose records say what they are drawn by: `record["draw"]` is (seed, epoch, index).

    Args:
        dataset: The region records by index, see `sca_hf.data.region`.
        seed: The seed of all draws.
        augmentation: What is applied to every record, see `sca_hf.data.augmentation`; None leaves them as they are.

    `set_epoch` reaches workers that are already running, as those of `persistent_workers` are.
    """

    def __init__(self, dataset: Any, seed: int, augmentation: RecordAugmentation | None = None) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"SeededDataset needs a data set with a length and an index, got {type(dataset).__name__}."
            )
        super().__init__(seed, augmentation)
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]
        return self._drawn(self.dataset[index], index)


class DrawnStream(_Drawn, torch.utils.data.IterableDataset):
    """The same for a data set that is streamed: a record's index is a number of its `image_id` and of how often that
    came before, so that it does not matter which worker reads it.

    Args: those of `SeededDataset`; the data set is iterated, and told the epoch if it has `set_epoch`.
    """

    def __init__(self, dataset: Iterable[Any], seed: int, augmentation: RecordAugmentation | None = None) -> None:
        super().__init__(seed, augmentation)
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Draws, and has the data set shuffle, for another epoch from here on; the Trainer's data loader calls it."""
        super().set_epoch(epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seen: Counter[int] = Counter()
        for record in self.dataset:
            number = crc32(str(record["image_id"]).encode())
            yield self._drawn(record, number + (seen[number] << 32))
            seen[number] += 1
