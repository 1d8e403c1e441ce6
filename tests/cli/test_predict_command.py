"""`sca-hf predict` as a user gives it."""

import json

import pytest

from sca_hf.cli import main
from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.evaluation.predictions import read_predictions
from tests.evaluation.region_files import write_regions
from tests.evaluation.tiny_captioners import save


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def run(*arguments):
    return main(["predict", *map(str, arguments)])


def test_a_bundled_model_describes_scenes(tmp_path, capsys):
    output = tmp_path / "new" / "said.jsonl"
    arguments = (
        "--model",
        "sca-tiny",
        "--data",
        "scenes:split=test,count=6",
        "--output",
        output,
        "--prompt",
        "mask",
        "--masks",
        "best",
    )
    assert run(*arguments, "--num-beams", 2) == 0
    assert f"predictions: {output}" in capsys.readouterr().out
    records = read_predictions(output)
    assert {record.prompt for record in records} == {"mask"} and {record.system for record in records} == {"sca-tiny"}
    assert all(record.mask and record.reference_mask for record in records)
    run_file = json.loads((tmp_path / "new" / "said.jsonl.run.json").read_text())
    assert run_file["settings"]["captioner"]["generation"]["num_beams"] == 2 and run_file["complete"]
    assert run(*arguments) == 2
    assert "num_beams was 2 and is 1" in capsys.readouterr().err


def test_any_captioner_any_data_and_a_control(tmp_path):
    model = save("git", tmp_path / "git")
    write_regions(tmp_path / "data", images=4)
    spec = tmp_path / "captioner.yaml"
    spec.write_text(f"captioner: crop\nmodel: {model}\nsam: sca-tiny\nbackground: white\n")
    data = f"jsonl:path={tmp_path / 'data' / 'regions.jsonl'}"
    output = tmp_path / "said.json"
    assert run("--captioner", spec, "--data", data, "--output", output, "--system", "mine", "--control", "blank") == 0
    assert [record.system for record in read_predictions(output)] == ["mine"] * 3
    again = tmp_path / "again.parquet"
    assert run("--captioner", f"predictions:path={output},shuffle=1", "--data", data, "--output", again) == 0
    assert {record.system for record in read_predictions(again)} == {"mine, shuffled regions"}


def test_what_was_said_is_written_for_people_to_correct(tmp_path, capsys):
    data, output = "scenes:split=test,count=4", tmp_path / "said.jsonl"
    arguments = ("--data", data, "--output", output, "--write", "label_studio")
    assert run(*arguments) == 0
    said = {(record.image_id, tuple(record.box)): record.caption for record in read_predictions(output)}
    options = {"annotations": tmp_path / "said_label_studio" / "tasks.json", "source": "predictions"}
    back = [
        (record["image_id"], region)
        for record in RecordSource("label_studio", options).records(ReadReport())
        for region in record["regions"]
    ]
    assert len(back) == len(said)
    for image_id, region in back:
        near = [
            c
            for (i, box), c in said.items()
            if i == image_id and max(abs(a - b) for a, b in zip(box, region["box"], strict=True)) < 2
        ]
        assert region["captions"][0] in near and region["mask"]
    assert run(*arguments) == 0
    assert "said_label_studio is left as it is; remove or rename it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--output", "said.txt"), "prediction files must end with .jsonl, .parquet, .json"),
        (("--captioner", "grit:model=x"), "the captioner is 'grit', expected one of sca, crop"),
        (("--captioner", "crop:modle=x"), "its options are model, sam, vcot"),
        (("--captioner", "crop:model"), "captioner 'crop:model': 'model' is not option=value"),
        (("--protocol", "vg-full"), "vg-full has 5,000 images with 232,935 regions"),
        (("--protocol", "vg-full", "--prompt", "mask"), "vg-full shows regions by box, not by mask"),
        (("--model", "nowhere"), "nowhere is neither a folder with a saved model"),
        (("--data", "voc"), "voc:"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    given = {"--data": "scenes:split=test,count=2", "--output": "said.jsonl"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert run(*(part for pair in given.items() for part in pair)) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(tmp_path.glob("said*"))


def test_a_captioner_that_finds_no_masks_has_no_point_in_one(tmp_path, capsys):
    write_regions(tmp_path / "data", images=2)
    model = save("kosmos2", tmp_path / "kosmos2")
    data = f"jsonl:path={tmp_path / 'data' / 'regions.jsonl'}"
    arguments = ("--captioner", f"kosmos2:model={model}", "--data", data, "--output", tmp_path / "said.jsonl")
    assert run(*arguments, "--prompt", "random_point_in_mask") == 2
    assert "predicts no masks to draw a point from" in capsys.readouterr().err
    assert run(*arguments, "--prompt", "center_point") == 2
    assert "takes regions as boxes only" in capsys.readouterr().err
