"""The region record: one schema for every data set of regions, its validation, its picture and its names.

Readers turn community formats into it; nothing downstream knows where a record came from. All coordinates are pixels
of the original image, x to the right, y down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..files import has_lone_surrogate
from ..processing.languages_sca import language_tag
from ..yaml_files import parse_yaml
from .notes import NOTES


if TYPE_CHECKING:
    from datasets import Features

_WHOLE: Any = Integral  # numpy's too
_FAR = 1e30
TASKS = ("recognition", "caption")
# Of captions, by name; a number of words is one too.
LENGTHS = ("short", "sentence", "detailed")
# Of a box, in pixels: a thinner one can miss every pixel's center.
_MIN_SIDE = 0.5
_SEPARATORS = re.compile(r"[_\-\s]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")


class RegionRecordError(ValueError):
    """A record that cannot be used; its message names source, image and region."""


@contextmanager
def naming(where: str = "") -> Iterator[None]:
    """Turns whatever goes wrong with one record or region into the `RegionRecordError` that names it.

    Data of others may be wrong in more ways than anyone lists; what is wrong with the installation is not theirs.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RegionRecordError) and (where in str(error) or not where):
            raise
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise RegionRecordError(f"{where}: {text}" if where else text) from None


@dataclass
class Region:
    """One region of an image.

    box: xyxy, far edges exclusive.
    mask: COCO RLE `{"size": [height, width], "counts": ...}`, or None.
    points, labels: P pairs (x, y) and P numbers, 1 inside and 0 outside, or None.
    captions: at least one when the task is "caption".
    category: what the region shows in a word or two; needed when the task is "recognition".
    lengths: of each caption one of `LENGTHS` or a number of words, or None where it is not said; None: of none.
    languages: of each caption a tag of BCP 47, in its one spelling, or None where it is not said; None: of none.
    """

    region_id: str
    box: list[float]
    mask: dict[str, Any] | None = None
    points: list[list[float]] | None = None
    labels: list[int] | None = None
    captions: list[str] = field(default_factory=list)
    category: str | None = None
    lengths: list[str | None] | None = None
    languages: list[str | None] | None = None

    def texts(self, task: str) -> list[str]:
        """Returns what a model should say of the region: its captions, or its category."""
        return self.captions if task == "caption" else [self.category] if self.category else []


