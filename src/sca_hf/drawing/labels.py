"""The labels of a picture: their text, measured and broken into lines, and where they go.

A label goes near its region, inside the canvas, never on another label, and never on another region.

Frame of reference everywhere in this file: pixels of the canvas, x to the right, y down, far edges exclusive.
"""

import logging
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter, ImageFont

from ..processing.masks_sca import mask_extent


# What a candidate place costs: hiding the picture's subject, being far from it, having to be looked for.
_COVER_OWN = 2.5
_OUTSIDE = 3.0
# As far as a label may be from its region, quarters of the canvas's longer side.
_FARTHEST = 1.0
_TRIES = 8
_DISTANCE = 1.5
_CENTER = 0.1
# Cells of the summed-area tables, so that large pictures cost no more than small ones.
_CELL = 4
# Cells along the longer side of a mask, when its widest part is looked for.
_WIDEST_CELLS = 64

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
logger = logging.getLogger(__name__)
# Scripts that it was said of once that no font knows them.
_WARNED: set[str] = set()

# Fonts that systems come with, those that know most scripts behind those that read best.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "msyh.ttc",
    "Arial Unicode.ttf",
    "msgothic.ttc",
    "FreeSans.ttf",
    "Nirmala.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansBengali-Regular.ttf",
    "NotoSansMalayalam-Regular.ttf",
    "NotoSansThai-Regular.ttf",
)


class Rect(NamedTuple):
    """An axis-parallel rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def grown(self, by: float) -> "Rect":
        return Rect(self.left - by, self.top - by, self.right + by, self.bottom + by)

    def overlaps(self, other: "Rect") -> bool:
        """True where the two share area; touching edges do not count."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of this rectangle that is closest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


def place_labels(
    sizes: Sequence[Sequence[tuple[float, float]]],
    anchors: Sequence[Rect],
    covers: Sequence[np.ndarray],
    canvas: tuple[int, int],
    keep_clear: Sequence[Rect] = (),
    gap: float = 6.0,
    inside: Sequence[bool] = (),
) -> list[Rect] | None:
    """Finds a place for each label; none is on another label, nor on the region of another.

    Args:
        sizes: the widths and heights that each label may take, for instance with its text broken at different places.
        anchors: the extent of the region that each label names.
        covers: (ceil(height / 4), ceil(width / 4)) floats in 0..1 per label: how much of each cell its region fills.
        canvas: width and height.
        keep_clear: places where no label may go, for instance point markers.
        gap: The smallest distance between two labels, and from the canvas's edge.
        inside: for each label whether it belongs into its own region, whatever region that lies in; none where empty.

    Returns:
        One rectangle per label, in order, or None where they do not all fit near their regions.
    """
    tables = [_summed_area(cover) for cover in covers]
    everything = np.sum(tables, axis=0) if tables else np.zeros((1, 1))
    candidates = [
        np.concatenate([_candidates(size, anchor, canvas, gap) for size in choices])
        for choices, anchor in zip(sizes, anchors, strict=True)
    ]
    costs = [
        _costs(places, anchor, table, everything - table, canvas, gap, within)
        for places, anchor, table, within in zip(
            candidates, anchors, tables, inside or [False] * len(sizes), strict=True
        )
    ]
    for places, cost in zip(candidates, costs, strict=True):
        cost[_hits(places, keep_clear, 1.0)] = np.inf
    # Small regions first: a large one has more places nearby. Whoever finds none goes before all others.
    order = sorted(range(len(sizes)), key=lambda i: anchors[i].width * anchors[i].height)
    for _ in range(_TRIES):
        placed, failed = _place_in_turn(order, candidates, costs, gap)
        if failed is None:
            return [placed[index] for index in range(len(sizes))]
        if order[0] == failed:
            break
        order = [failed, *(index for index in order if index != failed)]
    return None


def _place_in_turn(
    order: Sequence[int], candidates: list[np.ndarray], costs: list[np.ndarray], gap: float
) -> tuple[dict[int, Rect], int | None]:
    """Gives each label the best place that is left, then lets each improve; also returns who found none."""
    placed: dict[int, Rect] = {}
    for index in [*order, *order, *order]:
        others = [rect for i, rect in placed.items() if i != index]
        cost = np.where(_hits(candidates[index], others, gap), np.inf, costs[index])
        if not len(cost) or not np.isfinite(cost.min()):
            return placed, index
        placed[index] = Rect(*map(float, candidates[index][int(cost.argmin())]))
    return placed, None


