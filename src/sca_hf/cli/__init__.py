"""The command line, `sca-hf`. Each command imports what it needs, so that one does not wait for the others."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from . import (
    anything,
    caption,
    compare,
    convert,
    data,
    demo,
    estimate,
    evaluate,
    info,
    predict,
    publish,
    report,
    scene,
    serve,
    train,
)


COMMANDS = (
    caption,
    anything,
    demo,
    serve,
    train,
    data,
    estimate,
    predict,
    evaluate,
    compare,
    report,
    info,
    convert,
    publish,
    scene,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns 0, or 2 after an error."""
    options = parse(arguments)
    for stream in (sys.stdout, sys.stderr):
        # A caption may hold letters that the terminal's encoding has not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        options.run(options)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(f"sca-hf {options.command}: error: {_sentence(error)}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads a command line, kept as `line`; ends the program with 2 where it is not understood."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    # Of a recipe every key is an option; its command checks them.
    if unknown and "overrides" not in options:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.overrides = unknown
    options.line = shlex.join(["sca-hf", *arguments])
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="sca-hf",
        description="Segment and Caption Anything: point, box or mask in; mask and caption out.",
        epilog="sca-hf COMMAND --help explains a command, with an example.",
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add(commands)
    return parser


def _sentence(error: Exception) -> str:
    """What an error says; its kind too where it was not raised for users to read."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and error.filename:
        text = f"{error.filename}: {error.strerror}."
    known = isinstance(error, ValueError | OSError | RuntimeError | TypeError | ImportError)
    return text if known else f"{type(error).__name__}: {text} (--debug shows where)"
