"""Self-training under a shift: what each judge is worth, and whether it helps; makes tables of docs/self-training.md.

    python -m experiments.self_training --output runs/self_training --page docs/self-training.md

Scenes as sca-tiny knows them, with another background, blur and noise, all fixed below. The teacher is sca-tiny,
trained on the labeled pictures; its labels of the unlabeled ones are compared with the truth. A caption is right where
color, shape, texture, size and place are. The control trains as long from the same start on the true labels alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sca_hf.anything.sources import find_images, read_boxes
from sca_hf.data.scenes import Scene, read_caption, scenes
from sca_hf.evaluation.captioners import ScaCaptioner
from sca_hf.evaluation.predict import predict
from sca_hf.evaluation.predictions import read_predictions
from sca_hf.files import json_line, read_json, to_json, write_whole
from sca_hf.self_training import JudgeRun, ProposeRun, SelectionSettings, judge, learn, propose, read_manifest
from sca_hf.self_training.selection import Candidate, select
from sca_hf.self_training.settings import JUDGES
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.recipe.schema import Recipe

from .pages import command_line, show


MARKS = ("<!-- self-training: made by experiments/self_training.py -->", "<!-- end of self-training -->")
# split and first scene of each part
PARTS = {"labeled": ("train", 600_000), "unlabeled": ("train", 700_000), "test": ("test", 50_000)}
STRIPES, BLUR, NOISE = 0.35, 1.0, 25.0
ATTRIBUTES = ("color", "shape", "texture", "size", "relation")
TRAINING = {
    "preset": "mixer+lm",
    "per_device_train_batch_size": 8,
    "regions_per_image": 4,
    "learning_rate": 3e-4,
    "warmup_steps": 20,
    "prompt_probabilities": {"box": 0.5, "jittered_box": 0.3, "point": 0.2},
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_generate": False,
    "report_to": "none",
    "use_cpu": True,
}


def shifted(scene: Scene) -> Image.Image:
    """Returns the picture of a scene with striped background, blurred, and with noise; a function of its seed."""
    generator = np.random.default_rng((scene.seed, 1))
    pixels = scene.image.astype(np.float32)
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    angle, period = generator.uniform(0, np.pi), generator.uniform(8, 30)
    wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period) > 0
    stripes = np.where(wave[..., None], *generator.uniform(60, 220, (2, 3)))
    outside = scene.labels == 0
    pixels[outside] = (1 - STRIPES) * pixels[outside] + STRIPES * stripes[outside]
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(BLUR))
    noisy = np.asarray(picture).astype(np.float32) + generator.normal(0, NOISE, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_part(folder: Path, name: str, count: int) -> None:
    """Writes pictures, `NAME.jsonl` with their true captions, and the boxes alone as a detector would have them."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines, boxes, truth = [], {}, {}
    split, first = PARTS[name]
    for scene in scenes(split, count, first):
        record = scene.to_record()
        if not record["regions"]:
            continue
        file = f"{record['image_id']}.png"
        shifted(scene).save(folder / name / file)
        regions = [{key: region[key] for key in ("region_id", "box", "captions")} for region in record["regions"]]
        lines.append(json_line({"image": file, "image_id": file, "regions": regions}) + "\n")
        boxes[file] = [{"box": region["box"]} for region in regions]
        described = [one for one in scene.objects if one.describable]
        truth[file] = [{part: getattr(one, part) for part in ATTRIBUTES} for one in described]
    write_whole(folder / f"{name}.jsonl", lines)
    write_whole(folder / f"{name}_boxes.json", to_json(boxes))
    write_whole(folder / f"{name}_truth.json", to_json(truth))


def is_right(caption: str, truth: dict[str, Any]) -> bool:
    """Whether a caption says all attributes of an object."""
    said = {**read_caption(caption)}
    said["size"] = said["size"] or "medium"
    return all(said[part] == truth[part] for part in ATTRIBUTES)


def training(data: Path, output: Path, start: str, steps: int, seed: int) -> Recipe:
    """Returns the recipe of a run on the labeled pictures."""
    train = {"format": "jsonl", "path": str(data / "labeled.jsonl"), "images": str(data / "labeled")}
    settings = {**TRAINING, "max_steps": steps, "seed": seed, "data_seed": seed}
    return Recipe.from_mapping(
        {"model": {"from": start}, "data": {"train": train}, "training": settings, "output": str(output)}
    )


