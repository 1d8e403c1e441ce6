"""Reads Label Studio's JSON export: rectangles, ellipses, polygons and brushes, with their labels and texts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...processing.masks_sca import encode_rle, mask_extent
from ..pictures import image_size
from ..region import RegionRecordError, category_text
from .coco import segmentation_mask
from .common import (
    IMAGE_SUFFIXES,
    Clip,
    FolderIndex,
    Record,
    attempt,
    image_fields,
    inside,
    read_json_list,
    region_fields,
)


Source = Literal["annotations", "predictions"]
Version = Literal["only", "first", "latest"]
# What Label Studio puts before the name of an uploaded file.
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
# How many bits the length of a run takes, by the two bits that stand before it.
_RUN_BITS = (3, 4, 8, 16)
_SHAPES = ("rectangle", "ellipse", "polygon", "brush")


def read_label_studio(
    annotations: str | Path,
    images: str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    image: str | None = None,
    source: Source = "annotations",
    version: Version = "only",
    text: str | None = None,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per task of an export in the format JSON (not JSON-MIN), in the file's order.

    Args:
        annotations: The exported file.
        images: The folder with the pictures (default: the folder of the file). Their paths there
            may have other folders in front, and lack what an upload puts before a name.
        task: The texts to train on: "caption" makes the texts of a region's text area its captions, and its label
            where there are none; "recognition" its label.
        names: Words for labels, `{"do_not_turn_r": "do not turn right"}`.
        image: The key of a task's data that names the picture (default: the one that does).
        source: What to read of each task: "annotations" are what people submitted, "predictions" what a model
            proposed.
        version: Which annotation counts where a task has several (default: the image is an error).
        text: The name of the text area, where regions have several.
        clip: How boxes are cut: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    path = Path(annotations)
    reader = _Export(path, Path(images) if images else path.parent, task, names, image, source, version, text, clip)
    seen: set[str] = set()
    number = 0
    for number, row in enumerate(read_json_list(path), 1):
        record = attempt(f"{path}, task {number}", reader.record, row, number)
        if isinstance(record, RegionRecordError):
            yield record
            continue
        if record["image_id"] in seen:
            raise ValueError(f"{path}: two tasks have the id {record['image_id']}; export the project again.")
        seen.add(record["image_id"])
        yield record
    if number and reader.unannotated == number:
        remedy = ' or read model predictions with source="predictions"' if source == "annotations" else ""
        raise ValueError(f"{path}: none of {number} tasks has {source}; submit some in Label Studio{remedy}.")


class _Export:
    """How to read the tasks of a file; the fields are the arguments of [`read_label_studio`]."""

    def __init__(
        self,
        path: Path,
        images: Path,
        task: str,
        names: Mapping[str, str] | None,
        image: str | None,
        source: Source,
        version: Version,
        text: str | None,
        clip: Clip,
    ) -> None:
        self.path, self.images, self.task, self.names = path, images, task, names
        self.image, self.source, self.version, self.text, self.clip = image, source, version, text, clip
        self.index = FolderIndex(images)
        self.unannotated = 0

    def record(self, row: Any, number: int) -> dict[str, Any]:
        """Builds the record of a task."""
        if not isinstance(row, dict) or not isinstance(row.get("data"), dict):
            raise RegionRecordError(
                f"{self.path}, task {number}: there is no data; export as JSON, not as JSON-MIN or CSV"
            )
        image_id = str(row["data"].get("image_id") or row.get("id") or number)
        where = f"{self.path}, image {image_id}"
        left_out: dict[str, list[str]] = {}
        notes: list[str] = []
        results = self._results(row, where, notes)
        path = self._picture(row["data"], where)
        size = image_size(path)
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for index, result in enumerate(results):
            grouped.setdefault(str(result.get("id") or f"result {index + 1}"), []).append(result)
        regions = []
        for region_id, rows in grouped.items():
            place = next((one for one in rows if _shape(one)), None)
            if place is not None:
                key = f"{where}, region {region_id}"
                regions.append(attempt(key, self._region, region_id, rows, place, size))
            else:
                _leave_out(rows, left_out, notes)
        told = {"left_out": left_out, "notes": notes, "measured": True}
        return image_fields(path, image_id, size, self.path, task=self.task, regions=regions, **told)

    def _results(self, row: Mapping[str, Any], where: str, notes: list[str]) -> list[Mapping[str, Any]]:
        found = row.get(self.source) or (row.get("completions") if self.source == "annotations" else None) or []
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise RegionRecordError(f"{where}: {self.source} is not a list; export as JSON, with all annotations")
        kept = [one for one in found if not one.get("was_cancelled")]
        if not kept:
            self.unannotated += 1
            notes.append(f"tasks without {self.source}, or skipped ones, have no regions")
            return []
        if len(kept) > 1 and self.version == "only":
            raise RegionRecordError(
                f'{where}: the task has {len(kept)} {self.source}; choose one with version="latest" or "first"'
            )
        if self.version == "latest":
            kept.sort(key=lambda one: str(one.get("updated_at") or one.get("created_at") or ""), reverse=True)
        results = kept[0].get("result") or []
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise RegionRecordError(f"{where}: result is not a list of objects")
        return results

    def _picture(self, data: Mapping[str, Any], where: str) -> Path:
        keys = [key for key, value in data.items() if isinstance(value, str) and _names_picture(value)]
        keys = [self.image] if self.image else ["image"] if "image" in keys else keys
        if len(keys) != 1 or not isinstance(data.get(keys[0]), str):
            found = ", ".join(map(str, data))
            raise RegionRecordError(f'{where}: choose the key of the picture with image="KEY"; its data has {found}')
        inner = _inner_path(data[keys[0]])
        try:
            path = self.index.find(inner) or inside(self.images, _UPLOAD.sub("", inner.rsplit("/", 1)[-1]))
        except RegionRecordError as error:
            raise RegionRecordError(f"{where}: {error}") from None
        if path is None or not path.is_file():
            raise RegionRecordError(f"{where}: there is no picture {inner!r} in {self.images}; say images=FOLDER")
        return path

    def _region(
        self,
        region_id: str,
        rows: Sequence[Mapping[str, Any]],
        place: Mapping[str, Any],
        size: tuple[int, int],
    ) -> Record:
        """Joins the results of one id, which are a place, its labels and its texts."""
        told = (place.get("original_width"), place.get("original_height"))
        if None not in told and told != size:
            raise ValueError(
                f"it was drawn on {told[0]} x {told[1]} pixels, the picture in {self.images} is {size[0]} x "
                f"{size[1]}; give the folder of the pictures that were annotated with images=FOLDER"
            )
        box, mask = _box_and_mask(place, size)
        fields = self._texts(rows)
        return region_fields(region_id, box, size, self.clip, mask=mask, **fields)

    def _texts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        labels: dict[str, None] = {}
        areas: dict[str, list[str]] = {}
        for row in rows:
            value = _value(row)
            if row.get("type") == "textarea":
                texts = value.get("text")
                texts = [texts] if isinstance(texts, str) else texts or []
                areas.setdefault(str(row.get("from_name")), []).extend(str(one) for one in texts if str(one).strip())
            for key, listed in value.items():
                if key.endswith("labels") and isinstance(listed, list):
                    labels.update((str(label), None) for label in listed)
        if len(labels) > 1:
            raise ValueError(f"it has the labels {', '.join(labels)}; a region must have only one")
        if self.text is None and len(areas) > 1:
            raise ValueError(
                f'it has the text areas {", ".join(areas)}; choose the one with captions with text="NAME"'
            )
        name = next(iter(labels), None)
        category = None if name is None else category_text(name, self.names)
        captions = areas.get(self.text, []) if self.text else next(iter(areas.values()), [])
        if not captions and category is not None:
            captions = [category]
        return {"category": category, "captions": captions if self.task == "caption" else []}


def _value(row: Mapping[str, Any]) -> Mapping[str, Any]:
    value = row.get("value")
    return value if isinstance(value, dict) else {}


def _leave_out(rows: Sequence[Mapping[str, Any]], left_out: dict[str, list[str]], notes: list[str]) -> None:
    """Notes results without a place that we read: of the whole picture, or of regions of other kinds."""
    for row in rows:
        kind, value = str(row.get("type")), _value(row)
        labels = value.get(kind) if kind.endswith("labels") else None
        if isinstance(labels, list):
            left_out.setdefault(f"{kind} regions", []).append(str(labels[0]) if labels else "?")
        elif kind in ("keypoint", "vector", "bitmask"):
            left_out.setdefault(f"{kind} regions", []).append("?")
        else:
            notes.append(f"results of type {kind} without a region are not read")


def _shape(row: Mapping[str, Any]) -> str | None:
    """Returns the shape of a result's place, None where it says none; the type `labels` tells it by its values."""
    kind = str(row.get("type"))
    shape = kind.removesuffix("labels")
    if shape in _SHAPES:
        return shape
    value = _value(row)
    keys = {"brush": "rle", "polygon": "points", "ellipse": "radiusX", "rectangle": "width"}
    return next((name for name, key in keys.items() if key in value), None) if kind == "labels" else None


