"""Reads pickles of plain values: a pickle is a program, and this runs none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO


# Lists, tuples, dicts, strings, numbers, True, False and None have opcodes of their own; of what goes by a name, files
# of plain values need no more than these.
_PLAIN_CLASSES = {
    (module, name): kind
    for module in ("builtins", "__builtin__")  # of Python 3 and 2
    for name, kind in (("set", set), ("frozenset", frozenset))
}


class _PlainUnpickler(pickle.Unpickler):
    """Admits no class or function but those of `_PLAIN_CLASSES`, so that nothing of the file's choice is called."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _PLAIN_CLASSES[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which plain values do not need"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def load_plain_pickle(path: str | Path) -> Any:
    """Returns what a pickle holds: lists, tuples, dicts, sets, strings, numbers, True, False, None.

    Strings of Python 2 are read as UTF-8, or, where they are not, all of them as Latin-1. Whatever else the file asks
    for is a ValueError that names it, and nothing of it is run.
    """
    try:
        with Path(path).open("rb") as file:
            try:
                return _load(file, "utf-8")
            except UnicodeDecodeError:
                file.seek(0)
                return _load(file, "latin-1")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no pickle of plain values: {error}.") from None
    # What a damaged file does to the unpickler.
    except (
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise ValueError(f"{path} is no pickle of plain values: {type(error).__name__}: {error}.") from None


def _load(file: BinaryIO, encoding: str) -> Any:
    return _PlainUnpickler(file, encoding=encoding).load()
