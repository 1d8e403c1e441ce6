"""Checkpoints that are whole or not there at all, and runs that go on from them exactly.

The Trainer writes `checkpoint-N` in place: a run killed meanwhile leaves a torn folder, which it later takes for its
newest checkpoint. Here a checkpoint is written below `_tmp-checkpoint-N`, flushed to the disk, sealed by a list of its
files and only then renamed; older ones go after that. The seal also says what run the checkpoint belongs to, so that
going on with other data, another seed or another batch size is an error and not another run under the same name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFile
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput

from ...files import (
    REPLACED,
    UNFINISHED,
    DiskFullError,
    drop,
    file_sizes,
    flush,
    flush_entry,
    put_in_place,
    removed_on_error,
)
from ...modeling.base_models_sca import ADAPTER_FOLDER
from .run_identity import preserve_rng_state, run_differences, run_fingerprint


logger = logging.getLogger(__name__)

SEAL = "checkpoint_seal.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, is torn, or belongs to another run."""


def last_checkpoint(folder: str | Path) -> Path | None:
    """Returns the newest whole checkpoint of a folder, ours or the stock Trainer's; None where there is none."""
    for path in sorted(_checkpoints(Path(folder)), key=_step, reverse=True):
        reason = torn(path)
        if reason is None:
            return path
        logger.warning("%s is torn and left out: %s.", path, reason)
    return None


def torn(checkpoint: Path) -> str | None:
    """Says why a checkpoint is not whole, or returns None.

    One of ours holds every file its seal names, at its length. Of the stock Trainer's, which is not sealed, every file
    must end where its own format says, and the Trainer's state, written last, must be that of the folder's step.
    """
    sizes = file_sizes(checkpoint)
    if SEAL in sizes:
        seal = _read_json(checkpoint / SEAL)
        files = seal.get("files") if isinstance(seal, dict) else None
        if not isinstance(files, dict):
            return f"{SEAL} cannot be read"
        return next((f"{name} is missing or cut" for name, size in files.items() if sizes.get(name) != size), None)
    state = _read_json(checkpoint / TRAINER_STATE_NAME)
    if not isinstance(state, dict) or state.get("global_step") != _step(checkpoint):
        return f"{TRAINER_STATE_NAME} is missing or cut"
    return next((f"{name} is cut" for name in sizes if not _is_complete(checkpoint / name, set(sizes))), None)


