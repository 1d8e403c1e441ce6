"""What the stages of a recipe share: their arguments, and resuming after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from transformers import TrainingArguments

from sca_hf.files import staged
from sca_hf.training.checkpoint.integrity import last_checkpoint
from sca_hf.training.checkpoint.trainer import WholeCheckpoints


class StageSettings(Protocol):
    """What the settings of every stage have."""

    steps: int
    batch_size: int
    learning_rate: float
    save_steps: int
    seed: int


def stage_arguments(folder: Path, settings: StageSettings, **more: Any) -> TrainingArguments:
    """Returns the Trainer's arguments, common to all stages where `more` does not say otherwise."""
    common: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "adam_beta2": 0.98,
        "weight_decay": 0.01,
        "warmup_steps": 100,
        "lr_scheduler_type": "cosine",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "logging_steps": 100,
        "report_to": "none",
        "dataloader_drop_last": True,
        "dataloader_pin_memory": False,
        "seed": settings.seed,
    }
    return TrainingArguments(**{**common, **more})


def train_from_last_checkpoint(trainer: WholeCheckpoints) -> None:
    """Trains to the end, from the newest checkpoint that was written whole if there is one."""
    trainer.train(resume_from_checkpoint=last_checkpoint(trainer.args.output_dir))
    trainer.save_state()


def save_whole(folder: Path, *parts: Any) -> Path:
    """Saves models, tokenizers and processors into one folder, which exists only once everything in it is written."""
    with staged(folder) as part:
        for saveable in parts:
            saveable.save_pretrained(part)
    return folder
