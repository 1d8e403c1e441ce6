"""Trains `sca-tiny` from scratch: data, SAM, language model, category names, captions, scores.

    python -m experiments.sca_tiny experiments/sca_tiny/sca_tiny.yaml --output runs/sca-tiny

Every stage saves checkpoints as it goes: after an interruption the same command resumes where it stopped. A stage that
is done is not run again. About 100 minutes on two CPU cores. What comes with the package has then seen real pictures
too, by `sca-hf train experiments/sca_tiny/sca_tiny_real.yaml`.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from transformers import AutoTokenizer

from sca_hf.files import to_json, write_whole
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration
from sca_hf.processing.processing_sca import ScaProcessor
from sca_hf.yaml_files import read_yaml

from .bundle import bundle
from .captioning import CaptioningSettings, new_captioner, train_captioning
from .language import LanguageSettings, train_language_model
from .scenes_report import markdown_table, score_model
from .segmentation import SegmentationSettings, train_segmentation


STAGES = {
    "segmentation": SegmentationSettings,
    "language": LanguageSettings,
    "categories": CaptioningSettings,
    "captions": CaptioningSettings,
}
# What finds the objects of validation scenes best.
ANYTHING_SETTINGS = {
    "points_per_side": 16,
    "pred_iou_thresh": 0.75,
    "stability_score_thresh": 0.65,
    "min_mask_region_area": 150,
    "box_nms_thresh": 0.35,
    "min_area": 0.005,
    "max_area": 0.35,
    "caption_prompt": "box",
}
Settings = TypeVar("Settings")


def run_recipe(recipe: dict[str, dict[str, Any]], output: Path, test_scenes: int = 1_000) -> Path:
    """Runs the stages that are not done yet; returns the folder of the finished model, its report beside it."""
    settings = read_recipe(recipe)
    cache = output / "scenes"
    sam = train_segmentation(output / "segmentation", cache, settings["segmentation"])
    text = train_language_model(output / "language", settings["language"])
    model_folder = sam
    for stage in ("categories", "captions"):
        done = output / stage / "model"
        if not done.exists():
            model, processor = _captioner(model_folder, sam, text)
            train_captioning(model, processor, output / stage, cache, settings[stage])
        model_folder = done
    model_folder = output / "sca-tiny" if (output / "sca-tiny").exists() else bundle(model_folder, output / "sca-tiny")
    write_report(model_folder, output, recipe, test_scenes)
    return model_folder


def read_recipe(recipe: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns the settings of each stage; a name that no stage or setting has is an error."""
    unknown = set(recipe) - set(STAGES)
    if unknown:
        raise ValueError(f"the recipe has the stages {sorted(unknown)}, known are {', '.join(STAGES)}")
    return {stage: _settings(kind, stage, recipe.get(stage, {})) for stage, kind in STAGES.items()}


def _settings(kind: type[Settings], stage: str, values: dict[str, Any]) -> Settings:
    unknown = set(values) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise ValueError(f"the stage {stage} of the recipe has the unknown settings {sorted(unknown)}")
    return kind(**values)


def _captioner(start: Path, sam: Path, text: Path) -> tuple[ScaForConditionalGeneration, ScaProcessor]:
    if start == sam:
        model = new_captioner(sam, text)
        processor = ScaProcessor.from_config(model.config, AutoTokenizer.from_pretrained(text))
        processor.anything_settings = dict(ANYTHING_SETTINGS)
        return model, processor
    return ScaForConditionalGeneration.from_pretrained(start), ScaProcessor.from_pretrained(start)


def write_report(model_folder: Path, output: Path, recipe: dict[str, Any], scenes: int) -> None:
    """Scores the model on test scenes and writes `report.json` and `report.md`: scores, recipe, versions, curves."""
    if (output / "report.json").exists():
        return
    model = ScaForConditionalGeneration.from_pretrained(model_folder).eval()
    scores = score_model(model, ScaProcessor.from_pretrained(model_folder), scenes)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    history = {stage: _history(output / stage) for stage in STAGES}
    report = {**scores, "recipe": recipe, "versions": versions, "history": history}
    write_whole(output / "report.json", to_json(report))
    (output / "report.md").write_text(markdown_table(scores))


def _history(folder: Path) -> list[dict[str, float]]:
    """Returns what the Trainer logged in a stage."""
    path = folder / "checkpoints" / "trainer_state.json"
    return json.loads(path.read_text())["log_history"] if path.exists() else []


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="YAML with the settings of each stage")
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints, logs and the model")
    parser.add_argument("--test-scenes", type=int, default=1_000, help="unseen scenes for the report")
    options = parser.parse_args(arguments)
    run_recipe(read_yaml(options.recipe), options.output, options.test_scenes)
