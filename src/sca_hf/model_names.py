"""What a model may be called: one that comes with this package, the folder of a saved model, or a repository id."""

import os
import re
from importlib import resources
from pathlib import Path
from typing import Any


DEFAULT_MODEL = "sca-photo"
# What comes with this package: the default sees photographs; sca-tiny is small and knows drawings.
BUNDLED_MODELS = (DEFAULT_MODEL, "sca-tiny")
_REPOSITORY_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# A symbolic link that was checked out as a file holds a path and nothing else.
_LINK_BYTES = 200


def bundled_model(name: str = DEFAULT_MODEL) -> Path:
    """Return the folder of a model that comes with this package: `sca-photo`, or the small `sca-tiny`.

    Raises:
        ValueError: no model of that name comes with it.
        RuntimeError: the package was checked out, or built from a checkout, without symbolic links.
    """
    if name not in BUNDLED_MODELS:
        raise ValueError(f"{name!r} does not come with sca-hf; {' and '.join(BUNDLED_MODELS)} do.")
    folder = Path(str(resources.files("sca_hf") / "assets" / name))
    for path in folder.glob("*.py"):
        if path.stat().st_size < _LINK_BYTES and path.read_text(encoding="utf-8").startswith("../"):
            raise RuntimeError(
                f"{path} contains a path instead of a file: sca-hf was checked out without symbolic links. In the "
                "checkout, run `git config core.symlinks true`, then `git checkout -- "
                "src/sca_hf/assets` (on Windows with developer mode on), and install again."
            )
    return folder


def resolve_model(name: str | os.PathLike[str] | None) -> str:
    """Return what to load for a model's name: a folder for a model that comes with this package, else the name.

    None means `sca-photo`.

    Raises:
        ValueError: the working directory holds another model in a folder called as one of them.
    """
    if name is None:
        return str(bundled_model())
    if str(name) not in BUNDLED_MODELS:
        return str(name)
    bundled, here = bundled_model(str(name)), Path(name)
    if (here / "config.json").is_file() and not here.samefile(bundled):
        raise ValueError(
            f"{name} means the bundled model, but the working directory has a model of that name: write "
            f"./{name} for the folder, or rename it."
        )
    return str(bundled)


def check_repository(name: str | os.PathLike[str] | None, revision: str | None = None) -> str:
    """Return what to load for a model's name, as `resolve_model` does, once it is known to be possible.

    Raises:
        FileNotFoundError: the name is neither a saved model's folder nor a repository id.
        ValueError: a revision is named, of a folder.
    """
    source = resolve_model(name)
    folder = Path(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name} holds no config.json; give the folder of a saved model.")
        if revision is not None:
            raise ValueError(f"{name or DEFAULT_MODEL} is a folder, and folders have no revision {revision}.")
    elif folder.exists() or not _REPOSITORY_ID.fullmatch(source):
        raise FileNotFoundError(f"{name} is neither a folder with a saved model nor a repository id.")
    return source


def region_captioning_pipeline(model: Any = None, **kwargs: Any) -> Any:
    """Build the library's `pipeline("region-captioning")` for any model that this package can name.

    The code that runs is this package's, never the repository's.

    Args:
        model: `sca-photo`, `sca-tiny`, a folder or a repository id; None takes `sca-photo`. Or a loaded
            model, with `processor=`.
        kwargs: further arguments of `transformers.pipeline`, for instance `device`.
    """
    from transformers import pipeline

    from .modeling.pipeline_sca import TASK, RegionCaptioningPipeline

    source = check_repository(model) if model is None or isinstance(model, (str, os.PathLike)) else model
    return pipeline(TASK, model=source, pipeline_class=RegionCaptioningPipeline, **kwargs)
