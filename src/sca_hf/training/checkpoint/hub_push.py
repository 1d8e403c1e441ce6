"""What of a checkpoint goes to the Hub while a run trains."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from transformers.trainer import TRAINING_ARGS_NAME

from ...files import hash_file, replacing, write_whole
from ...hub.private import NAMES
from ...modeling.adapters_sca import ADAPTER_FOLDER


logger = logging.getLogger(__name__)

_OURS = "# what is not part of a saved model; written again before each push"
_MODEL = re.compile(rf"\w+_sca\.py|model-\d+-of-\d+\.safetensors|{ADAPTER_FOLDER}")


def is_on_the_hub(checkpoint: Path, repo_id: str, token: str | None) -> bool:
    """Says whether a repository holds a checkpoint's weights; pushed again they would make a commit of no change."""
    weights = [*checkpoint.glob("*.safetensors"), *(checkpoint / ADAPTER_FOLDER).glob("*.safetensors")]
    names = [path.relative_to(checkpoint).as_posix() for path in weights]
    found = HfApi(token=token).get_paths_info(repo_id, names)
    there = {entry.path: entry.lfs.sha256 for entry in found if isinstance(entry, RepoFile) and entry.lfs}
    return all(there.get(name) == hash_file(path) for name, path in zip(names, weights, strict=True))


def warn_of_failed_pushes(jobs: Iterable[Any], repo_id: str) -> None:
    """Logs the pushes that failed, which the library forgets; the next push brings everything all the same."""
    for job in jobs:
        if job.done() and (error := job.exception()):
            logger.warning("A push to %s failed: %s", repo_id, error)


def keep_from_the_hub(folder: Path) -> None:
    """Has the Hub ignore what no saved model has, as notes and the Trainer's arguments: a pickle that names folders.

    A `.gitignore` that somebody else wrote is left as it is.
    """
    path = folder / ".gitignore"
    if path.exists() and not path.read_text(encoding="utf-8").startswith(_OURS):
        return
    folder.mkdir(parents=True, exist_ok=True)
    found = {entry.name for entry in folder.iterdir() if not _MODEL.fullmatch(entry.name)}
    # What has a meaning in such a file stands for itself as well.
    names = [re.sub(r"[^\w./-]", "?", name) for name in sorted(found - NAMES | {path.name, TRAINING_ARGS_NAME})]
    write_whole(path, "\n".join([_OURS, *(f"/{name}" for name in names), ""]))


def copy_code(checkpoint: Path, folder: Path) -> None:
    """Copies what else loads a checkpoint: the library pushes weights and configurations, which alone do not load."""
    adapter = checkpoint / ADAPTER_FOLDER
    for path in [*checkpoint.glob("*_sca.py"), *(file for file in adapter.rglob("*") if file.is_file())]:
        target = folder / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as draft:
            shutil.copyfile(path, draft)
