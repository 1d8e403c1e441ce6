"""Scenes in German and Chinese: read back exactly, with the grammar of the language, and as a data set."""

import re
from collections import Counter

import numpy as np
import pytest

from sca_hf.data.loading import load_regions, load_spec, parse_spec
from sca_hf.data.region import RegionRecord
from sca_hf.data.scene_languages import LANGUAGES, captions_in, read_caption_in, scene_languages
from sca_hf.data.scenes import scenes


GENDERS = {"Kreis": "m", "Scheibe": "f", "Quadrat": "n", "Kasten": "m", "Dreieck": "n", "Stern": "m", "Ring": "m"}
GENDERS |= {"Kreuz": "n"}
# Article -> gender -> how adjectives end after it, of a subject and behind a preposition.
SUBJECTS = {"ein": {"m": "er", "n": "es"}, "eine": {"f": "e"}, "der": {"m": "e"}, "die": {"f": "e"}, "das": {"n": "e"}}
AFTER_PLACES = {
    "einem": {"m": "en", "n": "en"},
    "einer": {"f": "en"},
    "dem": {"m": "en", "n": "en"},
    "der": {"f": "en"},
    "vom": {"m": "en", "n": "en"},
}
MEASURES = {"圆形": "个", "圆盘": "个", "正方形": "个", "方块": "块", "三角形": "个", "星星": "颗", "五角星": "颗"}
MEASURES |= {"圆环": "个", "十字": "个"}


@pytest.fixture(scope="module")
def told():
    """Objects that are described, with captions in each language."""
    found = []
    for scene in scenes("validation", 120):
        for index, obj in enumerate(obj for obj in scene.objects if obj.describable):
            rng = np.random.default_rng((scene.seed, index))
            found.append((obj, {tag: captions_in(tag, obj, rng) for tag in LANGUAGES}))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_attribute_is_read_back_exactly(told, language):
    named = set()
    for obj, captions in told:
        for text in captions[language]:
            said = read_caption_in(text, language)
            assert {name: said[name] for name in ("color", "shape", "texture", "relation")} == {
                name: getattr(obj, name) for name in ("color", "shape", "texture", "relation")
            }, text
            assert said["size"] == (None if obj.size == "medium" else obj.size), text
            other = (said["reference_color"], said["reference_shape"])
            assert other == (None, None) or other == (obj.reference.color, obj.reference.shape), text
            named.add(other)
    assert len(named) > 40, "neighbours of all kinds"


def test_german_adjectives_agree_with_gender_and_case(told):
    seen, articles = Counter(), "|".join(SUBJECTS | AFTER_PLACES)
    for _, captions in told:
        for text in captions["de"]:
            for found in re.finditer(rf"\b({articles}) ((?:[a-zäöüß]+ )+?)([A-Z]\w+)", text):
                article, adjectives, noun = found[1], found[2].split(), found[3]
                before = text[: found.start()].strip()
                place = article == "vom" or before.endswith(("von", "neben", "über", "unter"))
                expected = (AFTER_PLACES if place else SUBJECTS)[article][GENDERS[noun]]
                assert all(word.endswith(expected) for word in adjectives), text
                assert expected != "e" or not any(word.endswith(("er", "es", "en")) for word in adjectives), text
                seen[article, place] += 1
    assert set(seen) == {(article, False) for article in SUBJECTS} | {(article, True) for article in AFTER_PLACES}


def test_the_german_neighbour_belongs_to_the_gender_of_its_subject(told):
    seen = Counter()
    for _, captions in told:
        for text in captions["de"]:
            if "Nachbarn" in text:
                noun = next(word for word in re.findall(r"[A-Z]\w+", text) if word in GENDERS)
                seen[GENDERS[noun], "ihrem" if "ihrem Nachbarn" in text else "seinem"] += 1
                assert "seinem Nachbarn" in text or "ihrem Nachbarn" in text
    assert set(seen) == {("m", "seinem"), ("f", "ihrem"), ("n", "seinem")}


def test_chinese_nouns_have_their_measure_words(told):
    seen = Counter()
    for _, captions in told:
        for text in captions["zh-Hans"]:
            for found in re.finditer(rf"[一那](.)[^，]*?({'|'.join(MEASURES)})", text):
                assert found[1] == MEASURES[found[2]], text
                seen[found[1]] += 1
            assert re.search(r"[一那][个颗块]", text)
    assert set(seen) == {"个", "颗", "块"}


def test_the_order_of_words_is_the_languages_own(told):
    placed = [(obj, captions) for obj, captions in told if obj.relation]
    german = [text for _, captions in placed for text in captions["de"]]
    verb_second = re.compile(r"(links|rechts|über|unter|oberhalb|unterhalb) .* ist (ein|der|die|das)")
    assert any(map(verb_second.match, german))
    chinese = [text for _, captions in placed for text in captions["zh-Hans"]]
    first = [text for text in chinese if not text.startswith(("一", "那")) or "，在" not in text]
    assert 0.3 < len(first) / len(chinese) < 0.7 and all(re.search("[左右上下].的[一那]", text) for text in first)


@pytest.mark.parametrize("language", ["de", "zh-Hans"])
def test_what_is_not_said_or_said_in_two_ways_is_none(language):
    wrong = {"de": "ein roter grüner Ring", "zh-Hans": "一个红色绿色圆环"}[language]
    assert read_caption_in(wrong, language)["color"] is None and read_caption_in(wrong, language)["shape"] == "ring"
    assert set(read_caption_in("a red ring", language).values()) <= {None, "ring"}
    assert set(read_caption_in("", language).values()) == {None}


def test_the_data_set_has_captions_in_the_languages_that_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    spec = parse_spec("scenes:split=test,count=4,languages=en+de+zh")
    rows, english = list(load_spec(spec)), list(load_regions("scenes", split="test", count=4))
    for row, plain in zip(rows, english, strict=True):
        RegionRecord.from_dict({**row, "image": plain["image"]})
        for region, known in zip(row["regions"], plain["regions"], strict=True):
            assert region["languages"] == ["en"] * 3 + ["de"] * 3 + ["zh"] * 3
            assert region["captions"][:3] == known["captions"], "the English ones stay as they are"
    alone = list(load_regions("scenes", split="test", count=4, languages=["zh-Hans"]))
    said = [text for row in rows for region in row["regions"] for text in region["captions"][6:]]
    assert [text for row in alone for region in row["regions"] for text in region["captions"]] == said
    assert {tag for row in alone for region in row["regions"] for tag in region["languages"]} == {"zh-Hans"}


def test_lengths_and_languages_combine(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    (region, *_) = load_regions("scenes", count=2, lengths=True, languages=["de", "en"])[0]["regions"]
    pairs = Counter(zip(region["languages"], region["lengths"], strict=True))
    assert pairs == {("en", "sentence"): 3, ("en", "short"): 2, ("en", "detailed"): 3, ("de", "sentence"): 3}
    (region, *_) = load_regions("scenes", count=2, lengths=True, languages="de")[0]["regions"]
    assert region["lengths"] == ["sentence"] * 3


@pytest.mark.parametrize("languages", ["fr", "en+fr", ["en", "en-GB"], [], "", "german"])
def test_languages_that_scenes_do_not_speak_are_refused(languages):
    with pytest.raises(ValueError, match="language"):
        scene_languages(languages)
