"""How well a finetuned model names the regions of held-out images, beside what needs no finetuning.

    python -m experiments.naming --model MODEL --seeds 0 1 2 --output runs/naming

The recipes look for their data in data/, below the folder in which the command runs. MODEL must not have seen the
pictures that a seed keeps out: the bundled sca-tiny has seen all but those of seed 0. `--no-training` scores it as it
is.

For every seed the recipe's data are split by image, the model is finetuned on one side and names the regions of the
other: from their boxes, from a point in their middle (`mask_center_point`), and, as a check, from their boxes on the
wrong pictures. Beside it stand the commonest class and a linear probe on the embeddings of the model's own, not
finetuned, image encoder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.data.region import record_image
from sca_hf.training.arguments import ScaTrainingArguments
from sca_hf.training.detail_pretraining import box_means
from sca_hf.training.recipe.run import build_datasets, build_model, run_recipe
from sca_hf.training.recipe.schema import Recipe, load_recipe
from sca_hf.training.trainer import ScaTrainer


# Two-sided 95 % of Student's t by degrees of freedom: the splits are few.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
REAL = [
    Path(__file__).parent / "real" / f"{name}.yaml"
    for name in ("road_signs", "playing_cards", "blood_cells", "dates_figs_nuts")
]
COLUMNS = ("box", "point", "wrong pictures", "linear probe", "commonest class")


def measure(recipe: Recipe, trains: bool = True) -> dict[str, dict[str, float]]:
    """Trains by the recipe, if that is asked for and not done yet; returns accuracy and macro recall by column."""
    train, test = build_datasets(recipe.data)
    start, processor, new = build_model(recipe.model, ScaTrainingArguments(output_dir=recipe.output))
    if new and not trains:
        raise ValueError(f"{recipe.model.from_} lacks what the recipe makes new ({', '.join(new)}): train it.")
    scores = {"linear probe": linear_probe(start, processor, train, test), "commonest class": commonest(train, test)}
    scores["held out"] = {"pictures": len(test), "regions": len(_names(test))}
    model = start
    begun = time.monotonic()
    if trains:
        folder = run_recipe(recipe).model
        model, processor = ScaForConditionalGeneration.from_pretrained(folder), ScaProcessor.from_pretrained(folder)
        scores["seconds"] = {"training": time.monotonic() - begun}
    for name, prompt, records in (
        ("box", "box", test),
        ("point", "mask_center_point", test),
        ("wrong pictures", "box", exchange_pictures(list(test))),
    ):
        args = ScaTrainingArguments(output_dir=recipe.output, eval_prompt=prompt, sample_sheet=0, report_to="none")
        metrics = ScaTrainer(model, args, processing_class=processor).evaluate(records)
        scores[name] = {key: metrics[f"eval_naming_{key}"] for key in ("accuracy", "macro_recall")}
    return scores


def exchange_pictures(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives each record the picture of the next one, and its boxes the same places in it."""
    exchanged = []
    for record, other in zip(records, records[1:] + records[:1], strict=True):
        scale = np.tile([other["width"] / record["width"], other["height"] / record["height"]], 2)
        regions = [
            {**region, "box": (np.array(region["box"]) * scale).tolist(), "mask": None} for region in record["regions"]
        ]
        sizes = {name: other[name] for name in ("image", "width", "height")}
        exchanged.append({**record, **sizes, "regions": regions})
    return exchanged


def commonest(train: Any, test: Any) -> dict[str, float]:
    """Scores the name that is commonest in training, said of everything."""
    name = Counter(_names(train)).most_common(1)[0][0]
    return _scores([name] * len(_names(test)), _names(test))


def linear_probe(model: Any, processor: Any, train: Any, test: Any) -> dict[str, float]:
    """Scores a logistic regression on image embeddings, averaged over each region's box."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5_000))
    probe.fit(_region_features(model, processor, train), _names(train))
    return _scores(probe.predict(_region_features(model, processor, test)).tolist(), _names(test))


@torch.inference_mode()
def _region_features(model: Any, processor: Any, records: Any) -> np.ndarray:
    """(N, C) image embeddings averaged over boxes."""
    features = []
    for record in records:
        boxes = [[region["box"] for region in record["regions"]]]
        inputs = processor(record_image(record), input_boxes=boxes)
        embeddings = model.sam.get_image_embeddings(inputs["pixel_values"])
        features.append(box_means(embeddings, inputs["input_boxes"], inputs["pixel_values"].shape[-1])[0])
    return torch.cat(features).numpy()


def _names(records: Any) -> list[str]:
    texts = records.select_columns(["regions"]) if hasattr(records, "select_columns") else records
    return [region["category"] for record in texts for region in record["regions"]]


def _scores(said: list[str], true: list[str]) -> dict[str, float]:
    hits: dict[str, list[bool]] = {}
    for word, name in zip(said, true, strict=True):
        hits.setdefault(name, []).append(word == name)
    return {
        "accuracy": sum(map(sum, hits.values())) / len(true),
        "macro_recall": statistics.mean(sum(h) / len(h) for h in hits.values()),
    }


def interval(values: list[float]) -> str:
    """The mean and the half width of its 95 % interval, by Student's t."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {_STUDENT[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5:.3f}"


def markdown_rows(name: str, runs: list[dict[str, dict[str, float]]]) -> str:
    """Two rows of the table: accuracy and macro recall."""
    return "\n".join(
        f"| {name} | {key.replace('_', ' ')} | "
        + " | ".join(interval([run[column][key] for run in runs]) for column in COLUMNS)
        + " |"
        for key in ("accuracy", "macro_recall")
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=REAL, help="with data.holdout (default: experiments/real)")
    parser.add_argument("--model", required=True, help="to start from, in place of the recipe's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of splits and training")
    parser.add_argument("--no-training", action="store_true", help="score the model as it is")
    parser.add_argument("--output", required=True, help="folder of runs, scores and the table")
    options = parser.parse_args()
    output = Path(options.output)
    everything: dict[str, list[Any]] = {}
    lines = [f"| data | score | {' | '.join(COLUMNS)} |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for path in options.recipe:
        name, runs = Path(path).stem, []
        for seed in options.seeds:
            changes = [f"--output={output / f'{name}-{seed}'}", f"--model.from={options.model}"]
            changes += [f"--data.holdout_seed={seed}", f"--training.seed={seed}"]
            report = output / f"{name}-{seed}" / "naming.json"
            if not report.exists():
                report.parent.mkdir(parents=True, exist_ok=True)
                scores = measure(load_recipe(path, changes), trains=not options.no_training)
                report.write_text(json.dumps(scores, indent=2) + "\n")
            runs.append(json.loads(report.read_text()))
            print(name, seed, runs[-1], flush=True)
        lines.append(markdown_rows(name, runs))
        everything[name] = runs
    (output / "naming.json").write_text(json.dumps(everything, indent=2) + "\n")
    (output / "naming.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
