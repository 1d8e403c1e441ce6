"""Checkpoints that are whole or not there at all, and runs that resume from them exactly.

The Trainer writes `checkpoint-N` in place: a run killed meanwhile leaves an incomplete folder, which it later takes
for its newest checkpoint. Here a checkpoint is written below `_tmp-checkpoint-N`, flushed to the disk, given a
manifest (a list of its files) and only then renamed; older ones are deleted after that. The manifest also says what
run the checkpoint belongs to, so that resuming with other data, another seed or another batch size is an error and not
another run under the same name.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, SaveStrategy, TrainOutput

from ...files import (
    UNFINISHED,
    DiskFullError,
    file_sizes,
    flush,
    hash_file,
    put_in_place,
    removed_on_error,
    to_json,
    write_whole,
)
from ..presets import plain_name
from ..stopping import DivergedError, StopOnRequest, early_stopping_of, sigterm_calls
from .fingerprint import preserve_rng_state, run_differences, run_fingerprint
from .hub_push import copy_code, is_on_the_hub, keep_from_the_hub, warn_of_failed_pushes
from .integrity import (
    MANIFEST,
    CheckpointError,
    clear_leftovers,
    has_optimizer,
    incomplete_reason,
    last_checkpoint,
    lock_run,
    manifest_sum,
    read_json,
    rotate,
)


logger = logging.getLogger(__name__)

# The weights that a run under FSDP trains, in its checkpoints.
TRAINED_WEIGHTS = "trained.safetensors"


class EpochCallback(TrainerCallback):
    """Tells sampler and data set the epoch, however deep they are wrapped, and remembers where it began.

    The data loader itself reaches neither the sampler of a resumed epoch on several processes nor, beside a sampler,
    the data set.

    current: The epoch and the update step at which it began.
    upcoming: The same of the epoch that a run starts with.
    """

    def __init__(self) -> None:
        self.current = (0, 0)
        self.upcoming: tuple[int, int] | None = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Sets the epoch before anything is read."""
        self.current = self.upcoming or (self.current[0] + 1, state.global_step)
        self.upcoming = None
        for part in _parts_of_loader(kwargs["train_dataloader"]):
            if hasattr(part, "set_epoch"):
                part.set_epoch(self.current[0])


