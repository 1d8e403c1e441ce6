"""The page of the correction loop: its commands exist, and run as they stand gain on pictures that were held out."""

import json
import shlex

import pytest
from PIL import Image

from experiments.correction import commands, correct, prepare, recipe, run, table
from sca_hf.cli import main
from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.training.recipe.schema import load_recipe


@pytest.fixture
def data(tmp_path):
    """Sixty pictures of two sorts of things."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(60):
        Image.new("RGB", (96, 64), (number, 0, 0)).save(tmp_path / "data" / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 64})
        for index, box in enumerate(([0, 0, 30, 30], [50, 20, 46, 44])):
            row = {"id": 2 * number + index, "image_id": number, "category_id": index, "bbox": box, "iscrowd": 0}
            annotations.append({**row, "area": box[2] * box[3]})
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "data" / "instances.json").write_text(json.dumps(content))
    return tmp_path / "data"


def test_the_recipe_of_the_page_is_one(tmp_path):
    (tmp_path / "correction.yaml").write_text(recipe())
    assert load_recipe(tmp_path / "correction.yaml").output == "runs/corrected"


def test_what_a_person_corrects_in_label_studio_is_what_is_trained_on(data, tmp_path, monkeypatch):
    truth = prepare(data, tmp_path / "loop", seed=0)
    monkeypatch.chdir(tmp_path / "loop")
    assert main(shlex.split(commands()[0])[1:]) == 0
    given = correct(tmp_path / "loop" / "captions" / "label_studio", truth, seed=0)
    assert given == {"cat": 15, "dog": 15}
    options = {"annotations": "captions/label_studio/export.json"}
    records = list(RecordSource("label_studio", options).records(ReadReport()))
    regions = [region for record in records for region in record["regions"]]
    assert len(records) == 15 and len(regions) == 30
    for region in regions:
        name = "cat" if region["box"][0] < 25 else "dog"
        assert region["captions"] == [name] and region["category"] == "object"
    assert not {record["image_id"] for record in records} & {
        image.name for image in (tmp_path / "loop/held-out").iterdir()
    }


@pytest.mark.slow
def test_the_commands_of_the_page_gain_on_held_out_pictures(shared, tmp_path):
    found = run(shared("data/aquarium_boxes"), tmp_path / "loop", seed=0)
    assert sum(found["corrected"].values()) == 30
    assert found["cpu_seconds"] < 600
    assert found["before"]["accuracy"] < 0.01  # none of these names is a word of sca-tiny
    assert found["after"]["accuracy"] > found["after"]["commonest"]
    assert found["after"]["macro recall"] > 0.25
    assert json.loads((tmp_path / "loop" / "gain.json").read_text())
    assert "| 0 | " in table({0: found})
