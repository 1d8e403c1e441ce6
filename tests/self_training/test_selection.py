"""What is kept: the best of each class by all judges together, a few of each picture, none twice."""

import pytest

from sca_hf.self_training.selection import Candidate, class_balance, select
from sca_hf.self_training.settings import SelectionSettings


def candidates(*rows):
    """Each row: picture, caption, and what the judges say."""
    return [Candidate(image, number, caption, judges) for number, (image, caption, judges) in enumerate(rows, 1)]


def kept(found):
    return [one.region for one in found if one.kept]


def test_a_class_that_the_teacher_doubts_keeps_its_share():
    rows = [(f"d{k}", "a dog", {"score": -0.1 - k / 100}) for k in range(20)]
    rows += [(f"o{k}", "a okapi", {"score": -3.0 - k / 100}) for k in range(10)]
    found = candidates(*rows)
    select(found, SelectionSettings(class_by="word", min_class=10))
    balance = class_balance(found)
    assert balance["dog"] == {"regions": 20, "kept": 10} and balance["okapi"] == {"regions": 10, "kept": 5}
    assert kept(found) == [*range(1, 11), *range(21, 26)]
    # With one threshold for all the rare word would be gone.
    select(found, SelectionSettings(class_by="none"))
    assert kept(found) == list(range(1, 16))


def test_rare_words_are_a_class_together():
    rows = [(f"p{k}", f"word{k}", {"score": float(k)}) for k in range(8)]
    found = candidates(*rows)
    select(found, SelectionSettings(min_class=3))
    assert {one.group for one in found} == {"(rare words)"} and kept(found) == [5, 6, 7, 8]


def test_a_class_has_a_largest_number_and_a_caption_may_be_a_class():
    rows = [(f"p{k}", "a cat" if k % 2 else "A cat!", {"score": float(k)}) for k in range(10)]
    found = candidates(*rows)
    select(found, SelectionSettings(class_by="caption", max_class=3))
    assert kept(found) == [8, 9, 10] and found[0].group == "a cat"
    assert found[0].reason == "rank 0.10, below the best 3 of 10 of the class 'a cat'"


def test_a_picture_gives_a_few_labels_and_no_caption_twice_and_others_take_their_places():
    rows = [("one", text, {"score": 9.0 - k}) for k, text in enumerate(["a", "b", "A ", "c", "d"])]
    rows += [("two", text, {"score": -float(k)}) for k, text in enumerate("efghi")]
    found = candidates(*rows)
    select(found, SelectionSettings(class_by="none", max_per_picture=2))
    assert kept(found) == [1, 2, 6, 7]
    assert found[2].reason == "region 1 of the picture has the same caption, and a better rank"
    assert "but 2 better ones of its picture are kept" in found[3].reason


def test_a_bad_rank_with_one_judge_counts_and_a_silent_judge_does_not():
    rows = [
        ("a", "x", {"score": 5.0, "agreement": 0.0}),
        ("b", "x", {"score": 4.0, "agreement": 1.0}),
        ("c", "x", {"score": 4.5, "agreement": 0.9}),
        ("d", "x", {"score": 0.0, "agreement": None}),
    ]
    found = candidates(*rows)
    select(found, SelectionSettings(class_by="none"))
    assert kept(found) == [2, 3]
    assert found[0].combined == pytest.approx((1 / 3) ** 0.5) and found[3].combined == pytest.approx(0.25)
    select(found, SelectionSettings(class_by="none", weights={"agreement": 0.0}))
    assert found[0].combined == 1.0


def test_thresholds_and_silence_are_reasons():
    found = candidates(("a", " ", {"score": 0.0}), ("b", "x", {"score": -2.0}), ("c", "x", {"score": None}))
    select(found, SelectionSettings(class_by="none", coverage=1.0, thresholds={"score": -1.0}))
    assert [one.reason for one in found[:2]] == ["the teacher said nothing", "score is -2, below -1"]
    assert kept(found) == [3]


def test_the_order_of_the_regions_does_not_matter():
    rows = [(f"p{k % 5}", f"{'abc'[k % 3]} thing", {"score": float(k * 7 % 11), "agreement": 1.0}) for k in range(30)]
    found, turned = candidates(*rows), candidates(*rows)[::-1]
    for some in (found, turned):
        select(some, SelectionSettings(min_class=5, max_per_picture=3))
    assert {(one.region, one.reason) for one in found} == {(one.region, one.reason) for one in turned}


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"coverage": 1.5}, "coverage is 1.5"),
        ({"class_by": "color"}, "class_by is 'color', expected one of word, caption, none"),
        ({"max_per_picture": 0}, "max_per_picture is 0, expected at least 1"),
        ({"weights": {"score": -1.0}}, "weights are"),
    ],
)
def test_settings_that_select_nothing_sensible_are_refused(wrong, fault):
    with pytest.raises(ValueError, match=fault):
        SelectionSettings(**wrong)
