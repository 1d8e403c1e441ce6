"""Cards of models: the prepared ones are valid, say what the files say, and have a snippet that loads."""

import json
import re
from pathlib import Path

import pytest
from hub_server import check_head
from huggingface_hub import ModelCard
from publishing import save_whole

from sca_hf.hub.card import card_text, read_evaluation
from sca_hf.hub.publish import find_recipe


CARDS = Path(__file__).parents[2] / "model_cards"
PREPARED = sorted(CARDS.glob("sca_*.md"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_whole(tmp_path_factory.mktemp("card") / "model")


def scores_of(template):
    path = CARDS / "published" / template.name.removeprefix("sca_").replace(".md", ".json")
    return [path] if path.is_file() else []


def test_there_is_one_for_each_published_checkpoint():
    text = "".join(path.read_text() for path in PREPARED)
    published = re.findall(r"xk-huang/segment-caption-anything-([\w-]+)", text)
    assert set(published) == {"gpt2_large-vg", "ollm3bv2-vg", "gpt2_large-pt_vg", "gpt2_large-pt"}


@pytest.mark.parametrize("template", PREPARED, ids=lambda path: path.stem)
def test_prepared_cards_are_valid_and_have_the_published_numbers(folder, template):
    text = card_text(folder, "ann/sca", "a" * 40, template, evaluations=scores_of(template))
    assert check_head(text) == []
    card = ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.licenses["sam"] == "apache-2.0"
    assert "facebook/sam-vit-huge" in card.data.base_model and len(card.data.base_model) == 3
    expected = [json.loads(path.read_text())["metrics"] for path in scores_of(template)]
    found = [{result.metric_name: result.metric_value for result in card.data.eval_results or []}]
    assert found == (expected or [{}])
    assert "$" not in text and 'revision="' + "a" * 40 in text and "not stated" not in text


def test_our_own_template_needs_no_one(folder):
    text = card_text(folder, "ann/sca", "a" * 40)
    assert check_head(text) == [] and "Not evaluated." in text and "| mixer | trained | not stated" in text


def test_a_recipe_beside_the_model_goes_into_the_card_without_the_folders_of_this_machine(folder):
    path = folder.parent / "recipe.yaml"
    path.write_text("preset: mixer\ndata:\n  train: {root: /home/ann/secret/boxes, url: http://a.b/c/d}\n  b: rel/x\n")
    try:
        text = card_text(folder, "ann/sca", "a" * 40, recipe=find_recipe(folder))
    finally:
        path.unlink()
    assert "preset: mixer" in text and "root: .../boxes" in text and "url: http://a.b/c/d" in text and "rel/x" in text
    assert "secret" not in text and find_recipe(folder) is None


def test_a_readme_of_ones_own_is_kept_to_the_letter(folder, tmp_path):
    for head in ("", "---\nlicense: mit\ntags:\n- boats\n---\n"):
        (tmp_path / "README.md").write_text(f"{head}# Boats\n\nIt cost $5 and ${{time}}.\n")
        text = card_text(folder, "ann/sca", "a" * 40, tmp_path / "README.md", fill=False)
        assert text.endswith("# Boats\n\nIt cost $5 and ${time}.\n")
        data = ModelCard(text).data
        assert data.library_name == "transformers" and data.license == ("mit" if head else None)
        assert "region-captioning" in data.tags


def test_a_file_that_is_no_evaluation_is_told_so(tmp_path):
    path = tmp_path / "scores.json"
    for content, message in (
        ("{", "is not JSON"),
        ('{"n": 3}', "'protocol' is not there"),
        ("[]", "'n' is not there"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_evaluation(path)
