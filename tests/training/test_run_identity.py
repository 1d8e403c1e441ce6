# ruff: noqa: F811 (fixtures of another file)
"""What decides the weights of a run is compared, by content, of resumed and finished runs alike; nothing else is."""

import json
import os
import shutil

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from test_recipe import TRAINING, base, own_cache, recipe, regions, weights  # noqa: F401, fixtures

from sca_hf.files import LockedError
from sca_hf.training.checkpoint.integrity import CheckpointError, last_checkpoint, lock_run
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.recipe.schema import Recipe
from sca_hf.training.trainer import ScaTrainer
from tests.training.killed_runs import CONTEXT


# Each test trains, some in processes of their own.
pytestmark = pytest.mark.slow


@pytest.fixture(params=["stopped", "finished"])
def run(request, base, regions, tmp_path, monkeypatch):
    """A run that was stopped after its second step, or ended; and what is asked of it again."""
    plan = recipe(base, regions, tmp_path / "run")
    with monkeypatch.context() as stop:
        if request.param == "stopped":
            step, steps = ScaTrainer.training_step, []

            def interrupted(*arguments, **options):
                steps.append(1)
                if len(steps) == 4:
                    raise KeyboardInterrupt
                return step(*arguments, **options)

            stop.setattr(ScaTrainer, "training_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run_recipe(plan)
        else:
            run_recipe(plan)
    return plan


def change_a_weight(base):
    file = base / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("sam.vision_encoder"))
    tensors[name].view(-1)[-1] += 1e-3
    save_file(tensors, file, {"format": "pt"})


def change_a_record(regions, last=True):
    lines = regions.read_text().splitlines()
    row = json.loads(lines[-1 if last else 0])
    row["regions"][0]["captions"][0] = "something else"
    lines[-1 if last else 0] = json.dumps(row)
    regions.write_text("\n".join(lines))


def change_a_picture(regions):
    path = sorted(regions.parent.glob("regions-*.png"))[-1]
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


CHANGES = {
    "a weight": (lambda base, regions: change_a_weight(base), "model.from was"),
    "a record": (lambda base, regions: change_a_record(regions), "contents of the records was"),
    "the first record": (lambda base, regions: change_a_record(regions, False), "contents of the records was"),
    "a picture": (lambda base, regions: change_a_picture(regions), "sizes and times of the pictures was"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_refused_whether_stopped_or_finished(run, base, regions, name):
    change, words = CHANGES[name]
    change(base, regions)
    with pytest.raises(CheckpointError, match="another run") as error:
        run_recipe(run)
    assert words in str(error.value)


def test_other_code_and_settings_are_another_run(run, base, regions, monkeypatch):
    again = recipe(base, regions, run.output, learning_rate=1e-3)
    with pytest.raises(CheckpointError, match=r"learning_rate was 0\.003 and is 0\.001"):
        run_recipe(again)
    monkeypatch.setattr("sca_hf.run_identity.__version__", "99")
    with pytest.raises(CheckpointError, match=r"versions\.sca-hf was"):
        run_recipe(run)


def test_other_files_of_a_stream_are_another_run(base, regions, tmp_path):
    data = {"train": {"format": "jsonl", "path": str(regions), "streaming": True}}
    data["eval"] = data["train"]
    plan = recipe(base, regions, tmp_path / "run", data=data, max_eval_samples=4)
    run_recipe(plan)
    assert run_recipe(plan).found_finished
    change_a_record(regions)
    with pytest.raises(CheckpointError, match=r"stream 0, jsonl was .*stream 0, jsonl was"):
        run_recipe(plan)


def test_spelling_moved_folders_and_logging_are_the_same_run(run, base, regions, tmp_path, monkeypatch):
    for name in ("base", "run"):
        shutil.move(tmp_path / name, tmp_path / f"moved-{name}")
    (tmp_path / "data").mkdir()
    for path in [regions, *regions.parent.glob("regions-*.png")]:
        shutil.move(path, tmp_path / "data" / path.name)
    monkeypatch.chdir(tmp_path)
    harmless = {"logging_steps": 1, "report_to": "none", "disable_tqdm": False, "logging_dir": "x"}
    values = {
        "model": {"from": "./moved-base"},
        "data": {"train": {"format": "jsonl", "path": "data/../data/regions.jsonl"}, "holdout": 0.25},
        "training": {**TRAINING, **{key: value for key, value in harmless.items() if key != "logging_dir"}},
        "output": "./moved-run",
    }
    again = run_recipe(Recipe.from_mapping(values))
    assert again.model == tmp_path.joinpath("moved-run/model").relative_to(tmp_path) and again.metrics["train"]


def _hold(folder, connection):
    with lock_run(folder):
        connection.send("held")
        connection.recv()


def test_two_processes_do_not_train_in_one_folder(base, regions, tmp_path):
    here, there = CONTEXT.Pipe()
    other = CONTEXT.Process(target=_hold, args=(tmp_path / "run", there))
    other.start()
    here.recv()
    with pytest.raises(LockedError, match="Another process is training in"):
        run_recipe(recipe(base, regions, tmp_path / "run"))
    other.kill()
    other.join()
    run_recipe(recipe(base, regions, tmp_path / "run"))
    assert not [path.name for path in (tmp_path / "run").iterdir() if path.name.endswith(".lock")]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "checkpoint_manifest.json"]
)
def test_a_flipped_bit_is_named_and_the_older_checkpoint_taken(base, regions, tmp_path, caplog, name):
    plan = recipe(base, regions, tmp_path / "run")
    run_recipe(plan)
    right = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    file = tmp_path / "run" / "checkpoint-4" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"
    assert f"{name} is damaged" in caplog.text and "checkpoint-4" in caplog.text
    assert not run_recipe(plan).found_finished
    now = weights(tmp_path / "run")
    assert all(now[key].equal(value) for key, value in right.items())


def test_the_recipe_of_a_run_can_be_given_again(base, regions, tmp_path, monkeypatch):
    from sca_hf.cli import main

    run_recipe(recipe(base, regions, tmp_path / "run"))
    own = tmp_path / "run" / "recipe.yaml"
    own.write_text("# mine\n" + own.read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["train", os.fspath(own)]) == 0
    shutil.rmtree(tmp_path / "run" / "model")
    assert main(["train", os.fspath(own)]) == 0
    assert own.read_text().startswith("# mine\n")


def test_a_model_is_not_trained_over_itself(base, regions, tmp_path):
    shutil.copytree(base, tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="would be overwritten, but is read too"):
        run_recipe(recipe(tmp_path / "run" / "model", regions, tmp_path / "run"))


@pytest.mark.parametrize("file", ["run.json", "metrics.json"])
@pytest.mark.parametrize("damage", [b"", b'{"a'])
def test_a_damaged_file_of_a_finished_run_is_named(base, regions, tmp_path, file, damage):
    run_recipe(recipe(base, regions, tmp_path / "run"))
    (tmp_path / "run" / file).write_bytes(damage)
    with pytest.raises(ValueError, match=rf"{file} is (empty|not JSON)"):
        run_recipe(recipe(base, regions, tmp_path / "run"))
