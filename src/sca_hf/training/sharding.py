"""Training with FSDP, where each process holds a shard of every weight."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers.trainer import SCHEDULER_NAME

from .checkpoint.whole import WholeCheckpoints
from .presets import plain_name


TRAINED_WEIGHTS = "trained.safetensors"


class ShardedCheckpoints(WholeCheckpoints):
    """Beside what a run without FSDP saves, a checkpoint holds the trained weights under their own names.

    The library would go on from a pickle of every weight, the frozen ones too: gigabytes that no run changes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled and getattr(self.args, "preset", None) == "all":
            # FSDP waits for gradients of the same weights from everyone; those of a prompt's kind come with it only.
            raise ValueError("the preset all cannot be sharded: batches use different weights; train it with DDP.")
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
            # FSDP would cast coordinates and losses too; the model casts what it may. Gradients are summed in float32.
            plugin.mixed_precision_policy = dataclasses.replace(
                plugin.mixed_precision_policy,
                cast_forward_inputs=False,
                output_dtype=None,
                reduce_dtype=torch.float32,
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights = get_model_state_dict(self.model, options=options)
        save_fsdp_optimizer(
            self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
        )
        if self.args.should_save:
            # Buffers and second names of tied weights are among them.
            trained = {name: weights[name].contiguous() for name in self._trained_names()}
            save_file(trained, Path(output_dir) / TRAINED_WEIGHTS)
            with warnings.catch_warnings():
                # Torch reminds that the state of the optimizer belongs to it: it is saved above.
                warnings.simplefilter("ignore", UserWarning)
                torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            self._load_trained(Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            self._load_trained(Path(str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()

    def _load_trained(self, checkpoint: Path) -> None:
        """Reads the trained weights on one process and hands everyone their shards."""
        weights = {}
        if self.is_world_process_zero():
            file = checkpoint / TRAINED_WEIGHTS
            if not file.is_file():
                raise FileNotFoundError(f"{checkpoint} has no {TRAINED_WEIGHTS}: it is of a run without FSDP.")
            weights = load_file(file)
            if different := sorted(self._trained_names() ^ set(weights)):
                raise ValueError(f"{file} is of another model or preset: {different[:3]} are in one of them only.")
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def _trained_names(self) -> set[str]:
        parameters = self.model.named_parameters()
        return {plain_name(name) for name, parameter in parameters if parameter.requires_grad}
