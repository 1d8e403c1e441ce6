"""What thirty corrected captions gain: the commands of docs/correction.md, with a person who knows the data set.

    python -m experiments.correction --data data/aquarium_boxes --output runs/correction --page docs/correction.md

For every seed a fifth of the pictures is held out. Of forty others the boxes, moved by up to a twentieth of their
sides, stand in for a detector's. Captions of thirty, two to a picture, are corrected in Label Studio's export: to the
name of the object whose box is nearest; the other regions of these pictures are deleted.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from .pages import command_line, show


PAGE = Path(__file__).parents[1] / "docs" / "correction.md"
MARKS = ("<!-- correction: made by experiments/correction.py -->", "<!-- end of correction -->")
HELD_OUT, PHOTOS, CORRECTED, PER_PICTURE = 0.2, 40, 30, 2
Truth = dict[str, list[tuple[list[float], str]]]


def commands() -> list[str]:
    """Returns the commands of the page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("sca-hf")]


def recipe() -> str:
    """Returns the recipe of the page."""
    found = re.search(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def prepare(data: Path, folder: Path, seed: int) -> Truth:
    """Lays out what the page's commands read: `photos`, `detections.json`, `held-out` and the recipe.

    Args:
        data: A data set in COCO's form: `instances.json` and `images`.
        folder: The folder in which the commands will run.
        seed: Decides what is held out, what is captioned, and how boxes are moved.

    Returns:
        The true boxes, xyxy, and names of each photo.
    """
    content = json.loads((data / "instances.json").read_text(encoding="utf-8"))
    names = {row["id"]: row["name"] for row in content["categories"]}
    images = sorted(content["images"], key=lambda image: image["id"])
    generator = random.Random(seed)
    generator.shuffle(images)
    count = round(len(images) * HELD_OUT)
    held, photos = images[:count], images[count : count + PHOTOS]
    for name, chosen in (("held-out", held), ("photos", photos)):
        (folder / name).mkdir(parents=True)
        for image in chosen:
            shutil.copy(data / "images" / image["file_name"], folder / name)
    kept = {image["id"] for image in held}
    rows = [row for row in content["annotations"] if row["image_id"] in kept and not row.get("iscrowd")]
    _write(folder / "held-out.json", {**content, "images": held, "annotations": rows})
    truth: Truth = {image["file_name"]: [] for image in photos}
    files = {image["id"]: image["file_name"] for image in photos}
    sides = {image["file_name"]: (image["width"], image["height"]) for image in photos}
    detections: dict[str, list[Any]] = {name: [] for name in truth}
    for row in content["annotations"]:
        if (file := files.get(row["image_id"])) is not None:
            x, y, width, height = row["bbox"]
            truth[file].append(([x, y, x + width, y + height], names[row["category_id"]]))
            sizes = (width, height) * 2
            moved = [v + generator.uniform(-0.05, 0.05) * s for v, s in zip(truth[file][-1][0], sizes, strict=True)]
            detections[file].append({"box": [min(max(v, 0), s) for v, s in zip(moved, sides[file] * 2, strict=True)]})
    _write(folder / "detections.json", {name: boxes for name, boxes in detections.items() if boxes})
    (folder / "correction.yaml").write_text(recipe(), encoding="utf-8")
    return truth


def correct(folder: Path, truth: Truth, seed: int) -> Counter[str]:
    """Edits Label Studio's tasks as a person would, and exports them; returns how many regions got which name."""
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    generator = random.Random(seed)
    given: Counter[str] = Counter()
    for number in generator.sample(range(len(tasks)), len(tasks)):
        task, results = tasks[number], []
        task |= {"id": number + 1, "annotations": []}
        proposed = task["predictions"][0]["result"]
        places = [result for result in proposed if result["type"] == "rectanglelabels"]
        generator.shuffle(places)
        for place in places[: min(PER_PICTURE, CORRECTED - given.total())]:
            name = _nearest(place, truth[task["data"]["image_id"]])
            given[name] += 1
            value = {key: place["value"][key] for key in ("x", "y", "width", "height", "rotation")}
            text = {**place, "from_name": "caption", "type": "textarea", "value": {**value, "text": [name]}}
            results += [place, text]
        if results:
            task["annotations"].append({"id": number + 1, "was_cancelled": False, "result": results})
    _write(folder / "export.json", tasks)
    return given


def _nearest(place: dict[str, Any], objects: list[tuple[list[float], str]]) -> str:
    value, size = place["value"], (place["original_width"], place["original_height"])
    x, y = ((value[a] + value[b] / 2) / 100 * side for a, b, side in zip("xy", ("width", "height"), size, strict=True))
    return min(objects, key=lambda one: (sum(one[0][::2]) / 2 - x) ** 2 + (sum(one[0][1::2]) / 2 - y) ** 2)[1]


def run(data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Runs the page's commands in a new folder; returns accuracies on the held-out pictures and CPU seconds."""
    truth = prepare(data, folder, seed)
    given: Counter[str] = Counter()
    start = _cpu_seconds()
    for command in commands():
        extra = [f"--training.seed={seed}"] if command.startswith("sca-hf train") else []
        words = [sys.executable, "-m", "sca_hf", *shlex.split(command)[1:], *extra]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        if "--write label_studio" in command:
            given = correct(folder / "captions" / "label_studio", truth, seed)
    seconds = _cpu_seconds() - start
    before, after = (_scores(folder / name) for name in ("before.jsonl", "after.jsonl"))
    return {"before": before, "after": after, "corrected": dict(given), "cpu_seconds": seconds}


def _scores(path: Path) -> dict[str, float]:
    """Returns accuracy and macro recall of names, and the share of the commonest."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in rows:
        name = row["references"][0]
        total[name] += 1
        right[name] += row["candidates"][0] == name
    recalls = [right[name] / total[name] for name in total]
    commonest = max(total.values()) / total.total()
    accuracy = right.total() / total.total()
    return {
        "regions": total.total(),
        "accuracy": accuracy,
        "macro recall": statistics.mean(recalls),
        "commonest": commonest,
    }


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def table(found: dict[int, dict[str, Any]]) -> str:
    """Returns the page's table."""
    lines = [
        "| seed | held-out regions | commonest class | accuracy before | after | macro recall before | after | min |"
    ]
    lines.append("| --- |" + " --: |" * 7)
    for seed, one in found.items():
        before, after = one["before"], one["after"]
        numbers = [
            before["commonest"],
            before["accuracy"],
            after["accuracy"],
            before["macro recall"],
            after["macro recall"],
        ]
        shown = " | ".join(f"{number:.3f}" for number in numbers)
        lines.append(f"| {seed} | {before['regions']} | {shown} | {one['cpu_seconds'] / 60:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with instances.json and images")
    options = parser.parse_args()
    found = {}
    for seed in options.seeds:
        path = options.output / f"seed-{seed}" / "result.json"
        if not path.exists():
            shutil.rmtree(path.parent, ignore_errors=True)
            _write(path, run(options.data, path.parent, seed))
        found[seed] = json.loads(path.read_text(encoding="utf-8"))
        print(f"seed {seed}: {found[seed]}", flush=True)
    show(table(found), options.page, MARKS)


if __name__ == "__main__":
    main()
