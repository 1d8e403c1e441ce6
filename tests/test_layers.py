"""Imports go down only: no folder imports one above it, and no modules import each other, however late they do it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def layers():
    """The parts of the package as the map's first table stacks them, the lowest first."""
    table = MAP.split("| layer |")[1].split("\n\n")[0].splitlines()[2:]
    return [re.findall(r"`(\w+)`", row.split("|")[1]) for row in reversed(table)]


LAYERS = layers()


def module_name(path):
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules():
    """All modules of the package by name, without the links and the templates that go to the Hub."""
    paths = [path for path in (SOURCES / "sca_hf").rglob("*.py") if "assets" not in path.parts]
    return {module_name(path): path for path in paths if "templates" not in path.parts}


def imported(name):
    """The modules of the package that a module imports anywhere in it, for types too."""
    path = modules()[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                found = f"{target}.{alias.name}"
                if found in modules() or target in modules():
                    yield found if found in modules() else target


@cache
def arrows():
    return {name: sorted(set(imported(name)) - {name}) for name in modules()}


def part(name):
    return name.split(".")[1] if "." in name else name


def rank(name):
    return next(index for index, parts in enumerate(LAYERS) if part(name) in parts)


def test_every_part_has_a_layer():
    assert {part(name) for name in modules()} <= {part for parts in LAYERS for part in parts}


def test_no_import_climbs():
    climbs = {
        (name, other)
        for name, others in arrows().items()
        for other in others
        if part(name) != part(other) and rank(other) >= rank(name)
    }
    assert not climbs


def test_no_modules_import_each_other():
    assert not cycles()


def cycles():
    """The strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(name):
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows()[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            position = stack.index(name)
            if len(stack) - position > 1:
                found.append(frozenset(stack[position:]))
            del stack[position:]

    for name in modules():
        if name not in index:
            visit(name)
    return found


@pytest.mark.parametrize(
    ("name", "other"),
    [("sca_hf.cli.caption", "sca_hf.captioning"), ("sca_hf.data.region", "sca_hf.processing.images_sca")],
)
def test_late_imports_are_seen(name, other):
    assert other in arrows()[name]


def test_the_map_names_files_that_are_there():
    """Paths in code marks, from the package or from the repository; bare file names are somewhere in the package."""
    named = {word for word in re.findall(r"`([\w./-]+)`", MAP) if re.search(r"\.(py|md)$|/$", word)}
    missing = {
        word
        for word in named
        - {"data/readers/NAME.py", "data/writers/NAME.py", "evaluation/metrics/NAME.py", "cli/NAME.py"}
        if not (ROOT / word).exists() and not (SOURCES / "sca_hf" / word).exists()
        if "/" in word or not list((SOURCES / "sca_hf").rglob(word))
    }
    assert not missing
    assert len(named) > 30
