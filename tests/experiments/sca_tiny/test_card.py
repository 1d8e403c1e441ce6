"""The card of the bundled model: filled from a report, by no hand."""

import copy
from pathlib import Path

import pytest
import yaml

from experiments.sca_tiny.card import write_model_card


TEMPLATE = Path(__file__).parents[3] / "experiments" / "sca_tiny" / "card.md"
NAMES = "mask_iou color shape texture size relation names_neighbour reference cider_d exact_match"
NAMES += " states_size_or_relation regions described_regions"
SCORES = dict.fromkeys(NAMES.split(), 0.5)


@pytest.fixture
def report():
    rows = {
        "box": {**SCORES, "color": 0.9876},
        "point": SCORES,
        "blank image": {**SCORES, "mask_iou": float("nan")},
    }
    log = [{"step": step, "loss": 1 / step} for step in range(100, 2000, 100)]
    evaluated = [{"step": 500, **{f"eval_box_{name}": value for name, value in SCORES.items()}}]
    named = {"accuracy": 0.9512, "macro_recall": 0.8765}
    columns = {**dict.fromkeys(("box", "commonest class"), named), "point": {"accuracy": 0.25, "macro_recall": 0.125}}
    return {
        "naming": {"red_things": [{**columns, "held out": {"pictures": 7, "regions": 12}}]},
        "confidence": {
            "own": {
                "red_things": {"regions": 10, "box": 0.1, "point": 0.2},
                "blue": {"regions": 30, "box": 0, "point": 0},
            },
            "elsewhere": {"photos": {"regions": 5, "box": 1.0, "point": 0.6}},
        },
        "split": "test",
        "scenes": 17,
        "scores": rows,
        "category_from_box": 0.75,
        "recipe": {"language": {"steps": 3, "seed": 4}},
        "versions": {"python": "3.11.0", "torch": "2.0", "transformers": "5.0"},
        "history": {"segmentation": log, "language": [], "captions": log + evaluated},
    }


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def test_the_card_holds_what_was_measured(report, folder, model):
    card = write_model_card(TEMPLATE, folder, report).read_text()
    assert "98.8 %" in card and "17 unseen scenes of the test split" in card and "blank image" in card
    assert f"{model.num_parameters():,}" in card and f"{model.num_parameters(only_trainable=True):,}" in card
    assert "steps 3, seed 4" in card and "0.010 at 100" in card and "| 500 | 0.500 |" in card
    assert "| red things | 7 | 12 | 0.951 | 0.250 | 0.876 | 0.125 | 0.951 |" in card
    assert "| red things | 10 | 0.100 | 0.200 |" in card and "| all own | 40 | 0.025 | 0.050 |" in card
    assert "$" not in card


def test_the_head_is_what_the_hub_reads(report, folder):
    head = yaml.safe_load(write_model_card(TEMPLATE, folder, report).read_text().split("---\n")[1])
    box, point, things = head["model-index"][0]["results"]
    values = {metric["type"]: metric["value"] for metric in box["metrics"]}
    assert values["color-word-right"] == 0.9876 and len(point["metrics"]) == len(values) == 8
    assert [metric["value"] for metric in things["metrics"]] == [0.9512]
    assert head["license"] == "apache-2.0"


def test_a_field_that_nobody_fills_is_an_error(report, folder, tmp_path):
    (tmp_path / "card.md").write_text("---\nlicense: mit\n---\n$humour")
    with pytest.raises(ValueError, match=r"card\.md uses 'humour'"):
        write_model_card(tmp_path / "card.md", folder, report)


def test_scores_that_could_not_be_made_are_left_out_of_the_head(report, folder):
    other = copy.deepcopy(report)
    other["scores"]["box"] = {**SCORES, "relation": None}
    card = write_model_card(TEMPLATE, folder, other).read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    names = [metric["type"] for metric in head["model-index"][0]["results"][0]["metrics"]]
    assert len(names) == 7 and "relation-word-right" not in names
    assert "nan" not in card
