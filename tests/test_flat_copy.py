"""modeling/ and processing/ are copied into one folder with every saved model; these are the rules that this takes."""

import ast
import re
import sys
from pathlib import Path

import pytest

import sca_hf


PACKAGE = Path(sca_hf.__file__).parent
COPIED = [path for room in ("modeling", "processing") for path in sorted((PACKAGE / room).glob("*.py"))]
FILES = [path for path in COPIED if path.name != "__init__.py"]
# What a machine that runs transformers has. The library refuses to load a file whose imports are missing.
THIRD_PARTIES = {"torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub", "tokenizers"}


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def test_there_is_something_to_check():
    names = {path.name for path in FILES}
    assert {"modeling_sca.py", "configuration_sca.py", "processing_sca.py"} <= names


def test_no_file_name_occurs_twice_and_all_end_in_sca():
    names = [path.name for path in FILES]
    assert len(names) == len(set(names))
    assert all(name.endswith("_sca.py") for name in names)


@pytest.mark.parametrize("path", COPIED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_survive_the_copy(path):
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")}
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module in siblings, f"line {node.lineno}: only `from .sibling import name`"
            continue
        modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        roots = {str(module).split(".")[0] for module in modules}
        assert roots <= THIRD_PARTIES | sys.stdlib_module_names, f"line {node.lineno}: {roots}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_text_looks_like_an_import(path):
    """The copier searches lines of text; an import in a docstring or a comment would be followed too."""
    lines = re.findall(r"^\s*(?:from|import)\s+(\.\S*)", path.read_text(), re.MULTILINE)
    real = [f".{node.module}" for node in imports(path) if isinstance(node, ast.ImportFrom) and node.level]
    # The configuration's text names the model on purpose, see there and tests/test_remote_code.py.
    wanted = [".modeling_sca"] if path.name == "configuration_sca.py" else []
    assert sorted(lines) == sorted(real + wanted)
