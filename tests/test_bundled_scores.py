"""The bundled model knows what its card says: drawn scenes, and real pictures that were kept out of its training."""

from pathlib import Path

import pytest

from experiments.sca_tiny.scenes_report import caption_scores, run_scenes
from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data.scenes import scenes
from sca_hf.model_names import bundled_model
from sca_hf.training import ScaTrainer, ScaTrainingArguments
from sca_hf.training.recipe.run import build_datasets
from sca_hf.training.recipe.schema import load_recipe


ROOT = Path(__file__).parents[1]
NAMED = {"road_signs": 0.85, "playing_cards": 0.75, "blood_cells": 0.93, "dates_figs_nuts": 0.93}


@pytest.fixture(scope="module")
def bundled():
    return (
        ScaForConditionalGeneration.from_pretrained(bundled_model("sca-tiny")).eval(),
        ScaProcessor.from_pretrained(bundled_model("sca-tiny")),
    )


@pytest.mark.parametrize("prompt, mask_iou", [("box", 0.85), ("point", 0.75)])
def test_scenes_are_described(bundled, prompt, mask_iou):
    """100 of the card's 1,000 scenes; a share of their 250 captions may lie some points beside that of all."""
    scores = caption_scores(run_scenes(*bundled, scenes("test", 100), prompt))
    assert scores["mask_iou"] >= mask_iou
    assert scores["color"] >= 0.95 and scores["texture"] >= 0.9 and scores["shape"] >= 0.9
    assert scores["size"] >= 0.8 and scores["relation"] >= 0.65


@pytest.mark.parametrize("name", NAMED)
def test_regions_of_pictures_kept_out_of_training_are_named(bundled, name, shared, tmp_path, monkeypatch):
    data = shared("data")
    model, processor = bundled
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(data)
    _, kept_out = build_datasets(load_recipe(ROOT / "experiments" / "real" / f"{name}.yaml").data)
    args = ScaTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, sample_sheet=0, report_to="none")
    metrics = ScaTrainer(model, args, processing_class=processor).evaluate(kept_out)
    assert metrics["eval_naming_accuracy"] >= NAMED[name]
