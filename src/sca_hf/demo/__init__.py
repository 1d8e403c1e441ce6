"""The page to click on. In a Space of the Hugging Face Hub, `app.py` is

from sca_hf.demo import main
main()
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..environment import require_extra


def build(models: Sequence[str] = (), device: str | None = None) -> Any:
    """Builds the page as Gradio Blocks of its own, to be launched or mounted by the caller.

    Args:
        models: folders and repository ids that the page offers; `sca-photo` where it is empty.
        device: None takes CUDA where it is present.
    """
    from ..serving.engine import Engine

    return _page().build_page(Engine(models, device))


def serve(
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str | None = None,
    started: Callable[[Any, str], None] = lambda engine, address: None,
    **options: Any,
) -> None:
    """Serves the page, and the HTTP interface beside it, until interrupted.

    Args:
        models: folders and repository ids that the page offers; `sca-photo` where it is empty.
        host: address to listen on.
        port: port to listen on.
        device: None takes CUDA where it is present.
        started: called with the engine and the address once the page can be opened; its model may still be loading.
        options: further ones of `serve_app`, as `token`.
    """
    page = _page()
    from ..serving.server import serve_app

    # An open page never lets go of its connection.
    # A Space is there for everyone, under names that the Hub gives it.
    settings = {"load_first": False, "grace": 2, "hosts": ["*"] if "SPACE_HOST" in os.environ else (), **options}
    serve_app(page.page_app, models, host, port, device, started, **settings)


def main() -> None:
    """Serves the page on all addresses, as a Space does.

    The variable `SCA_MODELS` names its models, separated by spaces, and `PORT` its port.
    """
    serve(os.environ.get("SCA_MODELS", "").split(), "0.0.0.0", int(os.environ.get("PORT", "7860")))


def _page() -> Any:
    require_extra("demo", "The page", "gradio")
    from . import blocks

    return blocks


__all__ = ["build", "main", "serve"]
