"""Self-training small enough for a test: a tiny teacher, a folder of pictures, commands in processes to be killed."""

import json
import os
import subprocess
import sys
import time

from sca_hf.testing import CAPTIONS, tiny_image


BOXES = ([5, 5, 35, 25], [30, 20, 40, 35], [2, 30, 18, 28])  # x, y, width, height, as COCO has them
TRAINING = {
    "max_steps": 6,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
    "use_cpu": True,
    "sample_sheet": 0,
    "report_to": "none",
}


def make_pictures(folder, count=6):
    """Pictures, and a detector's file with one to three boxes in each."""
    (folder / "photos").mkdir(parents=True)
    rows = []
    for number in range(count):
        tiny_image(100 + number).save(folder / "photos" / f"{number}.png")
        for box in BOXES[: 1 + number % 3]:
            rows.append({"image_id": number, "category_id": 1, "bbox": box, "score": 0.9})
    (folder / "boxes.json").write_text(json.dumps(rows))


def write_recipe(folder, model, **training):
    """Eight pictures with true captions, a quarter held out, and the recipe that trains on them."""
    import yaml

    lines = []
    for number in range(8):
        tiny_image(number).save(folder / f"true-{number}.png")
        regions = [
            {"box": [x, y, x + width, y + height], "captions": [CAPTIONS[(number + place) % len(CAPTIONS)]]}
            for place, (x, y, width, height) in enumerate(BOXES)
        ]
        lines.append({"image": f"true-{number}.png", "image_id": f"true-{number}", "regions": regions})
    (folder / "true.jsonl").write_text("\n".join(map(json.dumps, lines)))
    values = {
        "model": {"from": model},
        "data": {"train": {"format": "jsonl", "path": str(folder / "true.jsonl")}, "holdout": 0.25},
        "training": {**TRAINING, **training},
        "output": str(folder / "taught"),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "recipe.yaml")


def propose_command(folder, output, model, *more):
    """The first stage."""
    command = ["self-train", "propose", str(folder / "photos"), "--boxes", str(folder / "boxes.json")]
    return [*command, "--output", str(output), "--model", model, "--device", "cpu", *more]


def judge_command(proposals, output, model, *more):
    """The second stage."""
    command = ["self-train", "judge", str(proposals), "--output", str(output), "--model", model]
    return [*command, "--device", "cpu", "--min-class", "3", *more]


def start(command, cache, rank=0, world=1, torchrun=False):
    """One command in a process of its own; by torchrun in `world` that talk to each other."""
    own = {"RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 and not torchrun else {}
    environment = {**os.environ, "HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1", **own}
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.Popen(
        [sys.executable, *(several if torchrun else ()), "-m", "sca_hf", *command, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def finish(*started):
    """Waits for what must end well."""
    for process in started:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said


def kill_when(process, reached):
    """Kills a process as soon as something is true; returns whether it was still at work."""
    while process.poll() is None and not reached():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    return process.returncode < 0


def lines_of(folder):
    """How many lines a journal has."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("journal/part-*.jsonl"))
