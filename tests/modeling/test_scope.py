"""What a model knows is saved with it, shown wherever it is used, and is plain text."""

import pytest

from sca_hf.hub.card import draft_card
from sca_hf.hub.info import describe_repository, scope_lines
from sca_hf.modeling.configuration_sca import ScaConfig
from sca_hf.testing import tiny_config


SCOPE = {
    "knows": "3 names: cat, dog, ibex",
    "trained_on": "a farm, 12 pictures",
    "limits": "It has seen daylight only.",
    "languages": ["en"],
    "licenses": {"sam": "apache-2.0"},
    "narrow": True,
}


def test_it_is_saved_and_shown(make_model, processor, tmp_path):
    model = make_model()
    model.config.scope = SCOPE
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert ScaConfig.from_pretrained(tmp_path / "model").scope == SCOPE
    info = describe_repository(str(tmp_path / "model"))
    lines = ["knows: 3 names: cat, dog, ibex", "trained on: a farm, 12 pictures", "limits: It has seen daylight only."]
    assert scope_lines(info.scope) == [*lines, "languages: en", "licenses: sam apache-2.0"]
    assert str(info).endswith("\n".join(scope_lines(info.scope)))
    card = draft_card(tmp_path / "model", "farm", {}, "")
    assert "## What it knows" in card and "- Knows: 3 names: cat, dog, ibex" in card


def test_nobody_said(make_model, processor, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    assert scope_lines(describe_repository(str(tmp_path / "model")).scope) == []
    assert "is not recorded" in draft_card(tmp_path / "model", "farm", {}, "")


@pytest.mark.parametrize(
    "scope",
    [
        "cats",
        {"cats": "yes"},
        {"knows": ["cats"]},
        {"knows": "cats\x1b[2J"},
        {"knows": "line\nbreak"},
        {"knows": "c" * 1001},
        {"languages": "en"},
        {"languages": [1]},
        {"licenses": {"sam": None}},
        {"licenses": {"sam\x07": "mit"}},
        {"narrow": "no"},
    ],
)
def test_what_is_not_short_plain_text_is_refused(scope):
    with pytest.raises(ValueError, match="scope"):
        ScaConfig(**{**tiny_config().to_dict(), "scope": scope})
