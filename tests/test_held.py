"""What attacks did not break, kept so: bit-equal results however they are asked for, bounded memory and time."""

import copy
import json
import pickle
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from sca_hf.cli import main
from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.modeling import loading_sca
from sca_hf.testing import tiny_image


BOXES = [[[2, 2, 30, 30], [10, 5, 40, 35]]]


def answers(model, inputs):
    """All that a call returns, as bytes."""
    out = model.generate(**inputs, output_masks=True, max_new_tokens=8)
    return {name: value.numpy().tobytes() for name, value in out.items() if isinstance(value, torch.Tensor)}


def test_results_are_bit_equal_across_threads_copies_and_modes(model, processor):
    model.eval()
    inputs = processor(tiny_image(), input_boxes=BOXES)
    expected = answers(model, inputs)
    assert len(expected) >= 4
    with torch.inference_mode():
        assert answers(model, inputs) == expected
    assert answers(copy.deepcopy(model), inputs) == expected
    assert answers(pickle.loads(pickle.dumps(model)), inputs) == expected
    with ThreadPoolExecutor(4) as pool:
        assert all(one == expected for one in pool.map(lambda _: answers(model, inputs), range(8)))
    again = pickle.loads(pickle.dumps(processor))
    assert answers(model, again(tiny_image(), input_boxes=BOXES)) == expected


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.slow
def test_memory_stays_flat_over_300_calls_and_pictures(model, processor):
    model.eval()

    def call(number):
        picture = Image.new("RGB", (300 + number % 7, 200), (number % 255, 9, 9))
        answers(model, processor(picture, input_boxes=BOXES))

    for number in range(30):
        call(number)
    before = peak()
    for number in range(300):
        call(number)
    assert peak() - before < 40


@pytest.mark.slow
def test_fifty_thousand_records_are_checked_in_seconds(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    region = {"box": [1, 1, 9, 9], "captions": ["a cat"]}
    row = {"image": "a.png", "width": 40, "height": 30, "regions": [region, region]}
    (tmp_path / "a.jsonl").write_text((json.dumps(row) + "\n") * 50_000)
    started = time.process_time()
    records = RecordSource("jsonl", {"path": tmp_path / "a.jsonl"}).records(ReadReport())
    assert sum(1 for _ in records) == 50_000
    # Of one core; opening each picture's head is a part of it.
    assert time.process_time() - started < 30


def test_a_truncated_picture_is_named_by_predict(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((90, 80), 50).convert("RGB").save(path)
        if number == 1:  # whole at its end, damaged inside
            content = path.read_bytes()
            path.write_bytes(content[:3000] + content[-40:])
        rows.append({"image": path.name, "image_id": f"image-{number}", "width": 90, "height": 80})
        rows[-1]["regions"] = [{"box": [1, 1, 60, 60], "captions": ["a"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["predict", "--data", f"jsonl:path={tmp_path / 'a.jsonl'}", "--output", str(tmp_path / "out.jsonl")]
    assert main(arguments) != 0
    said = capsys.readouterr().err
    assert "image-1" in said or "1.png" in said


def test_a_slow_bfloat16_is_told_once(tmp_path, model, monkeypatch, caplog):
    model.save_pretrained(tmp_path / "saved")
    told = []
    monkeypatch.setattr(loading_sca.logger, "warning_once", lambda text: told.append(text))
    for native, kind in ((True, torch.bfloat16), (False, torch.float32), (False, torch.bfloat16)):
        monkeypatch.setattr(loading_sca, "computes_bfloat16", lambda native=native: native)
        type(model).from_pretrained(tmp_path / "saved", dtype=kind)
    assert len(told) == 1 and "float32" in told[0]
