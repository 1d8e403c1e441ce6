"""What the writers share: the report of what a form cannot keep, copies of pictures, and masks as polygons."""

from __future__ import annotations

import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...processing.masks_sca import decode_rle, mask_extent
from ..notes import NOTES
from ..readers.common import IMAGE_SUFFIXES


Shapes = Literal["pixels", "polygons", "boxes"]
SHAPES: tuple[Shapes, ...] = ("pixels", "polygons", "boxes")
NO_CATEGORY = "object"
# Closer than this, in pixels, polygons follow the outline of their mask.
_TOLERANCE = 0.5
# Rings of fewer unit edges keep every corner.
_SHORT_RING = 24
_LONGEST_NAME = 240  # bytes, with room for a number and another suffix
_FORBIDDEN = set('<>:"|?*\\')


@dataclass
class WriteReport:
    """What was written.

    Attributes:
        path: What to give to the tool.
        images: How many images are in it.
        regions: How many regions are in it.
        lost: What the form cannot keep, as `{"captions (the form has names only)": 12}`.
    """

    path: Path
    images: int = 0
    regions: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lost = "".join(f"; not kept: {count} {what}" for what, count in sorted(self.lost.items()))
        return f"{self.images} images, {self.regions} regions: {self.path}{lost}"


@dataclass
class WrittenRegion:
    """A region as all writers want it; box is xyxy in pixels, far edges exclusive; notes are on its first caption."""

    box: list[float]
    mask: np.ndarray | None
    label: str
    captions: list[str]
    score: float | None
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The caption, or an empty text."""
        return self.captions[0] if self.captions else ""


def written_regions(
    record: Mapping[str, Any],
    report: WriteReport,
    shapes: Shapes,
    one_caption: bool = True,
    keeps_notes: bool = False,
) -> list[WrittenRegion]:
    """Returns a record's regions, counts them, and notes what no form keeps.

    Args:
        record: A row, see [`write_regions`].
        report: Is brought up to date.
        shapes: What regions are; "boxes" leaves masks out.
        one_caption: Whether the form has room for one caption per region only.
        keeps_notes: Whether it has room for the length and the language of the first caption.
    """
    found = []
    for region in record["regions"]:
        rle = region.get("mask") if shapes != "boxes" else None
        mask = decode_rle(dict(rle)) if rle is not None and rle.get("counts") else None
        mask = mask if mask is not None and mask.any() else None
        captions = [text for text in region.get("captions") or () if text.strip()]
        report.lost["further captions of a region"] += len(captions[1:]) if one_caption else 0
        report.lost["regions' points"] += region.get("points") is not None
        said = {name: values for name in NOTES if any(values := list(region.get(name) or ()))}
        report.lost.update({f"{name} of captions": 1 for name in said if not keeps_notes})
        notes = {name[:-1]: values[0] for name, values in said.items() if values[0]}
        label = region.get("category") or NO_CATEGORY
        found.append(WrittenRegion(list(region["box"]), mask, label, captions, region.get("score"), notes))
    report.images += 1
    report.regions += len(found)
    report.lost = +report.lost
    return found


def note_box(region: WrittenRegion, report: WriteReport) -> None:
    """Notes a box that is lost because the form keeps the mask alone, whose extent is another."""
    if region.mask is not None:
        apart = max(abs(a - b) for a, b in zip(region.box, mask_extent(region.mask), strict=True))
        if apart > 1:
            report.lost["boxes that differ from the extent of their mask"] += 1


class PictureFolder:
    """Copies pictures into a folder, under names that every tool and file system can hold.

    Args:
        folder: The folder to make.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, record: Mapping[str, Any]) -> str:
        """Copies a record's picture and returns its name: a relative path, no two alike up to their suffix.

        A letter that some file system refuses becomes `_`, and so does a name that another picture has.
        """
        image = record["image"]
        if isinstance(image, Mapping):
            image = image["path"] if image.get("bytes") is None else image["bytes"]
        source = Path(image) if isinstance(image, str | Path) else None
        given = record.get("name") or _own_name(str(record.get("image_id", "")), source)
        suffix = _suffix(image) if PurePosixPath(given).suffix.lower() not in IMAGE_SUFFIXES else ""
        name = self._free_name(_safe(given + suffix))
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if source is not None:
            shutil.copyfile(source, path)
        elif isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
        return name

    def _free_name(self, name: str) -> str:
        path = PurePosixPath(name)
        stem, number = path.with_suffix("").as_posix(), 1
        # Label files are called after the picture without its suffix, on file systems of any kind.
        while (
            key := unicodedata.normalize("NFKC", free := stem + f"_{number}" * (number > 1)).casefold()
        ) in self.taken:
            number += 1
        self.taken.add(key)
        return free + path.suffix


def _own_name(image_id: str, source: Path | None) -> str:
    if image_id and (source is None or PurePosixPath(image_id).suffix.lower() in IMAGE_SUFFIXES):
        return image_id
    return source.name if source is not None else "image"