def cover_grid(mask: np.ndarray) -> np.ndarray:
    """Averages a (height, width) mask over cells of 4 x 4 pixels, as `place_labels` wants it."""
    height, width = mask.shape
    padded = np.pad(mask.astype(np.float32), ((0, -height % _CELL), (0, -width % _CELL)))
    return padded.reshape(padded.shape[0] // _CELL, _CELL, padded.shape[1] // _CELL, _CELL).mean((1, 3))


def _candidates(size: tuple[float, float], anchor: Rect, canvas: tuple[int, int], gap: float) -> np.ndarray:
    """(n, 4) rectangles inside the canvas: around and in the anchor first, then a grid over everything."""
    width, height = size
    xs = [anchor.left, anchor.center[0] - width / 2, anchor.right - width]
    ys = [anchor.top, anchor.center[1] - height / 2, anchor.bottom - height]
    near = [(x, y) for y in (anchor.top - height - gap, anchor.bottom + gap, *ys) for x in xs]
    near += [(x, y) for x in (anchor.right + gap, anchor.left - width - gap) for y in ys]
    steps_x = np.arange(gap, canvas[0] - width - gap + 1, max(8.0, width / 8))
    steps_y = np.arange(gap, canvas[1] - height - gap + 1, max(6.0, height / 3))
    grid = np.stack(np.meshgrid(steps_x, steps_y), -1).reshape(-1, 2)
    corners = np.concatenate([np.array(near), grid])
    corners = corners.clip(gap, [max(gap, canvas[0] - width - gap), max(gap, canvas[1] - height - gap)])
    fits = width + 2 * gap <= canvas[0] and height + 2 * gap <= canvas[1]
    return np.concatenate([corners, corners + [width, height]], 1) if fits else np.zeros((0, 4))


def _costs(
    places: np.ndarray,
    anchor: Rect,
    own: np.ndarray,
    others: np.ndarray,
    canvas: tuple[int, int],
    gap: float,
    inside: bool,
) -> np.ndarray:
    """What each place costs, without regard to other labels; infinite where it would hide another region."""
    across = np.maximum(0, np.maximum(anchor.left - places[:, 2], places[:, 0] - anchor.right))
    down = np.maximum(0, np.maximum(anchor.top - places[:, 3], places[:, 1] - anchor.bottom))
    distance = np.maximum(0, np.hypot(across, down) - gap) / (0.25 * max(canvas))
    center = np.abs(places[:, [0, 1]] + places[:, [2, 3]] - np.add(anchor[:2], anchor[2:])).sum(1) / (2 * max(canvas))
    cost = _DISTANCE * distance + _CENTER * center
    if inside:
        area = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1]) / _CELL**2
        return cost + _OUTSIDE * (1 - np.minimum(1.0, _area_in(own, places) / np.maximum(1.0, area)))
    cost += _COVER_OWN * _area_in(own, places) / max(1.0, own[-1, -1])
    # Sums and their differences: what is left of nothing is not quite nothing.
    return np.where((_area_in(others, places) > 0.01) | (distance > _FARTHEST), np.inf, cost)


def _hits(places: np.ndarray, rects: Sequence[Rect], gap: float) -> np.ndarray:
    """(n,) True where a place comes closer than `gap` to any of the rectangles."""
    hit = np.zeros(len(places), bool)
    for rect in rects:
        wide = rect.grown(gap)
        hit |= (
            (places[:, 0] < wide.right)
            & (places[:, 2] > wide.left)
            & (places[:, 1] < wide.bottom)
            & (places[:, 3] > wide.top)
        )
    return hit


