"""Reads YOLO: one text file per image, boxes or polygons in fractions of the image's size, for Ultralytics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ...files import is_special, leads_out
from ...yaml_files import parse_yaml
from ..pictures import image_size
from ..region import RegionRecordError, check_names, naming
from .coco import segmentation_mask
from .common import (
    Clip,
    FolderIndex,
    Record,
    bounds,
    category_fields,
    image_fields,
    inside,
    may_be_picture,
    read_lines,
    region_fields,
)


def read_yolo(
    root: str | Path,
    split: str | None = None,
    images: str | Path | None = None,
    labels: str | Path | None = None,
    classes: Sequence[str] | str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    unlabeled: bool = True,
    keypoints: int | None = None,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per picture, in the order of their paths; lines are boxes, polygons, or boxes with key points.

    Args:
        root: the folder of a data.yaml (dataset.yaml, obj.data), or such a file itself; without one, the folder that
            holds the others.
        split: a key of data.yaml, as train, val or test; without one, pictures are looked for in root/images/<split>
            and root/<split>/images.
        images: the pictures, in subfolders too (default: as data.yaml says, root/images, root).
        labels: the text files (default: where the last folder `images` of a picture's path is `labels` instead, else
            beside the picture).
        classes: names of the classes, or a file with one on each line (default: data.yaml, classes.txt, obj.names).
        task: "caption" makes the class name the caption of its regions, "recognition" their category alone.
        names: words for class names, `{"do_not_turn_r": "do not turn right"}`.
        unlabeled: a picture without a text file has no regions, as for Ultralytics. False makes it an error.
        keypoints: how many numbers of key points, which are not read, follow a box: 51 for 17 of x, y and visibility;
            0: none, lines of more than four numbers are polygons (default: kpt_shape of data.yaml).
        clip: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    base, config = _open_root(Path(root))
    class_names = _class_names(classes, base, config)
    check_names(names, [name for name in class_names if name], str(base))
    labeling = _Labeling(base, Path(labels) if labels is not None else None)
    pictures = labeling.files(_pictures(Path(images) if images is not None else None, base, config, split))
    lines = _Lines(class_names, _keypoints(keypoints, base, config))
    yield from labeling.strays
    for path, label in pictures.items():
        image_id = path.relative_to(base).as_posix() if path.is_relative_to(base) else path.name
        where = f"{label}, image {image_id}"
        try:
            with naming(where):
                rows, size = _rows(label, where, unlabeled), image_size(path)
        except RegionRecordError as error:
            yield error
            continue
        regions: list[Any] = []
        for index, line in rows:
            region_id = f"{image_id}/{index}"
            try:
                with naming(f"{where}, region {region_id}: line {index + 1}"):
                    number, box, mask = lines.region(line, size)
                    texts = category_fields(class_names[number], task, names)
                    regions.append(region_fields(region_id, box, size, clip, mask=mask, **texts))
            except RegionRecordError as error:
                regions.append(error)
        yield image_fields(path, image_id, size, label, task=task, regions=regions, measured=True)
    lines.refuse_doubt(base)


# What the tools call the file that describes a data set, and its splits.
_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml", "obj.data")
_SPLITS = ("train", "val", "valid", "validation", "test")
_VALIDATION = _SPLITS[1:4]


def _open_root(root: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the folder that holds everything, and what data.yaml says, every scalar a text."""
    if not root.exists():
        raise ValueError(f"root: there is no file or folder {root}.")
    path = root if root.is_file() else next((p for name in _CONFIGS if (p := root / name).is_file()), None)
    if path is None:
        return root, {}
    lines = read_lines(path)
    if path.suffix == ".data":  # darknet's own: key = value
        pairs = [line.partition("=") for line in lines if "=" in line]
        return path.parent, {key.strip(): value.strip() for key, _, value in pairs}
    try:
        config = parse_yaml("\n".join(lines), as_text=True)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}.") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected names, train, val.")
    return path.parent, config


