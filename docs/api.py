"""Write docs/api.md: every name that an `__all__` of the package exports, from the sources and their docstrings.

    python docs/api.py

`tests/test_api_page.py` fails where the page and the sources say different things.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src"
PAGE = ROOT / "docs" / "api.md"
HEAD = """\
# Every exported name

Made from the docstrings by `make docs`. Names are listed under the module to import them from, packages first; a name
that a package exports is not listed again under the module that it comes from. What is not here is private to the
package and may change.
"""
_SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Yields")


@dataclass
class Module:
    """A module's name, its syntax tree and its lines."""

    name: str
    is_package: bool
    tree: ast.Module
    lines: list[str]

    def exported(self) -> list[str]:
        """The names in `__all__`."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return list(ast.literal_eval(node.value))
        return []

    def origin(self, name: str) -> str | None:
        """The module that a name is imported from."""
        package = self.name.split(".") if self.is_package else self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and name in [alias.asname or alias.name for alias in node.names]:
                above = package[: len(package) - node.level + 1] if node.level else []
                return ".".join([*above, *([node.module] if node.module else [])])
        return None

    def definition(self, name: str) -> ast.stmt | None:
        """The statement that defines a name."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return node
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            if name in [ast.unparse(target) for target in targets]:
                return node
        return None


def read_modules() -> dict[str, Module]:
    """Reads all modules of the package, without links and the Hub's templates."""
    modules = {}
    for path in sorted((SOURCES / "sca_hf").rglob("*.py")):
        if not {"assets", "templates"} & set(path.parts):
            parts = path.relative_to(SOURCES).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            modules[name] = Module(name, path.name == "__init__.py", ast.parse(text), text.splitlines())
    return modules


def render() -> str:
    """Returns the page."""
    modules = read_modules()
    parts, seen = [HEAD], set()
    for module in sorted(modules.values(), key=lambda module: (not module.is_package, module.name)):
        entries = []
        for name in module.exported():
            home, node = find(modules, module, name)
            if (home.name, name) not in seen:
                seen.add((home.name, name))
                entries.append(_entry(home, name, node))
        if entries:
            about = inspect.cleandoc(ast.get_docstring(module.tree) or "").split("\n\n")[0]
            parts += [f"## {module.name}\n\n{about}\n", *entries]
    return "\n".join(parts)


def find(modules: dict[str, Module], module: Module, name: str) -> tuple[Module, ast.stmt]:
    """Follows imports to the module and the statement that define a name."""
    node = module.definition(name)
    if node is not None:
        return module, node
    origin = module.origin(name)
    if origin not in modules:
        raise LookupError(f"{module.name} exports {name}, which it neither defines nor imports from this package.")
    return find(modules, modules[origin], name)


def _entry(module: Module, name: str, node: ast.stmt) -> str:
    lines = [f"### {name}\n"]
    if isinstance(node, ast.FunctionDef):
        lines += [_code(_signature(node)), _prose(ast.get_docstring(node))]
    elif isinstance(node, ast.ClassDef):
        lines += [_code(_class_signature(node)), _prose(ast.get_docstring(node)), *_methods(node)]
    else:
        value = ast.unparse(node)
        lines.append(_code(value if len(value) <= 110 else f"{name} = ..."))
        above = []
        for line in reversed(module.lines[: node.lineno - 1]):
            if not line.startswith("#"):
                break
            above.insert(0, line.lstrip("# "))
        lines.append(" ".join(above) + "\n" if above else "")
    return "\n".join(part for part in lines if part)


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _signature(node: ast.FunctionDef, name: str | None = None, bound: bool = False) -> str:
    arguments = _arguments(node.args, bound)
    result = f" -> {ast.unparse(node.returns)}" if node.returns and name is None else ""
    line = f"{name or node.name}({', '.join(arguments)}){result}"
    return line if len(line) <= 110 else _broken(name or node.name, arguments, result)


def _arguments(args: ast.arguments, bound: bool) -> list[str]:
    text = ast.unparse(args)
    parts, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    parts.append(text[start:].strip())
    parts = [re.sub(r"^(\*{0,2}\w+: .*?[^=])=(?!=)", r"\1 = ", part) for part in parts if part]
    return parts[1:] if bound and parts and parts[0] in ("self", "cls") else parts


def _broken(name: str, arguments: list[str], result: str) -> str:
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"


def _class_signature(node: ast.ClassDef) -> str:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _signature(item, f"class {node.name}", bound=True)
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        fields = [ast.unparse(item) for item in node.body if isinstance(item, ast.AnnAssign)]
        line = f"class {node.name}({', '.join(fields)})"
        return line if len(line) <= 110 else _broken(f"class {node.name}", fields, "")
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return f"class {node.name}({bases})" if bases else f"class {node.name}"


def _methods(node: ast.ClassDef) -> Iterator[str]:
    rows = []
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
            called = item.name
            if not any(ast.unparse(decorator).endswith("property") for decorator in item.decorator_list):
                called += f"({', '.join(re.split(r'[:=]', part)[0].strip() for part in _arguments(item.args, True))})"
            first = " ".join(_paragraphs(ast.get_docstring(item))[0].split())
            rows.append(f"- `{called}`: {first}")
    if rows:
        yield "\n".join(rows) + "\n"


def _paragraphs(docstring: str | None) -> list[str]:
    return re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")) or [""]


def _prose(docstring: str | None) -> str:
    """A docstring as Markdown: sections become lists, all else stays."""
    out: list[str] = []
    section = False
    for line in inspect.cleandoc(docstring or "").splitlines():
        if (heading := line.strip().rstrip(":")) in _SECTIONS and line.strip().endswith(":"):
            section = True
            out += [f"**{'Arguments' if heading == 'Args' else heading}**", ""]
        elif section and (item := re.match(r"    (\*{0,2}[\w., *]+): (.*)", line)):
            out.append(f"- `{item[1]}`: {item[2]}")
        elif section and line.startswith("    "):
            out.append(f"  {line.strip()}")
        elif line.strip() or out:
            section = section and not line
            out.append(line)
    return "\n".join(out).strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
