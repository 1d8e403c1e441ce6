"""The tables of a report, and the HTML page and the Markdown that they go into."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...card_metadata import index_of_scores, markdown_code, markdown_text, score_results
from ...environment import install_command
from .contents import Example, Part, ReportContents, System


@dataclass(frozen=True)
class Cell:
    """One cell: its text, a second line, and whether it is the best of its row."""

    text: str
    below: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a sentence on how to read it; the first column names the rows."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


# Less is better.
_ERRORS = {"IoU-error"}


def report_tables(contents: ReportContents) -> list[Table]:
    """Returns scores, differences and breakdowns, those that there are."""
    tables = [_scores(contents)]
    if contents.differences:
        tables.append(_differences(contents))
    tables += [_breakdown(contents, name, parts) for name, parts in contents.breakdowns.items()]
    return tables


def facts(system: System) -> dict[str, str]:
    """What a system's scores were measured on and by."""
    file = system.scored
    prompts = sorted({record.prompt for record in file.records if record.prompt})
    found = {
        "predictions": str(file.path),
        "regions": f"{len(file.records):,}",
        "protocol": "none" if file.protocol is None else str(file.protocol),
        "prompt": ", ".join(prompts) or "not recorded",
        "tokenizer": file.tokenizer,
        "beams": "not recorded" if file.beams is None else str(file.beams),
    }
    if command := (file.run or {}).get("command"):
        found["made by"] = command
    return found


def model_index(contents: ReportContents) -> str:
    """Returns the first system's scores as the block `model-index` of a model card, between its `---`."""
    first = contents.systems[0]
    file = first.scored
    dataset = file.protocol.title if file.protocol is not None else contents.data or file.path.name
    kind = file.protocol.name if file.protocol is not None else (contents.data or file.path.stem).split(":")[0]
    how = {"tokenizer": file.tokenizer} | ({} if file.beams is None else {"beams": file.beams})
    scores = {name: round(value, 4) for name, value in file.evaluation.metrics.items()}
    return index_of_scores(first.name, score_results(scores, dataset, kind, len(file.records), metric_args=how))


def _scores(contents: ReportContents) -> Table:
    how = contents.systems[0].scored.bootstrap
    level = f"{100 * how.level:g} %"
    note = "Raw scales: CIDEr-D from 0 to 10, the others from 0 to 1."
    if how.resamples:
        note += f" Below each value its {level} interval ({how.resamples} bootstrap draws of {how.by}s)."
    rows = []
    for metric in contents.metrics:
        values = [system.scored.evaluation.metrics[metric] for system in contents.systems]
        spans = [system.scored.intervals.get(metric) for system in contents.systems]
        below = ["" if span is None else f"{span.low:.4f} to {span.high:.4f}" for span in spans]
        rows.append([Cell(metric), *_cells(values, metric, below)])
    return Table("Scores", note, ["metric", *_names(contents)], rows)


def _differences(contents: ReportContents) -> Table:
    rows = []
    for metric in contents.metrics:
        found = [by_metric[metric] for by_metric in contents.differences.values()]
        below = [f"{d.interval.low:+.4f} to {d.interval.high:+.4f}, p {d.p:.3f}" for d in found]
        rows.append([Cell(metric), *(Cell(f"{d.value:+.4f}", text) for d, text in zip(found, below, strict=True))])
    first = contents.systems[0].name
    note = f"By a paired bootstrap over the same regions; p is two-sided, for no difference from {first}."
    return Table(f"Difference from {first}", note, ["metric", *contents.differences], rows)


def _breakdown(contents: ReportContents, name: str, parts: Sequence[Part]) -> Table:
    metric = contents.metric
    rows = []
    for part in parts:
        values = [system.part(metric, part.regions) for system in contents.systems]
        rows.append([Cell(part.name), Cell(f"{len(part.regions):,}"), *_cells(values, metric)])
    about = {
        "size": "By the area of the box, in pixels of the original image.",
        "category": "The most frequent categories.",
    }[name]
    note = f"{metric} of each group. {about}"
    if metric == "CIDEr-D":
        note += " Document frequencies are those of all regions."
    return Table(f"By {name}", note, [name, "regions", *_names(contents)], rows)


def _cells(values: Sequence[float], metric: str, below: Sequence[str] = ()) -> list[Cell]:
    """Cells with the best marked, where there are several."""
    choose: Callable[[Sequence[float]], float] = min if metric in _ERRORS else max
    best = choose(values) if len(values) > 1 else None
    lines = below or [""] * len(values)
    return [Cell(f"{value:.4f}", line, value == best) for value, line in zip(values, lines, strict=True)]


def _names(contents: ReportContents) -> list[str]:
    return [system.name for system in contents.systems]


_ABOUT = {
    "worst": "The lowest {metric} of {first}.",
    "best": "The highest {metric} of {first}.",
    "random": "Drawn at random from the others.",
}


def render_html(contents: ReportContents) -> str:
    """Returns a page that needs no other file."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f"a report's page needs jinja2: {install_command('eval')}") from error

    # Everything that goes in is escaped: captions may hold anything.
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html.jinja").render(
        contents=contents,
        tables=report_tables(contents),
        systems=[(system.name, facts(system)) for system in contents.systems],
        about=_about(contents),
        pictured=any(example.picture for shown in contents.examples.values() for example in shown),
        card=model_index(contents),
    )
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", page)  # what controls whoever shows the source


def render_markdown(contents: ReportContents) -> str:
    """Returns the same without pictures."""
    lines = [f"# {markdown_text(contents.title)}", ""]
    for system in contents.systems:
        known = "; ".join(f"{name} {markdown_text(value)}" for name, value in facts(system).items())
        lines.append(f"- **{markdown_text(system.name)}**: {known}")
    lines += ["", *(f"> {markdown_text(note)}\n" for note in contents.notes)]
    for table in report_tables(contents):
        lines += _table(table)
    for kind, examples in contents.examples.items():
        lines += [f"## {kind.capitalize()} regions", "", markdown_text(_about(contents)[kind]), ""]
        lines += _examples(examples, contents)
    lines += ["## For a model card", "", "```yaml", model_index(contents).strip(), "```", ""]
    if contents.command:
        lines += [f"Made by {markdown_code(contents.command)}.", ""]
    return "\n".join(lines)


def _about(contents: ReportContents) -> dict[str, str]:
    first = contents.systems[0].name
    return {kind: text.format(metric=contents.metric, first=first) for kind, text in _ABOUT.items()}


def _table(table: Table) -> list[str]:
    lines = [f"## {markdown_text(table.title)}", "", markdown_text(table.note), ""]
    lines += [_row(map(markdown_text, table.header)), _row("---" for _ in table.header)]
    for row in table.rows:
        cells = []
        for cell in row:
            text = f"**{markdown_text(cell.text)}**" if cell.best else markdown_text(cell.text)
            cells.append(f"{text} ({markdown_text(cell.below)})" if cell.below else text)
        lines.append(_row(cells))
    return [*lines, ""]


def _examples(examples: Sequence[Example], contents: ReportContents) -> list[str]:
    names = [f"{system.name} ({contents.metric})" for system in contents.systems]
    lines = [_row(map(markdown_text, ["region", "references", *names])), _row("---" for _ in range(2 + len(names)))]
    for example in examples:
        said = [f"{markdown_text(caption) or '(nothing)'} ({score:.2f})" for _, caption, score in example.said]
        references = " / ".join(map(markdown_text, example.record.references))
        lines.append(_row([markdown_text(str(example.record.id)), references, *said]))
    return [*lines, ""]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