def _class_names(classes: Sequence[str] | str | Path | None, base: Path, config: Mapping[str, Any]) -> list[str]:
    """Returns the names by their numbers; "" for a number without a name."""
    found = config.get("names")
    if classes is None and isinstance(found, str) and found:
        classes = _place(base, None, found)
    if classes is None and "names" in config:
        if isinstance(found, Mapping):
            numbers = sorted(found, key=lambda key: (len(key), key))
            if numbers != [str(number) for number in range(len(found))]:
                raise ValueError(f"{base}: names of data.yaml counts {', '.join(numbers)}, expected 0, 1, 2, ...")
            found = [found[number] for number in numbers]
        if not isinstance(found, list):
            raise ValueError(f"{base}: names of data.yaml is a {type(found).__name__}, expected a list or a mapping.")
        return [str(name) for name in found]
    if classes is not None and not isinstance(classes, str | Path):
        return [str(name) for name in classes]
    candidates = [base / "classes.txt", base / "labels" / "classes.txt", base / "obj.names"]
    path = Path(classes) if classes is not None else next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise ValueError(f"{base} has neither a data.yaml with names nor a classes.txt; say classes=FILE.")
    # The number of a line is that of its class: a blank one counts.
    return "\n".join(line.strip() for line in read_lines(path)).rstrip("\n").split("\n")


def _keypoints(given: int | None, base: Path, config: Mapping[str, Any]) -> int | None:
    shape = config.get("kpt_shape")
    if given is not None or shape is None:
        return given
    try:
        count, numbers = (int(value) for value in shape)
    except (TypeError, ValueError):
        raise ValueError(f"{base}: kpt_shape of data.yaml is {shape!r}, expected a count and 2 or 3.") from None
    return count * numbers


def _pictures(
    images: Path | None, base: Path, config: Mapping[str, Any], split: str | None
) -> Iterator[tuple[Path | None, Path]]:
    """Yields pairs of a folder, None for one that a list names, and a picture in it."""
    there = [name for name in config if name in _SPLITS and config[name]]
    if images is None and split is None and len({str(config[name]) for name in there}) == 1:
        split = there[0]  # Ultralytics asks for train and val, where many have one set
    if split in _VALIDATION and split not in config:
        split = next((name for name in there if name in _VALIDATION), split)
    if images is not None:
        places = [images]
    elif split is not None and config.get(split):
        entries = config[split] if isinstance(config[split], list) else [config[split]]
        places = [_place(base, config.get("path"), entry) for entry in entries]
    elif there and split is not None:
        raise ValueError(f"split: data.yaml in {base} has no {split!r}; it has {', '.join(there)}.")
    elif there:
        raise ValueError(f"{base}: choose a split of data.yaml, for instance split={there[0]}: {', '.join(there)}.")
    else:
        options = [base / "images", base] if split is None else [base / "images" / split, base / split / "images"]
        place = next((folder for folder in options if folder.is_dir()), None)
        if place is None:
            splits = sorted(
                {path.name for path in base.glob("images/*/")} | {p.parent.name for p in base.glob("*/images")}
            )
            raise ValueError(f"split: there is no folder {options[0]}; {base} has {', '.join(splits) or 'no splits'}.")
        places = [place]
    for place in places:
        if place.is_dir():
            yield from ((place, path) for path in sorted(place.rglob("*")) if may_be_picture(path))
        elif place.suffix == ".txt" and place.is_file():
            yield from ((None, path) for path in _listed(place, base))
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
    # CVAT and darknet put data/ in front, whatever the folder is called.
    spellings = (name, name.removeprefix("data/"))
    tried = [inside(folder, name) for name in spellings for folder in (below, base) if folder is not None]
    found = next((path for path in tried if path is not None and path.exists()), None)
    if found is None:
        raise ValueError(
            f"{base}: data.yaml names {entry!r}, which does not exist or is outside the folder; pass images=FOLDER."
        )
    return found


