"""Turns the class names of data sets into words that a language model reads as language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any


_SEPARATORS = re.compile(r"[_\-\s]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")


def category_text(name: str, names: Mapping[str, str] | None = None) -> str:
    """Returns a class name in words, as `names` has it or else readable by itself.

    `do_not_turn_r` becomes "do not turn r" and `TrafficLight` "traffic light". Capitals that are not the humps of a
    camel stay: `RBC`, "White blood cell", `CD_player`.
    """
    if names is not None and name in names:
        return names[name]
    return " ".join(_split_humps(word) for word in _SEPARATORS.split(name) if word)


def _split_humps(word: str) -> str:
    parts = _HUMP.split(word)
    if len(parts) == 1 or not all(len(part) > 1 for part in parts):
        return word
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def load_names(names: Mapping[str, str] | str | PathLike[str] | None) -> dict[str, str] | None:
    """Returns a table of `{class name: words}`, from itself or from a YAML or JSON file."""
    if names is None:
        return None
    table: Any = names
    if isinstance(names, str | PathLike):
        import yaml

        try:
            table = yaml.safe_load(Path(names).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"names: {names} cannot be read as YAML or JSON: {error}.") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"names is a {type(table).__name__}, expected a mapping of class names to words.")
    for name, words in table.items():
        if not isinstance(words, str) or not words.strip():
            raise ValueError(f"names: the words for {name!r} are {words!r}, expected text.")
    return {str(name): words.strip() for name, words in table.items()}


def check_names(names: Mapping[str, str] | None, known: Iterable[str], source: str) -> None:
    """Raises where `names` has a class that the data set has not: a slip of the pen, most likely."""
    known = set(known)
    unknown = sorted(set(names or ()) - known)
    if unknown:
        listed = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise ValueError(f"names: {source} has no class {', '.join(map(repr, unknown[:5]))}; it has {listed}.")
