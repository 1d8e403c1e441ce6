"""Tokens of captions in any language, and whether a caption is in the language that was asked for.

The scripts of letters are told by their names in Unicode: "DEVANAGARI LETTER KA" is of DEVANAGARI.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from functools import lru_cache
from itertools import pairwise

from .tokenizer import ptb_tokenize


PTB = "ptb (Penn Treebank, lower case, punctuation dropped; sca-hf's own, no Java)"
UNICODE = (
    "unicode (runs of letters, marks and digits, NFKC, lower case, punctuation dropped; each character of Chinese, "
    "Japanese, Thai, Lao, Khmer and Burmese a token, with its marks)"
)
# As Unicode's names of their letters begin. These scripts put no spaces between words.
_UNSPACED = {"CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC"}
_KANA = {"HIRAGANA", "KATAKANA"}
_JOINERS = "\u200c\u200d"
_APOSTROPHES = "'’ʼ"
# Script -> the languages that are written in it; all others in Latin letters.
_LANGUAGES = {
    "CJK": "zh yue wuu ja",
    "HANGUL": "ko",
    "THAI": "th",
    "LAO": "lo",
    "KHMER": "km",
    "MYANMAR": "my",
    "DEVANAGARI": "hi mr ne sa",
    "BENGALI": "bn as",
    "MALAYALAM": "ml",
    "TAMIL": "ta",
    "TELUGU": "te",
    "KANNADA": "kn",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "ORIYA": "or",
    "SINHALA": "si",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "HEBREW": "he yi",
    "ARABIC": "ar fa ur ps ug sd",
    "GREEK": "el",
    "CYRILLIC": "ru uk bg be mk sr kk ky mn tg tt",
    "ETHIOPIC": "am ti",
    "TIBETAN": "bo dz",
    "THAANA": "dv",
}
_SCRIPTS = {tag: script for script, tags in _LANGUAGES.items() for tag in tags.split()}
# What a tag may say of its script.
_SUBTAGS = {"Latn": "LATIN", "Cyrl": "CYRILLIC", "Arab": "ARABIC", "Deva": "DEVANAGARI", "Beng": "BENGALI"}
_SUBTAGS |= {"Hans": "CJK", "Hant": "CJK", "Guru": "GURMUKHI"}
# Of so many languages that a caption is told by its words too.
_SHARED = {"LATIN", "CYRILLIC", "ARABIC"}


def tokenize(text: str, language: str | None = None) -> list[str]:
    """Returns the tokens of a caption: Penn Treebank's of English and where no language is said, else [`UNICODE`]'s.

    Args:
        text: The caption.
        language: A tag of BCP 47 in its one spelling, or None.
    """
    if is_english(language):
        return ptb_tokenize(text)
    tokens: list[str] = []
    open_word = follows = False  # whether a letter goes on with the last token, and a mark
    for letter, after in pairwise(unicodedata.normalize("NFKC", text).lower() + " "):
        kind = unicodedata.category(letter)[0]
        if kind in "LN":
            alone = script_of(letter) in _UNSPACED
            if open_word and not alone:
                tokens[-1] += letter
            else:
                tokens.append(letter)
            open_word, follows = not alone, True
        elif follows and (kind == "M" or letter in _JOINERS):
            tokens[-1] += letter
        elif open_word and letter in _APOSTROPHES and unicodedata.category(after)[0] == "L":
            tokens[-1] += "'"
        else:
            open_word = follows = False
    return tokens


def tokenizer_name(language: str | None) -> str:
    """Returns what tokens of captions in a language are called."""
    return PTB if is_english(language) else UNICODE


def is_english(language: str | None) -> bool:
    """Whether a tag is of English; captions whose language is not said are taken to be."""
    return language is None or language.split("-")[0] == "en"


def in_language(text: str, language: str, known_words: Collection[str]) -> bool:
    """Whether a caption is in a language, as far as its letters and words tell.

    More than half of its letters are of the language's script; Japanese has kana, and Chinese none. In the scripts of
    many languages (Latin, Cyrillic, Arabic) at least half of its tokens are among the known words too. `zh-Hans` and
    `zh-Hant` are not told apart, nor are other languages of one script.

    Args:
        text: The caption.
        language: A tag of BCP 47 in its one spelling.
        known_words: The tokens of texts in that language, see [`tokenize`].
    """
    wanted, base = language_script(language), language.split("-")[0]
    found = [script_of(letter) for letter in text if unicodedata.category(letter)[0] in "LM"]
    kana = any(script in _KANA for script in found)
    fitting = sum(script == wanted or (base == "ja" and script in _KANA) for script in found)
    if not found or 2 * fitting <= len(found) or (wanted == "CJK" and kana != (base == "ja")):
        return False
    tokens = tokenize(text, language)
    return not needs_words(language) or 2 * sum(token in known_words for token in tokens) >= len(tokens)


def language_script(language: str) -> str:
    """Returns the script of a language, as the names of its letters begin."""
    parts = language.split("-")
    said = _SUBTAGS.get(parts[1]) if len(parts) > 1 else None
    return said or _SCRIPTS.get(parts[0], "LATIN")


def needs_words(language: str) -> bool:
    """Whether a language's script is that of many, so that words must tell."""
    return language_script(language) in _SHARED


@lru_cache(1 << 14)
def script_of(letter: str) -> str:
    """Returns how the name of a letter's script begins in Unicode."""
    return unicodedata.name(letter, "").replace("HALFWIDTH ", "").replace("-", " ").split(" ")[0]
