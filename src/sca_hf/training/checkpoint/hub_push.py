"""What of a checkpoint goes to the Hub while a run trains."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from transformers.trainer import TRAINING_ARGS_NAME

from ...modeling.base_models_sca import ADAPTER_FOLDER


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_from_the_hub(folder: Path) -> None:
    """Has the Hub leave out the Trainer's arguments: a pickle, which names the folders of this machine."""
    path = folder / ".gitignore"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{TRAINING_ARGS_NAME}\n", encoding="utf-8")


def copy_code(checkpoint: Path, folder: Path) -> None:
    """Copies what else loads a checkpoint: the library pushes weights and configurations, which alone do not load."""
    for path in checkpoint.glob("*_sca.py"):
        shutil.copyfile(path, folder / path.name)
    if (checkpoint / ADAPTER_FOLDER).is_dir():
        shutil.copytree(checkpoint / ADAPTER_FOLDER, folder / ADAPTER_FOLDER, dirs_exist_ok=True)
