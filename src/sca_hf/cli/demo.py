"""`sca-hf demo`: a page to click on."""

import argparse
from typing import Any

from .parsing import command, notice
from .serve import add_server_options, begin_server


_HELP = """\
open a page to point at things in a picture and read their captions

Click on something in a picture, draw a box around it or brush over it, or caption everything in the picture. The page
offers only the models named here; the HTTP interface of `sca-hf serve` is there too, see /docs.
"""
_EXAMPLE = """\
examples:
  sca-hf demo
  sca-hf demo --model sca-photo --model ./my-model --port 7861
"""


def add(commands: Any) -> None:
    """Declares the command."""
    add_server_options(command(commands, "demo", run, _HELP, _EXAMPLE), port=7860)


def run(options: argparse.Namespace) -> None:
    """Runs the command until it is interrupted or terminated."""
    arguments = begin_server(options, "demo", "The page", "gradio")
    from ..demo import serve
    from ..serving.server import end_process

    def tell(engine: Any, address: str) -> None:
        if not options.quiet:
            print(f"the page is at {address}, with {', '.join(engine.models)}", flush=True)

    serve(started=tell, **arguments)
    notice(options, "stopped")
    end_process()
