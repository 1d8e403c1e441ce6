"""The labels of a picture: their text, measured and broken into lines, and where they go.

A label goes near its region, inside the canvas, never on another.

Frame of reference everywhere in this file: pixels of the canvas, x to the right, y down, far edges exclusive.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import ImageFont


# What a candidate place costs: hiding the picture's subject, being far from it, having to be looked for.
_COVER_OWN = 2.5
_COVER_OTHER = 2.0
_DISTANCE = 1.5
_CENTER = 0.1
# Cells of the summed-area tables, so that large pictures cost no more than small ones.
_CELL = 4

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Fonts that systems come with, those that know most scripts behind those that read best.
_FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "Arial Unicode.ttf",
    "msgothic.ttc",
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
) -> list[Rect] | None:
    """Finds a place for each label.

    Args:
        sizes: the widths and heights that each label may take, for instance with its text broken at different places.
        anchors: the extent of the region that each label names.
        covers: (ceil(height / 4), ceil(width / 4)) floats in 0..1 per label: how much of each cell its region fills.
        canvas: width and height.
        keep_clear: places where no label may go, for instance point markers.
        gap: The smallest distance between two labels, and from the canvas's edge.

    Returns:
        One rectangle per label, in order, or None where they do not all fit.
    """
    tables = [_summed_area(cover) for cover in covers]
    everything = np.sum(tables, axis=0) if tables else np.zeros((1, 1))
    candidates = [
        np.concatenate([_candidates(size, anchor, canvas, gap) for size in choices])
        for choices, anchor in zip(sizes, anchors, strict=True)
    ]
    costs = [
        _costs(places, anchor, table, everything - table, canvas, gap)
        for places, anchor, table in zip(candidates, anchors, tables, strict=True)
    ]
    for places, cost in zip(candidates, costs, strict=True):
        cost[_hits(places, keep_clear, 1.0)] = np.inf
    # Small regions first: a large one has more places nearby. Then each may improve, given all the others.
    order = sorted(range(len(sizes)), key=lambda i: anchors[i].width * anchors[i].height)
    placed: dict[int, Rect] = {}
    for index in order * 3:
        others = [rect for i, rect in placed.items() if i != index]
        cost = np.where(_hits(candidates[index], others, gap), np.inf, costs[index])
        if not len(cost) or not np.isfinite(cost.min()):
            return None
        placed[index] = Rect(*map(float, candidates[index][int(cost.argmin())]))
    return [placed[index] for index in range(len(sizes))]


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
    places: np.ndarray, anchor: Rect, own: np.ndarray, others: np.ndarray, canvas: tuple[int, int], gap: float
) -> np.ndarray:
    """What each place costs, without regard to other labels."""
    across = np.maximum(0, np.maximum(anchor.left - places[:, 2], places[:, 0] - anchor.right))
    down = np.maximum(0, np.maximum(anchor.top - places[:, 3], places[:, 1] - anchor.bottom))
    distance = np.maximum(0, np.hypot(across, down) - gap) / (0.25 * max(canvas))
    own_share = _area_in(own, places) / max(1.0, own[-1, -1])
    area = (places[:, 2] - places[:, 0]) * (places[:, 3] - places[:, 1]) / _CELL**2
    other_share = _area_in(others, places) / np.maximum(1.0, area)
    center = np.abs(places[:, [0, 1]] + places[:, [2, 3]] - np.add(anchor[:2], anchor[2:])).sum(1) / (2 * max(canvas))
    return _DISTANCE * distance + _COVER_OWN * own_share + _COVER_OTHER * other_share + _CENTER * center


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
    """(n,) cells of the table's mask inside each place, to the next cell."""
    rows, columns = np.array(table.shape) - 1
    left, right = (np.round(places[:, i] / _CELL).astype(int).clip(0, columns) for i in (0, 2))
    top, bottom = (np.round(places[:, i] / _CELL).astype(int).clip(0, rows) for i in (1, 3))
    return table[bottom, right] - table[top, right] - table[bottom, left] + table[top, left]


def text_font(size: int, text: str = "") -> Font:
    """The first font that is installed and knows most letters of a text; the last choice comes with Pillow.

    Args:
        size: height in pixels.
        text: what is to be written.
    """
    fonts = _fonts(size)
    letters = {letter for letter in text if not letter.isascii()}
    return max(fonts, key=lambda font: sum(_knows(font, letter) for letter in letters))


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
