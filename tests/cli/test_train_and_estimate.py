"""`sca-hf train` and `sca-hf estimate`: what they print, and one clear sentence for each mistake."""

import pytest

from sca_hf.cli import main


RECIPE = """\
model: {from: sca-tiny}
data: {train: {format: scenes, count: 6}, holdout: 0.34}
training:
  max_steps: 1
  per_device_train_batch_size: 2
  use_cpu: true
  disable_tqdm: true
  sample_sheet: 0
  eval_generate: false
output: OUTPUT
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("OUTPUT", str(tmp_path / "run")))
    return str(path)


def test_train_trains_and_says_where_the_model_is(recipe, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    out = capsys.readouterr().out
    assert f"model: {tmp_path / 'run' / 'model'}" in out and "eval_loss: " in out
    assert main(["train", recipe]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_quiet_training_prints_its_result_and_nothing_else(recipe, tmp_path, capfd):
    assert main(["train", recipe, "--quiet", "--training.logging_steps=1"]) == 0
    told = capfd.readouterr()
    assert told.err == "" and told.out.startswith("model: ") and "{" not in told.out and "%" not in told.out


def test_a_dry_run_prints_the_recipe_with_all_changes(recipe, tmp_path, capsys):
    changes = ["--training.learning_rate=1e-4", "--data.train.count=9", "--training.prompt_probabilities={point: 1}"]
    assert main(["train", recipe, "--dry-run", *changes]) == 0
    out = capsys.readouterr().out
    assert "learning_rate: 0.0001" in out and "count: 9" in out and "point: 1" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "estimate"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.lerning_rate=1"], "training has no 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--lerning_rate=1"], "has no 'lerning_rate'"),
        (["--dryrun"], "'--dryrun' is neither an option nor a --section.key=value of the recipe."),
        (["--model.from=nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_mistakes_are_one_sentence(recipe, command, arguments, message, capsys):
    assert main([command, recipe, *arguments]) == 2
    error = capsys.readouterr().err
    assert (
        message in error
        and error.splitlines()[-1].startswith(f"sca-hf {command}: error: ")
        and "Traceback" not in error
    )


def test_a_recipe_that_is_not_there(capsys):
    assert main(["train", "absent.yaml"]) == 2
    assert "there is no recipe absent.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "estimate"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"sca-hf {command} finetune_voc" in capsys.readouterr().out


def test_estimate_prints_parts_cache_and_whether_it_fits(recipe, capsys):
    assert main(["estimate", recipe, "--gpu-memory", "24GB", "--images", "1000"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 images x 16 regions x 20 tokens, float32, one GPU")
    assert "weights: language model" in out and "total" in out and "for 1,000" in out and "Fits 24 GiB" in out


@pytest.mark.slow
def test_estimate_advises_where_it_does_not_fit(recipe, capsys):
    assert main(["estimate", recipe, "--gpu-memory", "600MB"]) == 0
    out = capsys.readouterr().out
    assert "Does not fit" in out and "--training.frozen_dtype=bfloat16" in out


def test_a_size_without_a_unit_is_refused(recipe, capsys):
    with pytest.raises(SystemExit):
        main(["estimate", recipe, "--gpu-memory", "24"])
    assert "expected a size such as 24GB" in capsys.readouterr().err
