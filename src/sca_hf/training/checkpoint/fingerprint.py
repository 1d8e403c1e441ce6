"""What makes a training run the run it is: its arguments, its data and its weights, as plain values to compare."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from ...files import differences, digest_of
from ...run_identity import data_identity, versions, weights_digest


# The library's arguments that settle the weights a run ends with; all others say where, how fast and how loud.
_SETTLING = (
    ["seed", "data_seed", "full_determinism", "train_sampling_strategy", "group_by_length", "dataloader_drop_last"]
    + ["learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "weight_decay"]
    + ["optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"]
    + ["label_smoothing_factor", "neftune_noise_alpha", "bf16", "fp16", "average_tokens_across_devices"]
    + ["ignore_data_skip"]
)
# Those that choose among the weights of a run.
_CHOOSING = ["load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps"]
_CHOOSING += ["eval_generate", "eval_prompt", "max_eval_samples"]
# Of the arguments that a subclass adds, those that do not.
_HARMLESS = {"save_form", "sample_sheet", "eval_generate", "eval_prompt", "max_eval_samples", "allow_changed_resume"}
# Schedules that do not look at the end of a run, which may therefore be moved.
_ENDLESS = {"constant", "constant_with_warmup", "inverse_sqrt"}


def run_fingerprint(trainer: Trainer) -> dict[str, Any]:
    """Returns arguments, data, collator and weights of a run; equal runs have equal descriptions."""
    collator = trainer.data_collator
    description = {
        "versions": versions(),
        "arguments": settling_arguments(trainer.args),
        "data": training_data(trainer.train_dataset),
        "collator": _plain_fields(collator) if dataclasses.is_dataclass(collator) else {},
    }
    if not any(hasattr(parameter, "to_local") for parameter in trainer.model.parameters()):
        # FSDP cuts up the model of a Trainer that has trained before.
        description["model"] = _model(trainer.model)
    return json.loads(json.dumps(description, default=str), parse_constant=str)


def run_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns a line for everything that both name and that is not the same: releases differ in what they name."""
    old, new = (
        {
            name if section == "arguments" else f"{section}: {name}": value
            for section, values in run.items()
            for name, value in sorted(values.items())
        }
        for run in (before, now)
    )
    both = [name for name in old if name in new]
    return differences({name: old[name] for name in both}, {name: new[name] for name in both})


@contextmanager
def preserve_rng_state() -> Iterator[None]:
    """Leaves every generator of random numbers as it was."""
    python, numbers = random.getstate(), np.random.get_state()
    # Of this process's device alone: a look at another one's generator would take memory there.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)


def settling_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Returns the arguments that decide the weights."""
    names = [*_SETTLING, *(_CHOOSING if args.load_best_model_at_end else ())]
    values: dict[str, Any] = {name: getattr(args, name) for name in names if hasattr(args, name)}
    added = {field.name for field in dataclasses.fields(args)}
    added -= {field.name for field in dataclasses.fields(TrainingArguments)} | _HARMLESS
    values |= {name: getattr(args, name) for name in added}
    if "embedding_cache" in values:
        # Where the cache lies does not matter, but its half precision does.
        values["embedding_cache"] = bool(values["embedding_cache"])
    values["images_per_step"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) not in _ENDLESS:
        name = "max_steps" if args.max_steps > 0 else "num_train_epochs"
        values[name] = getattr(args, name)
    return {name: getattr(value, "value", value) for name, value in values.items()}


def training_data(dataset: Any) -> dict[str, Any]:
    """Describes a data set as [`data_identity`] does, below what training wraps around it; {} for a stream."""
    # Our own wrappers keep the order; below them lies what they read.
    while type(dataset).__module__.startswith("sca_hf.") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    with preserve_rng_state():
        return data_identity(dataset) if hasattr(dataset, "__len__") else {}


def _plain_fields(collator: Any) -> dict[str, Any]:
    plain = (str, int, float, bool, dict, list, tuple, type(None))
    values = {field.name: getattr(collator, field.name) for field in dataclasses.fields(collator)}
    return {name: value for name, value in values.items() if isinstance(value, plain)}


def _model(model: torch.nn.Module) -> dict[str, str]:
    """Names the trained parameters, and digests the frozen ones: no checkpoint need hold those."""
    about, frozen = [], {}
    for name, parameter in model.named_parameters():
        # What torchao packs has no numbers of its own to look at.
        packed = type(parameter.data).__module__.startswith("torchao")
        about.append(f"{name} {tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}")
        if not parameter.requires_grad and parameter.numel() and not parameter.is_meta and not packed:
            frozen[name] = parameter
    return {"trained parameters": digest_of(about)[:16], "frozen weights": weights_digest(frozen)[:16]}
