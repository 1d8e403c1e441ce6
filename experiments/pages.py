"""What experiments have in common: their command lines, tables over seeds, and how these get into a page."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def command_line(about: str | None, output: bool = True, seeds: bool = True) -> argparse.ArgumentParser:
    """Returns a parser that knows `--page` and, of experiments with such, `--output` and `--seeds`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    if output:
        parser.add_argument("--output", type=Path, required=True, help="folder of the runs; what is done stays")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    if seeds:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def seed_table(columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Returns means and standard deviations over seeds, as Markdown; a row has the values of each seed."""
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for name, of_seeds in rows.items():
        cells = []
        for values in zip(*of_seeds, strict=True):
            deviation = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{deviation}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def show(text: str, page: Path | None, marks: tuple[str, str]) -> None:
    """Prints a text, and puts it into a page where one is named."""
    print(text)
    if page is not None:
        write_into(page, text, marks)


def write_into(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Puts a text between the marks of a page."""
    marked = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
    before = page.read_text(encoding="utf-8")
    if not marked.search(before):
        raise ValueError(f"{page} has no {marks[0]} ... {marks[1]} to put the table between.")
    page.write_text(marked.sub(lambda _: f"{marks[0]}\n{text}\n{marks[1]}", before), encoding="utf-8")
