"""`sca-hf info`: what a saved model consists of."""

import argparse
from typing import Any

from ..model_names import DEFAULT_MODEL, check_repository
from .parsing import add_quiet, add_revision, command, notice, quiet


_INFO_EXAMPLE = """\
example:
  sca-hf info ./my-model
"""


def add(commands: Any) -> None:
    """Declares the command."""
    text = "show the contents of a saved model: parts, parameters, precision, kind of repository"
    declared = command(commands, "info", run, text, _INFO_EXAMPLE)
    declared.add_argument(
        "model",
        nargs="?",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="folder, repository id or sca-photo (default)",
    )
    add_revision(declared)
    add_quiet(declared)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    quiet()
    notice(options, f"reading {check_repository(options.model, options.revision)}")
    from ..hub.info import describe_repository

    print(describe_repository(options.model, options.revision))
