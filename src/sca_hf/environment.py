"""Says what is wrong with an installation where the libraries below us only fail."""

from importlib import import_module
from importlib.metadata import version


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
