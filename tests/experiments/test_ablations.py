"""The table of ablations: its row of the published mixer is what a recipe without any of its code trains."""

import argparse

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from experiments.ablations import MIXERS, measure, rows
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.captioning import load
from sca_hf.cli import main


STEPS, SCENES = 2, 8


def by_hand(folder, seed):
    """A new mixer of the published kind between the parts of sca-tiny, trained by a recipe."""
    whole, processor = load("sca-tiny")
    torch.manual_seed(seed)
    mixer = dict(
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_dim=256,
        num_task_tokens=6,
        num_caption_tokens=8,
        tasks=["recognition", "caption"],
    )
    model = ScaForConditionalGeneration.from_sam_text_pretrained(whole.sam, whole.language_model, mixer)
    assert model.config.mixer_config.is_published
    model.save_pretrained(folder / "start")
    ScaProcessor.from_config(model.config, processor.tokenizer).save_pretrained(folder / "start")
    recipe = {
        "model": {"from": str(folder / "start")},
        "data": {"train": {"format": "scenes", "split": "train", "count": SCENES}},
        "training": {
            "max_steps": STEPS,
            "per_device_train_batch_size": 8,
            "regions_per_image": 4,
            "learning_rate": 1e-3,
            "seed": seed,
            "use_cpu": True,
            "save_steps": 1,
            "sample_sheet": 0,
            "save_form": "whole",
        },
        "output": str(folder / "run"),
    }
    YAML().dump(recipe, folder / "recipe.yaml")
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    return load_file(folder / "run" / "model" / "model.safetensors")


@pytest.mark.slow
def test_the_row_of_the_published_mixer_is_a_plain_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    name = "joint mixer (published)"
    assert MIXERS[name] == {} and next(iter(rows())) == name
    options = argparse.Namespace(steps=STEPS, scenes=SCENES, test=2)
    (tmp_path / "row").mkdir()
    scores = measure(rows()[name], tmp_path / "row", 1, options)
    assert scores["setting"] == {"steps": STEPS, "scenes": SCENES, "test": 2, "row": {"mixer": {}}}
    row = load_file(tmp_path / "row" / "run" / "model" / "model.safetensors")
    (tmp_path / "plain").mkdir()
    plain, start = by_hand(tmp_path / "plain", 1), load_file(tmp_path / "plain" / "start" / "model.safetensors")
    assert row.keys() == plain.keys() and all(torch.equal(row[key], plain[key]) for key in plain)
    moved = [key for key in plain if not torch.equal(plain[key], start[key])]
    assert moved and all(key.startswith("mixer.") for key in moved)
    again = measure(rows()[name], tmp_path / "row", 1, options)  # read, not trained once more
    assert again["cpu_seconds"] == scores["cpu_seconds"]
