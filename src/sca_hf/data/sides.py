"""Captions of a mirrored or turned picture: left and right change places, and what cannot be said safely is dropped.

The rule is conservative and knows English only: captions that are said to be in another language are dropped.
In a mirror

- swapped are the words of `_PAIRS`, compounds such as "left-hand" and "bottom-left", and "left" and "right" by
  themselves where the words beside them say that a side is meant: "on the left", "left of", "left wing", "turn left",
  or a caption that begins with them ("left zebra");
- dropped are captions that use the two otherwise, or so that the rule cannot tell ("right now", "all right", "two
  left", "zebra left"); that tell of writing or of a clock (digits, single letters, quotations, a word in capitals amid
  small letters, words like "letter", "reads" and "o'clock"), since writing is another one in a mirror; and that name a
  side in another language or one that depends on who looks ("starboard").

In a turned picture captions that name a direction are dropped ("left", "above", "bottom").
"""

from __future__ import annotations

import re


_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_OPPOSITE = {"left": "right", "right": "left"}
_PAIRS = {"leftmost": "rightmost", "lefthand": "righthand", "leftward": "rightward", "leftwards": "rightwards"}
_PAIRS["clockwise"] = "counterclockwise"
_PAIRS |= {there: here for here, there in _PAIRS.items()}
_PAIRS |= dict.fromkeys(("anticlockwise", "anti-clockwise", "counter-clockwise"), "clockwise")


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# What may stand on the other side of a hyphen.
_COMPOUNDS = _words(
    "hand handed side sided most facing leaning turning pointing looking arm leg foot eye ear",
    "upper lower top bottom front rear back far middle center centre mid near",
)
# "On the left": with these two before it, a side is meant whatever follows, the last set excepted.
_PREPOSITIONS = _words("on to at from toward towards into in onto")
_ARTICLES = _words("the his her its their my your far upper lower top bottom")
_BEFORE = (
    _PREPOSITIONS
    | _ARTICLES
    | _words(
        "a middle center centre front rear back near extreme very immediate first second third keep",
        "face faces facing turn turns turned turning point points pointed pointing look looks looking",
        "lean leans leaning bend bends bending go going move moving head headed heading walk walking",
        "run running drive driving fly flying swing swinging",
    )
)
_AFTER = _words(
    "of side sides hand hands arm arms leg legs foot feet eye eyes ear ears wing wings shoulder shoulders elbow knee",
    "cheek thumb finger wrist ankle hip paw paws hoof horn corner edge half third part portion end lane turn arrow",
    "wall door window wheel headlight taillight light lights mirror tire shoe sock boot glove sleeve pocket",
    "front rear back upper lower top bottom middle center centre most",
    "man woman boy girl guy lady person child kid player one",
)
_NOT_BEFORE = _words(
    "all just is are was were be been has have had having he she it i we you they who which what that only"
)
_NOT_AFTER = _words(
    "now away there here where when while after before behind over out alone in on by with up down next beside above",
    "below under underneath at as off through across along beneath between against for from to into onto about around",
    "ahead the a an",
)
# "The right way" is not a side, whatever precedes it.
_NO_SIDE = _words(
    "angle angles way ways direction place places time moment thing things size answer choice amount kind order track",
    "path position spot now away",
)
_WRITING = _words(
    "letter letters lettering word words text number numbers numeral numerals digit digits written writing writes",
    "handwriting handwritten read reads reading say says saying spell spells spelled spelling alphabet",
    "initial initials slogan inscription engraved clock clocks watch wristwatch o'clock o’clock",
)
_FOREIGN = _words(
    "starboard izquierda izquierdo derecha derecho gauche droite sinistra destra esquerda direita links rechts"
)
# In capitals, but not written on anything.
_ABBREVIATIONS = _words("TV DVD CD PC SUV RV ATV BMX LED LCD")
_DIRECTIONS = (
    _words(
        "above below beneath under underneath top bottom upper lower highest lowest higher topmost uppermost up down",
        "upside upward upwards downward downwards upright vertical vertically horizontal horizontally left right",
    )
    | (set(_PAIRS) - {"clockwise", "counterclockwise", "anticlockwise", "anti-clockwise", "counter-clockwise"})
    | _FOREIGN
)


def mirrored_text(text: str) -> str | None:
    """Returns the text as it is true in a mirror; None where the rule cannot say."""
    found = list(_WORD.finditer(text))
    words = [word.group().lower() for word in found]
    if _tells_of_writing(text, [word.group() for word in found]) or not _FOREIGN.isdisjoint(words):
        return None
    result, end = "", 0
    for index, word in enumerate(found):
        swapped = _swapped(index, words)
        if swapped is None:
            return None
        if swapped != words[index]:
            result += text[end : word.start()] + _cased(swapped, word.group())
            end = word.end()
    return result + text[end:]


def turned_text(text: str) -> str | None:
    """Returns the text, which is as true of the turned picture; None if it names a direction."""
    words = {part for word in _WORD.findall(text) for part in (word.lower(), *word.lower().split("-"))}
    return text if words.isdisjoint(_DIRECTIONS) else None


def _tells_of_writing(text: str, words: list[str]) -> bool:
    if re.search(r"[\d\"“”«»]|(?<!\w)['‘]\w", text) or not _WRITING.isdisjoint(word.lower() for word in words):
        return True
    if any(len(word) == 1 and word not in "aAI" for word in words):
        return True
    # "RBC" alone is a name; a word in capitals amid small letters stands written on something.
    capitals = [len(word) > 1 and word.isupper() and word not in _ABBREVIATIONS for word in words]
    return any(capitals) and not text.isupper()


def _swapped(index: int, words: list[str]) -> str | None:
    """Returns a word as it is in the mirror, itself if it tells of no side; None if it might tell of one."""
    word = words[index]
    if word in _PAIRS:
        return _PAIRS[word]
    if word not in _OPPOSITE:
        return _swapped_compound(word)
    return _OPPOSITE[word] if _is_side(index, words) else None


def _is_side(index: int, words: list[str]) -> bool:
    """Tells whether the "left" or "right" at `index` is certainly a side."""
    first = words[index - 2] if index > 1 else ""
    before = words[index - 1] if index else ""
    after = words[index + 1] if index + 1 < len(words) else ""
    if after in _NO_SIDE:
        return False
    if before in ("and", "or") and first == _OPPOSITE[words[index]]:
        return True
    if before in _PREPOSITIONS or (before in _ARTICLES and first in _PREPOSITIONS | _ARTICLES):
        return True
    if before in _NOT_BEFORE or after in _NOT_AFTER:
        return False
    return index == 0 or before in _BEFORE or after in _AFTER


def _swapped_compound(word: str) -> str | None:
    first, _, rest = word.partition("-")
    if first in _OPPOSITE:
        return f"{_OPPOSITE[first]}-{rest}" if rest in _COMPOUNDS else None
    rest, _, last = word.rpartition("-")
    if last in _OPPOSITE:
        return f"{rest}-{_OPPOSITE[last]}" if rest in _COMPOUNDS else None
    return word


def _cased(word: str, like: str) -> str:
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