def accuracy(data: Path, model: str, output: Path) -> float:
    """Returns the share of the test regions whose caption has all attributes right."""
    spec = {"format": "jsonl", "path": str(data / "test.jsonl"), "images": str(data / "test")}
    output.parent.mkdir(parents=True, exist_ok=True)
    records = read_predictions(predict(ScaCaptioner.load(model), spec, output, progress=False))
    truth, seen = read_json(data / "test_truth.json"), dict[str, int]()
    right = []
    for record in records:
        place = seen[record.image_id] = seen.get(record.image_id, -1) + 1
        right.append(is_right(record.caption, truth[record.image_id][place]))
    return float(np.mean(right))


def precision_table(data: Path, manifest: Path) -> str:
    """Returns a table: of each judge and all together, how many of the kept labels are right."""
    rows = list(read_manifest(manifest))
    truth = read_json(data / "unlabeled_truth.json")
    right = np.array([is_right(row["caption"], truth[row["image"]][row["region"] - 1]) for row in rows])
    lines = ["| judges | kept | right among the kept | classes kept, fewest to most |", "| --- | --: | --: | --: |"]
    free = {"max_per_picture": 100}
    lines.append(f"| none: all labels | 100 % | {right.mean():.1%} | |")
    for title, judges, settings in _ways(free):
        found = [
            Candidate(row["image"], row["region"], row["caption"], {name: row[name] for name in judges})
            for row in rows
        ]
        select(found, settings)
        kept = np.array([one.kept for one in found])
        groups = {one.group for one in found}
        parts = [np.mean([one.kept for one in found if one.group == group]) for group in groups]
        extent = f"{min(parts):.0%} to {max(parts):.0%}" if len(parts) > 1 else ""
        lines.append(f"| {title} | {kept.mean():.1%} | {right[kept].mean():.1%} | {extent} |")
    return "\n".join([*lines, "", f"{len(rows)} regions of {len(truth)} pictures."])


def _ways(free: dict[str, Any]) -> Iterator[tuple[str, Sequence[str], SelectionSettings]]:
    whole = SelectionSettings(class_by="none", **free)
    for name in JUDGES:
        yield f"`{name}`", (name,), whole
    yield "`score`, `agreement`, `listener`", JUDGES[:3], whole
    yield "all five", JUDGES, whole
    yield "all five, by classes (the default)", JUDGES, SelectionSettings(**free)
    yield "all five, by classes, the best quarter", JUDGES, SelectionSettings(coverage=0.25, **free)


def run(output: Path, counts: dict[str, int], steps: int, seeds: Sequence[int]) -> str:
    """Runs everything that is not there yet, and returns the tables."""
    data, tables = output / "data", []
    for name, count in counts.items():
        if not (data / f"{name}_truth.json").is_file():
            write_part(data, name, count)
    found: list[dict[str, Any]] = []
    for seed in seeds:
        folder = output / f"seed-{seed}"
        teacher = str(run_recipe(training(data, folder / "control", "sca-tiny", steps, seed), progress=False).model)
        items = find_images([str(data / "unlabeled")])
        boxes = read_boxes(data / "unlabeled_boxes.json")
        propose(ProposeRun(str(folder / "proposals"), teacher, boxes=boxes), items, progress=False)
        made = judge(JudgeRun(str(folder / "judged"), teacher, proposals=str(folder / "proposals")), progress=False)
        assert made is not None
        if seed == seeds[0]:
            tables.append(precision_table(data, made.manifest))
        taught = learn(training(data, folder / "taught", "sca-tiny", steps, seed), [made.manifest], progress=False)
        scores = {
            name: accuracy(data, model, folder / f"{name}.jsonl")
            for name, model in {"start": "sca-tiny", "control": teacher, "taught": str(taught.model)}.items()
        }
        found.append({"seed": seed, "kept": made.kept, **scores})
        write_whole(output / "found.json", to_json(found))
    lines = ["| seed | labels kept | sca-tiny | control | self-trained |", "| --- | --: | --: | --: | --: |"]
    for row in found:
        lines.append("| {seed} | {kept} | {start:.1%} | {control:.1%} | {taught:.1%} |".format(**row))
    about = f"{counts['labeled']} labeled, {counts['unlabeled']} unlabeled and {counts['test']} test pictures, "
    return "\n".join([*tables, "", *lines, "", f"{about}{steps} steps."])


def main() -> None:
    """Runs the command."""
    parser = command_line(__doc__)
    parser.add_argument("--labeled", type=int, default=200)
    parser.add_argument("--unlabeled", type=int, default=4000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    counts = {"labeled": options.labeled, "unlabeled": options.unlabeled, "test": options.test}
    text = run(options.output, counts, options.steps, options.seeds)
    show(text, options.page, MARKS)


if __name__ == "__main__":
    main()
