"""Whatever happens to a file between its writing and the end of the command, no command says that it is there."""

import os
from pathlib import Path

import pytest
from PIL import Image

from sca_hf.cli import main
from sca_hf.evaluation.predictions import PredictionRecord, write_predictions
from sca_hf.testing import tiny_image


def commands(folder):
    """Each command with what it writes."""
    tiny_image(1).save(folder / "one.png")
    records = [PredictionRecord([f"a {k}"], ["a ring"], id=str(k)) for k in range(4)]
    write_predictions(records, folder / "said.jsonl")
    said, plain = "said.jsonl", ["--metrics", "cider-d", "--resamples", "5"]
    return {
        "scene": (["scene", "out.png"], "out.png"),
        "scene, regions": (["scene", "x.png", "--regions", "out.json"], "out.json"),
        "evaluate": (["evaluate", said, "--json", "out.json", *plain], "out.json"),
        "compare": (["compare", said, said, "--json", "out.json", *plain], "out.json"),
        "report": (["report", said, "--output", ".", *plain], "report.html"),
        "data": (["data", "check", "scenes:count=2", "--json", "out.json"], "out.json"),
        "data, sheet": (["data", "check", "scenes:count=2", "--sheet", "out.png"], "out.png"),
        "caption": (["caption", "one.png", "--json", "out.json"], "out.json"),
        "caption, overlay": (["caption", "one.png", "--overlay", "out.png"], "out.png"),
        "anything": (["anything", "one.png", "--points-per-side", "2", "--json", "out.json"], "out.json"),
    }


NAMES = ["scene", "scene, regions", "evaluate", "compare", "report", "data", "data, sheet", "caption"]
NAMES += ["caption, overlay", "anything"]
DAMAGES = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_damaged_meanwhile_is_not_announced(tmp_path, monkeypatch, capsys, name, damage):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    arguments, output = commands(tmp_path)[name]
    if damage == "cut" and output.endswith(".html"):
        pytest.skip("a cut page is a page too")
    monkeypatch.chdir(tmp_path)

    def meddle(path):
        if Path(path).name == output:
            DAMAGES[damage](Path(path))

    def then_meddle(owner, name, position):
        real = getattr(owner, name)

        def act(*arguments, **options):
            result = real(*arguments, **options)
            if isinstance(arguments[position], str | Path):
                meddle(arguments[position])
            return result

        monkeypatch.setattr(owner, name, act)

    then_meddle(os, "replace", 1)
    then_meddle(Image.Image, "save", 1)
    then_meddle(Path, "write_text", 0)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert f"{output} was written, but " in said.err and f": {output}" not in said.out