def _listed(path: Path, base: Path) -> Iterable[Path]:
    index = FolderIndex(base)
    index.names = [name for line in read_lines(path) if (name := line.strip().removeprefix("./"))]
    for name in index.names:
        beside = inside(path.parent, name)
        found = beside if beside is not None and beside.is_file() else index.find(name)
        if found is None:
            raise ValueError(f"{path} names {name!r}, which does not exist or is outside {base}.")
        yield found


class _Labeling:
    """Finds the files of labels, and those that no picture has.

    Args:
        base: the folder that holds everything.
        labels: where the files lie, None: where the tools have them.
    """

    def __init__(self, base: Path, labels: Path | None) -> None:
        self.base, self.labels = base, labels
        self.strays: list[RegionRecordError] = []

    def files(self, pictures: Iterable[tuple[Path | None, Path]]) -> dict[Path, Path]:
        """Returns the file of labels of each picture; one that is not there is where it should be."""
        found: dict[Path, Path] = {}
        roots: dict[Path, Path] = {}
        for folder, path in pictures:
            found.setdefault(path, self._path(path, folder))
            if folder is not None and folder not in roots:
                roots[folder] = self._path(folder / "any.jpg", folder).parent
        used = set(found.values())
        for folder, root in roots.items():
            for path in [path for path in found if path.is_relative_to(folder) and not found[path].is_file()]:
                wanted = path.relative_to(folder).with_suffix(".txt").as_posix()
                label = self._index(root).find(wanted, whole=True)
                if label is not None and label not in used:
                    found[path] = label
                    used.add(label)
            for path in sorted(root.rglob("*.txt")) if root.is_dir() else ():
                if path not in used and _is_labels(path):
                    used.add(path)
                    text = f"{path}: labels without a picture of this name in {folder}"
                    self.strays.append(RegionRecordError(text))
        if not any(label.is_file() for label in found.values()):
            raise ValueError(f"{self.base}: none of {len(found)} pictures has a label file; pass labels=FOLDER.")
        return found

    @cache  # noqa: B019, as long as a data set is read
    def _index(self, root: Path) -> FolderIndex:
        return FolderIndex(root, (".txt",))

    def _path(self, picture: Path, folder: Path | None) -> Path:
        if self.labels is not None:
            inner = folder is not None and picture.is_relative_to(folder)
            below = picture.relative_to(folder) if folder is not None and inner else Path(picture.name)
            return (self.labels / below).with_suffix(".txt")
        parts = list(picture.parent.parts)
        if "images" in parts:
            parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
            beside = Path(*parts) / f"{picture.stem}.txt"
            if beside.is_file() or not picture.with_suffix(".txt").is_file():
                return beside
        return picture.with_suffix(".txt")


def _is_labels(path: Path) -> bool:
    """Whether a text file begins with a line of labels, rather than of a list or a text."""
    try:
        first = next((line for line in read_lines(path) if line.strip()), "")
        return len([float(field) for field in first.split()]) >= 5
    except (OSError, ValueError):
        return False


def _rows(path: Path, where: str, unlabeled: bool) -> list[tuple[int, str]]:
    if is_special(path) or leads_out(path.parent, path):
        raise RegionRecordError(f"{path} is not a regular file, or a link that leads out of its folder: remove it")
    if not path.is_file():
        if unlabeled:
            return []
        raise RegionRecordError(f"{where}: there is no such label file")
    try:
        return [(index, line) for index, line in enumerate(read_lines(path)) if line.strip()]
    except (OSError, ValueError) as error:
        raise RegionRecordError(f"{path} cannot be read as text: {error}") from None


