"""Reports: scores of systems side by side, broken down, with regions to look at; one HTML page and Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import locked, write_whole
from .contents import ReportContents, add_pictures, build_contents
from .tables import render_html, render_markdown


def write_report(
    contents: ReportContents, folder: str | Path, data: str | Mapping[str, Any] | None = None
) -> tuple[Path, Path]:
    """Writes `report.html`, which needs no other file, and `report.md`.

    Args:
        contents: What `build_contents` put together.
        folder: The folder to write to; it is made.
        data: The spec of the data set with the pictures (docs/data.md); None: the page shows none.

    Returns:
        The paths of both.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    examples = [example for shown in contents.examples.values() for example in shown]
    if data is None:
        contents.notes.append("There are no pictures because no --data was given.")
    else:
        add_pictures(examples, data)
        missing = sum(example.picture is None for example in examples)
        if missing:
            contents.notes.append(
                f"{missing} of {len(examples)} regions have no picture; the reason is shown instead."
            )
    page, text = folder / "report.html", folder / "report.md"
    with locked(page):
        write_whole(page, render_html(contents))
        write_whole(text, render_markdown(contents))
    return page, text


__all__ = ["ReportContents", "build_contents", "render_html", "render_markdown", "write_report"]
