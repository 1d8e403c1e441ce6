"""docs/languages.md: its data are read, its recipe trains, and its commands and program run on the model of it."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from sca_hf import ScaForConditionalGeneration, ScaProcessor
from sca_hf.cli import main
from sca_hf.data.loading import load_regions
from sca_hf.data.scenes import scenes
from sca_hf.training import add_languages
from sca_hf.training.recipe.schema import load_recipe


PAGE = (Path(__file__).parents[2] / "docs" / "languages.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.split("  #")[0] for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
(PROGRAM,) = (text for kind, text in BLOCKS if kind == "python")
(RECIPE,) = (text for kind, text in BLOCKS if kind == "yaml")
(LINES,) = (text for kind, text in BLOCKS if kind == "json")
# In place of hours.
SHORT = ["--training.max_steps=2", "--training.use_cpu=true", "--training.warmup_steps=0"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    Path("photos").mkdir()
    for number, scene in enumerate(scenes("test", 2), 1):
        scene.to_pil().save(f"{number}.png")
        scene.to_pil().save(f"photos/{number}.png")
        scene.to_pil().resize((300, 400)).save("photo.jpg")
    Path("regions.jsonl").write_text(LINES, encoding="utf-8")
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def test_the_data_of_the_page_say_the_languages_that_its_recipe_learns(folder):
    regions = [region for row in load_regions("jsonl", path="regions.jsonl") for region in row["regions"]]
    said = [region["languages"] for region in regions]
    assert said == [["en", "de"], ["zh-Hans"]]
    assert load_recipe("recipe.yaml").model.languages == [tag for tags in said for tag in tags]


def test_the_program_of_the_page_asks_for_one_language_and_for_several(folder, model, tokenizer, capsys):
    add_languages(model, load_recipe("recipe.yaml").model.languages)
    names = {"model": model, "processor": ScaProcessor.from_config(model.config, tokenizer)}
    exec(PROGRAM, names | {"image": Image.open("1.png"), "boxes": [[[31, 25, 99, 103], [86, 62, 180, 155]]]})
    one, several = map(eval, capsys.readouterr().out.splitlines())
    assert [len(texts) for texts in one] == [2] and [len(texts) for texts in several[0]] == [3, 3]


@pytest.mark.slow
def test_the_page_leads_from_annotations_to_captions_in_their_languages(folder, capsys):
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        more = {"train": SHORT, "evaluate": [], "data": []}.get(words[0], ["--device", "cpu"])
        assert main([*words, *more]) in (0, None), command
    config = ScaForConditionalGeneration.from_pretrained("runs/languages/model").config
    assert config.scope["languages"] == ["en", "de", "zh-Hans"]
    assert config.mixer_config.tasks[-3:] == ["caption:en", "caption:de", "caption:zh-Hans"]
    assert '"languages"' in Path("out.json").read_text() and Path("everything/coco.json").is_file()
    said = capsys.readouterr().out
    assert "  languages   1 en, 1 de, 1 zh-Hans\n" in said and "tokenizer unicode, language de" in said
