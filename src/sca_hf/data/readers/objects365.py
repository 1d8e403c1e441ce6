"""Reads the large box-only sets that follow COCO's form: Objects365 version 2 and V3Det."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .coco import CocoFile, Crowd
from .sources import Clip, Record, find_file, inside


def read_objects365(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `zhiyuan_objv2_train.json` or `zhiyuan_objv2_val.json`.

    Three photographs that the training file names were never published: read it with `on_error="skip"`.

    Args:
        annotations: the file.
        images: the folder that holds `images/v1/patch0/...` as the file names them, or `patch0/...`, or all pictures.
        crowd: whether the boxes that are marked as a group are regions.
        task, names, clip: as for COCO.
    """
    locate = _locate_by_tail(Path(images), 2)
    yield from CocoFile(Path(annotations), locate, task, names, crowd, masks=False, clip=clip).records()


def read_v3det(
    annotations: str | Path,
    images: str | Path,
    task: str = "caption",
    names: Mapping[str, str] | None = None,
    crowd: Crowd = "skip",
    clip: Clip = "rounding",
) -> Iterator[Record]:
    """Yields one record per image of `v3det_2023_v1_train.json` or `v3det_2023_v1_val.json`.

    A few photographs can no longer be fetched: read it with `on_error="skip"`.

    Args:
        annotations: the file.
        images: the folder that holds `images/a00000066/...` as the file names them, or `a00000066/...`.
        crowd: whether the boxes that are marked as a group are regions.
        task, names, clip: as for COCO.
    """
    locate = _locate_by_tail(Path(images), 2)
    yield from CocoFile(Path(annotations), locate, task, names, crowd, masks=False, clip=clip).records()


def _locate_by_tail(folder: Path, parts: int) -> Callable[[Mapping[str, Any]], Path | None]:
    """Finds pictures by their whole name, or by the last parts of it, down to the file's name alone."""

    def locate(image: Mapping[str, Any]) -> Path | None:
        name = str(image["file_name"])
        pieces = name.replace("\\", "/").split("/")
        tails = ["/".join(pieces[-count:]) for count in range(parts, 0, -1)]
        return find_file([folder], dict.fromkeys([name, *tails])) or inside(folder, name)

    return locate
