"""A model kept loaded for many callers: the engine behind `sca-hf demo` and `sca-hf serve`, and the HTTP interface."""

from typing import TYPE_CHECKING

from ..lazy import lazy_exports


if TYPE_CHECKING:
    from .engine import Engine
    from .limits import Limits, RequestError
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            ".engine": ["Engine"],
            ".limits": ["Limits", "RequestError"],
        },
    )


__all__ = ["Engine", "Limits", "RequestError"]
