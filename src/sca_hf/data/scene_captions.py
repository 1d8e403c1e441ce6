"""The words of `scenes`: captions written from an object's attributes, and read back from any text.

Color, shape and texture are always stated ("plain" when there is no texture), a size when the object is small or
large, and where it stands from its nearest neighbour unless it is large. Only the wording is free, and whether the
neighbour is named.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from .scenes import SceneObject

CAPTIONS_PER_OBJECT = 3
NAMED_NEIGHBOURS = 0.4
SYNONYMS = {
    "small": ("small", "little"),
    "large": ("large", "big"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
}
PATTERNS = {"striped": "with stripes", "dotted": "with dots", "checkered": "with checks"}
PLACES = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
# word or phrase -> (attribute, canonical value), for reading captions
VOCABULARY = {
    **{word: ("color", word) for word in ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]},
    **{word: ("shape", word) for word in ["circle", "square", "triangle", "star", "ring", "cross"]},
    **{word: ("texture", word) for word in ["plain", "striped", "dotted", "checkered"]},
    "disc": ("shape", "circle"),
    "box": ("shape", "square"),
    "stripes": ("texture", "striped"),
    "dots": ("texture", "dotted"),
    "checks": ("texture", "checkered"),
    "small": ("size", "small"),
    "little": ("size", "small"),
    "large": ("size", "large"),
    "big": ("size", "large"),
}
RELATION_PATTERN = re.compile(r"\b(?:(left|right) of|(above|over)|(below|under))\b")


def describe(obj: SceneObject, rng: np.random.Generator) -> list[str]:
    """Writes several captions of one object."""
    return [_with_article(_sentence(obj, rng), rng) for _ in range(CAPTIONS_PER_OBJECT)]


def _sentence(obj: SceneObject, rng: np.random.Generator) -> str:
    size = "" if obj.size == "medium" else _pick(SYNONYMS[obj.size], rng)
    shape = _word(obj.shape, rng)
    form = int(rng.integers(4))
    if form == 0 and obj.texture in PATTERNS:
        head = f"{size} {obj.color} {shape} {PATTERNS[obj.texture]}"
    elif form == 1:
        head = f"{size} {obj.color} {obj.texture} {shape}"
    else:
        head = f"{size} {obj.texture} {obj.color} {shape}"
    if obj.relation is None or obj.reference is None:
        return head.strip()
    place = _pick(PLACES[obj.relation], rng)
    if rng.random() >= NAMED_NEIGHBOURS:
        return f"{head.strip()} {place} its neighbour"
    article = _pick(("the", "the", "a"), rng)
    other = f"{obj.reference.color} {_word(obj.reference.shape, rng)}"
    if article == "a" and other[0] in "aeiou":
        article = "an"
    return f"{head.strip()} {place} {article} {other}"


def _with_article(text: str, rng: np.random.Generator) -> str:
    article = _pick(("a", "a", "the"), rng)
    return f"{'an' if article == 'a' and text[0] in 'aeiou' else article} {text}"


def _word(name: str, rng: np.random.Generator) -> str:
    return _pick(SYNONYMS.get(name, (name,)), rng)


def _pick(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def read_caption(text: str) -> dict[str, str | None]:
    """Reads the canonical words of a caption: color, shape, texture, size, relation, reference_color, ..._shape.

    Words before the relation speak of the object, words after it of its neighbour. An attribute that is not
    stated, or stated with two different values, is None.
    """
    text = text.lower()
    found = RELATION_PATTERN.search(text)
    head, tail = (text[: found.start()], text[found.end() :]) if found else (text, "")
    said = {attribute: _read(head, attribute) for attribute in ("color", "shape", "texture", "size")}
    side, above, below = found.groups() if found else (None, None, None)
    said["relation"] = side or ("above" if above else "below" if below else None)
    said["reference_color"] = _read(tail, "color")
    said["reference_shape"] = _read(tail, "shape")
    return said


def _read(text: str, attribute: str) -> str | None:
    values = {
        VOCABULARY[word][1] for word in re.findall(r"[a-z]+", text) if VOCABULARY.get(word, ("",))[0] == attribute
    }
    return values.pop() if len(values) == 1 else None
