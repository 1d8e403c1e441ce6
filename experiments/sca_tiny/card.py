"""Fills a model card from what training and evaluation wrote, so that no figure in it is typed by hand.

python -m experiments.sca_tiny.card experiments/sca_tiny/card.md --model MODEL --report runs/sca-tiny/report.json \
    --stages runs/sca_tiny_real runs/sca_tiny_settled \
    --scores runs/scores/scenes_report.json --naming runs/shipped/naming.json \
    --confidence runs/sca_tiny_confident/confidence.json
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from sca_hf.card_metadata import card_head, markdown_rows, score_results
from sca_hf.hub.card import CARD, fill_template, split_card
from sca_hf.hub.info import RepositoryInfo, describe_repository

from .confidence import markdown_table as confidence_table
from .scenes_report import markdown_table


# What of a report goes into the head of the card, where the Hub reads it.
_HEAD = {
    "mask_iou": "mask IoU",
    "color": "color word right",
    "shape": "shape word right",
    "texture": "texture word right",
    "size": "size word right",
    "relation": "relation word right",
    "cider_d": "CIDEr-D",
    "exact_match": "exact match",
}
_CURVE = ("color", "shape", "texture", "size", "relation", "cider_d")
_NAMED_FROM = ("box", "point")
# Rows of a table of losses.
_ROWS = 6


def write_model_card(template: Path, model: Path, report: Mapping[str, Any]) -> Path:
    """Writes README.md into a model's folder.

    Args:
        template: Markdown with `$name` for each of the fields below; one that is not known is an error.
        model: folder of the saved model.
        report: what `sca_tiny` writes: scores, versions, recipe, history; and `naming`, what `experiments.naming`
            writes of the finished model on pictures kept out of its training: by data set, runs with their scores; and
            `confidence`, what `sca_tiny.confidence` measured.
    """
    # JSON has null for what could not be scored, the table wants not-a-number.
    scores = {
        row: {name: math.nan if value is None else value for name, value in values.items()}
        for row, values in report["scores"].items()
    }
    report = {**report, "scores": scores}
    info = describe_repository(str(model))
    fields = {
        **report["versions"],
        "parts": _parts(info),
        "loaded": info.loaded,
        "scenes": f"{report['scenes']}",
        "split": report["split"],
        "stated": f"{100 * report['scores']['box']['states_size_or_relation']:.0f} %",
        "described": f"{100 * scores['box']['described_regions'] / scores['box']['regions']:.0f} %",
        "scores": markdown_table(report).strip(),
        "recipe": _recipe(report["recipe"]),
        "losses": _losses(report["history"]),
        "curve": _curve(report["history"]),
        "naming": _naming(report["naming"]),
        "confidence": confidence_table(report["confidence"]),
    }
    head, text = split_card(template)
    card = model / CARD
    written = card_head(model.resolve().name, _results(report), **head) + fill_template(template, text, fields)
    card.write_text(written, encoding="utf-8")
    return card


def _results(report: Mapping[str, Any]) -> list[EvalResult]:
    """Returns the scores for the Hub: scenes from boxes and points, each real set from boxes; none that is missing."""
    results: list[EvalResult] = []
    for prompt in ("box", "point"):
        scores = report["scores"][prompt]
        known = {name: scores[key] for key, name in _HEAD.items() if not math.isnan(scores[key])}
        dataset = f"scenes, {report['split']}, {report['scenes']} images"
        split = {"dataset_config": f"from a {prompt}", "dataset_split": report["split"]}
        results += score_results(known, dataset, "scenes", **split)
    for data, (run, *_) in report["naming"].items():
        accuracy = {"accuracy": round(run["box"]["accuracy"], 4)}
        dataset = f"{_words(data)}, kept out of training"
        results += score_results(accuracy, dataset, data, task_name="region naming", dataset_config="from a box")
    return results


def _parts(info: RepositoryInfo) -> str:
    rows = [[part.name, part.description, f"{part.parameters:,}", f"{part.trainable:,}"] for part in info.parts]
    total, trainable = (sum(getattr(part, key) for part in info.parts) for key in ("parameters", "trainable"))
    rows.append(["total", "", f"{total:,}", f"{trainable:,}"])
    return markdown_rows(["part", "what", "parameters", "trainable"], rows)


def _naming(naming: Mapping[str, Sequence[Mapping[str, Mapping[str, float]]]]) -> str:
    header = ["data", "pictures", "regions", *(f"{prompt}, accuracy" for prompt in _NAMED_FROM)]
    header += [f"{prompt}, macro recall" for prompt in _NAMED_FROM] + ["commonest class, accuracy"]
    rows = []
    for data, (run, *_) in naming.items():
        scores = [run[prompt][key] for key in ("accuracy", "macro_recall") for prompt in _NAMED_FROM]
        scores.append(run["commonest class"]["accuracy"])
        counts = [f"{run['held out'][key]:.0f}" for key in ("pictures", "regions")]
        rows.append([_words(data), *counts, *(f"{score:.3f}" for score in scores)])
    return markdown_rows(header, rows)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _recipe(recipe: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[stage, ", ".join(f"{key} {value}" for key, value in values.items())] for stage, values in recipe.items()]
    return markdown_rows(["stage", "settings"], rows)


def _losses(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = []
    for stage, log in history.items():
        steps = [entry for entry in log if "loss" in entry]
        chosen = [steps[round(i * (len(steps) - 1) / (_ROWS - 1))] for i in range(_ROWS)] if steps else []
        shown = ", ".join(f"{float(entry['loss']):.3f} at {entry['step']}" for entry in _distinct(chosen))
        rows.append([stage, shown or "not logged"])
    return markdown_rows(["stage", "loss at step"], rows)


def _curve(history: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    log = [entry for entry in history.get("captions", ()) if "eval_box_color" in entry]
    rows = [[str(entry["step"]), *(f"{float(entry[f'eval_box_{key}']):.3f}" for key in _CURVE)] for entry in log]
    return markdown_rows(["step", *(key.replace("_", " ") for key in _CURVE)], rows)


def _distinct(entries: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({entry["step"]: entry for entry in entries}.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("template", type=Path, help="Markdown with $fields")
    parser.add_argument("--model", type=Path, required=True, help="folder of the saved model, where the card goes")
    parser.add_argument("--report", type=Path, required=True, help="report.json of the training run")
    parser.add_argument("--stages", type=Path, nargs="+", required=True, help="outputs of the recipes that came after")
    parser.add_argument("--scores", type=Path, required=True, help="scenes_report.json of the finished model")
    parser.add_argument("--naming", type=Path, required=True, help="naming.json of the finished model")
    parser.add_argument("--confidence", type=Path, required=True, help="confidence.json of the finished model")
    options = parser.parse_args(arguments)
    report, scores, naming, confidence, *states = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (
            options.report,
            options.scores,
            options.naming,
            options.confidence,
            *(stage / "trainer_state.json" for stage in options.stages),
        )
    )
    logs = {stage.name: state["log_history"] for stage, state in zip(options.stages, states, strict=True)}
    history = {**report["history"], **logs}
    report |= {**scores, "history": history, "naming": naming, "confidence": confidence["measured"]}
    write_model_card(options.template, options.model, report)


if __name__ == "__main__":
    main()