@dataclass
class RegionRecord:
    """One image and its regions.

    image: a picture, a path, or `{"path": ..., "bytes": ...}` as `datasets` has it undecoded.
    group: what the picture is of or from, as a patient or a film, or None; `hold_out` keeps a group together.
    """

    image: Any
    image_id: str
    width: int
    height: int
    regions: list[Region]
    task: str = "caption"
    group: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "record") -> RegionRecord:
        """Builds and validates a record; `source` names the file in errors."""
        where = f"{source}, image {values.get('image_id', '?')}"
        try:
            rows = values["regions"]
            record = cls(**{**values, "regions": []})
        except KeyError as error:
            raise RegionRecordError(f"{where}: the field {error} is missing") from None
        except TypeError as error:
            raise RegionRecordError(f"{where}: {str(error).replace('__init__()', 'the record')}") from None
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise RegionRecordError(f"{where}: regions is a {type(rows).__name__}, expected a list")
        record.validate(source)
        record.regions = [record.checked_region(row, source) for row in rows]
        return record

    def checked_region(self, values: Mapping[str, Any] | RegionRecordError, source: str = "record") -> Region:
        """Builds one region of this record and validates it; does not add it."""
        if isinstance(values, RegionRecordError):
            raise values
        where = f"{source}, image {self.image_id}"
        try:
            region = Region(**{key: value for key, value in values.items() if key not in ("clipped", "problem")})
            spellings: dict[str, Callable[[Any], str]] = {"lengths": str, "languages": language_tag}
            for name, spelling in spellings.items():
                if (notes := getattr(region, name)) is not None:
                    given = [None if one is None else spelling(one) for one in notes]
                    setattr(region, name, given if any(given) else None)
        except ValueError as error:
            raise RegionRecordError(f"{where}, region {values.get('region_id', '?')}: {error}") from None
        except (AttributeError, TypeError) as error:
            raise RegionRecordError(f"{where}: {str(error).replace('__init__()', 'the region')}") from None
        self._validate_region(region, where)
        return region

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values, the image as it is."""
        regions = [asdict(region) for region in self.regions]
        for region in regions:
            for name in NOTES:
                if region[name] is None:
                    del region[name]
        return {**vars(self), "regions": regions}

    def load_image(self) -> Image.Image:
        """Opens the picture as the processor would: upright by its EXIF orientation, 8-bit RGB."""
        return record_image(vars(self))

    def validate(self, source: str = "record") -> None:
        """Raises `RegionRecordError` on the first thing that is wrong; does not decode the picture."""
        where = f"{source}, image {self.image_id}"
        if self.task not in TASKS:
            raise RegionRecordError(f"{where}: task is {self.task!r}, expected one of {', '.join(TASKS)}")
        if not all(isinstance(side, _WHOLE) and 0 < side < 1 << 31 for side in (self.width, self.height)):
            raise RegionRecordError(
                f"{where}: size is {self.width!r:.40} x {self.height!r:.40}, expected whole numbers"
            )
        if not isinstance(self.image_id, str) or has_lone_surrogate(self.image_id):
            raise RegionRecordError(f"{where}: image_id is {self.image_id!r:.60}, expected a text")
        problem = _image_problem(self.image, (self.width, self.height))
        if problem:
            raise RegionRecordError(f"{where}: {problem}")
        for region in self.regions:
            self._validate_region(region, where)

    def _validate_region(self, region: Region, where: str) -> None:
        problem = (
            _box_problem(region.box, self.width, self.height)
            or _mask_problem(region.mask, self.width, self.height)
            or _point_problem(region.points, region.labels, self.width, self.height)
            or _text_problem(region, self.task)
        )
        if problem:
            raise RegionRecordError(f"{where}, region {region.region_id}: {problem}")


def region_features(lengths: bool = False, languages: bool = False) -> Features:
    """Returns the schema as `datasets.Features`, of captions with these notes too; needs the extra `train`."""
    from datasets import Features, List, Value
    from datasets import Image as ImageFeature

    region = {
        "region_id": Value("string"),
        "box": List(Value("float32"), length=4),
        "mask": {"size": List(Value("int32")), "counts": Value("string")},
        "points": List(List(Value("float32"))),
        "labels": List(Value("int64")),
        "captions": List(Value("string")),
        "category": Value("string"),
        **{name: List(Value("string")) for name, has in zip(NOTES, (lengths, languages), strict=True) if has},
    }
    return Features(
        {
            "image": ImageFeature(),
            "image_id": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "task": Value("string"),
            "regions": List(region),
        }
    )


def _image_problem(image: Any, size: tuple[int, int]) -> str | None:
    if isinstance(image, Image.Image):
        same = image.size == size
        return (
            None
            if same
            else f"the picture is {image.size[0]} x {image.size[1]}, the record says {size[0]} x {size[1]}"
        )
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return None
        image = image.get("path")
    if image is None:
        return "there is no image"
    if not isinstance(image, str | Path):
        return f"image is a {type(image).__name__}, expected a picture, a path or a dict of path and bytes"
    return None if os.path.isfile(image) else f"there is no file {image}"


def _box_problem(box: list[float], width: int, height: int) -> str | None:
    if not isinstance(box, list | Sequence) or len(box) != 4 or not all(map(_finite, box)):
        return f"box is {box}, expected four finite numbers x0, y0, x1, y1"
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return f"box {box} is empty, expected x0 < x1 and y0 < y1"
    # A side of 1 comes back from fractions and percents as a little less.
    tiny = min(x1 - x0, y1 - y0) < _MIN_SIDE or max(x1 - x0, y1 - y0) < 0.999
    # What the processor takes for fractions too, see `check_boxes`.
    if tiny or (x1 <= 1 and y1 <= 1 and min(width, height) >= 8 and any(value % 1 for value in box)):
        return (
            f"box {box} has a side of less than a pixel; are its numbers fractions of the image's sides, not pixels?"
        )
    # One pixel is tolerated: annotation tools round outwards.
    if x0 < -1 or y0 < -1 or x1 > width + 1 or y1 > height + 1:
        return f"box {box} reaches outside the image of {width} x {height}"
    return None


def _finite(value: Any) -> bool:
    # The usual ones first: Real takes longer. A whole number may be above every float; NaN is not below anything.
    return isinstance(value, float | int | Real) and -_FAR < value < _FAR  # type: ignore[operator]


def _mask_problem(mask: Mapping[str, Any] | None, width: int, height: int) -> str | None:
    if mask is None:
        return None
    if "size" not in mask or "counts" not in mask:
        return f"mask has the keys {sorted(mask)}, expected a COCO RLE with size and counts"
    size = list(mask["size"])
    return (
        None if size == [height, width] else f"mask is of size {size}, expected [height, width] = [{height}, {width}]"
    )


def _point_problem(points: list[list[float]] | None, labels: list[int] | None, width: int, height: int) -> str | None:
    if points is None and labels is None:
        return None
    if points is None or labels is None or len(points) != len(labels):
        counts = [None if values is None else len(values) for values in (points, labels)]
        return f"there are {counts[0]} points but {counts[1]} labels, expected one label per point"
    if any(label not in (0, 1) or isinstance(label, bool) for label in labels):
        return f"labels are {labels}, expected 1 (inside) or 0 (outside)"
    for point in points:
        inside = len(point) == 2 and 0 <= point[0] <= width and 0 <= point[1] <= height
        if not inside:
            return f"point {point} is not an x, y inside the image of {width} x {height}"
    return None


def _text_problem(region: Region, task: str) -> str | None:
    written = [region.region_id, *region.captions, *([] if region.category is None else [region.category])]
    captions: Any = region.captions
    if not isinstance(captions, list | tuple) or not all(isinstance(text, str) for text in written):
        return f"region_id, captions and category are {written!r:.100}, expected texts"
    texts, lengths, languages = region.texts(task), region.lengths, region.languages
    if languages is not None and len(languages) != len(captions):
        return f"languages are {languages!r:.100} for {len(captions)} captions, expected one for each, or None"
    if lengths is not None and (len(lengths) != len(captions) or not all(map(_is_length, lengths))):
        return (
            f"lengths are {lengths!r:.100} for {len(captions)} captions, expected for each {', '.join(LENGTHS)}, a "
            "number of words, or None"
        )
    if not texts:
        return (
            "there is no caption" if task == "caption" else 'there is no category, which the task "recognition" needs'
        )
    if any(not text.strip() for text in texts):
        return f"a text is blank: {texts}"
    if any(map(has_lone_surrogate, written)):
        return f"a text has an unpaired surrogate: {texts}"
    return None


def _is_length(length: Any) -> bool:
    return length is None or length in LENGTHS or (isinstance(length, str) and length.isdecimal() and int(length) > 0)


def record_image(record: Mapping[str, Any]) -> Image.Image:
    """Opens the picture of a record: upright by its EXIF orientation, 8-bit RGB, of the record's width and height.

    Args:
        record: its `image` is a picture, a path, or `{"path": ..., "bytes": ...}` as `datasets` has it undecoded.
    """
    from ..processing.images_sca import (
        as_image,  # imports torch and transformers, which checking records does not need
    )

    where, image = f"image {record.get('image_id', '?')}", record["image"]
    try:
        # A path and nothing else: a string of a data set opens no address.
        picture = as_image(Path(image) if isinstance(image, str) else image)
    except (OSError, TypeError, ValueError) as error:
        raise RegionRecordError(f"{where}: {error}") from error
    if picture.size != (record["width"], record["height"]):
        raise RegionRecordError(
            f"{where}: the upright picture is {picture.width} x {picture.height}, its record says {record['width']} x "
            f"{record['height']}; regions are given in pixels of the upright picture."
        )
    return picture


def region_mask(region: Mapping[str, Any], size: tuple[int, int], where: str) -> np.ndarray | None:
    """Returns the mask of a region, RLE or array, as (height, width) bool; None where there is none.

    Args:
        region: of a record; the schema has an RLE without counts where a region has no mask.
        size: (width, height) of the image.
        where: names the region in errors.
    """
    mask = region.get("mask")
    if mask is None or (isinstance(mask, Mapping) and mask.get("counts") is None):
        return None
    from ..processing.masks_sca import decode_rle  # imports torch, which checking records does not need

    if isinstance(mask, Mapping):
        try:
            return decode_rle(dict(mask), f"{where}: mask", size[::-1])
        except ValueError as error:
            raise RegionRecordError(str(error)) from error
    mask = np.asarray(mask) != 0
    if mask.shape != size[::-1]:
        raise RegionRecordError(
            f"{where}: the mask is {mask.shape[1]} x {mask.shape[0]} pixels, the image {size[0]} x {size[1]}."
        )
    return mask


def category_text(name: str, names: Mapping[str, str] | None = None) -> str:
    """Returns a class name in words, from `names` where it is there, else split into words.

    `do_not_turn_r` becomes "do not turn r" and `TrafficLight` "traffic light". Capitals that are not
    camel case stay: `RBC`, "White blood cell", `CD_player`.
    """
    if names is not None and name in names:
        return names[name]
    return " ".join(_split_humps(word) for word in _SEPARATORS.split(name) if word)


def _split_humps(word: str) -> str:
    parts = _HUMP.split(word)
    if len(parts) == 1 or not all(len(part) > 1 for part in parts):
        return word
    return " ".join(part if part.isupper() else part.lower() for part in parts)


def load_names(names: Mapping[str, str] | str | PathLike[str] | None) -> dict[str, str] | None:
    """Returns a table of `{class name: words}`, from itself or from a YAML or JSON file."""
    if names is None:
        return None
    table: Any = names
    if isinstance(names, str | PathLike):
        try:
            text = Path(names).read_text(encoding="utf-8-sig")
            # A class may be called 1.10, which is not a number here.
            table = parse_yaml(text)
            if isinstance(table, Mapping):
                table = dict(zip(parse_yaml(text, as_text=True), table.values(), strict=True))
        except (OSError, ValueError) as error:
            raise ValueError(f"names: {names} cannot be read as YAML or JSON: {error}.") from error
    if not isinstance(table, Mapping):
        raise ValueError(f"names is a {type(table).__name__}, expected a mapping of class names to words.")
    for name, words in table.items():
        if not isinstance(words, str) or not words.strip():
            raise ValueError(f"names: the words for {name!r} are {words!r}, expected text.")
    return {str(name): words.strip() for name, words in table.items()}


def check_names(names: Mapping[str, str] | None, known: Iterable[str], source: str) -> None:
    """Raises where `names` has a class that the data set lacks, which is most likely a typing error."""
    known = set(known)
    unknown = sorted(set(names or ()) - known)
    if unknown:
        listed = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise ValueError(f"names: {source} has no class {', '.join(map(repr, unknown[:5]))}; it has {listed}.")
