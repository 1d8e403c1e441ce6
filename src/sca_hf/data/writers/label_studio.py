"""Label Studio: tasks with predictions to be corrected, and the labeling interface that shows them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ..readers.label_studio import encode_brush
from .common import PictureFolder, Shapes, WriteReport, WrittenRegion, mask_polygons, note_box, written_regions


# type of the result -> name of its control in the labeling interface
_CONTROLS = {"brushlabels": "mask", "polygonlabels": "polygon", "rectanglelabels": "box"}
_TAGS = {"mask": "BrushLabels", "polygon": "PolygonLabels", "box": "RectangleLabels"}


def write_label_studio(records: Iterable[Mapping[str, Any]], folder: Path, shapes: Shapes) -> WriteReport:
    """Writes `tasks.json`, `config.xml` (the labeling interface) and `images`, to be served as local files.

    Label Studio's LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT is the folder of these three.
    """
    report = WriteReport(folder / "tasks.json")
    pictures = PictureFolder(folder / "images")
    labels: dict[str, None] = {}
    with report.path.open("w", encoding="utf-8") as file:
        separator = "["
        for record in records:
            size = (int(record["width"]), int(record["height"]))
            result: list[dict[str, Any]] = []
            regions = written_regions(record, report, shapes, one_caption=False)
            for number, region in enumerate(regions, 1):
                note_box(region, report)
                region.label = "".join(letter if letter.isprintable() else " " for letter in region.label)
                labels[region.label] = None
                result += _results(region, f"region{number}", size, shapes == "polygons")
            scores = [region.score for region in regions if region.score is not None]
            prediction: dict[str, Any] = {"model_version": "sca-hf", "result": result}
            prediction |= {"score": sum(scores) / len(scores)} if scores else {}
            image = f"/data/local-files/?d=images/{quote(pictures.add(record))}"
            image_id = str(record.get("image_id") or record.get("name") or "")
            data = {"image": image, "image_id": image_id.encode("utf-8", "replace").decode()}
            task = {"data": data, "predictions": [prediction]}
            file.write(separator + json.dumps(task, ensure_ascii=False))
            separator = ",\n"
        file.write("[]\n" if separator == "[" else "]\n")
    (folder / "config.xml").write_text(_config(labels), encoding="utf-8")
    return report


def _results(region: WrittenRegion, region_id: str, size: tuple[int, int], polygons: bool) -> Iterator[dict[str, Any]]:
    """Yields the results of a region, told to be one by their id: its place with its label, then its captions."""
    width, height = size
    if region.mask is None:
        x0, y0, x1, y1 = region.box
        value: dict[str, Any] = {"x": 100 * x0 / width, "y": 100 * y0 / height, "rotation": 0}
        value |= {"width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height}
        kind = "rectanglelabels"
    elif polygons:
        points = mask_polygons(region.mask, single=True)[0]
        pairs = zip(points[::2], points[1::2], strict=True)
        value = {"points": [[100 * x / width, 100 * y / height] for x, y in pairs], "closed": True}
        kind = "polygonlabels"
    else:
        value = {"format": "rle", "rle": encode_brush(region.mask)}
        kind = "brushlabels"
    shared = {"id": region_id, "to_name": "image", "original_width": width, "original_height": height}
    shared |= {"image_rotation": 0}
    score = {} if region.score is None else {"score": region.score}
    value |= {kind: [region.label]}
    yield {**shared, "from_name": _CONTROLS[kind], "type": kind, "value": value, **score}
    if region.captions:
        yield {**shared, "from_name": "caption", "type": "textarea", "value": {"text": region.captions}}


def _config(labels: Iterable[str]) -> str:
    listed = "".join(f"\n    <Label value={quoteattr(label)}/>" for label in labels)
    controls = "".join(f'  <{tag} name="{name}" toName="image">{listed}\n  </{tag}>\n' for name, tag in _TAGS.items())
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f"{controls}"
        '  <TextArea name="caption" toName="image" perRegion="true" editable="true" displayMode="region-list"/>\n'
        "</View>\n"
    )