def _box_and_mask(place: Mapping[str, Any], size: tuple[int, int]) -> tuple[list[float], dict[str, Any] | None]:
    """Returns xyxy in pixels, and the mask if the shape is more than an upright rectangle."""
    shape, value = _shape(place), _value(place)
    if shape == "brush":
        return _brush(value, size)
    try:
        if shape == "polygon":
            points = np.array([[float(x), float(y)] for x, y in value["points"]]).reshape(-1, 2) * size / 100
        else:
            points = _outline(shape == "ellipse", value, size)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the {shape} is {dict(value)!r:.200}, expected its numbers in percent ({error})") from None
    if len(points) < 3:
        raise ValueError(f"the {shape} has {len(points)} points, expected at least 3")
    box = [*points.min(0).tolist(), *points.max(0).tolist()]
    if shape == "rectangle" and not value.get("rotation"):
        return box, None
    return box, segmentation_mask([points.ravel().tolist()], size)


def _outline(is_ellipse: bool, value: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Returns the outline of a rectangle or an ellipse in pixels; it is turned clockwise about its x, y."""
    names = ("radiusX", "radiusY") if is_ellipse else ("width", "height")
    start = np.array([float(value["x"]), float(value["y"])]) * size / 100
    extent = np.array([float(value[name]) for name in names]) * size / 100
    if is_ellipse:
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        offsets = np.stack([np.cos(angles), np.sin(angles)], 1) * extent
    else:
        offsets = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * extent
    angle = math.radians(float(value.get("rotation") or 0))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return start + (offsets @ turn if angle else offsets)


def _brush(value: Mapping[str, Any], size: tuple[int, int]) -> tuple[list[float], dict[str, Any]]:
    rle = value.get("rle")
    if not isinstance(rle, list) or not all(isinstance(byte, int) and 0 <= byte < 256 for byte in rle):
        raise ValueError("the brush has no rle, a list of bytes; export as JSON, not as brush labels")
    mask = decode_brush(rle, size)
    if not mask.any():
        raise ValueError("the brush covers no pixel; delete the region")
    return [float(side) for side in mask_extent(mask)], encode_rle(mask)


def _names_picture(value: str) -> bool:
    return _inner_path(value).lower().endswith(IMAGE_SUFFIXES)


def _inner_path(address: str) -> str:
    """Returns the path in an address: of local files it is the argument d; elsewhere it may be URL-encoded."""
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    # A name with ? or # that nobody encoded is not an address.
    return local[0] if local else unquote(parts.path if parts.scheme or "%" in address else address)


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encodes a mask as Label Studio's brushes are: the four channels of a picture, 0 or 255, as runs of bits.

    Args:
        mask: The mask, (height, width) bool.

    Returns:
        Bytes: 32 bits for the number of values, 5 for their width less one, 4 times 4 for the widths of the lengths
        less one; then of each run a 1, which of the widths, its length less one, its value. A 0 in place of the 1
        would say that as many values follow.
    """
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=flat.size) * 4
    bits = [f"{flat.size * 4:032b}", f"{7:05b}", *(f"{width - 1:04b}" for width in _RUN_BITS)]
    for length, covered in zip(lengths.tolist(), flat[starts].tolist(), strict=True):
        value = "11111111" if covered else "00000000"
        while length:
            kind = next((number for number, width in enumerate(_RUN_BITS) if length <= 1 << width), 3)
            run = min(length, 1 << _RUN_BITS[kind])
            bits.append(f"1{kind:02b}{run - 1:0{_RUN_BITS[kind]}b}{value}")
            length -= run
    text = "".join(bits)
    # Always some bits behind the last, as Label Studio's own converter has it.
    text += "0" * (8 - len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(rle: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Decodes what [`encode_brush`] describes, of any widths; in the mask is what the fourth channel does not have 0.

    Args:
        rle: The bytes.
        size: Width and height in pixels.
    """
    text = "".join(f"{byte:08b}" for byte in rle)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise ValueError("the brush's rle is cut short")
        return int(text[place - count : place], 2)

    if len(text) < 53:
        raise ValueError("the brush's rle is cut short")
    count, width = take(32), take(5) + 1
    widths = [take(4) + 1 for _ in range(4)]
    if count != size[0] * size[1] * 4:
        raise ValueError(f"the brush's rle holds {count} values, a picture of {size[0]} x {size[1]} has 4 per pixel")
    values = np.zeros(count, bool)
    done = 0
    while done < count:
        repeated, length = take(1), take(widths[take(2)]) + 1
        if done + length > count:
            raise ValueError("the brush's rle has more values than it declares")
        if repeated:
            values[done : done + length] = take(width) != 0
        else:
            values[done : done + length] = [take(width) != 0 for _ in range(length)]
        done += length
    return values.reshape(size[1], size[0], 4)[..., 3]
