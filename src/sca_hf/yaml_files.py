"""Reads YAML as one means it: `1e-4` is a number, `no` is a word, and a key written twice is an error.

PyYAML follows YAML 1.1, where `1e-4` is text and `no` is false; recipes follow the core schema of YAML 1.2.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


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
# What a shell would replace, and we do not.
_VARIABLE = re.compile(r"\$\{?[A-Za-z_]\w*\}?|^~(?=/|$)")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's scalars."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader above would not take for text, and writes no aliases."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _SCALARS:
    for _kind in (_Loader, _Dumper):
        # Integers before floats: the first that matches decides.
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}.")
    return _as_mapping(path.read_text(encoding="utf-8"), str(path))


def _as_mapping(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source} holds a {type(values).__name__}, expected sections.")
    return values


def read_value(text: str) -> Any:
    """Returns the value of a command line's `--key=text`, typed as in a recipe."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        shown = repr(text if len(text) < 80 else f"{text[:80]}...")
        raise ValueError(f"{shown} is not a YAML value: {' '.join(str(error).split())}.") from None


def read_texts(text: str) -> Any:
    """Returns what YAML holds with every scalar as the text that it is: `no`, `1.10`, `2024-05-01` may be names."""
    read_value(text)  # refuses a key that stands twice
    return yaml.load(text, yaml.BaseLoader)


def write_yaml(values: Mapping[str, Any]) -> str:
    """Returns YAML that `read_yaml` reads back."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=119)


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Sets `--section.key=value` of a command line in a recipe's mapping, in place; returns it.

    A number in a key is the place in a list, from 0; where a list has one entry its place may be left out.
    """
    for assignment in assignments:
        name, equals, text = assignment.removeprefix("--").partition("=")
        if not assignment.startswith("--") or not equals or not all(name.split(".")):
            raise ValueError(f"{assignment!r} is no option and no --section.key=value of the recipe.")
        *above, last = name.split(".")
        place: Any = values
        for depth, part in enumerate(above):
            place = _step(place, part, ".".join(above[:depth]), create=True)
        if isinstance(place, list) and len(place) == 1 and not last.isdigit():
            place = place[0]
        if isinstance(place, list):
            _step(place, last, ".".join(above), create=False)
            place[int(last)] = read_value(text)
        elif isinstance(place, dict):
            place[last] = read_value(text)
        else:
            raise ValueError(f"--{name}: {'.'.join(above)} is {place!r}, which has no {last!r}.")
    return values


def _step(place: Any, part: str, where: str, create: bool) -> Any:
    if isinstance(place, list):
        if part.isdigit() and int(part) < len(place):
            return place[int(part)]
        if not part.isdigit() and len(place) == 1:
            return _step(place[0], part, where, create)
        raise ValueError(f"{where} has the entries 0 to {len(place) - 1}; {part!r} is none of them.")
    if isinstance(place, dict):
        if place.get(part) is None and create:
            place[part] = {}
        return place[part]
    raise ValueError(f"{where} is {place!r}, which has no {part!r}.")


def check_keys(values: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises on a key that is not known, naming the nearest one that is."""
    known = list(dict.fromkeys(known))
    for key in values:
        if key in known:
            continue
        near = difflib.get_close_matches(str(key), known, 1)
        mend = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known)[:30])}."
        raise ValueError(f"{where} has no {key!r}; {mend}")


def refuse_variables(value: Any, where: str) -> None:
    """Raises on text with a shell's variable in it: a recipe is data, and what it says must not depend on a shell."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            refuse_variables(part, f"{where}.{key}")
    elif isinstance(value, list):
        for place, part in enumerate(value):
            refuse_variables(part, f"{where}.{place}")
    elif isinstance(value, str) and (found := _VARIABLE.search(value)):
        raise ValueError(
            f"{where} is {value!r}: a recipe does not expand {found[0]}; write it out, or have the shell do it: "
            f'--{where}="{value}".'
        )
