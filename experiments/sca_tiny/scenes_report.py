"""Scores a model on unseen `scenes`, with controls, and writes JSON and a Markdown table.

    python -m experiments.sca_tiny.scenes_report --model MODEL --output FOLDER

Masks are scored on every object, captions on those of which a caption can decide what to say. The controls show what
guessing scores: the captions of other regions (shuffled), and captions of a blank picture under the same boxes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sca_hf.data.scenes import Scene, SceneObject, read_caption, scenes
from sca_hf.evaluation.metrics import cider_d, exact_match, ptb_tokenize, ptb_tokenize_all
from sca_hf.files import to_json, write_whole
from sca_hf.processing.captions_sca import best_caption


ALWAYS = ("color", "shape", "texture")
PROMPTS = ("box", "point", "mask")


@dataclass
class RegionResult:
    """What a model said of one object, and how well its mask fits."""

    truth: SceneObject
    caption: str
    iou: float


def score_model(model: Any, processor: Any, count: int, split: str = "test", batch_size: int = 8) -> dict[str, Any]:
    """Scores every kind of prompt and both controls on the first `count` scenes of a split."""
    results = {kind: run_scenes(model, processor, scenes(split, count), kind, batch_size) for kind in PROMPTS}
    boxed = results["box"]
    order = np.random.default_rng(0).permutation(len(boxed))
    shuffled = [RegionResult(r.truth, boxed[k].caption, float("nan")) for r, k in zip(boxed, order, strict=True)]
    blank = run_scenes(model, processor, map(_blank, scenes(split, count)), "box", batch_size)
    results |= {"shuffled regions": shuffled, "blank image": blank}
    rows = {name: caption_scores(row) for name, row in results.items()}
    named = run_scenes(model, processor, scenes(split, count), "box", batch_size, task="recognition")
    category = _rate(result.caption == result.truth.category for result in named)
    return {"split": split, "scenes": count, "scores": rows, "category_from_box": round(category, 4)}


def run_scenes(
    model: Any,
    processor: Any,
    pictures: Iterable[Scene],
    prompt: str = "box",
    batch_size: int = 8,
    task: str = "caption",
) -> list[RegionResult]:
    """Captions and segments every object of the scenes from one kind of prompt: box, point (the deepest), or mask."""
    results, pictures = [], iter(pictures)
    while batch := list(islice(pictures, batch_size)):
        images = [scene.to_pil() for scene in batch]
        inputs = processor(images=images, task=task, return_tensors="pt", **_prompts(batch, prompt))
        with torch.inference_mode():
            output = model.generate(**inputs.to(model.device))
        found = processor.post_process_regions(output, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        for scene, regions in zip(batch, found, strict=True):
            for index, (obj, region) in enumerate(zip(scene.objects, regions, strict=True)):
                iou = mask_iou(np.asarray(region["mask"]), scene.mask(index))
                caption, _ = best_caption(region["caption"], region["score"])
                results.append(RegionResult(obj, caption, iou))
    return results


def caption_scores(results: Sequence[RegionResult]) -> dict[str, float]:
    """Returns the fractions of right words where the truth states them, CIDEr-D, exact match and the mean IoU."""
    told = [result for result in results if result.truth.describable]
    said = [read_caption(result.caption) for result in told]
    scores = {"mask_iou": float(np.mean([result.iou for result in results])), "regions": float(len(results))}
    scores["described_regions"] = float(len(told))
    for name in ALWAYS:
        scores[name] = _rate(words[name] == getattr(r.truth, name) for words, r in zip(said, told, strict=True))
    sized = [(w, r.truth) for w, r in zip(said, told, strict=True) if r.truth.size != "medium"]
    placed = [(w, r.truth) for w, r in zip(said, told, strict=True) if r.truth.relation is not None]
    plain = [w for w, r in zip(said, told, strict=True) if r.truth.size == "medium"]
    alone = [w for w, r in zip(said, told, strict=True) if r.truth.relation is None]
    scores["size"] = _rate(words["size"] == truth.size for words, truth in sized)
    scores["relation"] = _rate(words["relation"] == truth.relation for words, truth in placed)
    scores["names_neighbour"] = _rate(words["reference_color"] is not None for words, _ in placed)
    scores["reference"] = _rate(
        (words["reference_color"], words["reference_shape"]) == (truth.reference.color, truth.reference.shape)
        for words, truth in placed
        if truth.reference is not None and words["reference_color"] is not None
    )
    scores["size_left_out"] = _rate(words["size"] is None for words in plain)
    scores["relation_left_out"] = _rate(words["relation"] is None for words in alone)
    scores["states_size_or_relation"] = _rate(r.truth.size != "medium" or r.truth.relation is not None for r in told)
    candidates = [ptb_tokenize(result.caption) for result in told]
    references = [ptb_tokenize_all(result.truth.captions) for result in told]
    scores["cider_d"] = cider_d(candidates, references)["corpus"]
    scores["exact_match"] = exact_match(candidates, references)["corpus"]
    return {name: round(value, 4) for name, value in scores.items()}


def mask_iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Returns intersection over union of two masks (H, W); 1 when both are empty."""
    union = int((found | truth).sum())
    return float((found & truth).sum()) / union if union else 1.0


def markdown_table(report: dict[str, Any]) -> str:
    """Returns the scores as a table, a row per prompt or control."""
    columns = ("mask_iou", *ALWAYS, "size", "relation", "names_neighbour", "reference", "cider_d", "exact_match")
    lines = ["| prompt | " + " | ".join(column.replace("_", " ") for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, scores in report["scores"].items():
        cells = ["-" if scores[c] is None or np.isnan(scores[c]) else _cell(c, scores[c]) for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    named = report["category_from_box"]
    return "\n".join([*lines, "", f"Category names (task `recognition`) from a box: {100 * named:.1f} % right.", ""])


def _cell(column: str, value: float) -> str:
    return f"{value:.3f}" if column in ("mask_iou", "cider_d") else f"{100 * value:.1f} %"


def _rate(hits: Iterable[bool]) -> float:
    values = list(hits)
    return sum(values) / len(values) if values else float("nan")


def _prompts(batch: Sequence[Scene], kind: str) -> dict[str, Any]:
    if kind == "box":
        return {"input_boxes": [[list(obj.box) for obj in scene.objects] for scene in batch]}
    if kind == "point":
        return {"input_points": [[[list(obj.point)] for obj in scene.objects] for scene in batch]}
    if kind == "mask":
        return {"input_masks": [[scene.mask(k) for k in range(len(scene.objects))] for scene in batch]}
    raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(PROMPTS)}")


def _blank(scene: Scene) -> Scene:
    gray = np.asarray(Image.new("RGB", scene.labels.shape[::-1], (128, 128, 128)))
    return Scene(scene.seed, gray, scene.labels, scene.objects)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    from transformers import AutoModel, AutoProcessor

    import sca_hf  # noqa: F401  registers the classes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="folder or repository of the model")
    parser.add_argument("--output", type=Path, required=True, help="folder for scenes_report.json and .md")
    parser.add_argument("--scenes", type=int, default=1_000, help="number of test scenes")
    options = parser.parse_args(arguments)
    model, processor = AutoModel.from_pretrained(options.model).eval(), AutoProcessor.from_pretrained(options.model)
    report = {"model": Path(options.model).name, **score_model(model, processor, options.scenes)}
    options.output.mkdir(parents=True, exist_ok=True)
    write_whole(options.output / "scenes_report.json", to_json(report))
    (options.output / "scenes_report.md").write_text(markdown_table(report))
    print(markdown_table(report))


if __name__ == "__main__":
    main()
