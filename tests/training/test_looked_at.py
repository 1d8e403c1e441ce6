"""A run says that it is finished only after a look: not what diverged, trained on nothing or was cut."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_recipe import base, own_cache, recipe, regions  # noqa: F401, fixtures
from tiny_runs import trainer

from sca_hf.cli import main
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.stopping import DivergedError


def test_a_diverging_run_stops_at_the_first_loss_that_is_not_finite(base, regions, tmp_path):  # noqa: F811
    output = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) in step \d of 4, at a learning rate of 1e\+30"):
        run_recipe(recipe(base, regions, output, learning_rate=1e30, lr_scheduler_type="constant", save_steps=1))
    assert not (output / "model").exists() and not (output / "metrics.json").exists()


def test_the_command_ends_with_an_error_and_the_run_is_not_finished(base, regions, tmp_path, capsys):  # noqa: F811
    plan = recipe(base, regions, tmp_path / "run", learning_rate=1e30, lr_scheduler_type="constant")
    (tmp_path / "recipe.yaml").write_text(plan.to_yaml())
    for _ in range(2):
        assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
        assert "Training diverged" in capsys.readouterr().err


def test_the_last_good_checkpoint_is_named_and_not_the_one_that_led_here(model, processor, tmp_path):
    run = trainer(model, processor, tmp_path, max_steps=6, save_strategy="steps", save_steps=1)
    real = run.compute_loss

    def lost(*arguments, **options):
        result = real(*arguments, **options)
        return result * float("nan") if run.state.global_step == 3 else result

    run.compute_loss = lost
    with pytest.raises(DivergedError, match=r"nan in step 4 of 6.*last good checkpoint is .*checkpoint-2\. Nothing"):
        run.train()


@pytest.mark.parametrize("save", ["steps", "no"])
def test_weights_that_are_not_finite_are_neither_a_checkpoint_nor_a_result(model, processor, tmp_path, save):
    run = trainer(model, processor, tmp_path, max_steps=2, save_strategy=save, save_steps=2)
    real = run.create_optimizer

    def with_poison(*arguments, **options):
        optimizer = real(*arguments, **options)
        step = optimizer.step

        def poisoned(*more, **others):
            result = step(*more, **others)
            if run.state.global_step == 1:
                with torch.no_grad():
                    model.mixer.task_tokens.weight.fill_(float("inf"))
            return result

        optimizer.step = poisoned
        return optimizer

    run.create_optimizer = with_poison
    with pytest.raises(DivergedError, match=r"mixer.task_tokens.weight is not finite after step 2 of 2"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_data_that_make_no_batch_are_an_error(base, regions, tmp_path):  # noqa: F811
    plan = recipe(
        base, regions, tmp_path / "run", per_device_train_batch_size=64, dataloader_drop_last=True, num_train_epochs=1
    )
    with pytest.raises(ValueError, match="images make no batch of 64 on 1 processes"):
        run_recipe(plan)
    assert not (tmp_path / "run" / "model").exists()


def cut(model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(model):
    shutil.rmtree(model)
    model.mkdir()


def poison(model):
    tensors = load_file(model / "model.safetensors")
    tensors["mixer.task_tokens.weight"][0, 0] = float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        empty,
        poison,
        lambda model: (model / "model.safetensors").unlink(),
        lambda model: (model / "config.json").write_text(""),
        lambda model: (model / "tokenizer.json").unlink(),
    ],
    ids=["cut", "empty", "NaN", "no weights", "no configuration", "no tokenizer"],
)
def test_a_finished_model_that_is_damaged_is_not_called_finished(base, regions, tmp_path, damage):  # noqa: F811
    plan = recipe(base, regions, tmp_path / "run")
    run_recipe(plan)
    damage(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match="is not whole any more"):
        run_recipe(plan)
    shutil.rmtree(tmp_path / "run" / "model")
    assert not run_recipe(plan).found_finished
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train"]
    assert run_recipe(plan).found_finished
