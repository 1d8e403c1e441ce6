"""A report as one page of HTML and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .contents import Example, ReportContents
from .tables import Table, facts, model_index, report_tables


_ABOUT = {
    "worst": "The lowest {metric} of {first}.",
    "best": "The highest {metric} of {first}.",
    "random": "Drawn from all others.",
}


def render_html(contents: ReportContents) -> str:
    """Returns a page that needs no other file."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("a report's page needs jinja2: pip install 'sca-hf[eval]'.") from error

    # Everything that goes in is escaped: captions may hold anything.
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        contents=contents,
        tables=report_tables(contents),
        systems=[(system.name, facts(system)) for system in contents.systems],
        about=_about(contents),
        pictured=any(example.picture for shown in contents.examples.values() for example in shown),
        card=model_index(contents),
    )


def render_markdown(contents: ReportContents) -> str:
    """Returns the same without pictures."""
    lines = [f"# {_text(contents.title)}", ""]
    for system in contents.systems:
        known = "; ".join(f"{name} {_text(value)}" for name, value in facts(system).items())
        lines.append(f"- **{_text(system.name)}**: {known}")
    lines += ["", *(f"> {_text(note)}\n" for note in contents.notes)]
    for table in report_tables(contents):
        lines += _table(table)
    for kind, examples in contents.examples.items():
        lines += [f"## {kind.capitalize()} regions", "", _text(_about(contents)[kind]), ""]
        lines += _examples(examples, contents)
    lines += ["## For a model card", "", "```yaml", model_index(contents).strip(), "```", ""]
    if contents.command:
        lines += [f"Made by `{contents.command}`.", ""]
    return "\n".join(lines)


def _about(contents: ReportContents) -> dict[str, str]:
    first = contents.systems[0].name
    return {kind: text.format(metric=contents.metric, first=first) for kind, text in _ABOUT.items()}


def _table(table: Table) -> list[str]:
    lines = [f"## {_text(table.title)}", "", _text(table.note), ""]
    lines += [_row(map(_text, table.header)), _row("---" for _ in table.header)]
    for row in table.rows:
        cells = []
        for cell in row:
            text = f"**{_text(cell.text)}**" if cell.best else _text(cell.text)
            cells.append(f"{text} ({_text(cell.below)})" if cell.below else text)
        lines.append(_row(cells))
    return [*lines, ""]


def _examples(examples: Sequence[Example], contents: ReportContents) -> list[str]:
    names = [f"{system.name} ({contents.metric})" for system in contents.systems]
    lines = [_row(map(_text, ["region", "references", *names])), _row("---" for _ in range(2 + len(names)))]
    for example in examples:
        said = [f"{_text(caption) or '(nothing)'} ({score:.2f})" for _, caption, score in example.said]
        references = " / ".join(map(_text, example.record.references))
        lines.append(_row([_text(str(example.record.id)), references, *said]))
    return [*lines, ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(text: str) -> str:
    """A text that Markdown shows as it is, in one line."""
    escaped = re.sub(r"([\\`*_\[\]|<>~])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;")