class WholeCheckpoints(Trainer):
    """A Trainer whose checkpoints are never incomplete, and which resumes a run exactly or refuses to.

    `train(resume_from_checkpoint=True)` takes the newest whole checkpoint. Where an argument, the data or the frozen
    weights are not those of the checkpoint's run, an error names them; the training argument `allow_changed_resume`
    turns that into a warning.

    Whatever stops training before its last step, save early stopping, leaves a checkpoint to resume from; with
    `enable_jit_checkpoint` SIGTERM does too, after the step that is being made.

    Attributes:
        stop_request: What has training stop at the end of a step.
    """

    _staging: Path | None = None
    _resumed: Path | None = None
    _saved = False
    _stopped_at: int | None = None
    _run: dict[str, Any]

    def __init__(self, model: Any, args: TrainingArguments, **kwargs: Any) -> None:
        # The library's callback would save in the middle of a step, after random numbers have been drawn for it.
        in_time, args.enable_jit_checkpoint = args.enable_jit_checkpoint, False
        try:
            super().__init__(model, args, **kwargs)
        finally:
            args.enable_jit_checkpoint = in_time
        self._epochs, self.stop_request = EpochCallback(), StopOnRequest()
        self.add_callback(self._epochs)
        self.add_callback(self.stop_request)

    @property
    def stopped(self) -> bool:
        """Whether training was stopped before its last step; early stopping is an end like any other."""
        unfinished = self.state.global_step < self.state.max_steps and not self.stopped_early
        return self.control.should_training_stop and unfinished

    @property
    def stopped_early(self) -> bool:
        """Whether an `EarlyStoppingCallback` ended training."""
        return early_stopping_of(self.callback_handler.callbacks) is not None

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as the Trainer does, from a whole checkpoint of the same run if one is asked for."""
        main = self.args.process_index == 0
        with lock_run(self.args.output_dir) if main else nullcontext():
            return self._train_alone(resume_from_checkpoint, *args, **kwargs)

    def _train_alone(self, resume_from_checkpoint: Any, *args: Any, **kwargs: Any) -> TrainOutput:
        if self.args.should_save:
            clear_leftovers(self.args.output_dir)
        self.accelerator.wait_for_everyone()
        self._run = run_fingerprint(self)
        self._resumed = self._agree_on_checkpoint(resume_from_checkpoint)
        waiting = sigterm_calls(self.stop_request.request) if self.args.enable_jit_checkpoint else nullcontext()
        with waiting:
            output = super().train(str(self._resumed) if self._resumed else None, *args, **kwargs)
        self._check_weights()
        return output

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Trains on a batch; ends the run at the first loss that is not finite.

        Raises:
            DivergedError: The loss is infinite or not a number.
        """
        loss = super().training_step(*args, **kwargs)
        # The library waits for the loss at this point too (logging_nan_inf_filter).
        if not torch.isfinite(loss).all():
            raise DivergedError(self._where_diverged(f"the loss is {loss.item():g} in step", 1))
        return loss

    def _check_weights(self) -> None:
        """Raises where a trained weight is not finite: such a model is neither saved nor called finished."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(getattr(parameter, "_local_tensor", parameter)).all():
                raise DivergedError(self._where_diverged(f"{plain_name(name)} is not finite after step", 0))

    def _where_diverged(self, what: str, ahead: int) -> str:
        # The checkpoint of the step before holds the weights that led here.
        step = self.state.global_step
        last = last_checkpoint(self.args.output_dir, before=step)
        good = f"The last good checkpoint is {last}." if last else "There is no earlier checkpoint."
        rate = self.optimizer.param_groups[0]["lr"] if self.optimizer is not None else self.args.learning_rate
        return (
            f"Training diverged: {what} {step + ahead} of {self.state.max_steps}, at a learning rate of {rate:g}. "
            f"{good} Nothing is marked as finished. Train with a lower learning rate, a longer warmup or in bfloat16 "
            "in place of float16, into another output."
        )

    def _agree_on_checkpoint(self, wanted: str | Path | bool | None) -> Path | None:
        """Returns what every process resumes from; the first one looks, so that none sees another newest folder."""
        if not wanted:
            return None
        found: list[str | None] = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = str(self._checked_checkpoint(wanted))
            except CheckpointError as error:
                found[1] = str(error)
        broadcast_object_list(found)
        if found[0] is None:
            raise CheckpointError(found[1])
        return Path(found[0])

    def _checked_checkpoint(self, wanted: str | Path | bool) -> Path:
        path = last_checkpoint(self.args.output_dir) if wanted is True else Path(str(wanted))
        if path is None or not path.is_dir():
            raise CheckpointError(f"There is no complete checkpoint {path or 'in ' + self.args.output_dir}.")
        if reason := incomplete_reason(path):
            other = last_checkpoint(path.parent)
            remedy = f"resume from {other}" if other else "start from scratch"
            raise CheckpointError(f"The checkpoint {path} is incomplete: {reason}; {remedy}.")
        if not has_optimizer(path):
            raise CheckpointError(
                f"{path} has no optimizer state (save_only_model): start a new run from its weights."
            )
        manifest = read_json(path / MANIFEST)
        if not isinstance(manifest, dict):
            logger.warning("%s does not record which run it belongs to: it is trusted.", path)
        elif different := run_differences(manifest.get("run", {}), self._run):
            message = f"The checkpoint {path} belongs to another run: {'; '.join(different)}."
            if not getattr(self.args, "allow_changed_resume", False):
                raise CheckpointError(
                    f"{message} Use the former values, start in another output_dir, or set allow_changed_resume=True "
                    "to resume as another run."
                )
            logger.warning("%s Resuming anyway.", message)
        return path

    def get_train_dataloader(self) -> DataLoader:
        """Seeds workers from a generator of their own.

        They would be seeded from that of dropout: once per epoch, or once per process where they persist, and a
        resumed run is another process.
        """
        loader = super().get_train_dataloader()
        if hasattr(self.train_dataset, "__len__") and not len(loader):
            raise ValueError(
                f"{len(self.train_dataset)} images make no batch of {self.args.train_batch_size} on "
                f"{self.args.world_size} processes, so there is nothing to train on: give more images or a smaller "
                "per_device_train_batch_size, or leave dataloader_drop_last out."
            )
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Corrects what the Trainer does not know: the passes over a stream, and that a run may have been finished."""
        epochs, batches = super()._init_training_state(*args, **kwargs)
        accumulated = self.args.gradient_accumulation_steps
        manifest = read_json(self._resumed / MANIFEST) if self._resumed else None
        if isinstance(manifest, dict) and not hasattr(self.train_dataset, "__len__"):
            epochs = int(manifest["epoch"])
            batches = (self.state.global_step - int(manifest["epoch_first_step"])) * accumulated
        if self.state.global_step >= self.state.max_steps or self.stopped_early:
            # It would take one step more before it looks.
            epochs, batches = self.state.num_train_epochs, 0
        self._epochs.upcoming = (epochs, self.state.global_step - batches // accumulated)
        if self._resumed and self._pushes and not is_on_the_hub(self._resumed, self.hub_model_id, self.args.hub_token):
            # The run may have ended before the Hub had this checkpoint.
            self._push_from_checkpoint(str(self._resumed))
        return epochs, batches

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _maybe_log_save_evaluate(
        self, tr_loss: torch.Tensor, grad_norm: Any, model: nn.Module, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Also saves where training stops: whoever limits its time would never get past its first checkpoint."""
        if (
            self.stopped
            and self._stopped_at == self.state.global_step
            and not float(self.state.epoch or 0).is_integer()
        ):
            return  # The Trainer takes the middle of an epoch, where it stops, for the end of the epoch.
        self._saved = False
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)
        wanted = self.args.save_strategy != SaveStrategy.NO or self.stop_request.requested
        if self.stopped and wanted and not self._saved:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self._stopped_at = self.state.global_step if self.stopped else None

    def _finalize_training(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # With a limit of 1 the library would delete every checkpoint but the best; a stopped run needs its last one.
        limit = self.args.save_total_limit
        self.args.save_total_limit = None if self.stopped else limit
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._check_weights()
        self._saved = True
        run_dir = Path(super()._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = run_dir / f"{UNFINISHED}{target.name}"
        try:
            with removed_on_error(self._staging, target, self._expected_bytes):
                super()._save_checkpoint(model, trial)
                self._finish(self._staging / target.name, target)
        except DiskFullError as error:
            last = last_checkpoint(run_dir)
            raise CheckpointError(
                f"{error} " + (f"The last complete checkpoint is {last}." if last else "")
            ) from error
        finally:
            self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _finish(self, part: Path, target: Path) -> None:
        """Writes the manifest of a checkpoint and renames it, once every process has written its part."""
        if self.state.best_model_checkpoint == str(part):
            # The Trainer takes the staging folder for the place where this checkpoint will stay.
            self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(part / TRAINER_STATE_NAME))
        # Each process writes a state of random numbers, and maybe a shard of the optimizer.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            epoch, first = self._epochs.current
            sizes = file_sizes(part)
            manifest = {"files": sizes, "sha256": {name: hash_file(part / name) for name in sizes}}
            manifest |= {"run": self._run, "epoch": epoch, "epoch_first_step": first}
            flush(part)
            write_whole(part / MANIFEST, to_json({**manifest, "sum": manifest_sum(manifest)}), durable=True)
            put_in_place(part, target)
            rotate(target, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _expected_bytes(self) -> int:
        """Returns what a checkpoint takes: as much as the last one, or trained parameters and optimizer state."""
        if last := last_checkpoint(super()._get_output_dir(None)):
            return sum(file_sizes(last).values())
        tensors = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        states = getattr(self.optimizer, "state", {}).values()
        tensors += [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # Uploads run in the background: not from a folder that is about to be renamed.
        if self._staging:
            return
        if self.args.hub_always_push:
            # The upload before still reads the files that this one is going to write.
            self._finish_current_push()
        warn_of_failed_pushes(getattr(getattr(self, "push_in_progress", None), "jobs", ()), self.hub_model_id)
        if self._pushes:
            copy_code(Path(checkpoint_folder), Path(self.args.output_dir))
            keep_from_the_hub(Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Pushes the model as the Trainer does, without what else lies in its folder."""
        if self.is_world_process_zero():
            keep_from_the_hub(Path(self.args.output_dir))
        return super().push_to_hub(*args, **kwargs)

    @property
    def _pushes(self) -> bool:
        """Whether this process pushes checkpoints: one does, and others need not ask the Hub anything."""
        args = self.args
        return args.push_to_hub and args.hub_strategy != HubStrategy.END and self.is_world_process_zero()

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # A resumed run does not repeat an evaluation that came after its checkpoint.
        with preserve_rng_state():
            return super()._evaluate(*args, **kwargs)


def _parts_of_loader(loader: Any) -> Iterator[Any]:
    """Yields data set and samplers, the inner ones too."""
    yield loader.dataset
    part = loader
    while part is not None:
        inner = getattr(part, "batch_sampler", None)
        part = inner if inner is not None else getattr(part, "sampler", None)
        yield part


class ShardedCheckpoints(WholeCheckpoints):
    """Beside what a run without FSDP saves, a checkpoint holds the trained weights under their own names.

    The library would resume from a pickle of every weight, the frozen ones too: gigabytes that no run changes.
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
            if plugin.ignored_modules is None:
                # Nor may it cast SAM's Fourier features, which are tiny, and lose positions.
                plugin.ignored_modules = [
                    part for part in self.model.modules() if hasattr(part, "positional_embedding")
                ]

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
                raise FileNotFoundError(f"{checkpoint} has no {TRAINED_WEIGHTS}: it is from a run without FSDP.")
            weights = load_file(file)
            if different := sorted(self._trained_names() ^ set(weights)):
                raise ValueError(
                    f"{file} belongs to another model or preset: {different[:3]} are in only one of them."
                )
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)

    def _trained_names(self) -> set[str]:
        parameters = self.model.named_parameters()
        return {plain_name(name) for name, parameter in parameters if parameter.requires_grad}
