"""COCO JSON of captioned regions, as CVAT imports it: one annotation per region, its caption in the annotation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...processing.masks_sca import encode_rle
from .common import NO_CATEGORY, PictureFolder, Shapes, WriteReport, WrittenRegion, mask_polygons, written_regions


_SAID = ("caption", "score", "confidence")
_ALSO = (*_SAID, "predicted_iou", "stability_score", "point_coords", "box_prompt", "crop_box")


def coco_annotations(
    records: Iterable[Mapping[str, Any]],
    image_id: int,
    first_id: int,
    categories: dict[str, int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the annotations of one image.

    Args:
        records: Regions as `caption_anything` returns them; a `category` is optional.
        image_id: The number of the image in the file.
        first_id: The number of the first annotation.
        categories: The number of each category so far; new ones are added.
    """
    categories = {} if categories is None else categories
    for number, record in enumerate(records, first_id):
        category = categories.setdefault(record.get("category") or NO_CATEGORY, len(categories) + 1)
        annotation = {
            "id": number,
            "image_id": image_id,
            "category_id": category,
            "segmentation": record["segmentation"],
            "area": record["area"],
            "bbox": record["bbox"],
            "iscrowd": 0,
            **{name: record[name] for name in _ALSO if record.get(name) is not None},
        }
        # Where CVAT looks for what its labels have beside a name.
        attributes = record.get("attributes") or ({"caption": record["caption"]} if record.get("caption") else {})
        yield annotation | ({"attributes": attributes} if attributes else {})


def write_coco(
    entries: Callable[[], Iterator[Mapping[str, Any]]], categories: dict[str, int] | None = None
) -> Iterator[str]:
    """Yields the text of a COCO JSON file.

    Args:
        entries: Yields `image` (its file name), `width`, `height` and `records` (see [`coco_annotations`]) of each
            image; it is called twice.
        categories: Is filled with the number of each category.
    """
    categories = {} if categories is None else categories
    yield '{"info": {"description": "Regions and captions by sca-hf"},\n"images": ['
    for number, entry in enumerate(entries(), 1):
        image = {"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]}
        yield (",\n" if number > 1 else "\n") + json.dumps(image, ensure_ascii=False)
    yield '\n],\n"annotations": ['
    count = 0
    for number, entry in enumerate(entries(), 1):
        for annotation in coco_annotations(entry["records"], number, count + 1, categories):
            yield (",\n" if count else "\n") + json.dumps(annotation, ensure_ascii=False)
            count += 1
    rows = [
        {"id": number, "name": name, "supercategory": NO_CATEGORY}
        for name, number in (categories or {NO_CATEGORY: 1}).items()
    ]
    yield f'\n],\n"categories": {json.dumps(rows, ensure_ascii=False)}}}\n'


def write_cvat(records: Iterable[Mapping[str, Any]], folder: Path, shapes: Shapes) -> WriteReport:
    """Writes COCO and pictures where CVAT's export has them, and `labels.json`: labels with an attribute `caption`."""
    report = WriteReport(folder / "annotations" / "instances_default.json")
    pictures, draft = PictureFolder(folder / "images" / "default"), folder / "entries.jsonl"
    report.path.parent.mkdir()
    noted: set[str] = set()
    with draft.open("w", encoding="utf-8") as file:
        for record in records:
            written = written_regions(record, report, shapes, keeps_notes=True)
            noted.update(name for region in written for name in region.notes)
            regions = [_coco_record(region, shapes == "polygons") for region in written]
            entry = {"image": pictures.add(record), "width": record["width"], "height": record["height"]}
            file.write(json.dumps({**entry, "records": regions}) + "\n")

    def entries() -> Iterator[dict[str, Any]]:
        with draft.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)

    categories: dict[str, int] = {}
    with report.path.open("w", encoding="utf-8") as file:
        file.writelines(write_coco(entries, categories))
    draft.unlink()
    text = {"mutable": False, "input_type": "text", "default_value": "", "values": [""]}
    attributes = [{"name": name, **text} for name in ("caption", *sorted(noted, reverse=True))]
    labels = [{"name": name, "attributes": attributes} for name in categories or [NO_CATEGORY]]
    (folder / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return report


def _coco_record(region: WrittenRegion, polygons: bool) -> dict[str, Any]:
    x0, y0, x1, y1 = region.box
    segmentation: Any = []
    if region.mask is not None:
        segmentation = mask_polygons(region.mask) if polygons else encode_rle(region.mask)
    return {
        "segmentation": segmentation,
        "area": (x1 - x0) * (y1 - y0) if region.mask is None else int(region.mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "category": region.label,
        # Here alone: CVAT would lose a second one, other tools leave it behind uncorrected.
        "attributes": {"caption": region.caption, **region.notes} if region.caption else None,
        "score": region.score,
    }
