"""What the commands have in common: how they are declared, the types of their options, how output is written."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import fill
from typing import Any


def command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str, example: str) -> Any:
    """Declares a command; the first line of `text` is its summary."""
    added = commands.add_parser(
        name,
        help=text.split("\n", 1)[0],
        description=text,
        epilog=example,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    added.add_argument("--debug", action="store_true", help="show the traceback of an error")
    added.set_defaults(run=run)
    return added


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    """Reads a whole number, 0 or more."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def add_tools(declared: Any) -> None:
    """Declares the options that write for annotation tools."""
    declared.add_argument(
        "--write",
        action="append",
        default=[],
        choices=("cvat", "label_studio", "labelme", "yolo"),
        metavar="TOOL",
        help="also write a folder for cvat, label_studio, labelme or yolo to import (docs/correction.md); repeatable",
    )
    declared.add_argument(
        "--shapes",
        choices=("pixels", "polygons", "boxes"),
        default="pixels",
        help="what regions are there: their masks in pixels or as polygons, or boxes (default: %(default)s)",
    )


def check_picture_name(path: Path) -> None:
    """Raises unless a picture can be saved under this name."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"{path}: name a picture as .png, .jpg or .webp.")


def prepare(path: Path) -> None:
    """Makes the folder of an output before the work starts, so that a wrong name is reported early."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, expected a file to write.")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_json(records: list[dict[str, Any]], output: str) -> None:
    """Writes a JSON list with one record on each line; `-` stands for the terminal."""
    text = "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"
    if output == "-":
        print(text, end="")
    else:
        Path(output).write_text(text, encoding="utf-8")


def wrapped(names: Iterable[str]) -> str:
    """Names as indented lines of a help text."""
    indent = "  "
    return fill(", ".join(names), 115, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) + "\n"


def process_device(device: str | None) -> str | None:
    """Returns the device as given, or, under torchrun, the GPU of this process where there is one; else None."""
    local = os.environ.get("LOCAL_RANK")
    if device is not None or local is None:
        return device
    import torch

    return f"cuda:{local}" if torch.cuda.is_available() else None


def print_skipped() -> None:
    """Tells what was left out of the data that the command opened, and why, where it is not too early to be read."""
    from ..data.loading import OPENED

    for report in OPENED:
        for line in report.skipped():
            print(line, file=sys.stderr)


def quiet() -> None:
    """Keeps progress bars of loading and notices of retries off the terminal."""
    import huggingface_hub
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    huggingface_hub.logging.set_verbosity_error()
