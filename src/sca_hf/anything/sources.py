"""Which images to caption: files, folders, or the pictures of any data set; and the boxes of a detector in them."""

import glob
import hashlib
import logging
import math
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.pictures import check_place, picture_stamp
from ..data.readers.common import IMAGE_SUFFIXES, may_be_picture
from ..data.region import RegionRecordError, record_image
from ..data.writers import WRITERS
from ..files import UNFINISHED, digest_of, leads_out, read_json


logger = logging.getLogger(__name__)

# Where in the folder of a run its drawings are.
OVERLAYS = "overlays"


@dataclass(frozen=True)
class ImageItem:
    """One image of a run.

    Attributes:
        name: The name, unique in the run: the path inside its folder, or the id that a data set gives it.
        image: A path, an address, the bytes of a file, a region record, or the error that there is in its place.
    """

    name: str
    image: Any

    @cached_property
    def stamp(self) -> str:
        """Tells this picture, with the boxes that a data set has for it, from another of the same name."""
        if isinstance(self.image, dict):
            return f"{picture_stamp(self.image['image'])} {digest_of([r['box'] for r in self.image['regions']])}"
        return picture_stamp(self.image)

    @property
    def key(self) -> str:
        """What the log of a run knows this picture by."""
        return f"{self.name}\n{self.stamp}"

    def load(self) -> Image.Image:
        """Opens the picture, upright and RGB; errors are ValueError or OSError and name it."""
        if isinstance(self.image, Exception):
            raise self.image
        if isinstance(self.image, dict):
            return record_image(self.image)
        from ..processing.images_sca import as_image  # imports torch, which finding images does not need

        return as_image(self.image)

    def boxes(self) -> list[list[float]]:
        """The boxes that a data set has for this image, xyxy."""
        if not isinstance(self.image, dict):
            raise ValueError(f"{self.name} is a file and has no boxes; pass a boxes file.")
        return [list(region["box"]) for region in self.image["regions"]]


def find_images(sources: Sequence[str], specs: bool = True, output: str | None = None) -> list[ImageItem]:
    """Returns the images of all sources, each file once; a source without any becomes an item with the error.

    Args:
        sources: Files, addresses, folders (with all folders inside them), patterns such as `photos/*.jpg`, `-` for a
            picture on the standard input, or data specs as `sca-hf data check` takes them.
        specs: Whether data specs are sources too.
        output: The folder of the run; pictures that a run writes there (overlays, copies for tools) are no sources.

    Raises:
        ValueError, FileNotFoundError: no source has an image, or a data spec is wrong.
    """
    found: dict[str, ImageItem] = {}
    for source in dict.fromkeys(sources):
        for item in _items(source, specs):
            if output is not None and _is_path(item) and _is_written(item.image, output):
                continue
            found.setdefault(os.path.abspath(item.image) if _is_path(item) else f"{source} {item.name}", item)
    items = list(found.values())
    if not items:
        raise FileNotFoundError(f"there is no image in {', '.join(sources)} beside what is written to {output}.")
    errors = [item.image for item in items if isinstance(item.image, Exception)]
    if len(errors) == len(items):
        raise errors[0] if len(errors) == 1 else FileNotFoundError(" ".join(map(str, errors)))
    return _with_own_names(items)


def _is_path(item: ImageItem) -> bool:
    return isinstance(item.image, str) and not _ADDRESS.match(item.image)


def _is_written(path: str, output: str) -> bool:
    """Whether a picture is one that a run writes into its own folder."""
    inside = os.path.relpath(os.path.realpath(path), os.path.realpath(output)).split(os.sep)
    return len(inside) > 1 and (inside[0] in (OVERLAYS, *WRITERS) or inside[0].startswith(UNFINISHED))


def _with_own_names(items: list[ImageItem]) -> list[ImageItem]:
    """Names files of the same name in several folders by these folders too."""
    counts = Counter(item.name for item in items)
    alike = [os.path.abspath(item.image) for item in items if counts[item.name] > 1 and _is_path(item)]
    if alike:
        root = os.path.commonpath(alike)
        items = [
            replace(item, name=Path(os.path.relpath(item.image, root)).as_posix())
            if counts[item.name] > 1 and _is_path(item)
            else item
            for item in items
        ]
        counts = Counter(item.name for item in items)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"two images have the name {twice[0]}; caption their sources one by one.")
    return items


_ADDRESS = re.compile("https?://|data:image/")


def _items(source: str, specs: bool) -> Iterator[ImageItem]:
    path = Path(source)
    if source == "-":
        yield _standard_input()
    elif _ADDRESS.match(source):
        yield ImageItem(source[:100], source)
    elif os.path.isdir(source):
        found = list(_pictures_below(path))
        yield from found or [ImageItem(source, FileNotFoundError(f"there is no image in {source}."))]
    elif specs and path.suffix in (".yaml", ".yml"):
        yield from _records(source)
    elif os.path.exists(source):
        yield ImageItem(path.name, source)
    elif glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        for match in matches:
            yield from _items(match, specs=False)
        if not matches:
            yield ImageItem(source, FileNotFoundError(f"nothing matches {source}."))
    elif specs and ":" in source and path.suffix.lower() not in IMAGE_SUFFIXES:
        yield from _records(source)
    else:
        kinds = "is not an image, a folder or a data spec (format:option=value,...)" if specs else "is not there"
        yield ImageItem(source, FileNotFoundError(f"{source} {kinds}."))


