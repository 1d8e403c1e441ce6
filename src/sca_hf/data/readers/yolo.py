"""Reads YOLO: one text file per image, boxes or polygons in shares of the image's size, as Ultralytics trains on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..pictures import image_size
from ..region import RegionRecordError, check_names
from .common import IMAGE_SUFFIXES, Clip, Record, category_fields, choice, inside, region_fields


def read_yolo(
    root: str | Path,
    split: str | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    classes: Sequence[str] | str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    unlabelled: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per picture, in the order of their paths; lines are boxes or, with masks, polygons.

    Args:
        root: the folder of a data.yaml, or such a file itself; without one, the folder that holds the others.
        split: a key of data.yaml, as train, val or test; without one, pictures are looked for in root/images/<split>
            and root/<split>/images.
        images: the pictures, in subfolders too (default: as data.yaml says, root/images, root).
        labels: the text files (default: where the last folder `images` of a picture's path is `labels` instead, else
            beside the picture).
        classes: names of the classes, or a file with one on each line (default: data.yaml, classes.txt, obj.names).
        task: "caption" makes the class name the caption of its regions, "recognition" their category alone.
        names: words for class names, `{"do_not_turn_r": "do not turn right"}`.
        unlabelled: a picture without a text file has no regions, as for Ultralytics. False makes it an error.
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    choice(clip, "clip", ("rounding", "image"))
    base, config = _open_root(Path(root))
    class_names = _class_names(classes, base, config)
    check_names(names, class_names, str(base))
    label_folder = Path(labels) if labels is not None else None
    pictures: dict[Path, Path] = {}
    for folder, path in _pictures(Path(images) if images is not None else None, base, config, split):
        pictures.setdefault(path, _label_path(path, folder, label_folder))
    for path, label in pictures.items():
        image_id = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
        where = f"{label}, image {image_id}"
        try:
            if not label.is_file() and not unlabelled:
                raise RegionRecordError(f"{where}: there is no such file of labels")
            size = image_size(path)
            rows = _lines(label) if label.is_file() else []
        except RegionRecordError as error:
            yield error
            continue
        regions: list[Any] = []
        for index, line in rows:
            region_id = f"{image_id}/{index}"
            try:
                number, box, mask = _region(line, size, len(class_names))
                texts = category_fields(class_names[number], task, names)
                regions.append(region_fields(region_id, box, size, clip, mask=mask, **texts))
            except ValueError as error:
                regions.append(RegionRecordError(f"{where}, region {region_id}: line {index + 1}: {error}"))
        record = {"image": str(path), "image_id": image_id, "width": size[0], "height": size[1]}
        yield {**record, "task": task, "regions": regions, "source": str(label)}
    if not any(label.is_file() for label in pictures.values()):
        raise ValueError(f"{base}: none of {len(pictures)} pictures has a file of labels; say labels=FOLDER.")


def _open_root(root: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the folder that holds everything, and what data.yaml says."""
    if not root.exists():
        raise ValueError(f"root: there is no file or folder {root}.")
    path = root if root.is_file() else next((p for p in (root / "data.yaml", root / "data.yml") if p.is_file()), None)
    if path is None:
        return root, {}
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected names, train, val.")
    return path.parent, config