def _summed_area(cover: np.ndarray) -> np.ndarray:
    return np.pad(cover.cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _area_in(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n,) cells of the table's mask in each place, those counted whole that it touches."""
    rows, columns = np.array(table.shape) - 1
    left, right = (places[:, 0] // _CELL).astype(int), -(-places[:, 2] // _CELL).astype(int)
    top, bottom = (places[:, 1] // _CELL).astype(int), -(-places[:, 3] // _CELL).astype(int)
    left, right = left.clip(0, columns), right.clip(0, columns)
    top, bottom = top.clip(0, rows), bottom.clip(0, rows)
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def widest_point(mask: np.ndarray) -> tuple[float, float, float] | None:
    """Finds where a (height, width) mask is widest: x, y, and how far its edge is from there; None if it is empty."""
    if not mask.any():
        return None
    left, top, right, bottom = mask_extent(mask)
    part = mask[top:bottom, left:right]
    step = -(-max(part.shape) // _WIDEST_CELLS)
    cells = np.pad(part.astype(np.float32), ((0, -part.shape[0] % step), (0, -part.shape[1] % step)))
    cells = cells.reshape(cells.shape[0] // step, step, cells.shape[1] // step, step).mean((1, 3))
    # Worn away from all sides, cell by cell, until nothing would be left.
    solid = Image.fromarray((np.pad(cells, 1) >= min(0.5, float(cells.max()))).astype(np.uint8) * 255)
    worn = 0
    while (smaller := solid.filter(ImageFilter.MinFilter(3))).getbbox() is not None:
        solid, worn = smaller, worn + 1
    ys, xs = np.nonzero(np.asarray(solid))
    # Of what is left, the piece next to the middle: a ring has no middle of its own.
    best = int(np.argmin((xs - xs.mean()) ** 2 + (ys - ys.mean()) ** 2))
    return left + (float(xs[best]) - 0.5) * step, top + (float(ys[best]) - 0.5) * step, (worn + 0.5) * step


def nearest_inside(cover: np.ndarray, rect: Rect) -> tuple[float, float] | None:
    """Finds the place of a region, given as by [`cover_grid`], that is nearest to a rectangle; None if it is empty."""
    ys, xs = np.nonzero(cover >= min(0.5, max(float(cover.max()), 1e-6)))
    if not len(xs):
        return None
    x, y = (xs + 0.5) * _CELL, (ys + 0.5) * _CELL
    across = x - x.clip(rect.left, rect.right)
    down = y - y.clip(rect.top, rect.bottom)
    best = int(np.argmin(across**2 + down**2))
    return float(x[best]), float(y[best])


def text_font(size: int, text: str = "") -> Font:
    """The first font that is installed and knows most letters of a text; the last choice comes with Pillow.

    What no font here knows is drawn as boxes, and a warning says so, once for each script.

    Args:
        size: height in pixels.
        text: what is to be written.
    """
    fonts = _fonts(size)
    letters = sorted({letter for letter in text if not letter.isascii() and letter.isprintable()})
    best = max(fonts, key=lambda font: sum(_knows(font, letter) for letter in letters))
    missing = [letter for letter in letters if not _knows(best, letter)]
    for script in {_script(letter) for letter in missing} - _WARNED:
        _WARNED.add(script)
        shown = "".join(letter for letter in missing if _script(letter) == script)[:8]
        logger.warning(
            "no font here knows the letters %s (%s): they are drawn as boxes. Install a font that does, for instance "
            "Noto Sans CJK (Debian: fonts-noto-cjk) or FreeSans (fonts-freefont-ttf).",
            shown,
            script,
        )
    return best


def _script(letter: str) -> str:
    """How the name of a letter begins in Unicode, which is its script's for letters."""
    return unicodedata.name(letter, "other").split(" ")[0].title()


@lru_cache(maxsize=8)
def _fonts(size: int) -> tuple[Font, ...]:
    found: list[Font] = []
    for file in _FILES:
        try:
            found.append(ImageFont.truetype(file, size))
        except OSError:
            continue
    return (*found, ImageFont.load_default(size))


@lru_cache(maxsize=4096)
def _knows(font: Font, letter: str) -> bool:
    """Whether a font draws a letter otherwise than a code that stands for none."""
    drawn, missing = (bytes(font.getmask(text)) for text in (letter, "\uffff"))
    return drawn != missing


def font_size(font: Font) -> int:
    """Height of a font in pixels."""
    return round(getattr(font, "size", 11))


def line_height(font: Font) -> int:
    """From one line to the next, in pixels."""
    return round(1.25 * font_size(font))


def text_width(text: str, font: Font) -> float:
    """Width of one line in pixels."""
    return font.getlength(text)


def wrap_text(text: str, font: Font, width: float, max_lines: int | None = None) -> list[str]:
    """Breaks a text at its spaces, or inside a word that is wider than a line.

    Args:
        text: its white space counts as single spaces.
        font: what it is written in.
        width: The width of a line in pixels.
        max_lines: How many lines to return at most; a longer text ends in an ellipsis.
    """
    lines: list[str] = [""]
    for word in text.split() or [""]:
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, font) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, font) > width:
                lines.append("")
            lines[-1] += letter
    if max_lines is None or len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and text_width(last + "…", font) > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + "…"]