def _pictures_below(folder: Path) -> Iterator[ImageItem]:
    """Yields the pictures of a folder; what has the name of one but is none of its files comes with its error."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and leads_out(folder, path):
            logger.warning("%s is a link that leads out of %s: name it too to have its pictures.", path, folder)
        named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and not path.is_dir()
        if not named and not may_be_picture(path):
            continue
        image: Any = str(path)
        try:
            check_place(path, [folder])
        except RegionRecordError as error:
            image = error
        yield ImageItem(path.relative_to(folder).as_posix(), image)


def _standard_input() -> ImageItem:
    """The picture that is piped in; its name has its content, so that a run is not resumed with another."""
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("- reads a picture from the standard input: pipe one in, as in `sca-hf caption - <a.jpg`.")
    data = sys.stdin.buffer.read()
    name = f"stdin-{hashlib.sha256(data).hexdigest()[:12]}"
    if not data:
        return ImageItem(name, ValueError("the standard input is empty."))
    if any(os.path.exists(line) for line in data[:4096].splitlines()[:1]):
        return ImageItem(name, ValueError("the standard input contains file names; pass them with xargs."))
    return ImageItem(name, data)


def _records(spec: str) -> Iterator[ImageItem]:
    from ..data.loading import parse_spec, spec_source
    from ..data.read_report import ReadReport

    source = spec_source(parse_spec(spec), keep_empty=True)
    report = ReadReport(source=source.name)
    for record in source.records(report):
        yield ImageItem(str(record["image_id"]), record)
    report.log()


Boxes = dict[str, list[list[float]]]


def read_boxes(path: str | Path, min_score: float | None = None) -> Boxes:
    """Reads boxes by image name.

    Args:
        path: A JSON file: COCO's own form (`images`, `annotations`), COCO results (a list of `bbox` with `file_name`,
            or with an `image_id` that is an image's name with or without suffix), or an object from image names to
            lists of `{"box": [x1, y1, x2, y2]}`, with a `score` where there is one.
        min_score: Boxes with a lower `score` are left out; None keeps all, as scores may be logarithms.

    Returns:
        Image name -> boxes xyxy, pixels of the upright original.
    """
    from ..prompt_arguments import read_regions_file

    path = Path(path)
    lowest = float("-inf") if min_score is None else min_score
    content = read_json(path)
    if isinstance(content, Mapping) and "annotations" in content:
        names = {image["id"]: str(image["file_name"]) for image in content.get("images", [])}
        return _coco_boxes(path, content["annotations"], names, lowest)
    if content == [] or (isinstance(content, list) and isinstance(content[0], Mapping) and "bbox" in content[0]):
        return _coco_boxes(path, content, {}, lowest)
    by_name = read_regions_file(path)
    if None in by_name:
        raise ValueError(
            f"{path} does not say which image its boxes belong to; give an object that maps image names to lists."
        )
    for name, regions in by_name.items():
        if any(region.box is None for region in regions):
            raise ValueError(f"{path}, {name}: every region needs a box.")
    return {
        str(name): [list(r.box) for r in regions if r.box is not None and _score(r.extra, r.place) >= lowest]
        for name, regions in by_name.items()
    }


def _score(values: Mapping[str, Any], place: str) -> float:
    score = values.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{place}: score is {score!r}, expected a number.")
    return float(score)


def boxes_of(boxes: Boxes, name: str) -> list[list[float]] | None:
    """The boxes of an image by its whole name, its file name, or that without suffix; None where there are none."""
    path = Path(name)
    keys = (name, path.name, path.with_suffix("").as_posix(), path.stem)
    for key in [*keys, *(unicodedata.normalize("NFC", key) for key in keys)]:  # as most tools write it
        if key in boxes:
            return boxes[key]
    # COCO numbers its images, and pads the numbers in their names.
    return boxes.get(str(int(path.stem))) if path.stem.isdigit() else None


def _coco_boxes(path: Path, rows: Sequence[Any], names: dict[Any, str], min_score: float) -> Boxes:
    boxes: Boxes = {name: [] for name in names.values()}
    for number, row in enumerate(rows):
        try:
            x, y, width, height = (float(value) for value in row["bbox"])
            name = row.get("file_name") or (names[row["image_id"]] if names else str(row["image_id"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, entry {number}: expected bbox [x, y, width, height] and image_id or file_name ({error})."
            ) from None
        if _score(row, f"{path}, entry {number}") >= min_score:
            boxes.setdefault(name, []).append([x, y, x + width, y + height])
    return boxes
