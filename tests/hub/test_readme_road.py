"""What the README shows, in an empty folder: check one's own boxes, train, evaluate, report, publish, load elsewhere.

The commands are the README's own, with other data in the place of its VOC folder, and a few steps of training.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from sca_hf.cli import main
from sca_hf.data.scenes import scenes


README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
# How each format names the data in a spec, and in the options of a recipe.
DATA = {
    "voc": ("voc:root=my-boxes", "finetune_voc --data.train.root=my-boxes"),
    "coco": ("coco:annotations=my-boxes/instances.json,images=my-boxes/images", "finetune_coco"),
    "yolo": ("yolo:root=my-boxes", "finetune_voc --data.train.format=yolo --data.train.root=my-boxes"),
}
QUICK = "--training.detail_steps=2 --training.max_steps=2 --training.eval_steps=2 --training.sample_sheet=0"
LOAD = """
import sys
sys.modules["sca_hf"] = None
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
print(processor.batch_decode(model.generate(**processor("scene.png", input_boxes=[[31, 25, 99, 103]])))[0][0])
"""


def commands(format):
    """The commands of the README's two sections about one's own data, in order, for data of a format."""
    spec, train = DATA[format]
    sections = README.split("## Train on your own data")[1].split("## How it works")[0]
    for block in re.findall(r"```sh\n(.*?)```", sections, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.split("  #")[0].replace("voc:root=my-boxes", spec)
            line = line.replace("finetune_voc --data.train.root=my-boxes", f"{train} {QUICK}")
            yield shlex.split(line)


def write_voc(root, count):
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for k, scene in enumerate(scenes("train", count)):
        scene.to_pil().save(root / "JPEGImages" / f"{k}.png")
        height, width = scene.labels.shape
        objects = "".join(
            f"<object><name>{thing.category}</name><bndbox><xmin>{round(thing.box[0]) + 1}</xmin>"
            f"<ymin>{round(thing.box[1]) + 1}</ymin><xmax>{round(thing.box[2])}</xmax>"
            f"<ymax>{round(thing.box[3])}</ymax>"
            "</bndbox></object>"
            for thing in scene.objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (root / "Annotations" / f"{k}.xml").write_text(
            f"<annotation><filename>{k}.png</filename>{size}{objects}</annotation>"
        )


def write_coco(root, count):
    (root / "images").mkdir(parents=True)
    content = {"images": [], "annotations": [], "categories": []}
    numbers = {}
    for k, scene in enumerate(scenes("train", count)):
        scene.to_pil().save(root / "images" / f"{k}.png")
        height, width = scene.labels.shape
        content["images"].append({"id": k, "file_name": f"{k}.png", "height": height, "width": width})
        for thing in scene.objects:
            left, top, right, bottom = map(float, thing.box)
            box, number = [left, top, right - left, bottom - top], numbers.setdefault(thing.category, len(numbers) + 1)
            values = {"id": len(content["annotations"]) + 1, "image_id": k, "category_id": number, "iscrowd": 0}
            corners = [left, top, right, top, right, bottom, left, bottom]
            content["annotations"].append({**values, "bbox": box, "area": box[2] * box[3], "segmentation": [corners]})
    content["categories"] = [{"id": number, "name": name} for name, number in numbers.items()]
    (root / "instances.json").write_text(json.dumps(content))


def write_yolo(root, count):
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    names = {}
    for k, scene in enumerate(scenes("train", count)):
        scene.to_pil().save(root / "images" / f"{k}.png")
        height, width = scene.labels.shape
        lines = []
        for thing in scene.objects:
            left, top, right, bottom = map(float, thing.box)
            number = names.setdefault(thing.category, len(names))
            middle = f"{(left + right) / 2 / width:.6f} {(top + bottom) / 2 / height:.6f}"
            lines.append(f"{number} {middle} {(right - left) / width:.6f} {(bottom - top) / height:.6f}")
        (root / "labels" / f"{k}.txt").write_text("\n".join(lines) + "\n")
    listed = "".join(f"  {number}: {name}\n" for name, number in names.items())
    (root / "data.yaml").write_text(f"path: .\ntrain: images\nval: images\nnames:\n{listed}")


@pytest.mark.slow
@pytest.mark.parametrize("format", DATA)
def test_the_road_of_the_readme_ends_with_a_published_model(online, tmp_path, monkeypatch, capsys, format):
    monkeypatch.chdir(tmp_path)
    {"voc": write_voc, "coco": write_coco, "yolo": write_yolo}[format](tmp_path / "my-boxes", 10)
    seen = []
    for program, *arguments in commands(format):
        assert program == "sca-hf"
        if arguments[0] == "publish":
            assert "draft: true" in (tmp_path / "runs" / "my-boxes" / "model" / "README.md").read_text()
            arguments[2] = "ann/sca-my-boxes"  # the README's `me` is whoever reads it
        assert main([*arguments, "--debug"]) == 0, (arguments, capsys.readouterr().err)
        seen.append(arguments[0])
    assert seen == ["data", "train", "predict", "evaluate", "report", "publish"]
    card = ModelCard.load("ann/sca-my-boxes")
    assert "draft" not in card.data.to_dict() and "max_steps: 2" in card.text
    scores = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == scores

    assert main(["scene", "scene.png", "--seed", "20000010"]) == 0
    published = describe("ann/sca-my-boxes", tmp_path, {"HF_ENDPOINT": online.url, "HF_TOKEN": "token-of-ann"})
    shutil.move(tmp_path / "runs" / "my-boxes" / "model", tmp_path / "moved")
    shutil.rmtree(tmp_path / "runs")
    assert describe("moved", tmp_path, {"HF_HUB_OFFLINE": "1"}) == published


def describe(model, folder, environment):
    """What a model says in a fresh process that cannot import this package."""
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    alone |= {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", **environment}
    done = subprocess.run([sys.executable, "-c", LOAD, model], capture_output=True, text=True, env=alone)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]
    return done.stdout