def _class_names(classes: Sequence[str] | str | Path | None, base: Path, config: Mapping[str, Any]) -> list[str]:
    if classes is None and "names" in config:
        found = config["names"]
        if isinstance(found, Mapping):
            if sorted(found) != list(range(len(found))):
                raise ValueError(f"{base}: names of data.yaml counts {sorted(found)}, expected 0, 1, 2, ...")
            found = [found[number] for number in range(len(found))]
        if not isinstance(found, list):
            raise ValueError(f"{base}: names of data.yaml is a {type(found).__name__}, expected a list or a mapping.")
        return [str(name) for name in found]
    if classes is not None and not isinstance(classes, str | Path):
        return [str(name) for name in classes]
    candidates = [base / "classes.txt", base / "labels" / "classes.txt", base / "obj.names"]
    path = Path(classes) if classes is not None else next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise ValueError(f"{base} has neither a data.yaml with names nor a classes.txt; say classes=FILE.")
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _pictures(
    images: Path | None, base: Path, config: Mapping[str, Any], split: str | None
) -> Iterator[tuple[Path, Path]]:
    """Yields pairs of a folder, and a picture in it."""
    if images is not None:
        places = [images]
    elif split is not None and split in config:
        entries = config[split] if isinstance(config[split], list) else [config[split]]
        places = [_place(base, config.get("path"), entry) for entry in entries]
    elif config and split is not None:
        raise ValueError(f"split: data.yaml in {base} has no {split!r}.")
    elif config and any(key in config for key in ("train", "val", "test")):
        raise ValueError(f"{base}: say which split of data.yaml to read, as split=train.")
    else:
        options = [base / "images", base] if split is None else [base / "images" / split, base / split / "images"]
        places = [next((folder for folder in options if folder.is_dir()), options[0])]
    for place in places:
        if place.is_dir():
            yield from ((place, path) for path in sorted(place.rglob("*")) if _is_picture(path))
        elif place.suffix == ".txt" and place.is_file():
            yield from ((place.parent, path) for path in _listed(place, base))
        else:
            raise ValueError(f"{place} is neither a folder of pictures nor a list of them; say images=FOLDER.")


def _place(base: Path, inner: Any, entry: Any) -> Path:
    """Joins an entry of data.yaml to the folder; its `path` counts only where it leads to a folder inside."""
    if not isinstance(entry, str) or not entry.strip():
        raise ValueError(f"{base}: data.yaml names {entry!r} as pictures, expected a folder or a list of them.")
    # Roboflow writes ../train/images for what lies beside the file.
    name = entry.removeprefix("./")
    while name.startswith("../"):
        name = name[3:]
    below = inside(base, str(inner)) if inner not in (None, "", ".") else base
    tried = [inside(folder, name) for folder in (below, base) if folder is not None]
    found = next((path for path in tried if path is not None and path.exists()), None)
    if found is None:
        raise ValueError(f"{base}: data.yaml names {entry!r}, which is not there or lies outside; say images=FOLDER.")
    return found


def _listed(path: Path, base: Path) -> Iterable[Path]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        name = line.strip().removeprefix("./")
        if name:
            found = next((p for folder in (path.parent, base) if (p := inside(folder, name)) and p.is_file()), None)
            if found is None:
                raise ValueError(f"{path} names {name!r}, which is not there or lies outside of {path.parent}.")
            yield found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _label_path(picture: Path, folder: Path, labels: Path | None) -> Path:
    if labels is not None:
        below = picture.relative_to(folder) if picture.is_relative_to(folder) else Path(picture.name)
        return (labels / below).with_suffix(".txt")
    parts = list(picture.parent.parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        beside = Path(*parts) / f"{picture.stem}.txt"
        if beside.is_file() or not picture.with_suffix(".txt").is_file():
            return beside
    return picture.with_suffix(".txt")


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RegionRecordError(f"{path} cannot be read as text: {error}") from None
    return [(index, line) for index, line in enumerate(lines) if line.strip()]


def _region(line: str, size: tuple[int, int], classes: int) -> tuple[int, list[float], dict[str, Any] | None]:
    """Returns class number, xyxy and mask of one line."""
    width, height = size
    fields = line.split()
    try:
        number, values = float(fields[0]), [float(field) for field in fields[1:]]
    except ValueError:
        raise ValueError(f"{line.strip()[:60]!r} holds what is no number") from None
    if not number.is_integer() or not 0 <= number < classes:
        raise ValueError(f"class is {fields[0]}, expected a whole number from 0 to {classes - 1}")
    if not all(math.isfinite(value) and abs(value) <= 2 for value in values):
        raise ValueError("coordinates are no shares of the image's size, expected numbers from 0 to 1")
    if len(values) == 4:
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
        return int(number), box, None
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values)} numbers follow the class, expected 4 of a box, or pairs of a polygon")
    polygon = [value * (height if index % 2 else width) for index, value in enumerate(values)]
    from .coco import segmentation_mask

    box = [min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])]
    return int(number), box, segmentation_mask([polygon], size)
