"""`--agreement`: how surely a listener finds each region by its caption, in the records of three commands."""

import json

import pytest

from sca_hf.cli import main
from sca_hf.evaluation.predictions import read_predictions


@pytest.fixture
def scene(tmp_path):
    picture, regions = tmp_path / "scene.png", tmp_path / "scene.json"
    assert main(["scene", str(picture), "--seed", "20000010", "--regions", str(regions)]) == 0
    return str(picture), str(regions)


@pytest.mark.parametrize("asked", [False, True])
def test_caption_and_anything_say_the_agreement_when_asked(scene, asked, capsys):
    picture, regions = scene
    options = ["--model", "sca-tiny", "--device", "cpu", *(["--agreement"] if asked else [])]
    for command in (["caption", picture, "--regions", regions], ["anything", picture]):
        capsys.readouterr()
        assert main([*command, *options]) == 0
        assert ("agreement" in capsys.readouterr().out) == asked
        assert main([*command, *options, "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        records = found if command[0] == "caption" else found[0]["records"]
        assert len(records) > 1
        assert all(("agreement" in record) == asked for record in records)
        assert not asked or all(0 < record["agreement"] <= 1.000001 for record in records)


def test_predict_writes_the_agreement_beside_the_scores(tmp_path, capsys):
    output = tmp_path / "said.jsonl"
    arguments = ["predict", "--data", "scenes:split=test,count=2", "--output", str(output), "--device", "cpu"]
    assert main([*arguments, "--agreement"]) == 0
    records = read_predictions(output)
    assert all(len(record.metadata["agreements"]) == len(record.candidates) for record in records)
    assert main([*arguments]) == 2, "a run is resumed with its own settings only"
    assert main([*arguments, "--agreement", "--captioner", "sca"]) == 0, "the same model, so the same run"
    (tmp_path / "others.jsonl").write_bytes(output.read_bytes())
    others = f"predictions:path={tmp_path / 'others.jsonl'}"
    assert main([*arguments, "--agreement", "--captioner", others]) == 2
    assert "--agreement is for our model: predictions has no listener" in capsys.readouterr().err
