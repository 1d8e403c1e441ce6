"""`sca-hf serve`: masks and captions over HTTP."""

import argparse
from typing import Any

from .parsing import command, positive, quiet


_HELP = """\
serve masks and captions over HTTP

POST /v1/caption captions regions, POST /v1/anything captions everything in a picture; /docs describes them for people,
/openapi.json for programs; /health and /metrics are for monitoring. Requests that arrive together share a call of the
model. Only the models named here are served; nothing that a caller sends is opened as a path or an address.
"""
_EXAMPLE = """\
example:
  sca-hf serve --model ./my-model --port 8000
  curl -s localhost:8000/v1/caption -d "{\\"image\\": \\"$(base64 -w0 street.jpg)\\", \\"regions\\": [{\\"box\\": [40, 60, 210, 300]}]}" -H "Content-Type: application/json"
"""  # noqa: E501


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "serve", run, _HELP, _EXAMPLE)
    add_server_options(declared, port=8000)


def add_server_options(declared: Any, port: int) -> None:
    """Declares the options that `serve` and `demo` share."""
    declared.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="folder, repository id or sca-tiny (default) to serve; repeatable, requests that name none get the first",
    )
    declared.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)")
    declared.add_argument("--port", type=positive, default=port, metavar="N", help="port to listen on (%(default)s)")
    declared.add_argument("--device", help="for instance cpu or cuda:1 (default: cuda where present)")


def run(options: argparse.Namespace) -> None:
    """Runs the command until it is interrupted."""
    quiet()
    try:
        from ..serving.api import create_app, serve_app
    except ModuleNotFoundError as error:
        raise ImportError(f"The server needs {error.name}: pip install 'sca-hf[serve]'.") from None

    def tell(engine: Any) -> None:
        print(
            f"sca-hf serves {', '.join(engine.models)} at http://{options.host}:{options.port}, described at /docs",
            flush=True,
        )

    serve_app(create_app, options.model, options.host, options.port, options.device, tell)
