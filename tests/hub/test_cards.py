"""Cards of models: the prepared ones are valid, say what the files say, and have a snippet that loads."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hub_server import check_head
from huggingface_hub import ModelCard
from publishing import save_whole

from sca_hf.evaluation.naming import NAME_METRICS, NAMES_NOTE
from sca_hf.evaluation.predictions import PredictionRecord
from sca_hf.evaluation.scoring import score_records
from sca_hf.hub.card import card_text, draft_card, read_evaluation
from sca_hf.hub.publish import own_card, recipe_text


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


def test_the_card_names_the_languages_that_the_model_speaks(folder, tmp_path):
    assert ModelCard(card_text(folder, "ann/sca", None)).data.language == "en"
    spoken = shutil.copytree(folder, tmp_path / "spoken")
    config = json.loads((spoken / "config.json").read_text())
    (spoken / "config.json").write_text(json.dumps({**config, "scope": {"languages": ["en", "de", "zh-Hans"]}}))
    text = card_text(spoken, "ann/sca", None)
    assert ModelCard(text).data.language == ["en", "de", "zh"] and check_head(text) == []


def test_a_recipe_beside_the_model_goes_into_the_card_without_the_folders_of_this_machine(folder):
    path = folder.parent / "recipe.yaml"
    path.write_text("preset: mixer\ndata:\n  train: {root: /home/ann/secret/boxes, url: http://a.b/c/d}\n  b: rel/x\n")
    try:
        text = card_text(folder, "ann/sca", "a" * 40, recipe=recipe_text(folder))
    finally:
        path.unlink()
    assert "preset: mixer" in text and "root: .../boxes" in text and "url: http://a.b/c/d" in text and "rel/x" in text
    assert "secret" not in text and recipe_text(folder) is None


def test_a_readme_of_ones_own_is_kept_to_the_letter(folder, tmp_path):
    for head in ("", "---\nlicense: mit\ntags:\n- boats\n---\n"):
        (tmp_path / "README.md").write_text(f"{head}# Boats\n\nIt cost $5 and ${{time}}.\n")
        text = card_text(folder, "ann/sca", "a" * 40, tmp_path / "README.md", fill=False)
        assert text.endswith("# Boats\n\nIt cost $5 and ${time}.\n")
        data = ModelCard(text).data
        assert data.library_name == "transformers" and data.license == ("mit" if head else None)
        assert "region-captioning" in data.tags


def test_a_draft_is_one_by_a_mark_in_its_head(folder):
    text = draft_card(folder, "my-boxes", {"eval_cider_d": 1.25, "eval_loss": 0.5}, "output: /home/ann/my-boxes\n")
    assert check_head(text) == [] and ModelCard(text).data.to_dict()["draft"] is True
    assert text.count("| score | value |") == 1 and "| cider d | 1.2500 |\n| loss | 0.5000 |" in text
    assert "# my-boxes\n" in text and "output: .../my-boxes" in text and "| mixer | trained |" in text
    assert "pipeline_tag: image-text-to-text" in text and "revision" not in text
    readme = folder / "README.md"
    try:
        readme.write_text(text)
        assert own_card(folder) is None
        readme.write_text(text.replace("draft: true\n", ""))
        assert own_card(folder) == readme, "its author has completed it"
        readme.write_text("# Mine\n\nTo complete before publishing: nothing. draft: true\n")
        assert own_card(folder) == readme, "what the text says is no mark"
    finally:
        readme.unlink()


def test_a_draft_without_scores_says_so(folder):
    text = draft_card(folder, "my-boxes", {}, "output: runs/my-boxes\n")
    assert "The recipe has no evaluation set." in text and "| score |" not in text


def test_scores_without_a_protocol_are_those_of_the_data_by_its_name(folder, tmp_path):
    evaluation = {"n": 42, "protocol": None, "tokenizer": "ptb", "command": "sca-hf evaluate said.jsonl"}
    evaluation |= {"versions": {}, "metrics": {"CIDEr-D": 1.5}}
    run = {"settings": {"data": {"format": "voc", "root": "/home/ann/my-boxes"}}}
    path = tmp_path / "scores.json"
    for more, name in (({"run": run}, "my-boxes"), ({"run": None}, "unnamed data")):
        path.write_text(json.dumps(evaluation | more))
        text = card_text(folder, "ann/sca", "a" * 40, evaluations=[path])
        assert f"Data {name}, 42 regions" in text and "/home" not in text and check_head(text) == []
        (result,) = ModelCard(text).data.eval_results
        assert result.dataset_name == f"{name}, 42 regions"


@pytest.mark.parametrize("names", [True, False])
def test_scores_of_names_lead_with_accuracy_whatever_the_order_of_the_file(folder, tmp_path, names):
    truth = "ship" if names else "a ship that leaves the harbor"
    records = [PredictionRecord([truth], [said], id=said, category="ship") for said in ("ship", "anchor")]
    scores = score_records(records, ["CIDEr-D", "BLEU@1", "category-accuracy", "category-macro-recall"])
    evaluation = {"n": 2, "protocol": None, "tokenizer": "ptb", "command": "sca-hf evaluate said.jsonl"}
    evaluation |= {"versions": {}, "metrics": scores.metrics, "notes": scores.notes}
    (tmp_path / "scores.json").write_text(json.dumps(evaluation))
    text = card_text(folder, "ann/sca", "a" * 40, evaluations=[tmp_path / "scores.json"])
    order = [*NAME_METRICS, "CIDEr-D", "BLEU@1"] if names else ["CIDEr-D", "BLEU@1", *NAME_METRICS]
    assert [result.metric_name for result in ModelCard(text).data.eval_results] == order
    assert re.findall(r"^\| (\S+) \| [\d.]+ \|$", text, re.MULTILINE) == order and (NAMES_NOTE in text) is names


def test_a_file_that_is_not_an_evaluation_is_told_so(tmp_path):
    path = tmp_path / "scores.json"
    for content, message in (
        ("{", "is not JSON"),
        ('{"n": 3}', "'protocol' is not there"),
        ("[]", "'n' is not there"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_evaluation(path)
