"""Reads captioned pictures, COCO captions and SBU: the region is the whole picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..pictures import image_size
from ..region import RegionRecordError, naming
from .coco import Locator, default_images, id_key, place_image, rows_of, unnamed_images
from .common import FolderIndex, Record, image_fields, inside, read_annotations, read_json_list


def read_coco_captions(
    annotations: str | Path, images: str | Path | None = None, task: str = "caption"
) -> Iterator[Record]:
    """Yields one record per image of `captions_train2017.json`: one region, with all of the image's captions.

    Args:
        annotations: the file.
        images: the folder in which the `file_name`s lie (default: as for COCO).
        task: only "caption".
    """
    source = Path(annotations)
    locate = Locator(Path(images) if images is not None else default_images(source))
    _only_captions(task)
    content = read_annotations(source)
    captions: dict[Any, list[str]] = {id_key(row.get("id")): [] for row in rows_of(content, "images", source)}
    for row in rows_of(content, "annotations", source):
        key = id_key(row.get("image_id"))
        if key not in captions:
            yield RegionRecordError(
                f"{source}, image {row.get('image_id')}: caption {row.get('id')} refers to this image, which does "
                "not exist"
            )
            continue
        captions[key].append(str(row.get("caption") or "").strip())
    rows = rows_of(content, "images", source)
    if len(captions) < len({id(image) for image in rows if image.get("id") is not None}):
        raise ValueError(f"{source}: two images have the same id.")
    locate.expect(rows)
    for image in rows:
        where = f"{source}, image {image.get('id')}"
        try:
            with naming(where):
                path, size = place_image(image, locate, where)
                record = _record(path, str(image.get("id")), size, captions[id_key(image.get("id"))], source)
        except RegionRecordError as error:
            yield error
            continue
        yield record


read_coco_captions.paths = unnamed_images  # type: ignore[attr-defined]


def read_sbu(annotations: str | Path, images: str | Path, task: str = "caption") -> Iterator[Record]:
    """Yields one record per picture of SBU captions as LAVIS prepares them.

    Many of the photographs can no longer be fetched: read it with `on_error="skip"`.

    Args:
        annotations: `sbu.json`, a list of `{"image": file name, "caption": text}`.
        images: the folder of the pictures, which are opened for their sizes.
        task: only "caption".
    """
    source, index = Path(annotations), FolderIndex(Path(images))
    _only_captions(task)
    for number, row in enumerate(read_json_list(source)):
        where = f"{source}, item {number}"
        if not isinstance(row, dict) or not isinstance(row.get("image"), str):
            yield RegionRecordError(f"{where}: expected an object with image and caption")
            continue
        try:
            with naming(where):
                path = index.find(row["image"], whole=True) or inside(index.folder, row["image"])
                if path is None:
                    raise RegionRecordError("its file name points outside the image folder")
                size = image_size(path)
        except RegionRecordError as error:
            yield error
            continue
        # One picture may stand in the list twice, so that its name does not tell.
        yield _record(path, str(number), size, [str(row.get("caption") or "").strip()], source)


def _only_captions(task: str) -> None:
    if task != "caption":
        raise ValueError(f'task is {task!r}, but these captions name no category: expected "caption".')


def _record(path: Path, key: str, size: tuple[int, int], captions: Sequence[str], source: Path) -> dict[str, Any]:
    box = [0.0, 0.0, float(size[0]), float(size[1])]
    regions = [{"region_id": key, "box": box, "captions": list(captions)}] if captions else []
    return image_fields(path, key, size, source, task="caption", regions=regions)