class _Lines:
    """Reads lines of labels, and remembers what may have been boxes with key points in place of polygons.

    Args:
        classes: names by their numbers.
        keypoints: how many numbers follow a box; None: not known.
    """

    def __init__(self, classes: Sequence[str], keypoints: int | None) -> None:
        self.classes, self.keypoints = classes, keypoints
        self.polygons: Counter[int] = Counter()
        self.doubtful = 0

    def region(self, line: str, size: tuple[int, int]) -> tuple[int, list[float], dict[str, Any] | None]:
        """Returns class number, xyxy and mask of one line; size: width and height of the image."""
        width, height = size
        number, values = self._numbers(line)
        values = self._without_keypoints(values)
        if len(values) == 4:
            x, y, w, h = values
            return number, [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], None
        if len(values) < 6 or len(values) % 2:
            raise ValueError(f"{len(values)} numbers follow the class, expected 4 for a box, or pairs for a polygon")
        self.polygons[len(values)] += 1
        self.doubtful += _within_box(list(zip(values[4::2], values[5::2], strict=True)), values)
        polygon = [value * (height if index % 2 else width) for index, value in enumerate(values)]
        return number, bounds(polygon), segmentation_mask([polygon], size)

    def _numbers(self, line: str) -> tuple[int, list[float]]:
        fields = line.split()
        try:
            number, values = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            raise ValueError(f"{line.strip()[:60]!r} contains something that is not a number") from None
        if not number.is_integer() or not 0 <= number < len(self.classes):
            raise ValueError(f"class is {fields[0]}, expected a whole number from 0 to {len(self.classes) - 1}")
        if not self.classes[int(number)]:
            raise ValueError(f"class {int(number)} has no name: its line in the class file is blank")
        if not all(math.isfinite(value) and abs(value) <= 2 for value in values):
            raise ValueError("coordinates are not fractions of the image's size, expected numbers from 0 to 1")
        return int(number), values

    def _without_keypoints(self, values: list[float]) -> list[float]:
        """Returns the numbers of a box alone where key points follow it.

        Raises:
            ValueError: there may be some, or of a wrong count.
        """
        more = len(values) - 4
        if more <= 0 or self.keypoints == 0:
            return values
        if self.keypoints is not None:
            if more != self.keypoints:
                raise ValueError(
                    f"{len(values)} numbers follow the class, expected 4 of a box and {self.keypoints} of key points, "
                    "as kpt_shape or keypoints says"
                )
            return values[:4]
        points = list(zip(values[4::3], values[5::3], values[6::3], strict=False))
        if more % 3 or any(seen not in (0, 1, 2) for *_, seen in points):
            return values
        # No polygon has an odd count of numbers, nor a fraction of 2.
        if more % 2 or any(seen == 2 for *_, seen in points):
            return values[:4]
        if _within_box([(x, y) for x, y, seen in points if seen], values):
            raise ValueError(
                f"{len(values)} numbers may be a polygon, or a box and key points with their visibility; set "
                f"kpt_shape in data.yaml, or pass keypoints={more} or keypoints=0 (polygons)"
            )
        return values

    def refuse_doubt(self, base: Path) -> None:
        """Raises where everything that was read as polygons looks like boxes with key points.

        Polygons have differing counts of points, and their first two points are not a box around the others; those of
        three and four points are taken for polygons.
        """
        count, total = next(iter(self.polygons), 0), self.polygons.total()
        if self.keypoints is None and len(self.polygons) == 1 and count > 8 and total >= 3 and self.doubtful == total:
            raise ValueError(
                f"{base}: all {total} lines longer than a box have {count} numbers, and the first four would be a "
                f"box around the others: they may be key points, not polygons; set kpt_shape in data.yaml, or pass "
                f"keypoints={count - 4} or keypoints=0 (polygons)."
            )


def _within_box(points: Sequence[tuple[float, float]], values: Sequence[float]) -> bool:
    """Whether points lie in the box, center and size, that the first four values would be; 0, 0 is not marked."""
    x, y, width, height = values[:4]
    inner = width > 0 and height > 0 and x + width / 2 <= 1.01 and y + height / 2 <= 1.01
    inner = inner and x - width / 2 >= -0.01 and y - height / 2 >= -0.01
    return inner and all(
        (a, b) == (0, 0) or (abs(a - x) <= width / 2 + 0.02 and abs(b - y) <= height / 2 + 0.02) for a, b in points
    )
