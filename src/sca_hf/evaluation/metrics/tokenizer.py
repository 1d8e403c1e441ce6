"""Penn-Treebank tokens as caption tables count them, without the Java program that usually makes them.

The behaviour is that of the tokenizer of Stanford CoreNLP as pycocoevalcap calls it: brackets are spelled out, quotes
and dashes made plain, clitics split off, abbreviations left whole, all in lower case, punctuation dropped at the end.
Written from its outputs; rare tokens may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable


# Tokens that are dropped when they stand alone; the list of pycocoevalcap less the names that are never lower case.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGNS: dict[str, list[str]] = {
    "½": ["1/2"],
    "¼": ["1/4"],
    "¾": ["3/4"],
    "&amp;": ["&"],
    "&quot;": [],
    "&lt;": ["<"],
    "&gt;": [">"],
}
_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‛ʼ\x91\x92‹›", "'"),
        **dict.fromkeys("“”„‟«»\x93\x94", '"'),
        **dict.fromkeys("–—―\x96\x97", " -- "),
        "…": " ... ",
        "£": "#",
        "€": "$",
        "\x80": "$",
        **{sign: f" {sign} " for sign in "½¼¾²³"},
        "¢": " cents ",
        "\u200b": " ",
        "\xad": "",
        "\ufe0f": "",
    }
)
# Written as one word, counted as two; where the second begins.
_FUSED = {"cannot": 3, "gonna": 3, "gotta": 3, "wanna": 3, "gimme": 3, "lemme": 3, "'tis": 2, "'twas": 2}
# Keep their full stop wherever they stand.
_ABBREVIATIONS = """
    mr mrs ms messrs dr drs prof rev gen col lt sgt capt maj cmdr gov sen rep pres hon sr jr st ste rd ave blvd ft mt
    inc co corp ltd bros vs etc jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri dept
    univ assn bldg est ind ala ariz calif colo conn dak fla ga kan kans ky md mich minn mo mont neb nev okla penn
    tenn va vt wis wyo al ct sq tel asst atty adm brig cpl ext pvt rt supt treas cf cie plc pty intl natl bhd ph ph.d
    esq mlle mme elec cos adj insp mfg
"""
# Keep it before a number.
_NUMBERED = "no nos art pp op fig figs ca"


def _any_of(words: str) -> str:
    return "|".join(sorted(map(re.escape, words.split()), key=len, reverse=True))


_LETTER = r"[^\W\d_]"
_END = r"(?![^\W_])"
_CLITIC = rf"'(?:s|m|d|ll|re|ve){_END}"
# What holds a word together: hyphens and the like, and an apostrophe that begins no clitic.
_JOINT = rf"(?:[-‑/._!?]|(?-i:(?<=[A-Z])&(?=[A-Z]))|(?<={_LETTER})'(?={_LETTER})(?!(?:s|m|d|ll|re|ve|n|all|nt){_END}))"
_TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)[^\s"<>]*[^\s"<>.,;:!?)\]]
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)* | [#@]{_LETTER}\w*
    | </?[a-z][a-z0-9]*\s*/?> | &(?:amp|quot|lt|gt);
    | [:;=]-?[()d]{_END}                                          # :)
    | n't{_END} | {_CLITIC}
    | '\d\ds?{_END}                                              # '90s
    | '(?:tis|twas){_END} | '(?:n'(?={_LETTER}|\s|$)|(?:n|em|cause|til){_END})
    | (?:y(?='all)|\bol)'                                         # y'|all, ol'
    | (?:{_LETTER}\.){{2,}}(?!{_LETTER})                           # a.m., U.S.
    | (?:{_any_of(_ABBREVIATIONS)})\.{_END}
    | (?:{_any_of(_NUMBERED)})\.(?=\s*\d)
    | {_LETTER}\.{_END}                                           # an initial
    | {_LETTER}+\.(?=,)
    | (?:us|hk|nz|a|c)\$ | c\+\+
    | \d+[ ]\d/\d+{_END} | \d+:\d+ | (?:[+]|(?<![^\W_])-)?\d+(?:[.,/]\d+)+ | (?:[+]|(?<![^\W_])-)\d+ | [.]\d+
    | [^\W_]+?(?=n't{_END})                                       # do|n't
    | [^\W_]+(?:{_JOINT}[^\W_]+)*
    | \.\.+ | -+ | [!?]+ | \*+ | `` | ' | __+
    | [^\s]
    """,
    re.VERBOSE | re.IGNORECASE,
)


def ptb_tokenize(text: str) -> list[str]:
    """Returns the tokens of one caption; an empty list where nothing but white space and punctuation is there."""
    text = normalize_spaces(text).translate(_PLAIN)
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        tokens += _finished(match.group().lower())
    return [token for token in tokens if token not in PUNCTUATION]


def ptb_tokenize_all(texts: Iterable[str]) -> list[list[str]]:
    """Returns the tokens of each caption."""
    return [ptb_tokenize(text) for text in texts]


def normalize_spaces(text: str) -> str:
    """Turns every run of white space, line ends of any kind included, into one space, and strips."""
    return " ".join(text.split())


def _finished(token: str) -> list[str]:
    """The final form of one match: split, spelled out, or nothing."""
    if token in _FUSED:
        return [token[: _FUSED[token]], token[_FUSED[token] :]]
    if token in _SIGNS:
        return _SIGNS[token]
    if token[0] > "\uffff" or token == '"':
        return []  # the Java program knows no character beyond the first plane
    if token.startswith(("..", "--")):
        return []
    if token[-1] in _BRACKETS:
        return [token[:-1] + _BRACKETS[token[-1]]]
    return [token.replace(" ", "\xa0")]
