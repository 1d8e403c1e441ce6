"""Recipes that come with the package are found by their names, wherever the command runs."""

import pytest

from sca_hf.cli import main
from sca_hf.recipes import recipe_names, recipe_path


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
