"""Says what is wrong with an installation where the libraries below us only fail, and what to install."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path


def explain_broken_torchvision() -> None:
    """Raise an error that names the remedy if torchvision is installed but cannot be imported.

    transformers imports a torchvision it finds; one built for another torch takes all its image processors down, with
    an error that does not name it. Without torchvision everything works.
    """
    try:
        import_module("torchvision")
    except ModuleNotFoundError:
        return
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(
            f"torchvision {version('torchvision')} does not work with torch {version('torch')} ({error}). Install the "
            "build that matches, or remove it (pip uninstall torchvision): it is not needed."
        ) from error


def requirements(*extras: str) -> list[str]:
    """Returns what these extras bring, as the package's own metadata has it; "" stands for what is always needed."""
    needed = []
    for line in requires("sca-hf") or ():
        requirement, _, marker = line.replace('"', "'").partition(";")
        if any(f"'{extra}'" in marker if extra else not marker for extra in extras):
            needed.append(requirement.strip())
    return sorted(needed)


def install_command(extra: str) -> str:
    """Returns the command that installs what an extra brings.

    It names the packages themselves, so it works wherever this package came from: no index has it.
    """
    try:
        return " ".join(["pip install", *(f'"{requirement}"' for requirement in requirements(extra))])
    except PackageNotFoundError:  # run from its sources
        return f'pip install "{Path(__file__).parents[2]}[{extra}]"'


def require_extra(extra: str, purpose: str, *packages: str) -> None:
    """Raises an ImportError with the command that helps unless an extra's packages are there; imports none of them.

    Args:
        extra: the extra that brings them.
        purpose: what needs them, as the subject of a sentence.
        packages: names to import.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{purpose} needs {' and '.join(missing)}: {install_command(extra)}")
