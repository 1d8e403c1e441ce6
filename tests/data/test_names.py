"""Class names as words."""

import pytest

from sca_hf.data.region import category_text, check_names, load_names


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("do_not_turn_r", "do not turn r"),
        ("traffic-light", "traffic light"),
        ("TrafficLight", "traffic light"),
        ("doNotTurn", "do not turn"),
        ("USBCable", "USB cable"),
        ("RBC", "RBC"),
        ("RBCs", "RBCs"),
        ("CD_player", "CD player"),
        ("White blood cell", "White blood cell"),
        ("Cabinet/shelf", "Cabinet/shelf"),
        ("  many__spaces - here ", "many spaces here"),
        ("iPhone", "iPhone"),
        ("crème_brûlée", "crème brûlée"),
        ("ice9", "ice9"),
    ],
)
def test_a_name_becomes_words(name, words):
    assert category_text(name) == words


def test_a_table_decides_before_any_rule():
    assert category_text("RBC", {"RBC": "red blood cell"}) == "red blood cell"
    assert category_text("WBC", {"RBC": "red blood cell"}) == "WBC"


def test_a_table_is_read_from_yaml_or_json(tmp_path):
    (tmp_path / "names.yaml").write_text("do_not_turn_r: do not turn right\n9: nine of hearts\n", encoding="utf-8")
    (tmp_path / "names.json").write_text('{"Ä": "Äpfel"}', encoding="utf-8")
    assert load_names(tmp_path / "names.yaml") == {"do_not_turn_r": "do not turn right", "9": "nine of hearts"}
    assert load_names(str(tmp_path / "names.json")) == {"Ä": "Äpfel"}
    assert load_names(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "is a list"),
        ("a: 5", "words for 'a' are 5"),
        ("a: ''", "words for 'a' are ''"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "names.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"^names.*{message}"):
        load_names(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_names(tmp_path / "missing.yaml")


def test_a_table_may_not_name_what_is_not_there():
    check_names({"a": "apple"}, ["a", "b"], "x.json")
    with pytest.raises(ValueError, match=r"x\.json has no class 'c'; it has a, b"):
        check_names({"c": "cherry"}, ["b", "a"], "x.json")
