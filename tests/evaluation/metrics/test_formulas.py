"""Caption metrics by hand and by their known edges."""

import math

import pytest

from sca_hf.evaluation.metrics import DocumentFrequency, bleu, cider_d, exact_match, rouge_l


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


def test_one_pair_alone_scores_zero():
    assert cider_d(tokens("a star"), [tokens("a star")]) == {"corpus": 0.0, "per_item": [0.0]}


def test_duplicates_count_as_separate_references():
    candidates, other = tokens("a star", "one ring"), tokens("one ring")
    once = cider_d(candidates, [tokens("a star", "the disc"), other])["per_item"][0]
    twice = cider_d(candidates, [tokens("a star", "a star", "the disc"), other])["per_item"][0]
    assert once == pytest.approx(5 / 2) and twice == pytest.approx(10 / 3)


def test_document_frequencies_of_a_whole_score_its_part_as_in_the_whole(tmp_path):
    candidates = tokens("a red star", "a ring", "one big ring", "star")
    references = [tokens("a star", "red star here"), tokens("a ring"), tokens("big ring"), tokens("a star")]
    whole = cider_d(candidates, references)["per_item"]
    DocumentFrequency.of(references).save(tmp_path / "df.json")
    df = DocumentFrequency.load(tmp_path / "df.json")
    assert cider_d(candidates[:2], references[:2], df)["per_item"] == pytest.approx(whole[:2], abs=1e-12)
    assert cider_d(candidates[:2], references[:2])["per_item"] != pytest.approx(whole[:2], abs=1e-3)
    (tmp_path / "df.json").write_text("{}")
    with pytest.raises(ValueError, match=r"df.json has no document frequencies"):
        DocumentFrequency.load(tmp_path / "df.json")


def test_empty_candidates_score_zero_and_references_may_be_ragged():
    candidates, references = [[], ["ring"]], [tokens("star", "a star"), tokens("ring")]
    result = cider_d(candidates, references)
    assert result["per_item"] == pytest.approx([0.0, 2.5]) and result["corpus"] == pytest.approx(1.25)
    assert rouge_l(candidates, references)["per_item"] == [0.0, 1.0]
    assert bleu(candidates, references)["BLEU@1"]["per_item"] == pytest.approx([0.0, 1.0])


def test_nothing_said_against_nothing_is_zero():
    assert rouge_l([[], ["a"]], [[[]], [[]]])["per_item"] == [0.0, 0.0]
    assert cider_d([[], ["a"]], [[[]], [[]]])["corpus"] == 0.0
    assert bleu([[]], [[[]]])["BLEU@4"]["corpus"] < 1e-9


def test_bleu_takes_the_shorter_of_two_references_as_close_and_clips_by_one_reference():
    # Two words against one and three: the reference length is one, so no penalty; `a` counts once, as in either.
    result = bleu(tokens("a a"), [tokens("a", "a b c")])["BLEU@1"]
    assert result["corpus"] == pytest.approx(0.5)
    # Against three words alone: two of three, exp(1 - 3 / 2).
    assert bleu(tokens("a b"), [tokens("a b c")])["BLEU@1"]["corpus"] == pytest.approx(math.exp(-0.5))


def test_corpus_bleu_is_of_summed_counts():
    result = bleu(tokens("a", "b c d e"), [tokens("a"), tokens("b x y z")])["BLEU@1"]
    assert result["per_item"] == pytest.approx([1, 0.25]) and result["corpus"] == pytest.approx(2 / 5)


def test_rouge_takes_precision_and_recall_from_different_references():
    # Of `a b c d`: precision 2 / 4 by the first, recall 1 by the second.
    result = rouge_l(tokens("a b c d"), [tokens("a x b y z", "d")])
    expected = (1 + 1.44) * 0.5 * 1 / (1 + 1.44 * 0.5)
    assert result["per_item"] == [pytest.approx(expected)]


def test_long_captions_do_not_change_the_others():
    short = (tokens("a red star")[0], tokens("the red star"))
    long = ("word " * 500).split()
    alone = rouge_l([short[0]], [short[1]])["per_item"][0]
    both = rouge_l([short[0], long], [short[1], [long[:400], []]])["per_item"]
    assert both == pytest.approx([alone, 2.44 * 0.8 / (1 + 1.44 * 0.8)])


def test_exact_match_takes_any_reference():
    result = exact_match(tokens("a star", "a ring"), [tokens("the star", "a star"), tokens("the ring")])
    assert result == {"corpus": 0.5, "per_item": [1.0, 0.0]}


@pytest.mark.parametrize("metric", [cider_d, bleu, rouge_l, exact_match])
@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [([], [], "empty"), ([["a"]], [], "1 candidates and 0"), ([["a"]], [[]], "pair 0 has no reference")],
)
def test_impossible_input_is_an_error(metric, candidates, references, message):
    with pytest.raises(ValueError, match=message):
        metric(candidates, references)


def test_strings_in_place_of_tokens_are_an_error():
    with pytest.raises(TypeError, match="lists of tokens"):
        cider_d(["a star"], [["a star"]])
