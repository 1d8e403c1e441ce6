"""docs/self-training.md: its commands and programs run in order, from a folder of photographs to another model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from sca_hf.cli import main
from sca_hf.data.scenes import scenes
from sca_hf.self_training import label_records, read_manifest
from sca_hf.self_training.settings import JUDGES
from sca_hf.training.recipe.schema import load_recipe


PAGE = (Path(__file__).parents[2] / "docs" / "self-training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
(RECIPE,) = (text for kind, text in BLOCKS if kind == "yaml")
# In place of hours.
SHORT = ["--training.max_steps=4", "--training.use_cpu=true", "--training.warmup_steps=0", "--training.save_steps=4"]


def test_the_page_names_every_judge():
    assert all(f"| `{judge}` |" in PAGE for judge in JUDGES)


def lay_out(folder):
    """Eight labeled pictures, six others, and the boxes of a detector in these."""
    (folder / "photos").mkdir()
    lines, rows = [], []
    for scene in scenes("train", 10, 900):
        record = scene.to_record()
        record["image"].save(folder / f"{record['image_id']}.png")
        regions = [{"box": region["box"], "captions": region["captions"]} for region in record["regions"]]
        if regions:
            lines.append(json.dumps({"image": f"{record['image_id']}.png", "regions": regions}))
    for number, scene in enumerate(scenes("train", 6, 950), 1):
        record = scene.to_record()
        record["image"].save(folder / "photos" / f"photo-{number}.png")
        for x0, y0, x1, y1 in (region["box"] for region in record["regions"]):
            rows.append({"image_id": f"photo-{number}", "bbox": [x0, y0, x1 - x0, y1 - y0], "score": 0.9})
    (folder / "labeled.jsonl").write_text("\n".join(lines))
    (folder / "detections.json").write_text(json.dumps(rows))
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.mark.slow
def test_the_page_leads_from_a_folder_of_photographs_to_another_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    lay_out(tmp_path)
    judge_program, edit_program = PROGRAMS
    Path("my_judges.py").write_text(judge_program)
    said = {}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        more = ["--device", "cpu"] if words[1] in ("propose", "judge", "run") else []
        more += SHORT if words[0] == "train" or words[1] in ("learn", "run") else []
        assert main([*words, *more]) in (0, None), command
        said[command] = capsys.readouterr().out
    explained = next(text for command, text in said.items() if "--explain" in command)
    assert "photo-2.png, region 1 (" in explained and "photo-3.png" not in explained
    rows = list(read_manifest("sharp/manifest.parquet"))
    assert rows and all(row["looks_sharp"] is None or row["looks_sharp"] > 0 for row in rows)
    assert load_recipe("runs/taught/recipe.yaml").data.pseudo_share == 0.5
    assert Path("runs/rounds/model/model.safetensors").is_file() and Path("runs/rounds/rounds.json").is_file()
    before = label_records("judged/manifest.parquet")
    exec(edit_program, {})
    assert label_records("judged/manifest.parquet") == before  # nothing there is a yellow light
    again = next(command for command in COMMANDS if " judge " in command)
    assert main([*shlex.split(again)[1:], "--device", "cpu"]) in (0, None)
    assert "edited since it was written: left as it is" in capsys.readouterr().out
