"""The table of prompts: what its columns count, and that it goes where the page has room for it."""

import pytest

from experiments.pages import show
from experiments.prompt_table import MARKS, score, table
from sca_hf.evaluation.predictions import PredictionRecord
from tests.evaluation.region_files import rectangle_mask


def record(number, caption, reference, mask=(10, 10, 20, 20)):
    return PredictionRecord(
        [reference],
        [caption],
        image_id=str(number),
        region_id="0",
        mask=None if mask is None else rectangle_mask(mask),
        reference_mask=rectangle_mask((10, 10, 20, 30)),
    )


RECORDS = [
    record(0, "a plain red circle left of its neighbour", "a plain red disc to the left of a blue star"),
    record(1, "a plain red circle above its neighbour", "a plain red square under its neighbour"),
    record(2, "a large dotted white ring", "the big white ring with dots"),
    record(3, "a large dotted white ring", "the big black ring with dots"),
]


def test_words_are_counted_whatever_their_form():
    scores = score(RECORDS)
    assert scores["thing"] == 0.5 and scores["place"] == 0.5 and scores["mask-mIoU"] == 0.5
    assert 0 < scores["CIDEr-D"] < 10 and score([record(0, "a", "b", None)] * 2)["mask-mIoU"] is None


def test_the_table_replaces_the_one_before(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    text = table({"one": {"CIDEr-D": 1.23456, "mask-mIoU": None}})
    show(text, page, MARKS)
    show(text, page, MARKS)
    rows = "| system, prompt | CIDEr-D | mask-mIoU |\n|---|---|---|\n| one | 1.235 | - |"
    assert page.read_text() == f"before\n{MARKS[0]}\n{rows}\n{MARKS[1]}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no <!-- prompt table"):
        show(text, page, MARKS)
