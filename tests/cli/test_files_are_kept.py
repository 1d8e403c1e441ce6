"""No command writes over what it reads, and none destroys a former file before its successor is whole."""

import json
import os
import resource
from contextlib import contextmanager

import pytest

from sca_hf.cli import main
from sca_hf.evaluation.predictions import PredictionRecord, write_predictions
from sca_hf.testing import tiny_image


PLAIN = ["--metrics", "cider-d", "--resamples", "5"]
POINTS = ["--points-per-side", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a file of each kind that a command reads."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    here = tmp_path / "here"
    (here / "photos").mkdir(parents=True)
    monkeypatch.chdir(here)
    tiny_image(1).save("photos/one.png")
    tiny_image(1).save("mask.png")
    records = [PredictionRecord([f"a {k}"], ["a ring"], id=str(k)) for k in range(4)]
    for name in ("said.jsonl", "other.json"):
        write_predictions(records, name)
    (here / "said.jsonl.run.json").write_text(json.dumps({"complete": True, "settings": {}}))
    (here / "regions.json").write_text(json.dumps([{"box": [5, 5, 30, 30]}]))
    (here / "boxes.json").write_text(json.dumps({"one.png": [{"box": [5, 5, 30, 30]}]}))
    (here / "said.yaml").write_text("captioner: predictions\npath: said.jsonl\n")
    row = {"image": "photos/one.png", "image_id": "1", "width": 80, "height": 60, "task": "caption"}
    row["regions"] = [{"region_id": "1", "box": [5, 5, 30, 30], "captions": ["a ring"]}]
    (here / "data.jsonl").write_text(json.dumps(row) + "\n")
    (here / "data.yaml").write_text("format: jsonl\npath: data.jsonl\nimages: .\n")
    (here / "report.html").write_text("{}")
    os.symlink("said.jsonl", here / "link.jsonl")
    os.link(here / "regions.json", here / "hard.json")
    return here


def contents(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


OVER_AN_INPUT = {
    "evaluate": ["evaluate", "other.json", "--json", "other.json", *PLAIN],
    "evaluate, spelled otherwise": ["evaluate", "said.jsonl", "--json", "photos/../said.jsonl", *PLAIN],
    "evaluate, a link": ["evaluate", "said.jsonl", "--json", "link.jsonl", *PLAIN],
    "evaluate, what is known of the run": ["evaluate", "said.jsonl", "--json", "said.jsonl.run.json", *PLAIN],
    "compare": ["compare", "said.jsonl", "other.json", "--json", "other.json", *PLAIN],
    "report": ["report", "said.jsonl", "--output", ".", "--df", "report.html", *PLAIN],
    "caption, its picture": ["caption", "photos/one.png", "--overlay", "photos/one.png"],
    "caption, a picture of its folder": ["caption", "photos", "--overlay", "photos/one.png"],
    "caption, regions": ["caption", "photos", "--regions", "regions.json", "--json", "regions.json"],
    "caption, a hard link": ["caption", "photos", "--regions", "regions.json", "--json", "hard.json"],
    "caption, a mask": ["caption", "photos", "--mask", "mask.png", "--overlay", "mask.png"],
    "caption, one file twice": ["caption", "photos", "--overlay", "new.png", "--json", "new.png"],
    "anything, boxes": ["anything", "photos", "--boxes", "boxes.json", "--json", "boxes.json"],
    "anything, its folder": ["anything", "photos", "--output", "photos"],
    "data": ["data", "check", "jsonl:path=data.jsonl,images=.", "--json", "data.jsonl"],
    "data, YAML": ["data", "check", "data.yaml", "--json", "data.jsonl"],
    "data, the YAML file": ["data", "check", "data.yaml", "--json", "data.yaml"],
    "data, a picture": ["data", "check", "data.yaml", "--sheet", "photos/one.png"],
    "predict": ["predict", "--data", "data.yaml", "--output", "data.jsonl"],
    "predict, a captioner's": ["predict", "--data", "data.yaml", "--captioner", "said.yaml", "--output", "said.jsonl"],
    "scene, one file twice": ["scene", "new.png", "--regions", "new.png"],
}


@pytest.mark.parametrize("name", OVER_AN_INPUT)
def test_an_output_that_is_an_input_is_refused_before_any_work(folder, capsys, monkeypatch, name):
    monkeypatch.setattr("sca_hf.modeling.modeling_sca.ScaForConditionalGeneration.from_pretrained", None)
    before = contents(folder)
    assert main(OVER_AN_INPUT[name]) == 2
    said = capsys.readouterr().err
    assert "is read too" in said or "which is read" in said or "would be written twice" in said, said
    assert contents(folder) == before


@contextmanager
def small_files(size):
    """As on a full disk, no file can grow beyond some bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


OVER_A_FORMER = {
    "evaluate": (["evaluate", "said.jsonl", "--json", "out.json", *PLAIN], ["out.json"]),
    "compare": (["compare", "said.jsonl", "other.json", "--json", "out.json", *PLAIN], ["out.json"]),
    "report": (["report", "said.jsonl", "--output", "out", *PLAIN], ["out/report.html", "out/report.md"]),
    "scene": (["scene", "out.png", "--regions", "out.json"], ["out.png", "out.json"]),
    "data": (["data", "check", "data.yaml", "--json", "../out.json"], ["../out.json"]),
    "data, sheet": (["data", "check", "data.yaml", "--sheet", "../out.png"], ["../out.png"]),
    "caption": (["caption", "photos", "--json", "out.json"], ["out.json"]),
    "caption, overlay": (["caption", "photos", "--overlay", "out.png"], ["out.png"]),
    "anything": (["anything", "photos", "--json", "out.json", *POINTS], ["out.json"]),
}


@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.parametrize("name", OVER_A_FORMER)
def test_a_full_disk_leaves_the_former_file(folder, capsys, name, room):
    arguments, outputs = OVER_A_FORMER[name]
    for output in outputs:
        (folder / output).parent.mkdir(exist_ok=True)
        (folder / output).write_bytes(b"former")
    before = contents(folder.parent)
    with small_files(room):
        assert main(arguments) == 2
    said = capsys.readouterr()
    assert "could not be written, the disk is full" in said.err and not any(f": {one}" in said.out for one in outputs)
    after = contents(folder.parent)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if ".part" in name or "_tmp-" in name]


def test_what_is_neither_a_file_nor_a_folder_is_written_to_as_it_is(folder, capsys):
    assert main(["scene", "x.png", "--regions", "/dev/null"]) == 0
    assert main(["evaluate", "said.jsonl", "--json", "/dev/full", *PLAIN]) == 2
    assert "/dev/full could not be written, the disk is full" in capsys.readouterr().err
    assert all(not os.path.isfile(device) for device in ("/dev/null", "/dev/full"))
    os.symlink("elsewhere.json", "out.json")
    assert main(["evaluate", "said.jsonl", "--json", "out.json", *PLAIN]) == 0
    assert os.path.islink("out.json") and json.loads((folder / "elsewhere.json").read_text())


@pytest.mark.parametrize("spelled", ["x" * 246 + ".json", "\u5716" * 82 + ".json", "e\u0301 \udcff.json"])
def test_any_name_that_a_file_system_takes_can_be_an_output(folder, capsys, spelled):
    assert main(["evaluate", "said.jsonl", "--json", spelled, *PLAIN]) == 0
    assert json.loads((folder / spelled).read_text())["n"] == 4
