"""`sca-hf serve`: masks and captions over HTTP."""

import argparse
import os
from dataclasses import fields
from textwrap import indent
from typing import Any

from ..environment import require_extra
from ..serving.access import check_access
from ..serving.examples import requests
from ..serving.limits import Limits
from .parsing import add_loading, begin_loading, command, natural, notice, size


_HELP = """\
serve masks and captions over HTTP

POST /v1/caption captions regions, POST /v1/anything captions everything in a picture; /docs describes them for people,
/openapi.json for programs; /health and /metrics are for monitoring. Requests that arrive together share a call of the
model. Only the models named here are served; nothing that a client sends is opened as a path or a URL.

On Ctrl-C or SIGTERM it finishes the running requests, for at most 6 seconds, and exits within 10. An address that
other machines can reach needs a token, or --no-auth. Requests from pages of other sites are refused.
"""


def add(commands: Any) -> None:
    """Declares the command."""
    example = f"example:\n  sca-hf serve --model ./my-model --port 8000\n{indent(requests('localhost:8000'), '  ')}"
    add_server_options(command(commands, "serve", run, _HELP, example), port=8000)


def add_server_options(declared: Any, port: int) -> None:
    """Declares the options that `serve` and `demo` share."""
    declared.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="folder, repository id or sca-photo (default) to serve; repeatable, the first is the default of requests",
    )
    add_loading(declared)
    declared.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)")
    declared.add_argument(
        "--port", type=natural, default=port, metavar="N", help="port to listen on; 0 for a free one (%(default)s)"
    )
    declared.add_argument(
        "--token",
        help="token that requests must send, as a bearer token or a password (default: the variable SCA_TOKEN)",
    )
    declared.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which browsers reach this server, beside those of this machine; * for any; repeatable",
    )
    declared.add_argument("--no-auth", action="store_true", help="serve everyone who can reach the address")
    group = declared.add_argument_group("limits", "requests above them are refused")
    for each in fields(Limits):
        kind: Any = size if each.name == "file_bytes" else natural
        group.add_argument(
            f"--limit-{each.name.replace('_', '-')}",
            type=kind,
            default=each.default,
            metavar="SIZE" if kind is size else "N",
            help=f"{each.metadata['help']} (%(default)s)",
        )


def server_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """What `serve_app` takes of the options, checked as far as that is possible without a model."""
    token = options.token if options.token is not None else os.environ.get("SCA_TOKEN")
    check_access(options.host, token, options.no_auth)
    limits = Limits(**{each.name: getattr(options, f"limit_{each.name}") for each in fields(Limits)})
    names = ("host", "port", "device", "dtype", "revision")
    fixed = {"models": options.model, "limits": limits, "token": token, "hosts": options.allow_host}
    return fixed | {name: getattr(options, name) for name in names}


def begin_server(options: argparse.Namespace, extra: str, what: str, *packages: str) -> dict[str, Any]:
    """Checks that an extra is installed, says what is loaded, and returns `server_arguments`."""
    require_extra(extra, what, *packages)
    arguments = server_arguments(options)
    begin_loading(options, *(options.model or ()))
    return arguments


def run(options: argparse.Namespace) -> None:
    """Runs the command until it is interrupted or terminated."""
    arguments = begin_server(options, "serve", "The server", "fastapi", "uvicorn")
    from ..serving.api import create_app
    from ..serving.server import end_process, serve_app

    def tell(engine: Any, address: str) -> None:
        if not options.quiet:
            print(f"sca-hf serves {', '.join(engine.models)} at {address}, described at {address}/docs", flush=True)

    documentation = ("/", "/docs", "/openapi.json", "/health")
    serve_app(create_app, started=tell, open_paths=documentation, **arguments)
    notice(options, "stopped")
    end_process()