def clear_leftovers(folder: str | Path) -> None:
    """Removes what killed saves left; a checkpoint that lacked only its last renaming gets it."""
    folder = Path(folder)
    for staging in sorted(folder.glob(f"{UNFINISHED}{PREFIX_CHECKPOINT_DIR}-*")):
        name = staging.name.removeprefix(UNFINISHED)
        part, target = staging / name, folder / name
        if (part / SEAL).exists() and torn(part) is None and (not target.exists() or torn(target)):
            put_in_place(part, target)
        shutil.rmtree(staging, ignore_errors=True)
    for replaced in folder.glob(f"{REPLACED}{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(replaced, ignore_errors=True)


class EpochCallback(TrainerCallback):
    """Tells sampler and data set the epoch, however deep they are wrapped, and remembers where it began.

    The data loader itself reaches neither the sampler of a resumed epoch on several processes nor, beside a sampler,
    the data set.

    current: the epoch and the update step at which it began. upcoming: the same of the epoch a run starts with.
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
    """A Trainer whose checkpoints are never torn, and which goes on exactly where a run stopped or refuses to.

    `train(resume_from_checkpoint=True)` takes the newest whole checkpoint. Where an argument, the data or the frozen
    weights are not those of the checkpoint's run, an error names them; the training argument `allow_changed_resume`
    turns that into a warning.
    """

    _staging: Path | None = None
    _resumed: Path | None = None
    _run: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._epochs = EpochCallback()
        self.add_callback(self._epochs)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains as the Trainer does, from a whole checkpoint of the same run if one is asked for."""
        if self.args.should_save:
            clear_leftovers(self.args.output_dir)
            if self.args.push_to_hub:
                keep_from_the_hub(Path(self.args.output_dir))
        self.accelerator.wait_for_everyone()
        self._run = run_fingerprint(self)
        self._resumed = self._agree_on_checkpoint(resume_from_checkpoint)
        return super().train(str(self._resumed) if self._resumed else None, *args, **kwargs)

    def _agree_on_checkpoint(self, wanted: str | Path | bool | None) -> Path | None:
        """Returns what every process goes on from; the first one looks, so that none sees another newest folder."""
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
            raise CheckpointError(f"There is no whole checkpoint {path or 'in ' + self.args.output_dir}.")
        if reason := torn(path):
            other = last_checkpoint(path.parent)
            mend = f"resume from {other}" if other else "start anew"
            raise CheckpointError(f"The checkpoint {path} is torn: {reason}; {mend}.")
        if not _has_optimizer(path):
            raise CheckpointError(f"{path} has no optimizer state (save_only_model): start anew from its weights.")
        seal = _read_json(path / SEAL)
        if not isinstance(seal, dict):
            logger.warning("%s does not say what run it belongs to: taken on trust.", path)
        elif different := run_differences(seal.get("run", {}), self._run):
            message = f"The checkpoint {path} belongs to another run: {'; '.join(different)}."
            if not getattr(self.args, "allow_changed_resume", False):
                raise CheckpointError(
                    f"{message} Give the former values, start anew in another output_dir, or set "
                    "allow_changed_resume=True to go on as another run."
                )
            logger.warning("%s Going on all the same.", message)
        return path

    def get_train_dataloader(self) -> DataLoader:
        """Seeds workers from a generator of their own.

        They would be seeded from that of dropout: once per epoch, or once per process where they persist, and a
        resumed run is another process.
        """
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Mends what the Trainer does not know: the passes over a stream, and that a run may have been done."""
        epochs, batches = super()._init_training_state(*args, **kwargs)
        accumulated = self.args.gradient_accumulation_steps
        seal = _read_json(self._resumed / SEAL) if self._resumed else None
        if isinstance(seal, dict) and not hasattr(self.train_dataset, "__len__"):
            epochs = int(seal["epoch"])
            batches = (self.state.global_step - int(seal["epoch_first_step"])) * accumulated
        if self.state.global_step >= self.state.max_steps:
            # It would take one step more before it looks.
            epochs, batches = self.state.num_train_epochs, 0
        self._epochs.upcoming = (epochs, self.state.global_step - batches // accumulated)
        if self._resumed and self._pushes and not self._is_on_the_hub(self._resumed):
            # The run may have ended before the Hub had this checkpoint.
            self._push_from_checkpoint(str(self._resumed))
        return epochs, batches

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        target = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._staging = run_dir / f"{UNFINISHED}{target.name}"
        try:
            with removed_on_error(self._staging, target, self._least_bytes):
                super()._save_checkpoint(model, trial)
                self._finish(self._staging / target.name, target)
        except DiskFullError as error:
            last = last_checkpoint(run_dir)
            raise CheckpointError(f"{error} " + (f"The last whole checkpoint is {last}." if last else "")) from error
        finally:
            self._staging = None
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    def _finish(self, part: Path, target: Path) -> None:
        """Seals and renames a checkpoint once every process has written its share of it."""
        if self.state.best_model_checkpoint == str(part):
            # The Trainer takes the staging folder for the place where this checkpoint will stay.
            self.state.best_model_checkpoint = str(target)
            if self.args.should_save:
                self.state.save_to_json(str(part / TRAINER_STATE_NAME))
        # Each process writes a state of random numbers, and maybe a shard of the optimizer.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            epoch, first = self._epochs.current
            seal = {"files": file_sizes(part), "run": self._run, "epoch": epoch, "epoch_first_step": first}
            flush(part)
            (part / SEAL).write_text(json.dumps(seal, indent=1), encoding="utf-8")
            flush_entry(part / SEAL)
            flush_entry(part)
            put_in_place(part, target)
            _rotate(target, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _least_bytes(self) -> int:
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
        self._warn_of_failed_pushes()
        if self._pushes:
            copy_code(Path(checkpoint_folder), Path(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    @property
    def _pushes(self) -> bool:
        """Whether this process pushes checkpoints: one does, and others need not ask the Hub anything."""
        args = self.args
        return args.push_to_hub and args.hub_strategy != HubStrategy.END and self.is_world_process_zero()

    def _is_on_the_hub(self, checkpoint: Path) -> bool:
        """Whether the repository holds a checkpoint's weights; pushed again they would make a commit of no change."""
        weights = [*checkpoint.glob("*.safetensors"), *(checkpoint / ADAPTER_FOLDER).glob("*.safetensors")]
        names = [path.relative_to(checkpoint).as_posix() for path in weights]
        found = HfApi(token=self.args.hub_token).get_paths_info(self.hub_model_id, names)
        there = {entry.path: entry.lfs.sha256 for entry in found if isinstance(entry, RepoFile) and entry.lfs}
        return all(there.get(name) == _sha256(path) for name, path in zip(names, weights, strict=True))

    def _warn_of_failed_pushes(self) -> None:
        """The library forgets them; the next push brings everything all the same."""
        for job in getattr(getattr(self, "push_in_progress", None), "jobs", ()):
            if job.done() and (error := job.exception()):
                logger.warning("A push to %s failed: %s", self.hub_model_id, error)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        # A resumed run does not repeat an evaluation that came after its checkpoint.
        with preserve_rng_state():
            return super()._evaluate(*args, **kwargs)


def _sha256(path: Path) -> str:
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


def _parts_of_loader(loader: Any) -> Iterator[Any]:
    """Yields data set and samplers, the inner ones too."""
    yield loader.dataset
    part = loader
    while part is not None:
        inner = getattr(part, "batch_sampler", None)
        part = inner if inner is not None else getattr(part, "sampler", None)
        yield part


def _rotate(newest: Path, limit: int | None, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond `limit`, never the newest nor the best."""
    if not limit or limit < 0:
        return
    protected = {newest} | ({Path(best)} if best and Path(best).is_dir() else set())
    others = [path for path in _checkpoints(newest.parent) if path not in protected]
    others.sort(key=lambda path: (path.stat().st_mtime_ns, _step(path)))
    for path in others[: max(0, len(others) + len(protected) - max(limit, len(protected)))]:
        drop(path)


def _checkpoints(folder: Path) -> list[Path]:
    paths = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if re.fullmatch(r"\d+", path.name.rpartition("-")[2]) and path.is_dir()]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _has_optimizer(checkpoint: Path) -> bool:
    """Deepspeed keeps optimizer and scheduler in a folder of its own, named by the file `latest`."""
    return any((checkpoint / name).is_file() for name in ("scheduler.pt", "latest"))


def _is_complete(path: Path, names: set[str]) -> bool:
    """Whether a file of the stock Trainer ends where its format says: the end is what a killed save lacks."""
    if path.name.endswith(".index.json"):
        index = _read_json(path)
        return isinstance(index, dict) and set(index.get("weight_map", {}).values()) <= names
    if path.suffix == ".json":
        return _read_json(path) is not None
    if path.suffix == ".safetensors":
        return _safetensors_length(path) == path.stat().st_size
    # torch.save writes a zip archive, whose table of contents comes last.
    return path.suffix not in (".pt", ".pth", ".bin") or zipfile.is_zipfile(path)


def _safetensors_length(path: Path) -> int | None:
    """Returns the length that the header of a safetensors file promises."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
