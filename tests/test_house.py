"""Files and functions that one can read at once."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[1]
MAX_FILE, MAX_FUNCTION = 500, 60


def files(*suffixes):
    """Our sources, without the links of the bundled model, which are read in their own folders."""
    for folder in ("src/sca_hf", "experiments"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and not path.is_symlink():
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def test_no_file_is_longer_than_500_lines():
    long = {name for name, text in files(".py", ".js", ".css", ".html") if len(text.splitlines()) > MAX_FILE}
    assert not long


def test_no_function_is_longer_than_60_lines():
    long = set()
    for name, text in files(".py"):
        for node in ast.walk(ast.parse(text)):
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and node.end_lineno - node.lineno >= MAX_FUNCTION:
                long.add(f"{name}:{node.name}")
    assert not long


def test_no_two_test_files_have_one_name():
    """The tests are no packages, so pytest cannot tell such files apart."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
