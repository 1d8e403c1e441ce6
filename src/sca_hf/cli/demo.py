"""`sca-hf demo`: a page to click on."""

import argparse
import sys
from typing import Any

from .parsing import command, quiet
from .serve import add_server_options


_HELP = """\
open a page to point at things and read what they are

Click on something in a picture, draw a box around it or brush over it, or caption everything in the picture. The page
offers only the models named here; the HTTP interface of `sca-hf serve` is there too, see /docs.
"""
_EXAMPLE = """\
examples:
  sca-hf demo
  sca-hf demo --model sca-tiny --model ./my-model --port 7861
"""


def add(commands: Any) -> None:
    """Declares the command."""
    add_server_options(command(commands, "demo", run, _HELP, _EXAMPLE), port=7860)


def run(options: argparse.Namespace) -> None:
    """Runs the command until it is interrupted."""
    quiet()
    print("starting the page ...", file=sys.stderr, flush=True)
    from ..demo import serve

    def tell(engine: Any) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"the page is at http://{host}:{options.port}, with {', '.join(engine.models)}", flush=True)

    serve(options.model, options.host, options.port, options.device, tell)
