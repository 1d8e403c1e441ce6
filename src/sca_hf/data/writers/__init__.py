"""Writes regions and their captions as annotation tools import them, so that people can correct both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...files import staged
from .coco import coco_annotations, write_coco, write_cvat
from .common import SHAPES, Shapes, WriteReport
from .label_studio import write_label_studio
from .labelme import write_labelme
from .yolo import write_yolo


Writer = Callable[[Iterable[Mapping[str, Any]], Path, Shapes], WriteReport]
# tool -> what writes the folder that it imports
WRITERS: dict[str, Writer] = {
    "cvat": write_cvat,
    "label_studio": write_label_studio,
    "labelme": write_labelme,
    "yolo": write_yolo,
}


def write_regions(
    tool: str, records: Iterable[Mapping[str, Any]], output: str | Path, shapes: Shapes = "pixels"
) -> WriteReport:
    """Writes regions and a copy of their pictures into a new folder, in the form that an annotation tool imports.

    Args:
        tool: A key of `WRITERS`.
        records: Rows as `data.region.RegionRecord` has them; a row may have a `name`, the relative path that its
            picture gets, and a region a `score`.
        output: The folder to make. One that exists is left alone, as it may hold corrections.
        shapes: What regions with a mask are: "pixels", "polygons" that follow the mask to about a pixel (YOLO has no
            pixels), or "boxes", without the mask.
    """
    if shapes not in SHAPES:
        raise ValueError(f"shapes is {shapes!r}, expected one of {', '.join(SHAPES)}.")
    if tool not in WRITERS:
        raise ValueError(f"tool is {tool!r}, expected one of {', '.join(WRITERS)}.")
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists and may contain corrections; rename or remove it to write it again.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with staged(output) as folder:
        report = WRITERS[tool](records, folder, shapes)
    return replace(report, path=output / report.path.relative_to(folder))


__all__ = ["SHAPES", "WRITERS", "Shapes", "WriteReport", "coco_annotations", "write_coco", "write_regions"]
