"""The first stage of self-training: regions of pictures that nobody has labeled, and what a teacher says of each.

A run over images as `sca_hf.anything.folder` has it: shared by processes, and resumed after a kill. Beside its records
stand the pictures, so that the later stages need nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..anything.folder import FolderResult, FolderRun, ImageCaptioner, file_name, run_folder, wait_and_finish
from ..anything.sources import ImageItem
from ..captioning import IMAGE_ERRORS, image_error
from ..files import replacing, save_picture
from ..processing.anything_sca import caption_anything, encode_image
from .settings import VIEWS
from .views import ViewCaptioner


# In the folder of the stage.
PICTURES, RECORDS = "pictures", "records.jsonl"


@dataclass
class ProposeRun(FolderRun):
    """What decides the proposals, beside what decides any run over images.

    Attributes:
        views: In which views a region is captioned, of `VIEWS`; the first, `box`, always is.
        num_beams: How many beams the view `beams` searches with.
    """

    views: tuple[str, ...] = VIEWS
    num_beams: int = 3

    def __post_init__(self) -> None:
        if unknown := [view for view in self.views if view not in VIEWS]:
            raise ValueError(f"views has {unknown[0]!r}, expected some of {', '.join(VIEWS)}.")
        # A region is captioned by its box: a point may be on several things.
        self.settings = {**self.settings, "caption_prompt": "box"}

    @property
    def further_views(self) -> tuple[str, ...]:
        """The views beside the first, in the order of `VIEWS`."""
        return tuple(view for view in VIEWS[1:] if view in self.views)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed."""
        return {**super().identity, "views": list(self.further_views), "num_beams": self.num_beams}


def propose(
    run: ProposeRun, items: list[ImageItem], rank: int = 0, world: int = 1, progress: bool = True
) -> FolderResult | None:
    """Writes what the teacher says of the regions of all images; resumes where a run of the same settings was stopped.

    `run.output` gets `records.jsonl`, a line per image, `coco.json`, `failed.json` and `pictures`: links to the files
    where the disk has them, else copies.

    Args:
        run: What to do.
        items: All images; process `rank` of `world` takes every `world`-th.
        rank: The number of this process.
        world: How many processes share the run.
        progress: Whether a bar shows how far the run is.

    Returns:
        What all processes came to; None in all but the first.
    """
    result = run_folder(run, items, rank, world, proposals(run), progress)
    if result is None or rank:
        result = wait_and_finish(run, items, rank)
    if result is not None:
        for item in items:  # one that was removed since
            if item.name not in result.failed and not (place := Path(run.output) / picture_of(item)).is_file():
                _keep_picture(item, place)
    return result


def proposals(run: ProposeRun) -> Callable[[list[ImageItem]], Iterable[dict[str, Any]]]:
    """Returns what `run_folder` takes as `caption`."""

    def lines(items: list[ImageItem]) -> Iterator[dict[str, Any]]:
        captioner = ImageCaptioner(run)
        views = ViewCaptioner(captioner.model, captioner.processor, run.further_views, run.num_beams, captioner.task)
        for item in items:
            known = {"image": item.name, "picture": item.stamp}
            try:
                picture = item.load()
                records = _records(run, captioner, views, item, picture)
            except IMAGE_ERRORS as error:
                yield {**known, "error": image_error(error)}
                continue
            _keep_picture(item, Path(run.output) / picture_of(item))
            more = {"width": picture.width, "height": picture.height, "file": picture_of(item)}
            yield {**known, **more, "task": captioner.task, "records": records}

    return lines


def _records(
    run: ProposeRun, captioner: ImageCaptioner, views: ViewCaptioner, item: ImageItem, picture: Any
) -> list[dict[str, Any]]:
    model, processor, boxes = captioner.model, captioner.processor, run.boxes_of(item)
    encoded = encode_image(model, processor, picture)
    records = caption_anything(model, processor, picture, captioner.settings, boxes, encoded, **run.generation)
    regions = [{"box": region_box(record), "mask": record["segmentation"]} for record in records]
    for record, said in zip(records, views.captions(picture, regions, encoded), strict=True):
        own = {"view": VIEWS[0], "caption": record["caption"], "score": record["score"]}
        record["views"] = [own, *said]
    return records


def region_box(record: dict[str, Any]) -> list[float]:
    """Returns the box of a record of anything mode, xyxy: a detector's, or the extent of its mask."""
    if "box_prompt" in record:
        return list(record["box_prompt"])
    x, y, width, height = record["bbox"]
    return [x, y, x + width, y + height]


def picture_of(item: ImageItem) -> str:
    """Returns where the picture of an image stands in the folder of the stage."""
    name = file_name(item.name)
    return f"{PICTURES}/{name}" if _source(item) is not None else f"{PICTURES}/{name}.png"


def _source(item: ImageItem) -> Path | None:
    """Returns the file of a picture, where it is one."""
    image = item.image
    if isinstance(image, dict):
        image = image["image"]
        if isinstance(image, dict):
            image = image.get("path") if image.get("bytes") is None else None
    return Path(image) if isinstance(image, str | Path) and os.path.isfile(image) else None


def _keep_picture(item: ImageItem, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    source = _source(item)
    if source is None:
        save_picture(item.load(), place)
        return
    with replacing(place) as draft:
        try:
            os.link(os.path.realpath(source), draft)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, draft)
