"""What the stages of a recipe share: their arguments, going on after an interruption, and saving all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

from transformers import Trainer, TrainingArguments


class StageSettings(Protocol):
    """What the settings of every stage have."""

    steps: int
    batch_size: int
    learning_rate: float
    save_steps: int
    seed: int


class Saveable(Protocol):
    """A model, tokenizer or processor."""

    def save_pretrained(self, save_directory: Path) -> Any:
        """Writes itself to a folder."""


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


def train_from_last_checkpoint(trainer: Trainer) -> None:
    """Trains to the end, from the newest checkpoint that was written whole if there is one."""
    checkpoint = last_whole_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.save_state()


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint of a folder: the Trainer writes its state last, so that one can be read."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((path for path in checkpoints if _is_json(path / "trainer_state.json")), None)


def save_whole(folder: Path, *parts: Saveable) -> Path:
    """Saves parts into one folder, which exists only once everything in it is written."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in parts:
        part.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True
