"""COCO JSON of captioned regions: one annotation per region, its caption in the annotation."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any


_CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}
_ALSO = ("caption", "score", "predicted_iou", "stability_score", "point_coords", "box_prompt", "crop_box")


def coco_annotations(records: Iterable[dict[str, Any]], image_id: int, first_id: int) -> Iterator[dict[str, Any]]:
    """Yields the annotations of one image.

    Args:
        records: The records that `caption_anything` returns.
        image_id: The image's id in the file.
        first_id: The id of the first annotation.
    """
    for number, record in enumerate(records, first_id):
        yield {
            "id": number,
            "image_id": image_id,
            "category_id": _CATEGORY["id"],
            "segmentation": record["segmentation"],
            "area": record["area"],
            "bbox": record["bbox"],
            "iscrowd": 0,
            **{name: record[name] for name in _ALSO if name in record},
        }


def write_coco(entries: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[str]:
    """Yields the text of a COCO JSON file.

    Args:
        entries: Yields `image`, `width`, `height` and `records` of each image; it is called twice.
    """
    yield '{"info": {"description": "Regions and captions by sca-hf"},\n"images": ['
    for number, entry in enumerate(entries(), 1):
        image = {"id": number, "file_name": entry["image"], "width": entry["width"], "height": entry["height"]}
        yield (",\n" if number > 1 else "\n") + json.dumps(image, ensure_ascii=False)
    yield '\n],\n"annotations": ['
    count = 0
    for number, entry in enumerate(entries(), 1):
        for annotation in coco_annotations(entry["records"], number, count + 1):
            yield (",\n" if count else "\n") + json.dumps(annotation, ensure_ascii=False)
            count += 1
    yield f'\n],\n"categories": [{json.dumps(_CATEGORY)}]}}\n'
