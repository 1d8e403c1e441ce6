"""Recipes that come with the package are found by their names, wherever the command runs."""

import ast
from pathlib import Path

import pytest
from transformers import TrainingArguments

from sca_hf.cli import main
from sca_hf.recipes import recipe_names, recipe_path
from sca_hf.training import RegionCollator, ScaTrainingArguments
from sca_hf.training.recipe.schema import load_recipe


def test_a_name_is_a_recipe_of_the_package_and_a_yaml_file_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipe_path("finetune_voc").is_file() and recipe_path("mine.yaml").name == "mine.yaml"
    assert {"finetune_voc", "finetune_coco", "finetune_jsonl"} <= set(recipe_names())
    with pytest.raises(FileNotFoundError, match="give a YAML file, or a name that comes with sca-hf: finetune_coco"):
        recipe_path("finetune")


def test_commands_take_the_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "finetune_voc", "--dry-run", "--output=here"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(shown)
    assert main(["train", "mine.yaml", "--dry-run"]) == 0
    assert capsys.readouterr().out == shown and "output: here" in shown
    assert main(["estimate", "finetune_voc"]) == 0
    assert "one GPU" in capsys.readouterr().out


def test_the_recipe_and_the_program_train_the_same(tmp_path):
    """What the example's calls say, read from its source, is what the recipe says, defaults of both included."""
    source = (Path(__file__).parents[2] / "examples" / "finetune_stock_trainer.py").read_text(encoding="utf-8")
    calls = {ast.unparse(node.func): node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)}

    def keywords(name):
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in calls[name].keywords}

    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)]
    assigned = {ast.unparse(node.targets[0]): node.value for node in nodes}
    recipe = load_recipe(recipe_path("finetune_voc"))
    ours = ScaTrainingArguments(str(tmp_path), use_cpu=True, **recipe.training)
    stock = TrainingArguments(**{**keywords("TrainingArguments"), "output_dir": str(tmp_path), "use_cpu": True})
    shared = "max_steps learning_rate weight_decay lr_scheduler_type warmup_steps per_device_train_batch_size"
    shared += " adam_beta1 adam_beta2 adam_epsilon max_grad_norm gradient_accumulation_steps optim label_names"
    assert {name: getattr(ours, name) for name in shared.split()} == {
        name: getattr(stock, name) for name in shared.split()
    }
    assert ours.detail_steps == keywords("pretrain_detail_encoder")["steps"]
    assert ours.preset == ast.literal_eval(calls["apply_preset"].args[1])
    assert ours.module_learning_rates == {"language_model": stock.learning_rate}, "one rate for all, in the program"
    assert ours.augmentation == ast.literal_eval(assigned["changes"])
    assert recipe.data.holdout == ast.literal_eval(calls["hold_out"].args[1]) and recipe.data.holdout_seed == 0
    collator = RegionCollator(None)
    assert (ours.prompt_probabilities, ours.regions_per_image) == (None, collator.regions_per_image)
