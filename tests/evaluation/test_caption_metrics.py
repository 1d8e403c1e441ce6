"""CIDEr-D by hand and by its known edges; exact match."""

import math

import pytest

from sca_hf.evaluation.caption_metrics import cider_d, exact_match


def tokens(*sentences):
    return [sentence.split() for sentence in sentences]


def test_cider_d_of_an_identical_long_pair_is_ten():
    candidates = tokens("a small red star", "one big blue ring")
    assert cider_d(candidates, [[c] for c in candidates])["per_item"] == pytest.approx([10.0, 10.0])


@pytest.mark.parametrize(("words", "score"), [("star", 2.5), ("red star", 5.0), ("small red star", 7.5)])
def test_orders_without_ngrams_count_as_zero(words, score):
    candidates = tokens(words, "one big blue ring")
    assert cider_d(candidates, [[c] for c in candidates])["per_item"][0] == pytest.approx(score)


def test_cider_d_clips_and_punishes_length_as_by_hand():
    candidates, references = tokens("star star star", "ring"), [tokens("star"), tokens("ring")]
    # One unigram of weight ln 2 on both sides: min(3, 1) * 1 / (3 * 1), then the penalty for two bigrams more.
    expected = 10 * math.exp(-4 / 72) * (1 / 3) / 4
    assert cider_d(candidates, references)["per_item"][0] == pytest.approx(expected)


def test_empty_candidates_score_zero_and_references_may_be_ragged():
    result = cider_d([[], ["ring"]], [tokens("star", "a star"), tokens("ring")])
    assert result["per_item"] == pytest.approx([0.0, 2.5]) and result["corpus"] == pytest.approx(1.25)


def test_exact_match_takes_any_reference():
    result = exact_match(tokens("a star", "a ring"), [tokens("the star", "a star"), tokens("the ring")])
    assert result == {"corpus": 0.5, "per_item": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [([], [], "empty"), ([["a"]], [], "1 candidates and 0"), ([["a"]], [[]], "pair 0 has no reference")],
)
def test_impossible_input_is_an_error(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        cider_d(candidates, references)


def test_strings_in_place_of_tokens_are_an_error():
    with pytest.raises(TypeError, match="lists of tokens"):
        cider_d(["a star"], [["a star"]])
