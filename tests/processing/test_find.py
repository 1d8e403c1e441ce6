"""Find by words: the regions of an image ranked by a text, and nothing where nothing is meant."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.data.scenes import render_scene
from sca_hf.processing.masks_sca import decode_rle
from sca_hf.processing.processing_sca import ScaProcessor


SEED = 20_000_010  # an orange disc, a purple ring, a red star, a black and an orange triangle


@pytest.fixture(scope="module")
def bundled():
    return load("sca-tiny", device="cpu")


@pytest.fixture(scope="module")
def scene():
    return render_scene(SEED)


@pytest.fixture
def picture(scene, tmp_path):
    scene.to_pil().save(tmp_path / "scene.png")
    return str(tmp_path / "scene.png")


def overlap(record, mask):
    found = decode_rle(record["segmentation"])
    return (found & mask).sum() / (found | mask).sum()


def test_each_object_is_found_by_its_caption_and_the_picture_is_encoded_once(bundled, scene):
    model, processor = bundled
    calls = []
    handle = model.sam.vision_encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    for index, obj in list(enumerate(scene.objects))[1:3]:
        calls.clear()
        ranked = processor.find(model, scene.to_pil(), obj.captions[0], threshold=-math.inf)
        assert calls == [1]
        assert overlap(ranked[0], scene.mask(index)) > 0.5
        matches = [record["match"] for record in ranked]
        assert matches == sorted(matches, reverse=True) and len(matches) > 2
        assert sum(record["agreement"] for record in ranked) == pytest.approx(1, abs=1e-5)
    handle.remove()


def test_the_match_is_the_log_probability_that_a_caption_begins_so(bundled, scene):
    model, processor = bundled
    boxes = [list(obj.box) for obj in scene.objects]
    found = processor.find(model, scene.to_pil(), "the red star", boxes=boxes, threshold=-math.inf)
    inputs = processor(scene.to_pil(), input_boxes=[boxes])
    ids = torch.tensor(processor.tokenizer("the red star", add_special_tokens=False)["input_ids"]).expand(1, 5, -1)
    logits = model(**inputs, input_ids=ids).logits[0]
    expected = logits.log_softmax(-1).gather(2, ids[0, :, :, None]).sum((1, 2))
    assert found[0]["box_prompt"] == boxes[int(expected.argmax())]
    assert [record["match"] for record in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-3)


@pytest.mark.parametrize("prompt", ["point", "mask"])
def test_regions_are_shown_as_their_captions_were(bundled, scene, prompt):
    model, processor = bundled
    found = processor.find(model, scene.to_pil(), "a big purple ring with dots", {"caption_prompt": prompt})
    assert overlap(found[0], scene.mask(1)) > 0.5


def test_nothing_is_found_where_nothing_is_meant(bundled, scene):
    model, processor = bundled
    assert processor.find(model, scene.to_pil(), "a large checkered green cross") == []
    assert processor.find(model, scene.to_pil(), "a large checkered green cross", threshold=-math.inf)
    assert processor.find(model, scene.to_pil(), "anything at all", boxes=[]) == []


def test_a_text_is_read_as_a_whole_or_refused(bundled, scene):
    model, processor = bundled
    ends = [" ".join(["a red star"] * 8 + [last]) for last in ("left", "right")]
    boxes = [list(scene.objects[2].box)]
    matches = [
        processor.find(model, scene.to_pil(), text, boxes=boxes, threshold=-math.inf)[0]["match"] for text in ends
    ]
    assert matches[0] != matches[1]
    with pytest.raises(ValueError, match="positions"):
        processor.find(model, scene.to_pil(), " ".join(["a red star"] * 40), boxes=boxes)


@pytest.mark.parametrize("text", ["", "  ", None, ["a red star"]])
def test_a_text_must_have_words(bundled, scene, text):
    with pytest.raises(ValueError, match=r"text is .*: say what to find"):
        bundled[1].find(bundled[0], scene.to_pil(), text)


def test_a_processor_keeps_a_threshold_of_its_own(bundled, scene, tmp_path):
    model, processor = bundled
    image = scene.to_pil()
    best = processor.find(model, image, "a large checkered green cross", threshold=-math.inf)[0]["match"]
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({**settings, "find_threshold": best - 0.01}))
    again = ScaProcessor.from_pretrained(tmp_path)
    assert not processor.find(model, image, "a large checkered green cross")
    assert [one["match"] for one in again.find(model, image, "a large checkered green cross")] == [best]


TINY = ("--device", "cpu", "--model", "sca-tiny")


def test_the_command_writes_what_it_found(picture, tmp_path, capsys):
    overlay = tmp_path / "found.png"
    assert main(["find", picture, "a small striped red star", "--overlay", str(overlay), *TINY]) == 0
    printed = capsys.readouterr().out
    assert "scene.png: match -" in printed and "striped red star" in printed and printed.count("\n") == 1
    assert np.asarray(Image.open(overlay)).std() > 0
    assert main(["find", picture, "a star", "--top", "2", "--threshold", "-99", "--json", "-", *TINY]) == 0
    records = json.loads(capsys.readouterr().out)
    assert len(records) == 2 and records[0]["text"] == "a star" and records[0]["match"] >= records[1]["match"]
    assert {"segmentation", "bbox", "caption", "agreement", "image"} <= records[0].keys()


def test_the_command_says_that_there_is_none_and_ends_with_1(picture, capsys):
    assert main(["find", picture, "a large checkered green cross", "--json", "-", *TINY]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out) == []
    assert "there is no 'a large checkered green cross' (the best match is -" in output.err
    assert main(["find", picture, " "]) == 2
    assert "TEXT is empty: say what to find" in capsys.readouterr().err


def test_a_saved_processor_finds_too(bundled, scene, tmp_path):
    bundled[1].save_pretrained(tmp_path)
    assert (tmp_path / "find_sca.py").is_file()
    again = ScaProcessor.from_pretrained(tmp_path)
    assert again.find(bundled[0], scene.to_pil(), "a small striped red star")
