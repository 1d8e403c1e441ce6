"""What the README shows, in an empty folder: train on one's own boxes, evaluate, publish, move the model away."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from sca_hf.cli import main
from sca_hf.data.scenes import scenes


LOAD = """
import sys
sys.modules["sca_hf"] = None
from transformers import AutoModel, AutoProcessor
model = AutoModel.from_pretrained("moved", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("moved", trust_remote_code=True)
print(processor.batch_decode(model.generate(**processor("scene.png", input_boxes=[[31, 25, 99, 103]])))[0][0])
"""


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


@pytest.mark.slow
def test_what_is_trained_from_the_bundled_model_is_published_and_moved(online, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_voc(tmp_path / "my-boxes", 10)
    train = ["train", "finetune_voc", "--data.train.root=my-boxes", "--output=runs/my-boxes"]
    assert main([*train, "--training.max_steps=2", "--training.eval_steps=2", "--training.sample_sheet=0"]) == 0
    assert "draft: true" in (tmp_path / "runs" / "my-boxes" / "model" / "README.md").read_text()
    data = ["--data", "voc:root=my-boxes"]
    assert main(["predict", *data, "--model", "runs/my-boxes/model", "--output", "said.jsonl"]) == 0
    assert main(["evaluate", "said.jsonl", "--json", "scores.json"]) == 0
    published = ["publish", "runs/my-boxes/model", "ann/sca-my-boxes", "--evaluation", "scores.json", "--private"]
    assert main([*published, "--debug"]) == 0, capsys.readouterr().err
    card = ModelCard.load("ann/sca-my-boxes")
    assert "draft" not in card.data.to_dict() and "max_steps: 2" in card.text
    scores = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert {r.metric_name: r.metric_value for r in card.data.eval_results} == scores

    assert main(["scene", "scene.png", "--seed", "20000010"]) == 0
    shutil.move(tmp_path / "runs" / "my-boxes" / "model", tmp_path / "moved")
    shutil.rmtree(tmp_path / "runs")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    alone |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=alone)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]
