"""`sca-hf convert`: checkpoints of the original authors."""

import argparse
from typing import Any

from .parsing import add_dtype, add_quiet, add_revision, command, notice


_CONVERT_EXAMPLE = """\
example:
  sca-hf convert ./authors-checkpoint ./sca-gpt2-large --tokenizer gpt2-large --sam facebook/sam-vit-huge
"""


def add(commands: Any) -> None:
    """Declares the command."""
    text = "convert a checkpoint of the original authors to this package's format"
    declared = command(commands, "convert", run, text, _CONVERT_EXAMPLE)
    declared.add_argument("source", metavar="SRC", help="folder or repository id in the authors' format")
    declared.add_argument("destination", metavar="DST", help="folder to write")
    declared.add_argument(
        "--tokenizer",
        metavar="PATH_OR_ID",
        help="tokenizer of the language model (default: the one SRC names, or the one in SRC)",
    )
    declared.add_argument(
        "--sam", metavar="PATH_OR_ID", help="where to take the image processor from (default: SAM's)"
    )
    add_revision(declared)
    add_dtype(declared, "dtype of the stored weights (default: the checkpoint's)")
    add_quiet(declared)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    notice(options, f"reading {options.source}")
    from ..hub.convert import convert

    settings = {name: getattr(options, name) for name in ("tokenizer", "sam", "revision", "dtype")}
    print(convert(options.source, options.destination, **settings))
