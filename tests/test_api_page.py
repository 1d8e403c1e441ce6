"""docs/api.md names every exported name and says what the docstrings say."""

import ast
import importlib.util
from importlib import import_module
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "docs" / "api.py"


@pytest.fixture(scope="module")
def api():
    spec = importlib.util.spec_from_file_location("api_page", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_that_of_the_sources(api):
    assert api.PAGE.read_text(encoding="utf-8") == api.render(), "docs/api.md is out of date: python docs/api.py"


def test_every_exported_name_is_on_the_page_and_can_be_imported(api):
    page = api.PAGE.read_text(encoding="utf-8").splitlines()
    for module in api.read_modules().values():
        for name in module.exported():
            assert f"### {name}" in page
            assert hasattr(import_module(module.name), name)


def test_every_exported_function_and_class_says_what_it_is(api):
    modules = api.read_modules()
    found = [api.find(modules, module, name)[1] for module in modules.values() for name in module.exported()]
    assert all(ast.get_docstring(node) for node in found if isinstance(node, ast.FunctionDef | ast.ClassDef))
