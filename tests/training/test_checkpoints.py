"""Checkpoints: whole or not there, found whatever wrote them, replaced and rotated without a moment of halves."""

import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sca_hf.files import DiskFullError, LockedError, file_sizes, staged
from sca_hf.training.checkpoint.integrity import (
    MANIFEST,
    CheckpointError,
    clear_leftovers,
    incomplete_reason,
    last_checkpoint,
)
from tests.training.killed_runs import CONTEXT, make_trainer, train_until_full


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of six steps with a checkpoint every two."""
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, max_steps=6, save_total_limit=None).train()
    return folder / "checkpoints"


@pytest.fixture
def checkpoints(run, tmp_path):
    return shutil.copytree(run, tmp_path / "checkpoints")


def unlisted(folder):
    """As the stock Trainer writes them."""
    for manifest in folder.rglob(MANIFEST):
        manifest.unlink()
    return folder


def test_a_checkpoint_holds_what_a_run_resumes_with_and_its_manifest_names_all_of_it(run):
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    files = file_sizes(run / "checkpoint-6")
    wanted = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert wanted <= set(files)
    manifest = json.loads((run / "checkpoint-6" / MANIFEST).read_text())
    assert manifest["files"] == {name: size for name, size in files.items() if name != MANIFEST}
    assert last_checkpoint(run) == run / "checkpoint-6"


@pytest.mark.parametrize("listed", [True, False], ids=["ours", "stock"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json"]
)
@pytest.mark.parametrize("left", [0.0, 0.6, 0.999])
def test_an_incomplete_checkpoint_is_never_taken(checkpoints, listed, name, left, caplog):
    if not listed:
        unlisted(checkpoints)
    assert last_checkpoint(checkpoints).name == "checkpoint-6"
    path = checkpoints / "checkpoint-6" / name
    os.truncate(path, min(int(path.stat().st_size * left), path.stat().st_size - 3))
    assert name in incomplete_reason(checkpoints / "checkpoint-6")
    assert last_checkpoint(checkpoints).name == "checkpoint-4"
    assert f"checkpoint-6 is incomplete and skipped: {name}" in caplog.text


@pytest.mark.parametrize("listed", [True, False], ids=["ours", "stock"])
def test_a_checkpoint_without_its_last_file_is_incomplete(checkpoints, listed):
    if not listed:
        unlisted(checkpoints)
    (checkpoints / "checkpoint-6" / "trainer_state.json").unlink()
    assert last_checkpoint(checkpoints).name == "checkpoint-4"
    (checkpoints / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 3}')
    assert last_checkpoint(checkpoints).name == "checkpoint-2"


def test_a_shard_that_its_index_names_must_be_there(checkpoints):
    folder = unlisted(checkpoints) / "checkpoint-6"
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.zeros(2)}, folder / "model-00001-of-00002.safetensors")
    assert "index" in incomplete_reason(folder)
    save_file({"b": torch.zeros(2)}, folder / "model-00002-of-00002.safetensors")
    assert incomplete_reason(folder) is None


def test_folders_that_are_no_checkpoints_are_not_looked_at(tmp_path):
    for name in ("checkpoint-best", "checkpoint-", "_tmp-checkpoint-9", "checkpoint--3"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_checkpoint(tmp_path) is None and last_checkpoint(tmp_path / "nowhere") is None


def test_leftovers_go_and_what_lacked_only_its_renaming_is_kept(checkpoints):
    staging = checkpoints / "_tmp-checkpoint-6"
    staging.mkdir()
    (checkpoints / "checkpoint-6").rename(staging / "checkpoint-6")
    (checkpoints / "_tmp-checkpoint-8" / "checkpoint-8").mkdir(parents=True)
    (checkpoints / "_tmp-old-checkpoint-1").mkdir()
    clear_leftovers(checkpoints)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert last_checkpoint(checkpoints).name == "checkpoint-6"
    staging.mkdir()
    (checkpoints / "checkpoint-6").rename(staging / "checkpoint-6")
    os.truncate(staging / "checkpoint-6" / "optimizer.pt", 10)
    clear_leftovers(checkpoints)
    assert last_checkpoint(checkpoints).name == "checkpoint-4" and not staging.exists()


def test_the_next_start_clears_up_and_a_torn_folder_is_replaced(checkpoints, tmp_path):
    (checkpoints / "_tmp-checkpoint-6").mkdir()
    os.truncate(checkpoints / "checkpoint-6" / "optimizer.pt", 10)
    run = make_trainer(tmp_path, max_steps=6, save_total_limit=None)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6 and incomplete_reason(checkpoints / "checkpoint-6") is None
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_old_checkpoints_go_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    import sca_hf.training.checkpoint.trainer as module

    seen = []
    real = module.put_in_place

    def look(part, target):
        seen.append(sorted(path.name for path in target.parent.glob("checkpoint-*")))
        real(part, target)

    monkeypatch.setattr(module, "put_in_place", look)
    make_trainer(tmp_path, max_steps=8, save_total_limit=1).train()
    assert seen == [[], ["checkpoint-2"], ["checkpoint-4"], ["checkpoint-6"]]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-8"]


def test_the_best_checkpoint_is_kept_and_known_by_its_final_name(tmp_path):
    run = make_trainer(
        tmp_path,
        max_steps=8,
        save_total_limit=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    # The loss falls: make an early one the best.
    run.state_losses = iter([3.0, 1.0, 2.0, 4.0])
    real = run.evaluate
    run.evaluate = lambda *args, **kwargs: {**real(*args, **kwargs), "eval_loss": next(run.state_losses)}
    run.train()
    best = tmp_path / "checkpoints" / "checkpoint-4"
    assert run.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert sorted(path.name for path in best.parent.iterdir()) == ["checkpoint-4", "checkpoint-8"]


def test_an_error_while_saving_leaves_nothing_behind(tmp_path):
    run = make_trainer(tmp_path, max_steps=4)
    real, calls = run._save_rng_state, []

    def fail_second(folder):
        real(folder)
        calls.append(folder)
        if len(calls) == 2:
            raise KeyError("some error")

    run._save_rng_state = fail_second
    with pytest.raises(KeyError, match="some error"):
        run.train()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert last_checkpoint(tmp_path / "checkpoints").name == "checkpoint-2"


def test_a_folder_is_saved_whole_or_not_at_all(tmp_path):
    def write(text, error=None):
        with staged(tmp_path / "model") as folder:
            (folder / "file").write_text(text)
            if error:
                raise error

    write("first")
    with pytest.raises(ValueError, match="no more"):
        write("second", ValueError("no more"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "first"
    (tmp_path / "model").rename(tmp_path / "_tmp-old-model")  # killed between the two renames
    with pytest.raises(ValueError, match="no more"):
        write("second", ValueError("no more"))
    assert (tmp_path / "model" / "file").read_text() == "first"
    with staged(tmp_path / "model"), pytest.raises(LockedError, match="being written by another process"):
        write("at once")
    write("third")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "file").read_text() == "third"


# A full disk: where no file system can be mounted, a limit to the size of files stands in for it.


def save_in_a_process(folder, limit=None):
    """Runs into the full disk; returns the error and the checkpoints that are left."""
    process = CONTEXT.Process(target=train_until_full, args=(folder, limit))
    process.start()
    process.join()
    assert process.exitcode == 0
    return (folder / "error.txt").read_text(), sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize("limit", [0.5, 0.99], ids=["half of the weights", "nearly all"])
def test_a_write_that_fails_for_want_of_space_leaves_the_last_checkpoint_and_says_what_is_needed(tmp_path, limit):
    error, left = save_in_a_process(tmp_path, limit)
    assert left == ["checkpoint-2"] and incomplete_reason(tmp_path / "checkpoints" / "checkpoint-2") is None
    needed = sum(file_sizes(tmp_path / "checkpoints" / "checkpoint-2").values()) / 1e6
    assert f"checkpoint-4 could not be written, the disk is full: at least {needed:.1f} MB more are needed" in error
    assert f"The last complete checkpoint is {tmp_path / 'checkpoints' / 'checkpoint-2'}." in error


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with room for one checkpoint and a half."""
    make_trainer(tmp_path / "try", max_steps=2).train()
    size = sum(file_sizes(tmp_path / "try" / "checkpoints" / "checkpoint-2").values())
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={int(1.5 * size)}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(["mount", *options], capture_output=True).returncode == 0
    if not mounted:
        pytest.skip("no right to mount a small disk here; the file size limit was tested in its place")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_and_room_to_go_on(small_disk):
    error, left = save_in_a_process(small_disk)
    assert left == ["checkpoint-2"] and last_checkpoint(small_disk / "checkpoints").name == "checkpoint-2"
    assert "checkpoint-4 could not be written, the disk is full: at least" in error and "MB are free" in error
    # What was written of it is gone: there is as much room as before.
    assert shutil.disk_usage(small_disk).free > 0.3 * shutil.disk_usage(small_disk).used
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run = make_trainer(small_disk, max_steps=6)
    run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 6 and last_checkpoint(small_disk / "checkpoints").name == "checkpoint-6"


def test_any_folder_says_what_it_could_not_be_written_for(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write(folder):
        with staged(folder) as part:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            save_file({"a": torch.zeros(10_000)}, part / "model.safetensors")

    try:
        with pytest.raises(DiskFullError, match="model could not be written, the disk is full"):
            write(tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_optimizer_state_is_not_gone_on_from(tmp_path):
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(CheckpointError, match="has no optimizer state"):
        make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_a_checkpoint_asked_for_by_name_must_be_whole(checkpoints, tmp_path):
    os.truncate(checkpoints / "checkpoint-6" / "optimizer.pt", 10)
    run = make_trainer(tmp_path, max_steps=6)
    with pytest.raises(
        CheckpointError, match=r"incomplete: optimizer.pt is missing or truncated; resume from .*checkpoint-4"
    ):
        run.train(resume_from_checkpoint=str(checkpoints / "checkpoint-6"))
    with pytest.raises(CheckpointError, match="There is no complete checkpoint"):
        run.train(resume_from_checkpoint=Path("nowhere"))
    with pytest.raises(CheckpointError, match="There is no complete checkpoint in"):
        make_trainer(tmp_path / "new").train(resume_from_checkpoint=True)
