"""The road to a model for photographs: weak names, thresholds and recipes; and all of it, in a few steps."""

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from experiments.photographs import __main__ as road
from experiments.photographs import compare, swapped_names, thresholds, towers
from experiments.photographs.names import NAMES, Detections, without_others
from experiments.photographs.recipe import read_recipe
from experiments.photographs.words import caption_of
from sca_hf.modeling.encoder_sca import ScaEncoderModel
from sca_hf.modeling.towers_sca import ScaTowersModel
from tests.experiments.few_photographs import copy_few


def test_names_are_those_of_coco_in_its_order():
    assert (len(NAMES), NAMES[0], NAMES[16], NAMES[-1]) == (80, "person", "dog", "toothbrush")


def test_weak_names_leave_true_regions_of_another_name_alone():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [50, 50, 60, 60]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([16, 15, 39]))  # dog, cat, bottle
    true = [([0, 0, 10, 10], "dog"), ([20, 20, 30, 31], "dog"), ([50, 50, 60, 61], "plastic bottle")]
    kept, counts = without_others(found, true)
    assert kept.names.tolist() == [16, 39] and counts == Counter({"right": 1, "wrong": 1, "left out": 1})
    assert without_others(found, [])[0].names.tolist() == [16, 15, 39]


def test_thresholds_count_what_is_found_and_what_is_there():
    picture = {
        "values": np.array([[0.9, 0.9, 0.1], [0.4, 0.9, 0.1], [0.9, 0.9, 0.1]]),
        "iou": np.array([[0.8, 0.0], [0.0, 0.7], [0.1, 0.1]]),
        "small": np.array([False, True]),
    }
    low, high = (thresholds.score([picture], iou, 0.5, 0.0) for iou in (0.3, 0.5))
    assert (low["recall"], low["recall_medium_large"], low["precision"], low["regions"]) == (1.0, 1.0, 2 / 3, 3)
    assert (high["recall"], high["precision"], high["regions"]) == (0.5, 0.5, 2)
    assert thresholds.score([picture], 1.0, 0.5, 0.0)["f2"] == 0


def test_names_and_scores_change_places_together():
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    for place in (0, 5, 79):
        told = swapped_names.renamed({"captions": [caption_of(NAMES[place])], "box": [0, 0, 1, 1]}, order)
        scores = torch.nn.functional.one_hot(torch.tensor(place), 80)[order]
        assert told["captions"] == [caption_of(NAMES[int(scores.argmax())])] and told["box"]
    with pytest.raises(ValueError, match="'a fig' is not a caption of one of COCO's names"):
        swapped_names.renamed({"captions": ["a fig"]}, order)


def test_the_collator_says_which_scores_go_with_its_captions():
    collator = swapped_names.SwappedNames(lambda records: {"records": records}, ["coco"])
    regions = [{"captions": ["a person"]}, {"captions": ["a bear"]}]
    batch = collator([{"source": "coco", "regions": regions}] * 20 + [{"source": "litter", "regions": regions}])
    names = [[region["captions"][0] for region in record["regions"]] for record in batch["records"]]
    assert 2 < sum(name != ["a person", "a bear"] for name in names) < 20 and names[-1] == ["a person", "a bear"]
    for order, said in zip(batch["score_order"], names, strict=True):
        true = [NAMES[place] for place in order[[NAMES.index(n.removeprefix("a ").removeprefix("an ")) for n in said]]]
        assert true == ["person", "bear"]


@pytest.mark.parametrize("name", ["boxes.yaml", "first_look.yaml", "second_look.yaml", "words.yaml"])
def test_recipes_name_the_files_of_their_seed(name, tmp_path):
    recipe = read_recipe(name, tmp_path / "out", 3, tmp_path / "sets")
    named = [str(value) for spec in [*recipe.data.train, *recipe.data.eval] for value in spec.values()]
    places = [value for value in [*named, recipe.model.from_, recipe.output] if "/" in value]
    assert all(place.startswith((f"{tmp_path}/out/seed-3/", f"{tmp_path}/sets")) for place in places)
    assert not any(".test." in value for value in named) and recipe.data.eval[0]["annotations"].endswith("choice.json")
    assert recipe.training["seed"] == 3 and recipe.training["load_best_model_at_end"]
    assert read_recipe(name, tmp_path, 0, tmp_path, steps=2).training["max_steps"] == 2


def test_a_convolutional_encoder_is_read_whatever_attention_is_asked_for(tmp_path):
    encoder = ScaTowersModel(towers.ScaTowersConfig(towers=["nanodet_g"], image_size=64))
    ScaEncoderModel.from_encoder(encoder).save_pretrained(tmp_path / "model")
    read = ScaEncoderModel.from_pretrained(tmp_path / "model", attn_implementation="sdpa")
    pixels = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(read.vision_encoder.encoder(pixels)[0], encoder.eval()(pixels)[0])


def test_every_row_of_the_comparison_differs_from_the_others():
    rows = compare.rows()
    assert len({json.dumps(row, sort_keys=True) for row in rows.values()}) == len(rows)


@pytest.mark.slow
def test_the_whole_road_ends_in_a_model_that_is_read_without_the_package(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    pytest.importorskip("onnx", reason="onnx, which reads U2-Net's weights, is not installed")
    folder = copy_few(shared("data"), tmp_path / "sets")
    shared("weights/u2net_small")
    # Of Lite0 the shape alone: its package may not be installed.
    model = ScaTowersModel(towers.ScaTowersConfig(**road.TOWERS))
    model.towers["nanodet_g"].load_state_dict(towers.nanodet_state(shared("weights/nanodet_g")))
    towers.save_towers(model, tmp_path / "out" / "towers")
    given = ["--output", str(tmp_path / "out"), "--data", str(folder), "--steps", "2"]
    road.main([*given, "--until", "second"])  # stopped there, and resumed
    road.main(given)
    own = tmp_path / "out" / "seed-0"
    before = {path: path.stat().st_mtime_ns for path in own.rglob("*") if path.is_file() and path.name != "road.json"}
    road.main(given)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert road.folder_size(own / "model") < road.SIZE_LIMIT
    assert json.loads((own / "report" / "test.json").read_text())["masks"]["0"]
    code = (
        "import sys; from transformers import AutoModel, AutoProcessor; from PIL import Image\n"
        f"model = AutoModel.from_pretrained({str(own / 'model')!r}, trust_remote_code=True)\n"
        f"processor = AutoProcessor.from_pretrained({str(own / 'model')!r}, trust_remote_code=True)\n"
        "inputs = processor(Image.new('RGB', (64, 48)), input_boxes=[[[8, 8, 40, 40]]], return_tensors='pt')\n"
        "out = model.generate(**inputs)\n"
        "found = processor.post_process_regions(out, inputs['original_sizes'], inputs['reshaped_input_sizes'])\n"
        "assert found[0][0]['mask'].shape == (48, 64) and 'sca_hf' not in sys.modules\n"
    )
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={**bare, "HF_HOME": str(tmp_path / "h")}
    )
