"""Gives the bundled model its confidence and its scope, and measures both sides on pictures that the fit has not seen.

    python -m experiments.sca_tiny.confidence MODEL runs/sca_tiny_confident
    python -m experiments.sca_tiny.bundle runs/sca_tiny_confident/model src/sca_hf/assets/sca-tiny

The folder `data` holds the sets of sca_tiny_real.yaml, which training by that recipe fits with, and photos, which are
measured at boxes anywhere, beside the sets that are left out of the fit by --left-out. Own regions are those of the
pictures that the recipe keeps out, and of test scenes.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data import load_regions
from sca_hf.data.region import record_image
from sca_hf.model_names import resolve_model
from sca_hf.processing.images_sca import as_image
from sca_hf.training import ScaTrainer, ScaTrainingArguments
from sca_hf.training.recipe.run import build_datasets, fit_recipe_confidence
from sca_hf.training.recipe.schema import load_recipe


RECIPE = Path(__file__).parent / "sca_tiny_real.yaml"
_PROMPTS = ("box", "point")
_BOXES_PER_PHOTO = 20


def fit(model: Any, processor: Any, output: Path, left_out: Sequence[str]) -> dict[str, float]:
    """Fits the model's confidence as training by the recipe does, but for sets left out, and takes its scope."""
    recipe = load_recipe(RECIPE, [f"--data.train.{place}.count=1000" for place in (0, 1)])
    recipe.data.outside = [spec for spec in recipe.data.outside if Path(spec["images"]).parent.name not in left_out]
    train, evaluation = build_datasets(recipe.data)
    arguments = ScaTrainingArguments(str(output), **recipe.training)
    trainer = ScaTrainer(model, arguments, train_dataset=train, eval_dataset=evaluation, processing_class=processor)
    found = fit_recipe_confidence(trainer, recipe.data)
    model.config.scope = recipe.model.scope
    return found.to_json()


@torch.inference_mode()
def measure(model: Any, processor: Any, left_out: Sequence[str] = ()) -> dict[str, dict[str, dict[str, float]]]:
    """The fraction of regions that the model is unsure of, by side, set and prompt, and how many there are."""
    few = [f"--data.train.{place}.count=10" for place in (0, 1)]  # of the scenes others are taken
    recipe = load_recipe(RECIPE, few)
    _, held_out = build_datasets(recipe.data)
    own: dict[str, Iterable[Mapping[str, Any]]] = {
        name: records for name, records in held_out.items() if "scenes" not in name
    }
    own["scenes"] = load_regions("scenes", split="test", count=100)
    elsewhere: dict[str, Iterable[Mapping[str, Any]]] = {"photos": _photos(Path("data/photos"))}
    for name in left_out:
        files = {"annotations": f"data/{name}/instances.json", "images": f"data/{name}/images"}
        elsewhere[name] = load_regions("coco", on_error="skip", **files)
    sides = {"own": own, "elsewhere": elsewhere}
    return {
        side: {name: unsure_fractions(model, processor, records) for name, records in sets.items()}
        for side, sets in sides.items()
    }


def _photos(folder: Path) -> list[dict[str, Any]]:
    """Photographs with boxes at random, of at least a tenth of each side."""
    rng = np.random.default_rng(0)
    records = []
    for path in sorted(folder.glob("*.jpg")):
        image = as_image(path)
        low = rng.uniform(0, 0.7, (_BOXES_PER_PHOTO, 2))
        high = low + rng.uniform(0.1, 0.3, low.shape)
        boxes = np.concatenate([low, high], 1) * np.tile(image.size, 2)
        regions = [{"box": box} for box in boxes.tolist()]
        records.append({"image": image, "width": image.width, "height": image.height, "regions": regions})
    return records


def unsure_fractions(model: Any, processor: Any, records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    unsure: dict[str, list[bool]] = {prompt: [] for prompt in _PROMPTS}
    for record in records:
        boxes = [region["box"] for region in record["regions"]]
        middles = [[[(left + right) / 2, (top + bottom) / 2]] for left, top, right, bottom in boxes]
        image = record_image(record)
        for prompt, given in (("box", {"input_boxes": [boxes]}), ("point", {"input_points": [middles]})):
            outputs = model.generate(**processor(image, **given), max_new_tokens=1, output_masks=False)
            unsure[prompt] += (outputs.confidences[0] < 0.5).tolist()
    return {"regions": len(unsure["box"]), **{prompt: float(np.mean(told)) for prompt, told in unsure.items()}}


def markdown_table(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """A row for each set, and for each side as a whole."""
    rows = ["| regions of | number | unsure, from boxes | from points |", "| --- | --- | --- | --- |"]
    for side, sets in measured.items():
        total = sum(found["regions"] for found in sets.values())
        whole = {p: sum(found[p] * found["regions"] for found in sets.values()) / total for p in _PROMPTS}
        for name, found in [*sets.items(), (f"all {side}", {"regions": total, **whole})]:
            figures = " | ".join(f"{found[prompt]:.3f}" for prompt in _PROMPTS)
            rows.append(f"| {name.replace('_', ' ')} | {found['regions']} | {figures} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder, repository id or sca-tiny")
    parser.add_argument("output", type=Path, help="folder for model/ and confidence.json")
    parser.add_argument("--measure-only", action="store_true", help="keep the confidence that the model has")
    parser.add_argument("--left-out", nargs="*", default=[], metavar="SET", help="folders of `data` to measure with")
    options = parser.parse_args(arguments)
    source = resolve_model(options.model)
    model = ScaForConditionalGeneration.from_pretrained(source).eval()
    processor = ScaProcessor.from_pretrained(source)
    report: dict[str, Any] = {}
    if not options.measure_only:
        report["fit"] = fit(model, processor, options.output, options.left_out)
        print(report["fit"], flush=True)
        model.save_pretrained(options.output / "model")
        processor.save_pretrained(options.output / "model")
    report["measured"] = measure(model.eval(), processor, options.left_out)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "confidence.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(markdown_table(report["measured"]))


if __name__ == "__main__":
    main()
