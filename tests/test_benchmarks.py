"""What the benchmark of a training step says, at a shape small enough for a test."""

import sys
import time

import pytest
import torch
from PIL import Image

from benchmarks.anything import bench_anything
from benchmarks.bound import Products, floor
from benchmarks.dataset import Way, agree_on_records, compare
from benchmarks.shapes import Size
from benchmarks.stream import Run, differences, items
from benchmarks.training import SAVED_RATIO, same_step, saved_bytes, training_calls
from sca_hf import region_captioning_pipeline
from sca_hf.anything.folder import FolderRun, ImageCaptioner
from sca_hf.anything.sources import ImageItem
from sca_hf.data.scenes import render_scene


# The published grid, without the encoder's layers: the mixer, not the language model's head, sets what is saved.
SMALL = Size(trained=1, layers=4, vision_layers=0, text_layers=1)


@pytest.fixture(scope="module")
def steps():
    return {name: call() for name, call in training_calls(SMALL, torch.device("cpu"), torch.float64).items()}


@pytest.mark.slow
def test_a_training_step_keeps_less_for_its_backward_than_the_plain_modules_do(steps):
    assert steps["ours"].saved <= SAVED_RATIO * steps["plain-eager"].saved
    assert steps["ours"].saved == steps["ours, cached"].saved


@pytest.mark.slow
def test_a_training_step_has_the_loss_and_gradients_of_the_plain_modules(steps):
    for name in ("plain-eager", "plain-sdpa", "ours, cached"):
        assert same_step(name, steps["ours"], steps[name])
        assert steps[name].gradients.keys() == steps["ours"].gradients.keys()
    steps["ours"].gradients["task_tokens.weight"].mul_(1.01)
    assert not same_step("plain-eager", steps["ours"], steps["plain-eager"]), "a wrong gradient would be noticed"


def test_the_floor_of_a_call_is_the_time_of_its_products():
    first, second = torch.nn.Linear(512, 256), torch.nn.Conv2d(3, 8, 3, padding=1)
    x, image, values = torch.randn(64, 512), torch.randn(2, 3, 16, 16), torch.randn(2, 4, 10, 8)

    def call():
        first(x).exp().sort()
        second(image)
        torch.nn.functional.scaled_dot_product_attention(values, values, values)

    with torch.no_grad(), Products() as products:
        call()
    found = {
        (str(product), tuple(one[0] for one in operands if isinstance(one, tuple) and len(one) == 3))
        for product, operands in products.found
    }
    assert ("aten.addmm.default", ((256,), (64, 512), (512, 256))) in found
    assert ("aten.matmul.default", ((2, 4, 10, 8), (2, 4, 8, 10))) in found
    assert any(name.startswith("aten.convolution") for name, _ in found) and sum(products.found.values()) == 4
    assert (
        0
        < floor(lambda: first(x), torch.device("cpu"))
        < floor(lambda: [first(x) for _ in range(9)], torch.device("cpu"))
    )


def test_saved_bytes_count_each_storage_once_and_no_weight():
    layer = torch.nn.Linear(8, 8)
    x = torch.ones(4, 8)
    with saved_bytes(layer) as saved:
        hidden = layer(x).exp()
        (hidden * hidden).sum()
    # The input, and what exp and the product both keep: its result.
    assert saved == [2 * 4 * 8 * 4]


def test_a_stream_in_batches_says_what_each_image_says_alone():
    describe, alone, together = region_captioning_pipeline("sca-tiny", device="cpu"), Run(), Run()
    alone.take((describe(item) for item in items(12)), time.process_time)
    together.take(describe(items(12), batch_size=8), time.process_time)
    assert differences([alone, together]) == [] and len({len(records) for records in alone.records}) > 1
    together.records[7][0]["caption"] += "s"
    together.records[11][0]["mask"] = ~together.records[11][0]["mask"]
    assert differences([alone, together]) == [7, 11], "another answer would be noticed"


@pytest.mark.slow
def test_anything_is_found_as_the_plain_way_finds_it(capsys):
    tiny = Size(image_size=128, layers=1, vision_layers=1, text_layers=1)
    assert bench_anything(tiny, 4, torch.device("cpu"), bounded=False, survivors=(2, 12))
    assert "the same points: True, masks: True, captions: True" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forks safely")
def test_many_pictures_have_the_records_of_one_by_one(capsys):
    captioner = ImageCaptioner(FolderRun("", None, {"points_per_side": 8}, device="cpu"))
    scenes = [ImageItem(f"{n}.png", Image.fromarray(render_scene(20_000_000 + n).image)) for n in range(6)]
    ways = {"one by one": Way(1, 1, 0), "ours": Way(1, 3, 2)}
    assert compare("scenes", captioner, scenes, ways, repeats=1)
    assert "masks and captions equal" in capsys.readouterr().out
    records = [record for entry in captioner(scenes[:2]) for record in entry["records"]]
    assert agree_on_records("ours", records, records)
    changes = {"caption": "a word more", "segmentation": {}, "score": 1.0}
    for key, value in changes.items():
        assert not agree_on_records("ours", records, [*records[:-1], {**records[-1], key: value}]), (
            "it would be noticed"
        )
    assert not agree_on_records("ours", records, records[:-1])
