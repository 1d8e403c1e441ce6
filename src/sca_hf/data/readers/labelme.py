"""Reads LabelMe: a JSON file per picture, whose shapes have a label and, as a caption, a description."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...processing.masks_sca import decode_rle, encode_rle, mask_extent
from ..pictures import image_size
from ..region import RegionRecordError
from .coco import segmentation_mask
from .common import (
    IMAGE_SUFFIXES,
    Clip,
    FolderIndex,
    Record,
    attempt,
    category_fields,
    files_below,
    image_fields,
    read_annotations,
    region_fields,
)


# Shapes without an inside.
_OPEN = ("point", "points", "line", "linestrip")
_POLYGONS = ("polygon", "oriented_rectangle", "rotation", None)


def read_labelme(
    root: str | Path,
    images: str | Path | None = None,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per JSON file, in the order of their paths.

    Shapes of one label and group id are one region.

    Args:
        root: The folder of the JSON files, in subfolders too.
        images: The folder of the pictures (default: where a file's `imagePath` leads, beside it, or what it holds as
            `imageData`).
        task: The texts to train on: "caption" makes a shape's description its caption, and its label where it has
            none; "recognition" its label.
        names: Words for labels, `{"do_not_turn_r": "do not turn right"}`.
        clip: How boxes are cut: "rounding" cuts boxes that reach out of the image by at most a pixel, "image" all.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"root: {root} is not a directory, expected the one with the JSON files.")
    paths = files_below(root, ".json")
    if not paths:
        raise ValueError(f"{root} has no JSON files.")
    index = FolderIndex(Path(images)) if images else None
    stems = {path.with_suffix("") for path in paths}
    pictures = [path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    unlabelled = sum(path.with_suffix("") not in stems for path in pictures)
    notes = [f"{unlabelled} pictures without a JSON file are left out"] if unlabelled else []
    for path in paths:
        record = attempt(str(path), _record, path, root, index, task, names, clip)
        yield record if isinstance(record, RegionRecordError) else {**record, "notes": notes}


def _record(
    path: Path, root: Path, images: FolderIndex | None, task: str, names: Mapping[str, str] | None, clip: Clip
) -> dict[str, Any]:
    content = read_annotations(path)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise RegionRecordError(f"{path} has no list of shapes, as a file of LabelMe has; move it elsewhere")
    image_id = path.relative_to(root).with_suffix("").as_posix()
    where = f"{path}, image {image_id}"
    image = _picture(path, content, images, where, root)
    size = image_size(image["bytes"] if isinstance(image, dict) else image)
    told = (content.get("imageWidth"), content.get("imageHeight"))
    if None not in told and told != size:
        raise RegionRecordError(
            f"{where}: the file says {told[0]} x {told[1]}, the picture is {size[0]} x {size[1]}; give the pictures "
            "that were annotated with images=FOLDER"
        )
    groups: dict[Any, list[dict[str, Any]]] = {}
    left_out: dict[str, list[str]] = {}
    for index, shape in enumerate(shapes):
        if shape.get("shape_type") in _OPEN:
            left_out.setdefault(f"{shape['shape_type']} shapes", []).append(str(shape.get("label")))
            continue
        group = shape.get("group_id")
        key = index if group is None else (str(shape.get("label")), str(group))
        groups.setdefault(key, []).append(shape)
    regions: list[Any] = []
    for number, members in enumerate(groups.values()):
        region_id = f"{image_id}/{number}"
        place = f"{where}, region {region_id}"
        regions.append(attempt(place, _region, region_id, members, size, task, names, clip))
    return image_fields(image, image_id, size, path, task=task, regions=regions, left_out=left_out, measured=True)


def _picture(path: Path, content: Mapping[str, Any], images: FolderIndex | None, where: str, root: Path) -> Any:
    told = str(content.get("imagePath") or "").replace("\\", "/")
    if images is None:
        # LabelMe's own way: from the folder of the file, which may lead up as far as the folder beside the labels'.
        found = Path(os.path.normpath(path.parent.absolute() / told))
        if told and found.is_file() and found.is_relative_to(root.absolute().parent):
            return found
        if content.get("imageData"):
            try:
                return {"bytes": base64.b64decode(content["imageData"], validate=True), "path": None}
            except (TypeError, ValueError):
                raise RegionRecordError(f"{where}: imageData is not base64; say images=FOLDER") from None
    folder = images or FolderIndex(path.parent)
    try:
        picture = folder.find(told) or next(filter(None, (folder.find(path.stem + s) for s in IMAGE_SUFFIXES)), None)
    except RegionRecordError as error:
        raise RegionRecordError(f"{where}: {error}") from None
    if picture is None:
        raise RegionRecordError(
            f"{where}: there is no picture {told or path.stem!r} in {folder.folder}; say images=FOLDER"
        )
    return picture


def _region(
    region_id: str,
    shapes: list[dict[str, Any]],
    size: tuple[int, int],
    task: str,
    names: Mapping[str, str] | None,
    clip: Clip,
) -> dict[str, Any]:
    places = [_place(shape, size) for shape in shapes]
    masks = [mask for _, mask in places if mask is not None]
    if masks and len(masks) < len(places):
        raise ValueError(f"its group_id {shapes[0].get('group_id')} mixes rectangles and polygons; use only one kind")
    box = [min(b[0] for b, _ in places), min(b[1] for b, _ in places)]
    box += [max(b[2] for b, _ in places), max(b[3] for b, _ in places)]
    mask = None if not masks else masks[0] if len(masks) == 1 else _united(masks)
    label = str(shapes[0].get("label") or "").strip()
    if not label:
        raise ValueError("it has no label")
    fields = category_fields(label, task, names)
    texts = dict.fromkeys(text for shape in shapes if (text := str(shape.get("description") or "")).strip())
    if texts and task == "caption":
        fields["captions"] = list(texts)
    return region_fields(region_id, box, size, clip, mask=mask, **fields)


def _united(masks: list[dict[str, Any]]) -> dict[str, Any]:
    return encode_rle(np.logical_or.reduce([decode_rle(mask) for mask in masks]))


def _place(shape: Mapping[str, Any], size: tuple[int, int]) -> tuple[list[float], dict[str, Any] | None]:
    """Returns xyxy in pixels, and the mask where the shape is not a rectangle."""
    kind = shape.get("shape_type")
    try:
        points = np.array([[float(x), float(y)] for x, y in shape["points"]]).reshape(-1, 2)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"points are {shape.get('points')!r:.200}, expected pairs x, y") from None
    expected = {"rectangle": (2, 4), "circle": (2,), "mask": (2,)}.get(str(kind))
    if (expected is not None and len(points) not in expected) or (kind in _POLYGONS and len(points) < 3):
        raise ValueError(f"the {kind or 'polygon'} has {len(points)} points, expected {expected or 'at least 3'}")
    if kind == "mask":
        return _mask(shape, points, size)
    if kind == "circle":
        angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
        points = points[0] + math.dist(*points) * np.stack([np.cos(angles), np.sin(angles)], 1)
    elif kind != "rectangle" and kind not in _POLYGONS:
        raise ValueError(f"shape_type is {kind!r}, expected rectangle, polygon, mask or circle")
    box = [*points.min(0).tolist(), *points.max(0).tolist()]
    # Some forks write the four corners of an upright rectangle.
    if kind == "rectangle" and all(point[0] in box[::2] and point[1] in box[1::2] for point in points.tolist()):
        return box, None
    return box, segmentation_mask([points.ravel().tolist()], size)


def _mask(shape: Mapping[str, Any], points: np.ndarray, size: tuple[int, int]) -> tuple[list[float], dict[str, Any]]:
    """Puts the picture of a mask to its place; its points are the first and the last pixel."""
    try:
        (x0, y0), (x1, y1) = (int(x) for x in points[0]), (int(x) for x in points[1])
        with Image.open(BytesIO(base64.b64decode(shape["mask"]))) as picture:
            width, height = picture.size
            fits = picture.size == (x1 - x0 + 1, y1 - y0 + 1) and x0 >= 0 and y0 >= 0 and x1 < size[0] and y1 < size[1]
            part = np.asarray(picture).astype(bool) if fits else np.zeros(0, bool)
    except Exception as error:  # noqa: BLE001, decoders raise whatever they like
        raise ValueError(f"its mask is not a picture in base64: {error}") from None
    if not fits:
        raise ValueError(
            f"its mask of {width} x {height} pixels does not fill {x0}, {y0} to {x1}, {y1} in an image of {size[0]} x "
            f"{size[1]}"
        )
    if not part.any():
        raise ValueError("its mask covers no pixel; delete the shape")
    mask = np.zeros(size[::-1], bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = part
    return [float(side) for side in mask_extent(mask)], encode_rle(mask)
