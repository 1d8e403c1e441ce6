"""Captions of scenes in German and Chinese beside English: written by rules, and read back exactly.

They say what the English ones do, with the grammar of their language: German adjectives agree with the gender of their
noun and with case, and where a place comes first the verb does before its subject; Chinese nouns have their measure
words, and what tells them apart stands in front. Only the wording is free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..processing.languages_sca import find_language, language_tag
from .scenes import CAPTIONS_PER_OBJECT, NAMED_NEIGHBOURS, SceneObject, pick, read_caption


_GERMAN_SHAPES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "circle": (("Kreis", "m"), ("Scheibe", "f")),
    "square": (("Quadrat", "n"), ("Kasten", "m")),
    "triangle": (("Dreieck", "n"),),
    "star": (("Stern", "m"),),
    "ring": (("Ring", "m"),),
    "cross": (("Kreuz", "n"),),
}
_GERMAN_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "color": {
        "red": ("rot",),
        "green": ("grün",),
        "blue": ("blau",),
        "yellow": ("gelb",),
        "purple": ("violett",),
        "orange": ("orangefarben",),
        "white": ("weiß",),
        "black": ("schwarz",),
    },
    "texture": {
        "plain": ("einfarbig",),
        "striped": ("gestreift",),
        "dotted": ("gepunktet",),
        "checkered": ("kariert",),
    },
    "size": {"small": ("klein", "winzig"), "large": ("groß", "riesig")},
}
_GERMAN_PATTERNS = {"striped": "mit Streifen", "dotted": "mit Punkten", "checkered": "mit Karos"}
# "von" may be one word with the article after it.
_GERMAN_PLACES = {
    "left": ("links von", "links neben"),
    "right": ("rechts von", "rechts neben"),
    "above": ("über", "oberhalb von"),
    "below": ("unter", "unterhalb von"),
}
# (nominative, dative) by gender; an adjective ends in -en in the dative, and after "der", "die", "das" in -e.
_INDEFINITE = {"m": ("ein", "einem"), "f": ("eine", "einer"), "n": ("ein", "einem")}
_DEFINITE = {"m": ("der", "dem"), "f": ("die", "der"), "n": ("das", "dem")}
_ENDINGS = {"m": "er", "f": "e", "n": "es"}
_POSSESSIVES = {"m": "seinem", "f": "ihrem", "n": "seinem"}
_GERMAN_PLACE = re.compile(
    r"\b(?:(links|rechts) (?:vo[nm]|neben)|(über|oberhalb vo[nm])|(unter|unterhalb vo[nm]))\b", re.IGNORECASE
)

# Each noun with its measure word.
_CHINESE_SHAPES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "circle": (("圆形", "个"), ("圆盘", "个")),
    "square": (("正方形", "个"), ("方块", "块")),
    "triangle": (("三角形", "个"),),
    "star": (("星星", "颗"), ("五角星", "颗")),
    "ring": (("圆环", "个"),),
    "cross": (("十字", "个"),),
}
_CHINESE_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "color": {
        "red": ("红色",),
        "green": ("绿色",),
        "blue": ("蓝色",),
        "yellow": ("黄色",),
        "purple": ("紫色",),
        "orange": ("橙色",),
        "white": ("白色",),
        "black": ("黑色",),
    },
    "texture": {"plain": ("纯色",), "striped": ("条纹",), "dotted": ("波点",), "checkered": ("格子",)},
    "size": {"small": ("小", "小小"), "large": ("大", "大大")},
}
_CHINESE_PLACES = {
    "left": ("左边", "左侧"),
    "right": ("右边", "右侧"),
    "above": ("上方", "上面"),
    "below": ("下方", "下面"),
}
_CHINESE_PLACE = re.compile("|".join(word for words in _CHINESE_PLACES.values() for word in words))
_SIDES = {word: side for side, words in _CHINESE_PLACES.items() for word in words}


def captions_in(language: str, obj: SceneObject, rng: np.random.Generator) -> list[str]:
    """Writes several captions of one object in a language, one of `LANGUAGES`.

    Args:
        language: Of the captions; English ones are those that the object has.
        obj: The object, described as in English.
        rng: What chooses the words.
    """
    writer = _WRITERS[language]
    return list(obj.captions) if writer is None else [writer(obj, rng) for _ in range(CAPTIONS_PER_OBJECT)]


def with_languages(
    record: dict[str, Any], seed: int, objects: Sequence[SceneObject], languages: Mapping[str, str]
) -> dict[str, Any]:
    """Returns the region record of a scene with captions in these languages, each with its tag.

    Args:
        record: Of the scene, in English; lengths that it has stay, those of other languages are sentences.
        seed: Of the scene.
        objects: Its objects that are described, as many as regions.
        languages: Tags, and which of `LANGUAGES` each means; English captions stay only if English is among these.
    """
    english = [tag for tag, language in languages.items() if language == "en"]
    for number, (obj, region) in enumerate(zip(objects, record["regions"], strict=True)):
        said = [(text, tag) for tag in english for text in region["captions"]]
        lengths = list(region.get("lengths") or ())[: len(said)]
        for tag, language in languages.items():
            if language != "en":
                # A generator of its own: another language leaves the words of this one as they are.
                rng = np.random.default_rng((seed, number, 2, LANGUAGES.index(language)))
                said += [(text, tag) for text in captions_in(language, obj, rng)]
        if "lengths" in region:
            region["lengths"] = lengths + ["sentence"] * (len(said) - len(lengths))
        region["captions"], region["languages"] = [text for text, _ in said], [tag for _, tag in said]
    return record


def scene_languages(languages: str | Sequence[str]) -> dict[str, str]:
    """Returns which of `LANGUAGES` each tag means, of a list of tags or a text of them with `+` between."""
    tags = languages.split("+") if isinstance(languages, str) else list(languages)
    found = {language_tag(tag): find_language(tag, LANGUAGES) for tag in tags}
    known = {tag: language for tag, language in found.items() if language is not None}
    if not tags or len(set(known.values())) < len(tags):
        raise ValueError(f"languages is {languages!r}, expected some of {', '.join(LANGUAGES)}, each once.")
    return known


def read_caption_in(text: str, language: str) -> dict[str, str | None]:
    """Reads a caption in one of `LANGUAGES` as [`read_caption`] does an English one, with the same canonical words."""
    if language == "en":
        return read_caption(text)
    head, side, tail = (_german_parts if language == "de" else _chinese_parts)(text)
    said = {name: _read(head, name, language) for name in ("color", "shape", "texture", "size")}
    other = {f"reference_{name}": _read(tail, name, language) for name in ("color", "shape")}
    return {**said, "relation": side, **other}


def _german(obj: SceneObject, rng: np.random.Generator) -> str:
    noun, gender = pick(_GERMAN_SHAPES[obj.shape], rng)
    article, ending = (_DEFINITE, "e") if rng.random() < 1 / 3 else (_INDEFINITE, _ENDINGS[gender])
    words = {name: pick(_GERMAN_WORDS[name][getattr(obj, name)], rng) for name in ("color", "texture")}
    order, form = ["texture", "color"], int(rng.integers(4))
    after = ""
    if form == 0 and obj.texture in _GERMAN_PATTERNS:
        order, after = ["color"], f" {_GERMAN_PATTERNS[obj.texture]}"
    elif form == 1:
        order = ["color", "texture"]
    adjectives = [words[name] for name in order]
    if obj.size in _GERMAN_WORDS["size"]:
        adjectives.insert(0, pick(_GERMAN_WORDS["size"][obj.size], rng))
    head = " ".join([article[gender][0], *(word + ending for word in adjectives), noun]) + after
    if obj.relation is None or obj.reference is None:
        return head
    place = pick(_GERMAN_PLACES[obj.relation], rng)
    if rng.random() >= NAMED_NEIGHBOURS:
        return f"{head} {place} {_POSSESSIVES[gender]} Nachbarn"
    other, its = pick(_GERMAN_SHAPES[obj.reference.shape], rng)
    color = f"{pick(_GERMAN_WORDS['color'][obj.reference.color], rng)}en"
    before = (_INDEFINITE if rng.random() < 1 / 3 else _DEFINITE)[its][1]
    where = f"{place} {before} {color} {other}"
    if rng.random() < 1 / 2:
        where = where.replace("von dem ", "vom ")
    # What comes first pushes the subject behind the verb.
    return f"{where} ist {head}" if rng.random() < 1 / 3 else f"{head} {where}"


def _german_parts(text: str) -> tuple[str, str | None, str]:
    found = _GERMAN_PLACE.search(text)
    if found is None:
        return text, None, ""
    side = {"links": "left", "rechts": "right"}.get((found[1] or "").lower(), "above" if found[2] else "below")
    before, after = text[: found.start()], text[found.end() :]
    if not before.strip():
        after, _, before = after.partition(" ist ")
    return before, side, after


def _chinese(obj: SceneObject, rng: np.random.Generator) -> str:
    noun, measure = pick(_CHINESE_SHAPES[obj.shape], rng)
    color, texture = (pick(_CHINESE_WORDS[name][getattr(obj, name)], rng) for name in ("color", "texture"))
    size = f"{pick(_CHINESE_WORDS['size'][obj.size], rng)}的" if obj.size in _CHINESE_WORDS["size"] else ""
    plain = obj.texture == "plain"
    form = int(rng.integers(3))
    if form == 0:
        kind = f"{'' if plain else '带'}{texture}的{color}{noun}"
    elif form == 1:
        kind = f"{color}的{texture}{noun}"
    else:
        kind = f"{texture}{color}{noun}" if plain else f"{color}{texture}{noun}"
    head = f"{'那' if rng.random() < 1 / 3 else '一'}{measure}{size}{kind}"
    if obj.relation is None or obj.reference is None:
        return head
    side = pick(_CHINESE_PLACES[obj.relation], rng)
    other = "相邻图形"
    if rng.random() < NAMED_NEIGHBOURS:
        name, its = pick(_CHINESE_SHAPES[obj.reference.shape], rng)
        before = pick(("", f"那{its}", f"一{its}"), rng)
        other = f"{before}{pick(_CHINESE_WORDS['color'][obj.reference.color], rng)}{name}"
    return f"{other}{side}的{head}" if rng.random() < 1 / 2 else f"{head}，在{other}的{side}"


def _chinese_parts(text: str) -> tuple[str, str | None, str]:
    found = _CHINESE_PLACE.search(text)
    if found is None:
        return text, None, ""
    head, _, tail = text.partition("，在")
    if not tail:
        head, tail = text[found.end() :], text[: found.start()]
    return head, _SIDES[found[0]], tail


def _read(text: str, attribute: str, language: str) -> str | None:
    """Returns the one value of an attribute that a part of a caption states; None where it states none, or two."""
    pattern, values = _VOCABULARIES[language][attribute]
    said = {values[word] for word in pattern.findall(text.lower())}
    return said.pop() if len(said) == 1 else None


def _vocabulary(
    words: Mapping[str, Mapping[str, Sequence[str]]],
    shapes: Mapping[str, Sequence[tuple[str, str]]],
    patterns: Mapping[str, str],
    endings: Sequence[str],
    edge: str,
) -> dict[str, tuple[re.Pattern[str], dict[str, str]]]:
    """Returns for each attribute what finds its words in a text in lower case, and the canonical value of each."""
    found: dict[str, dict[str, str]] = {
        name: {word + end: value for value, said in known.items() for word in said for end in endings}
        for name, known in words.items()
    }
    found["shape"] = {noun.lower(): value for value, nouns in shapes.items() for noun, _ in nouns}
    found["texture"] |= {phrase.split()[-1].lower(): value for value, phrase in patterns.items()}
    longest = {name: sorted(values, key=len, reverse=True) for name, values in found.items()}
    return {name: (re.compile(f"{edge}({'|'.join(longest[name])}){edge}"), values) for name, values in found.items()}


_VOCABULARIES = {
    "de": _vocabulary(_GERMAN_WORDS, _GERMAN_SHAPES, _GERMAN_PATTERNS, ("", "e", "en", "er", "es", "em"), r"\b"),
    "zh-Hans": _vocabulary(_CHINESE_WORDS, _CHINESE_SHAPES, {}, ("",), ""),
}
_WRITERS: Mapping[str, Any] = {"en": None, "de": _german, "zh-Hans": _chinese}
LANGUAGES = tuple(_WRITERS)
