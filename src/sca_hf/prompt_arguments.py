"""Region prompts as they are written on a command line or in a file; `processing/region_prompts_sca.py` has the rule.

All coordinates are pixels of the original image, boxes xyxy.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import inside, is_special, read_json
from .processing.masks_sca import read_mask
from .processing.region_prompts_sca import RegionPrompt, parse_region


def read_prompts(
    arguments: Iterable[tuple[str, str]] | None, file: str | Path | None = None
) -> dict[str | None, list[RegionPrompt]]:
    """Reads what a command line says of regions.

    Args:
        arguments: The values of `--box`, `--point` and `--mask` with their kinds, in the order of the line.
        file: That of `--regions`.

    Returns:
        Image name -> its regions beside those under None, which are every image's and may be none at all.
    """
    shared: list[RegionPrompt] = []
    for kind, text in arguments or ():
        if kind == "mask":
            shared.append(RegionPrompt(mask=read_mask_file(text)))
        else:
            parse_prompt(kind, text, shared)
    by_name = read_regions_file(file) if file else {}
    for name, regions in by_name.items():
        if not regions:
            raise ValueError(f"{file}: {name or 'regions'} is empty; give at least one region.")
    return {**by_name, None: shared + by_name.get(None, [])}


def parse_prompt(kind: str, text: str, regions: list[RegionPrompt]) -> None:
    """Adds one `--box` or `--point` to the regions so far.

    A box, or a point inside, begins a new region. What follows in the same argument after a `;` are more points of
    that region. A point outside (label 0) that stands alone belongs to the region before it.
    """
    place = f"--{kind} {text}"
    first, *rest = text.split(";")
    region = RegionPrompt(place=place)
    if kind == "box":
        region.box = _numbers(first, place, (4,), "x1,y1,x2,y2")
    elif _add_point(region, first, place) == 0 and not rest:
        if not regions:
            raise ValueError(f"{place}: an outside point needs a region before it.")
        region = regions.pop()
        _add_point(region, first, place)
    for point in rest:
        _add_point(region, point, place)
    regions.append(region)


def read_mask_file(path: str | Path) -> np.ndarray:
    """Reads a mask of the whole image, (height, width) bool.

    A picture, an array in .npy, or a COCO RLE in .json; `processing/masks_sca.py` has the rule.
    """
    path = Path(path)
    if is_special(path):
        raise ValueError(f"{path} is not a regular file, as a mask must be.")
    if path.suffix == ".json":
        return read_mask(read_json(path, dict), str(path))
    if path.suffix != ".npy":
        return read_mask(path, str(path))
    try:
        # Mapped: an array that claims more than the file has is refused before memory is taken for it.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # noqa: BLE001, its header is read as a program's text
        raise ValueError(f"{path} is not an array of numbers, or cut short: {error}") from None
    return read_mask(array, str(path))


def read_regions_file(path: str | Path) -> dict[str | None, list[RegionPrompt]]:
    """Reads the region prompts of a JSON file.

    The file holds a list of region objects, whose `mask` may also be the name of a file beside it; or a region record,
    whose `regions` is such a list; or an object from image names to such lists.

    Returns:
        Image name -> its regions; the key None stands for every image. Checks that need the image are left to
        [`RegionPrompt.on_image`].
    """
    path = Path(path)
    content = read_json(path)
    if isinstance(content, Mapping) and "regions" in content:
        content = content["regions"]
    if isinstance(content, list):
        return {None: _regions(content, path, "regions")}
    if isinstance(content, Mapping) and all(isinstance(value, list) for value in content.values()):
        return {name: _regions(value, path, name) for name, value in content.items()}
    raise ValueError(f"{path} must contain a list of regions, or an object that maps image names to such lists.")


def _regions(values: list[Any], path: Path, name: str) -> list[RegionPrompt]:
    def mask_beside(file: str) -> np.ndarray:
        found = inside(path.parent, file)
        if found is None:
            raise ValueError(f"{path}: the mask {file!r} is outside {path.parent}; copy it there.")
        return read_mask_file(found)

    return [parse_region(value, f"{path}: {name}[{index}]", mask_beside) for index, value in enumerate(values)]


def _add_point(region: RegionPrompt, text: str, place: str) -> int:
    values = _numbers(text, place, (2, 3), "x,y or x,y,label")
    label = values[2] if len(values) == 3 else 1
    if label not in (0, 1):
        raise ValueError(f"{place}: the label of a point is 1 (inside) or 0 (outside), not {label:g}.")
    region.points.append(values[:2])
    region.labels.append(int(label))
    return int(label)


def _numbers(text: str, place: str, counts: tuple[int, ...], form: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{place}: expected numbers in the form {form}.") from None
    if len(values) not in counts:
        raise ValueError(f"{place}: expected {form}, got {len(values)} number(s).")
    return values
