"""YOLO: a text file of boxes or polygons per picture, and data.yaml with the names of the classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...yaml_files import quoted_yaml
from .common import PictureFolder, Shapes, WriteReport, WrittenRegion, mask_polygons, note_box, written_regions


def write_yolo(records: Iterable[Mapping[str, Any]], folder: Path, shapes: Shapes) -> WriteReport:
    """Writes `images`, `labels` and `data.yaml`; masks are polygons, and captions are lost.

    A set with boxes and masks has polygons only: from a mixture Ultralytics would train on the boxes alone.
    """
    report = WriteReport(folder / "data.yaml")
    pictures = PictureFolder(folder / "images")
    classes: dict[str, int] = {}
    boxes: list[Path] = []
    has_masks = False
    for record in records:
        size, lines = (record["width"], record["height"]), []
        regions = written_regions(record, report, shapes, one_caption=False)
        for region in regions:
            note_box(region, report)
            report.lost["captions (YOLO has names only)"] += len(region.captions)
            number = classes.setdefault(region.label, len(classes))
            lines.append(f"{number} {_numbers(region, size)}\n")
        report.lost = +report.lost
        path = (folder / "labels" / pictures.add(record)).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")
        has_masks |= any(region.mask is not None for region in regions)
        boxes += [path] if any(region.mask is None for region in regions) else []
    for path in boxes if has_masks else ():
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        path.write_text("".join(" ".join(_corners(row)) + "\n" for row in rows), encoding="utf-8")
        report.lost["boxes without a mask (written as polygons of four corners)"] += sum(len(row) == 5 for row in rows)
    report.path.write_text(_data_yaml(classes), encoding="utf-8")
    return report


def _numbers(region: WrittenRegion, size: tuple[int, int]) -> str:
    """Returns a polygon, or center and size of a box, in fractions of the picture's width and height."""
    if region.mask is not None:
        values = mask_polygons(region.mask, single=True)[0]
    else:
        x0, y0, x1, y1 = region.box
        values = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    return " ".join(f"{value / size[index % 2]:.8g}" for index, value in enumerate(values))


def _corners(row: list[str]) -> list[str]:
    if len(row) != 5:
        return row
    x, y, width, height = map(float, row[1:])
    left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return row[:1] + [f"{value:.8g}" for value in (left, top, right, top, right, bottom, left, bottom)]


def _data_yaml(classes: Mapping[str, int]) -> str:
    # Quoted, as Ultralytics reads YAML 1.1, where a class called `no` would be false.
    names = (quoted_yaml(name) for name in classes)
    # Ultralytics asks for both.
    head = "# Split the pictures before you train: val is the same as train.\ntrain: images\nval: images\nnames:\n"
    return head + "".join(f"  {number}: {name}\n" for number, name in enumerate(names))
