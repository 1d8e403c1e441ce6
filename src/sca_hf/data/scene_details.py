"""Captions of scenes in other lengths than a sentence: two or three words, and a paragraph whose truth is exact.

A detailed caption states color, shape, texture and size of an object, where in the picture it is, and its two nearest
neighbours, each with texture, color and shape, as far as it is plain on which side they are. Only the wording is free.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from .scenes import (
    IMAGE_SIZE,
    PATTERNS,
    SYNONYMS,
    Scene,
    SceneObject,
    middle_of,
    pick,
    read_attribute,
    side_of,
)


_DETAILS, _SHORTS, _NEIGHBOURS = 3, 2, 2
# Of the picture's side: what lies between is in the middle.
_EDGES = (0.4, 0.6)
_ACROSS, _DOWN = ("left", "", "right"), ("upper", "", "lower")
_EDGE_WORDS = {"upper": "top", "lower": "bottom"}
_SIDES = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it"),
}
_SIDE = re.compile(r"\bits (left|right)\b|\b(above|over) it\b|\b(below|under) it\b")
_PLACE = re.compile(r"\b(?:(upper|lower|top|bottom) ?)?\b(left|right)?(?: (?:part|side|half))? of the picture\b")


def record_with_lengths(scene: Scene) -> dict[str, Any]:
    """Returns the region record of a scene whose objects have short and detailed captions too, with their lengths."""
    record = scene.to_record()
    described = [(index, obj) for index, obj in enumerate(scene.objects) if obj.describable]
    for (index, obj), region in zip(described, record["regions"], strict=True):
        captions, lengths = captions_by_length(obj, scene.objects, np.random.default_rng((scene.seed, index, 1)))
        region["lengths"] = ["sentence"] * len(obj.captions) + lengths
        region["captions"] += captions
    return record


def captions_by_length(
    obj: SceneObject, objects: Sequence[SceneObject], rng: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Writes short and detailed captions of one object.

    Returns:
        The captions, and the length of each.
    """
    shorts = [f"{obj.color} {pick(SYNONYMS.get(obj.shape, (obj.shape,)), rng)}" for _ in range(_SHORTS)]
    details = [_paragraph(obj, objects, rng) for _ in range(_DETAILS)]
    return [*shorts, *details], ["short"] * _SHORTS + ["detailed"] * _DETAILS


def true_details(obj: SceneObject, objects: Sequence[SceneObject]) -> dict[str, Any]:
    """Returns what a detailed caption says: color, shape, texture, size, place, and neighbours nearest first.

    Each neighbour is (side, texture, color, shape), the side left, right, above or below of the object.
    """
    across, down = (
        names[int(np.searchsorted(_EDGES, value / IMAGE_SIZE, side="right"))]
        for names, value in zip((_ACROSS, _DOWN), middle_of(obj), strict=True)
    )
    neighbours = [(side, other.texture, other.color, other.shape) for side, other in _neighbours(obj, objects)]
    said = {name: getattr(obj, name) for name in ("color", "shape", "texture", "size")}
    return {**said, "place": f"{down} {across}".strip() or "middle", "neighbours": neighbours}


def read_details(text: str) -> dict[str, Any]:
    """Reads a detailed caption as [`true_details`] has it; what is not said, or said in two ways, is None."""
    own, neighbours = [], []
    for sentence in text.lower().split("."):
        if found := _SIDE.search(sentence):
            side = found[1] or ("above" if found[2] else "below")
            neighbours.append((side, *(read_attribute(sentence, name) for name in ("texture", "color", "shape"))))
        else:
            own.append(sentence)
    said = {name: read_attribute(" ".join(own), name) for name in ("color", "shape", "texture", "size")}
    said["size"] = said["size"] or ("medium" if "medium-sized" in text.lower() else None)
    places = {_read_place(found) for found in _PLACE.finditer(" ".join(own))}
    return {**said, "place": places.pop() if len(places) == 1 else None, "neighbours": neighbours}


def _read_place(found: re.Match[str]) -> str:
    down = {word: name for name, word in _EDGE_WORDS.items()}.get(found[1], found[1] or "")
    return f"{down} {found[2] or ''}".strip() or "middle"


def _neighbours(obj: SceneObject, objects: Sequence[SceneObject]) -> list[tuple[str, SceneObject]]:
    """Returns the nearest others with the side of the object on which each is, where that is plain."""
    others = sorted(
        (other for other in objects if other is not obj), key=lambda other: float(np.hypot(*_offset(obj, other)))
    )
    near = [(side_of(_offset(obj, other)), other) for other in others[:_NEIGHBOURS]]
    return [(side, other) for side, other in near if side is not None]


def _offset(obj: SceneObject, other: SceneObject) -> np.ndarray:
    return middle_of(other) - middle_of(obj)


def _paragraph(obj: SceneObject, objects: Sequence[SceneObject], rng: np.random.Generator) -> str:
    truth = true_details(obj, objects)
    shape = pick(SYNONYMS.get(obj.shape, (obj.shape,)), rng)
    size = "medium-sized" if obj.size == "medium" else pick(SYNONYMS[obj.size], rng)
    place, verb = _place(truth["place"], rng), pick(("is", "lies", "can be seen"), rng)
    surface = pick((f"{obj.texture} surface", f"surface that is {obj.texture}"), rng)
    first = int(rng.integers(3))
    if first == 0:
        sentences = [f"a {size} {obj.texture} {obj.color} {shape} {verb} {place}"]
    elif first == 1:
        sentences = [f"this is a {size} {obj.color} {shape}", f"it {verb} {place} and has a {surface}"]
    else:
        pattern = PATTERNS.get(obj.texture, "with a plain surface")
        sentences = [f"{place} {verb} a {size} {obj.color} {shape} {pattern}"]
    for side, texture, color, name in truth["neighbours"]:
        other = _article(f"{texture} {color} {pick(SYNONYMS.get(name, (name,)), rng)}")
        where = pick(_SIDES[side], rng)
        sentences.append(pick((f"{where} is {other}", f"{where} there is {other}", f"{other} is {where}"), rng))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _place(place: str, rng: np.random.Generator) -> str:
    if place == "middle":
        return pick(("in the middle of the picture", "in the center of the picture"), rng)
    down, _, across = place.rpartition(" ")
    if across in _EDGE_WORDS:
        return pick((f"at the {_EDGE_WORDS[across]} of the picture", f"in the {across} part of the picture"), rng)
    if not down:
        return pick((f"on the {across} side of the picture", f"in the {across} part of the picture"), rng)
    edge = f"at the {_EDGE_WORDS[down]} {across} of the picture"
    return pick((f"in the {down} {across} part of the picture", edge), rng)


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
