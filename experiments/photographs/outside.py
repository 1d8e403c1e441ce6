"""Pictures of what the model doesn't know, for its confidence: aquarium_boxes, divided into a part to fit with and one
to measure with. Tanks stand on both sides, shots that follow each other mostly do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sca_hf.captioning import load
from sca_hf.data import load_regions
from sca_hf.data.region import record_image
from sca_hf.files import read_json, to_json, write_whole
from sca_hf.training.confidence import ConfidenceFit, fit_confidence
from sca_hf.training.recipe.schema import Recipe

from ..sca_tiny.confidence import unsure_fractions
from .measure import read_pictures
from .recipe import idle_trainer
from .small_sets import IMAGES
from .words import says


SET = "aquarium_boxes"
_FIT = 0.7


def write_outside(output: Path, folder: Path) -> None:
    """Writes outside.train.json, to fit with, and outside.test.json: COCO files with pictures in SET/images."""
    content = read_json(folder / SET / "instances.json", dict)
    images = sorted(content["images"], key=lambda row: str(row["file_name"]))
    limit = round(_FIT * len(images))
    for side, part in (("train", images[:limit]), ("test", images[limit:])):
        ids = {row["id"] for row in part}
        rows = [row for row in content["annotations"] if row["image_id"] in ids]
        write_whole(output / f"outside.{side}.json", to_json({**content, "images": part, "annotations": rows}, None))


@torch.inference_mode()
def mistakes(model: Any, processor: Any, records: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the records with those of their regions that the model misnames from their boxes."""
    found = []
    for record in records:
        inputs = processor(record_image(record), input_boxes=[[list(region["box"]) for region in record["regions"]]])
        outputs = model.generate(**inputs.to(model.device, model.dtype), output_masks=False)
        said = zip(record["regions"], processor.batch_decode(outputs)[0], strict=True)
        if wrong := [region for region, caption in said if not says(caption, region["category"])]:
            found.append({**record, "regions": wrong})
    return found


def fit(
    model: Any, processor: Any, recipe: Recipe, split: Path, folder: Path, seed: int, regions: int = 3_000
) -> ConfidenceFit:
    """Gives a trained model its confidence, and the scope of its recipe.

    Args:
        model: as it will be saved.
        processor: the model's.
        recipe: what taught it to caption; its training data is what the model knows.
        split: folder of `write_outside`.
        folder: of all sets.
        seed: of the split.
        regions: looked at on each side.
    """
    trainer = idle_trainer(model, processor, recipe)
    outside = load_regions(
        "coco", annotations=split / "outside.train.json", images=folder / SET / "images", on_error="skip"
    )
    wrong = mistakes(model, processor, read_pictures(folder, seed, "choice"))
    found = fit_confidence(model, trainer.data_collator, trainer.train_dataset, outside, regions, mistakes=wrong)
    model.config.scope = recipe.model.scope
    return found


def measure_unsure(source: Path, split: Path, folder: Path, sets: Sequence[str]) -> dict[str, dict[str, float]]:
    """Returns how often a model is unsure of regions that it should know, by set, and of `outside`.

    Args:
        source: the model's folder.
        split: folder of experiments.photographs.data, and of `write_outside`.
        folder: of all sets.
        sets: of photographs; the small sets are measured besides.
    """
    model, processor = load(str(source))
    places = {name: folder / name / "images" for name in sets} | {n: folder / place for n, place in IMAGES.items()}
    places["outside"] = folder / SET / "images"
    found: dict[str, Any] = {}
    for name, images in places.items():
        records = load_regions("coco", annotations=split / f"{name}.test.json", images=images, on_error="skip")
        if records:
            found[name] = unsure_fractions(model, processor, records)
    return found
