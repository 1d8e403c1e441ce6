"""Reads LVIS: COCO's photographs with masks of 1,203 categories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .coco import CocoFile
from .sources import Clip, Record, find_file, inside


def read_lvis(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    masks: bool = True,
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `lvis_v1_train.json` or `lvis_v1_val.json`.

    Which categories are known to be absent from an image, or not marked everywhere, is of no use here and not read.

    Args:
        annotations: the file; of version 1, which tells a picture by `coco_url`, or 0.5.
        images: the folder that holds `train2017` and `val2017` (both splits take pictures of both).
        names: words for the names in the file; by default what is in brackets there, as `bow_(weapon)`, is dropped.
        task, masks, clip: as for COCO.
    """
    folder = Path(images)

    def locate(image: Mapping[str, Any]) -> Path | None:
        if "coco_url" not in image:
            name = str(image["file_name"])
            # Version 0.5 writes COCO_val2014_000000000042.jpg for what is 000000000042.jpg in val2017.
            plain = name.rsplit("_", 1)[-1]
            found = find_file([folder, folder / "train2017", folder / "val2017"], [name, plain])
            return found or inside(folder, name)
        split, name = urlsplit(str(image["coco_url"])).path.rsplit("/", 2)[-2:]
        return find_file([folder], [f"{split}/{name}", name]) or inside(folder, f"{split}/{name}")

    file = CocoFile(Path(annotations), locate, task, names, "skip", masks, clip, plain=_without_brackets)
    yield from file.records()


def _without_brackets(name: str) -> str:
    return name.split("_(")[0]
