"""Running a server until it is interrupted."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from .engine import Engine


_M_ARENA_MAX = -8  # of glibc's malloc.h


def serve_app(
    make_app: Callable[[Engine], Any],
    models: Sequence[str],
    host: str,
    port: int,
    device: str | None,
    started: Callable[[Engine], None] = lambda engine: None,
) -> None:
    """Serves what `make_app` makes of an engine for these models.

    Args:
        models, device: see [`Engine`].
        started: called with the engine, its default model loaded, before requests are taken.
    """
    limit_arenas()
    engine = Engine(models, device)
    engine.model()  # whoever comes first should not wait for it
    started(engine)
    uvicorn.run(make_app(engine), host=host, port=port, log_level="warning")


def limit_arenas(count: int = 2) -> bool:
    """Has glibc share memory among threads; True where that is the C library.

    It gives each of the server's many threads memory of its own, which keeps what was freed: the server would grow for
    as long as threads still meet larger requests than before.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "gnu_get_libc_version") and library.mallopt(_M_ARENA_MAX, count) == 1
