"""A model kept loaded for many callers: the engine behind `sca-hf demo` and `sca-hf serve`, and the HTTP interface."""

from .engine import Engine
from .limits import Limits, RequestError


__all__ = ["Engine", "Limits", "RequestError"]
