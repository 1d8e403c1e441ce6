"""The command line, `sca-hf`. Only the command that was asked for is imported, and imports what it needs as it runs.

Nothing imports torch before a command runs, so that help and the errors of a command line come at once.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from platform import python_version
from typing import Any

from .. import __version__


# In the order in which the help lists them; each is a module of this folder, with _ for -.
COMMANDS = (
    "caption",
    "anything",
    "find",
    "video",
    "demo",
    "serve",
    "train",
    "self-train",
    "data",
    "estimate",
    "predict",
    "evaluate",
    "compare",
    "report",
    "info",
    "convert",
    "publish",
    "scene",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 1 where some of what was asked for failed; 2 after an error; 130 when interrupted (143 by SIGTERM, where it
        is awaited); 141 where whoever read the output has gone, as after `| head`.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and PlainText(stream) for stream in streams)
    try:
        try:
            return _main(arguments)
        finally:
            _flush()
    except BrokenPipeError:
        _drop_output()
        return 141
    finally:
        sys.stdout, sys.stderr = streams


class PlainText:
    """A stream whose reader sees what is written, and is not controlled by it.

    Names, ids and texts of others may hold sequences that move a terminal's cursor, or turn the direction of the text.
    They come out as they stand in JSON, `\\u001b`; line ends, tabs, and what progress bars move by, stay.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text; a return of the carriage counts only where it begins one, as progress bars have it."""
        if not _PROGRESS.fullmatch(text):
            start = "\r" * (len(text) - len(text.lstrip("\r")))
            text = start + _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text[len(start) :])
        return self._stream.write(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes texts one after the other."""
        for line in lines:
            self.write(line)


# Controls of ASCII and Latin-1, line separators, and marks of direction.
_CONTROLS = re.compile(r"(?!\r\n|\r$)[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_PROGRESS = re.compile(r"[\r\n]*(\x1b\[A)*")


def _flush() -> None:
    """Writes out what was printed, while an error can still be told."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"sca-hf: error: cannot write the output: {error.strerror}.", file=sys.stderr)
        _drop_output()
        raise SystemExit(2) from None


def _drop_output() -> None:
    """Sends the rest of the output nowhere; Python would try again at exit, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(arguments: Sequence[str] | None) -> int:
    try:
        options = parse(arguments)
        for stream in (sys.stdout, sys.stderr):
            # A caption may hold letters that the terminal's encoding has not.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        return _run(options)
    except KeyboardInterrupt as interruption:
        print(f"sca-hf: interrupted{f': {interruption}' if interruption.args else ''}", file=sys.stderr)
        return getattr(interruption, "exit_code", 130)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads a command line, kept as `line`; ends the program with 2 where it is not understood.

    Without a command the program prints its help and ends with 0, as pip does.
    """
    arguments = [_file_name(text) for text in (sys.argv[1:] if arguments is None else arguments)]
    known = bool(arguments) and arguments[0] in COMMANDS
    parser = build_parser(arguments[:1] if known else COMMANDS)
    if not arguments:
        parser.print_help()
        parser.exit(0)
    options, unknown = parser.parse_known_args(arguments)
    # Of a recipe every key is an option; its command checks them.
    if unknown and "overrides" not in options:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        options.overrides = unknown
    options.line = shlex.join(["sca-hf", *arguments])
    return options


def _file_name(text: str) -> str:
    """Keeps a file's name that begins with "-", as `*.jpg` may give it, from being taken for an option."""
    return f"./{text}" if text.startswith("-") and "." in text and os.path.lexists(text) else text


def build_parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Makes the parser of the commands of these names."""
    parser = argparse.ArgumentParser(
        prog="sca-hf",
        description="Segment and Caption Anything: point, box or mask in; mask and caption out.",
        epilog="sca-hf COMMAND --help explains a command, with an example.",
    )
    # Read without importing them.
    below = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    text = f"sca-hf {__version__} ({below}, Python {python_version()})"
    parser.add_argument(
        "--version", action="version", version=text, help="show the versions of sca-hf and what it runs on"
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name in names:
        import_module(f".{name.replace('-', '_')}", __name__).add(commands)
    return parser


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options) or 0
    except BrokenPipeError:
        raise
    except Exception as error:
        if options.debug:
            raise
        print(f"sca-hf {options.command}: error: {_sentence(error)}", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def _sentence(error: Exception) -> str:
    """What an error says; its kind too where it was not raised for users to read."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError) and error.filename:
        text = f"{error.filename}: {error.strerror}."
    known = isinstance(error, ValueError | OSError | RuntimeError | TypeError | ImportError)
    return text if known else f"{type(error).__name__}: {text} (--debug shows where)"
