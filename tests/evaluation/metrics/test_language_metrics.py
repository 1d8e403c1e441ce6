"""Tokens, chrF and the share of captions in their language: for scripts of many kinds, against published values."""

import json
from pathlib import Path

import pytest

from sca_hf.evaluation.metrics import chrf, in_language, ptb_tokenize, tokenize
from sca_hf.evaluation.predictions import PredictionError, PredictionRecord
from sca_hf.evaluation.scoring import DEFAULT_METRICS, LANGUAGE_METRICS, score_records


@pytest.mark.parametrize(
    ("text", "language", "tokens"),
    [
        ("Ein großer, blauer Stern!", "de", ["ein", "großer", "blauer", "stern"]),
        ("红色圆环，在 A4 左边。", "zh-Hans", ["红", "色", "圆", "环", "在", "a4", "左", "边"]),
        ("赤いリング", "ja", list("赤いリング")),
        ("ｶﾞ ＡＢ", "ja", ["ガ", "ab"]),
        ("สีแดง", "th", ["สี", "แ", "ด", "ง"]),  # a mark stays with its letter
        ("एक लाल अंगूठी।", "hi", ["एक", "लाल", "अंगूठी"]),  # vowel signs are part of words
        ("একটি লাল আংটি", "bn", ["একটি", "লাল", "আংটি"]),
        ("ഒരു ചുവന്ന വളയം", "ml", ["ഒരു", "ചുവന്ന", "വളയം"]),
        ("'Yar ƙasa, ta'azza", "ha", ["yar", "ƙasa", "ta'azza"]),
        ("un cafe\u0301 l’été", "fr", ["un", "café", "l'été"]),
        ("", "de", []),
        ("?!", "zh", []),
    ],
)
def test_tokens_follow_the_script(text, language, tokens):
    assert tokenize(text, language) == tokens


def test_english_keeps_the_tokens_that_tables_are_made_with():
    text = "the cat's (red) hat -- isn't it?"
    assert tokenize(text, None) == tokenize(text, "en") == tokenize(text, "en-GB") == ptb_tokenize(text)


def test_chrf_is_that_of_sacrebleu():
    """CHRF().corpus_score of sacrebleu 2.6.0, and sentence_score of each pair, over 100."""
    cases = json.loads((Path(__file__).parents[2] / "fixtures" / "chrf.json").read_text(encoding="utf-8"))
    assert len(cases) >= 12
    for candidates, references, corpus, per_item in cases:
        found = chrf(candidates, references)
        assert found["corpus"] == pytest.approx(corpus, abs=1e-9)
        assert found["per_item"] == pytest.approx(per_item, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "language", "there"),
    [
        ("红色圆环", "zh", True),
        ("红色圆环 with A4", "zh", False),
        ("a red ring", "zh", False),
        ("赤いリング", "zh", False),
        ("赤いリング", "ja", True),
        ("红色圆环", "ja", False),
        ("एक लाल अंगूठी", "hi", True),
        ("a red ring", "hi", False),
        ("ഒരു വളയം", "ml", True),
        ("ഒരു വളയം", "bn", False),
        ("สีแดง", "th", True),
        ("ein roter Ring", "de", True),
        ("a red ring", "de", False),  # no word but "ring"
        ("ein Ring", "de-AT", True),
        ("красное кольцо", "sr-Cyrl", True),
        ("crveni prsten", "sr-Cyrl", False),
        ("", "de", False),
        ("123 !", "zh", False),
    ],
)
def test_a_caption_is_in_its_language_by_letters_and_words(text, language, there):
    known = {*["ein", "roter", "ring", "mit", "красное", "кольцо"]}
    assert in_language(text, language, known) is there


def records(language, *pairs):
    return [
        PredictionRecord(list(references), [said], id=str(number), language=language)
        for number, (said, *references) in enumerate(pairs)
    ]


def test_chinese_is_scored_by_characters_with_its_share():
    scored = score_records(
        records("zh", ("红色圆环在左边", "红色圆环在左边"), ("蓝色星形", "蓝色的星形"), ("a star", "黄色星形"))
    )
    assert list(scored.scores) == [*DEFAULT_METRICS, *LANGUAGE_METRICS]
    assert scored.scores["CIDEr-D"].per_item[0] == pytest.approx(10) and 0 < scored.scores["CIDEr-D"].per_item[1] < 10
    assert (
        scored.metrics["in-language"] == pytest.approx(2 / 3) and scored.notes["in_language"] == "most letters of CJK"
    )
    assert scored.scores["chrF"].per_item[0] == 1 and scored.scores["chrF"].per_item[2] == 0
    assert set(scored.intervals(resamples=20)) == set(scored.scores)


def test_latin_letters_are_told_apart_by_the_words_of_references():
    scored = score_records(
        records("de", ("ein roter Ring", "ein roter Ring"), ("a red ring", "ein Ring")), ["in-language"]
    )
    assert scored.scores["in-language"].per_item == [1, 0]
    assert scored.notes["in_language"] == "most letters of LATIN, and at least half of the words in the references"


def test_what_a_language_has_no_program_for_is_refused():
    german = records("de", ("ein Ring", "ein roter Ring"), ("ein Stern", "ein Stern"))
    for metric in ("METEOR", "SPICE", "content-recall"):
        with pytest.raises(ValueError, match=rf"{metric} is for English; the captions are in de: chrF is for any"):
            score_records(german, [metric])
    with pytest.raises(PredictionError, match="the records are in de, no language: score each language by itself"):
        score_records([*german, PredictionRecord(["a"], ["a"], id="x")])
    with pytest.raises(PredictionError, match="2 of 2 records have no language"):
        score_records(records(None, ("a", "a"), ("b", "b")), ["in-language"])
    assert "category-accuracy" not in score_records(german).scores, "short captions in German are no names"
