"""How fast a run is, in images and regions: counted on the device, read when the Trainer logs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


class Throughput:
    """Counts images and regions between two logs; evaluation and saving stand outside the clock."""

    def __init__(self) -> None:
        self._images = 0
        self._regions: torch.Tensor | int = 0
        self._seconds = 0.0
        self._since: float | None = None

    def count(self, inputs: Mapping[str, Any]) -> None:
        """Adds a batch without waiting for the device."""
        if self._since is None:
            self._since = time.perf_counter()
        real = inputs.get("region_mask")
        if real is None:
            real = (inputs["labels"] != -100).any(dim=-1)
        self._images += len(real)
        self._regions = self._regions + real.sum()

    def pause(self) -> None:
        """Stops the clock until the next batch."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
        self._since = None

    def take(self) -> torch.Tensor:
        """Images, regions and seconds since the last call; three numbers that may be summed over processes."""
        self.pause()
        counts = torch.tensor([float(self._images), float(self._regions), self._seconds])
        self._images, self._regions, self._seconds = 0, 0, 0.0
        return counts


class RegionProgress(ProgressCallback):
    """The library's progress bar, with the speed beside it."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Shows the speed that was logged."""
        super().on_log(args, state, control, logs=logs, **kwargs)
        if self.training_bar is not None and logs and "regions_per_second" in logs:
            self.training_bar.set_postfix_str(f"{logs['regions_per_second']:.1f} regions/s")