def _suffix(image: Any) -> str:
    """Returns the suffix that belongs to what a picture holds."""
    if isinstance(image, Image.Image):
        return ".png"
    with Image.open(BytesIO(image) if isinstance(image, bytes) else image) as picture:
        kind = str(picture.format).lower()
    return {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")


def _safe(name: str) -> str:
    parts = []
    for part in PurePosixPath(name.encode("utf-8", "replace").decode()).parts:
        text = "".join("_" if letter in _FORBIDDEN or not letter.isprintable() else letter for letter in part)
        text = text.strip(" ").rstrip(".")
        if len(text.encode()) > _LONGEST_NAME:
            text = text[:40] + PurePosixPath(text).suffix[:20]
        if text.strip("/"):
            # `images` is what YOLO replaces by `labels` in a path; a dot in front hides a file.
            parts.append("_" + text if text.startswith(".") or text.lower() == "images" else text)
    return "/".join(parts) or "image.png"


def mask_polygons(mask: np.ndarray, single: bool = False) -> list[list[float]]:
    """Returns the outlines of a mask as polygons x0, y0, x1, y1, ... in pixels, pixel (0, 0) reaching from 0 to 1.

    A mask with holes becomes one polygon whose parts are joined by lines of no width, as polygons have no holes.

    Args:
        mask: A mask that is not empty, (height, width) bool.
        single: Whether all parts are joined into one polygon in any case.
    """
    rings = list(_rings(mask))
    outlines = [_simplified(ring) for ring in rings]
    if single or any(_area(ring) < 0 for ring in rings):
        outlines = [_joined(outlines)]
    return [outline.ravel().tolist() for outline in outlines]


def _rings(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the closed ways around a mask's parts along the edges of pixels: (edges, 2) corners x, y.

    Parts that touch at a corner are apart; around a part the area is positive, around a hole negative.
    """
    padded = np.pad(mask.astype(np.int8), 1)
    down, across = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    # Every edge as its first corner and a direction, such that the mask lies on its right.
    edges: dict[tuple[int, int, int, int], None] = {}
    for steps, sign, (dx, dy) in ((down, 1, (1, 0)), (down, -1, (-1, 0)), (across, -1, (0, 1)), (across, 1, (0, -1))):
        rows, columns = np.nonzero(steps == sign)
        for x, y in zip((columns + (dx < 0)).tolist(), (rows + (dy < 0)).tolist(), strict=True):
            edges[x, y, dx, dy] = None
    while edges:
        first = x, y, dx, dy = next(iter(edges))
        corners = []
        while True:
            del edges[x, y, dx, dy]
            corners.append((x, y))
            x, y = x + dx, y + dy
            # To the right where there is a choice: that goes around the same pixel.
            turns = ((-dy, dx), (dx, dy), (dy, -dx))
            found = next((turn for turn in turns if (x, y, *turn) in edges or (x, y, *turn) == first), None)
            if found is None or (x, y, *found) == first:
                break
            dx, dy = found
        yield np.array(corners, float)


def _area(ring: np.ndarray) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def _simplified(ring: np.ndarray) -> np.ndarray:
    """Drops the points that lie within the tolerance of the line without them (Douglas and Peucker)."""
    if len(ring) < _SHORT_RING:
        straight = np.roll(ring, 1, 0) + np.roll(ring, -1, 0) == 2 * ring
        return ring[~straight.all(1)]
    # The middles of edges: the corners of a staircase lie on both sides of the line that it stands for.
    points = (ring + np.roll(ring, -1, 0)) / 2
    points = np.concatenate([points, points[:1]])
    far = int(((points - points[0]) ** 2).sum(1).argmax())
    keep = {0, far}
    todo = [(0, far), (far, len(points) - 1)]
    while todo:
        start, end = todo.pop()
        if end - start < 2:
            continue
        line, offsets = points[end] - points[start], points[start + 1 : end] - points[start]
        length = float(np.hypot(*line))
        across = np.abs(offsets[:, 0] * line[1] - offsets[:, 1] * line[0]) / (length or 1.0)
        distances = across if length else np.hypot(*offsets.T)
        worst = int(distances.argmax())
        if distances[worst] > _TOLERANCE:
            middle = start + 1 + worst
            keep.add(middle)
            todo += [(start, middle), (middle, end)]
    return points[sorted(keep)] if len(keep) > 2 else ring


def _joined(outlines: list[np.ndarray]) -> np.ndarray:
    """Goes from one outline to the next and back over a line of no width, between their nearest points."""
    joined = outlines[0]
    for outline in outlines[1:]:
        apart = ((joined[:, None] - outline[None]) ** 2).sum(-1)
        here, there = np.unravel_index(int(apart.argmin()), apart.shape)
        way = np.concatenate([outline[there:], outline[: there + 1]])
        joined = np.concatenate([joined[: here + 1], way, joined[here:]])
    return joined
