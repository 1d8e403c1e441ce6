"""`sca-hf` and `python -m sca_hf`: the command line. Ctrl-C ends it at any moment, with one line and exit code 130."""

from __future__ import annotations

import os
import signal
import sys


TYPE_CHECKING = False  # as in .lazy
if TYPE_CHECKING:
    from types import FrameType


def main() -> int:
    """Runs the command line that the program was started with; returns its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have told us to ignore it
        signal.signal(signal.SIGINT, _interrupt)
    from .cli import main as run

    code = run()
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _leave)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Stops what is running so that it can clean up; leaves at once while something is being imported.

    An interrupted import cannot be unwound: compiled modules drop the exception or turn it into another.
    """
    while frame is not None and os.getpid() == _PROCESS:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave(number, frame)
        frame = frame.f_back
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends the process, without the interpreter's own way out, which would show where it was."""
    os.write(2, b"sca-hf: interrupted\n")
    os._exit(130)


_PROCESS = os.getpid()  # workers have it from us, and are ended by us


if __name__ == "__main__":
    sys.exit(main())
