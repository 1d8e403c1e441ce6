"""Reads YAML as one means it: `1e-4` is a number, `no` is a word, and a key written twice is an error.

The core schema of YAML 1.2 by ruamel.yaml, without its octal and hexadecimal numbers and without dates: `007` and
`2024-01-01` stay text. PyYAML follows YAML 1.1, where `1e-4` is text and `no` is false.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*|(?=[eE])))(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan",
        "-+.0123456789",
    ),
    ("null", r"null|Null|NULL|~|", ["n", "N", "~", ""]),
    ("merge", r"<<", "<"),
)


def parse_yaml(text: str, as_text: bool = False) -> Any:
    """Returns the value that a YAML text holds: plain mappings, lists, text, numbers, truth values and None.

    Args:
        text: What a file holds.
        as_text: Whether every scalar is the text that it is, as in lists of names: 1.10 and null are names there.

    Raises:
        ValueError: the text is not YAML, has a key twice, asks for an object of Python, or refers to another part of
            itself by an alias: a few lines of those may stand for endless values. One line says where.
    """
    yaml = _yaml(as_text)
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return yaml.load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MarkedYAMLError as error:
        problem = " ".join(f"{error.problem}".split())
        if twice := re.match(r'found duplicate key "(.*?)" with value', problem):
            problem = f"{twice[1]!r} stands twice"
        mark = error.problem_mark
        raise ValueError(f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem) from None
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file.

    Raises:
        ValueError: the file cannot be read as UTF-8 or as YAML, or holds something else than a mapping.
    """
    path = Path(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected keys and values.")
    return values


def write_yaml(values: Mapping[str, Any]) -> str:
    """Returns YAML that `parse_yaml` reads back, keys in the order of `values`.

    Text that YAML 1.2 in full would take for a number or a date is quoted, for other readers.
    """
    yaml = _yaml()
    yaml.Resolver = type(yaml)(typ="safe", pure=True).Resolver
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.width = 119
    yaml.sort_base_mapping_type_on_output = False
    yaml.representer.ignore_aliases = lambda data: True
    stream = io.StringIO()
    yaml.dump(dict(values), stream)
    return stream.getvalue()


def quoted_yaml(text: str) -> str:
    """Returns a text as a double-quoted scalar on one line, which every version of YAML reads as that text."""
    yaml = _yaml()
    yaml.default_style, yaml.allow_unicode, yaml.width = '"', True, sys.maxsize
    stream = io.StringIO()
    yaml.dump(text, stream)
    return stream.getvalue().strip()


def _yaml(as_text: bool = False) -> Any:
    """Returns a reader and writer; it keeps state, so each use takes a new one."""
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.composer import Composer, ComposerError
        from ruamel.yaml.events import AliasEvent
        from ruamel.yaml.resolver import BaseResolver
    except ImportError as error:
        raise ImportError("YAML files need ruamel.yaml: pip install ruamel.yaml.") from error

    class Resolver(BaseResolver):
        """Tells scalars apart by `_SCALARS` alone."""

        processing_version = (1, 2)

        def __init__(self, version: Any = None, loader: Any = None) -> None:
            super().__init__(loader)

    class Plain(Composer):
        """Takes every value where it stands."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.parser.check_event(AliasEvent):
                place = self.parser.peek_event()
                problem = f"an alias (*{place.anchor}) is not read; write its value out"
                raise ComposerError(None, None, problem, place.start_mark)
            return super().compose_node(parent, index)

    for tag, pattern, first in _SCALARS[-1:] if as_text else _SCALARS:
        # Integers before floats: the first that matches decides.
        Resolver.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"^(?:{pattern})$"), list(first))
    yaml = YAML(typ="safe", pure=True)
    yaml.Resolver, yaml.Composer = Resolver, Plain
    return yaml


def parse_options(
    text: str | os.PathLike[str], first: str, what: str, texts: Callable[[str], set[str]] = lambda name: set()
) -> dict[str, Any]:
    """Reads `name:option=value,...` as a mapping with the name under `first`, or the YAML file that is named.

    Numbers, true, false and null are read as such, and a dot goes into a mapping: `columns.boxes=objects.bbox`. What
    holds a comma, or is of another kind, needs a YAML file. `what` is what errors call it; `texts` returns the options
    of a name that are texts whatever they look like.
    """
    text = os.fspath(text)
    if text.endswith((".yaml", ".yml")):
        return read_yaml(text)
    name, _, rest = text.partition(":")
    as_text = texts(name)
    spec: dict[str, Any] = {first: name}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ValueError(f"{what} {text!r}: {item!r} is not option=value")
        *outer, last = key.split(".")
        place: Any = spec
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"{what} {text!r}: {part} is a value and a mapping")
        if last in place:
            raise ValueError(f"{what} {text!r}: {key} is given twice")
        place[last] = value if key in as_text and value.lower() not in _WORDS else _scalar(value)
    return spec


_WORDS = {"true": True, "false": False, "null": None, "none": None}


def _scalar(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if "_" in text:  # which Python would take for a number in 2007_12
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
