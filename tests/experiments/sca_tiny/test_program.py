"""The whole recipe of the bundled model, with a step or two for each stage: it ends with a model and its report."""

import json

import pytest

from experiments.sca_tiny.recipe import main
from sca_hf import ScaForConditionalGeneration, ScaProcessor


RECIPE = """\
segmentation: {train_scenes: 8, eval_scenes: 4, steps: 2, batch_size: 2, save_steps: 1, eval_steps: 2}
language: {steps: 2, batch_size: 4, save_steps: 2}
categories: {train_scenes: 8, eval_scenes: 2, steps: 1, batch_size: 2, save_steps: 1, eval_steps: 1}
captions: {train_scenes: 8, eval_scenes: 2, steps: 1, batch_size: 2, save_steps: 1, eval_steps: 1}
"""


@pytest.mark.slow
def test_the_program_ends_with_a_model_and_its_report(tmp_path):
    recipe, output = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    main([str(recipe), "--output", str(output), "--test-scenes", "2"])
    model = ScaForConditionalGeneration.from_pretrained(output / "sca-tiny")
    model.check_tokenizer(ScaProcessor.from_pretrained(output / "sca-tiny").tokenizer)
    report = json.loads((output / "report.json").read_text())
    assert report["scenes"] == 2 and set(report["history"]) == {"segmentation", "language", "categories", "captions"}
