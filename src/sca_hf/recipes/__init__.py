"""The recipes that come with this package; `sca-hf train NAME` finds them here, whatever the working directory."""

from pathlib import Path


_FOLDER = Path(__file__).parent


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with this package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe: that of this package for a name without `.yaml`, else the file that is named.

    Raises:
        FileNotFoundError: no recipe of this package has the name.
    """
    if name in recipe_names():
        return _FOLDER / f"{name}.yaml"
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    raise FileNotFoundError(
        f"there is no recipe {name}: give a YAML file, or a name that comes with sca-hf: {', '.join(recipe_names())}."
    )
