"""A file of a run that was emptied or cut is named, or made again; never "Expecting value" without a name."""

import shutil

import pytest

from sca_hf.cli import main
from sca_hf.testing import tiny_image


COMMANDS = {
    "anything": ["anything", "pictures", "--output", "out", "--points-per-side", "2"],
    "predict": ["predict", "--data", "scenes:split=validation,count=3", "--output", "out/said.jsonl"],
}
DAMAGES = {
    "emptied": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "cut by a byte": lambda content: content[:-1],
    "zeros": lambda content: b"\0" * len(content),
    "no UTF-8": lambda content: content[:-3] + b"\xff\xfe\n",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_damaged_file_of_a_finished_run_is_named_or_made_again(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "out").mkdir()
    for seed in (1, 2):
        tiny_image(seed).save(tmp_path / "pictures" / f"{seed}.png")
    assert main(COMMANDS[name]) == 0
    shutil.copytree("out", "whole")
    results = {"coco.json", "said.jsonl", "captions.csv"}
    files = [
        path.relative_to(tmp_path / "whole") for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()
    ]
    files = [path for path in files if not path.name.endswith(".lock")]
    assert len(files) >= 2
    wrong = {}
    for file in files:
        for damage, change in DAMAGES.items():
            shutil.rmtree("out")
            shutil.copytree("whole", "out")
            path = tmp_path / "out" / file
            path.write_bytes(change(path.read_bytes()))
            capsys.readouterr()
            code = main(COMMANDS[name])
            said = capsys.readouterr().err
            same = all(
                (tmp_path / "out" / one).read_bytes() == (tmp_path / "whole" / one).read_bytes()
                for one in files
                if one.name in results
            )
            if (code == 0 and not same) or (code != 0 and file.name not in said) or code not in (0, 1, 2):
                wrong[str(file), damage] = (code, said[-300:])
    assert wrong == {}
