"""A sheet of regions: each cut out with its surroundings, its outline drawn, its text below."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from .labels import line_height, text_font, wrap_text
from .overlay import Color, DrawnRegion, draw_regions


# Pixels of the sheet.
_TILE = (300, 225)
_GAP = 14
_TEXT, _NOTE, _TITLE = 15, 12, 20
_PAPER, _INK, _GREY, _EMPTY = (255, 255, 255), (24, 26, 30), (120, 124, 132), (232, 234, 238)
# What is seen around a region, as a fraction of its longer side.
_SURROUNDINGS = 0.35


@dataclass
class SheetTile:
    """One region of a sheet.

    Attributes:
        picture: the region and what is around it, from `cut_region`.
        lines: texts below the picture, and the color of each; every one is broken into two lines at most.
        note: a last line, small.
    """

    picture: Image.Image
    lines: Sequence[tuple[str, Color]]
    note: str = ""


def cut_region(image: Image.Image, region: DrawnRegion, size: tuple[int, int] = _TILE) -> Image.Image:
    """Cuts a region out with some of its surroundings and draws its mask, box and points; always of the same size.

    Args:
        image: the whole image.
        region: in pixels of the image; its caption is not drawn.
        size: width and height of what comes back.
    """
    window = _window(region, image.size, size[0] / size[1])
    left, top, right, bottom = window
    mask = region.mask[top:bottom, left:right] if region.mask is not None else None
    box = (
        [region.box[0] - left, region.box[1] - top, region.box[2] - left, region.box[3] - top] if region.box else None
    )
    points = [(x - left, y - top) for x, y in region.points]
    part = image.convert("RGB").crop(window)
    scale = min(size[0] / part.width, size[1] / part.height)
    fitted = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    drawn = DrawnRegion(mask=mask, box=box, points=points, labels=region.labels)
    part = draw_regions(part, [drawn], smallest=max(fitted), largest=max(fitted))
    tile = Image.new("RGB", size, _EMPTY)
    tile.paste(part, ((size[0] - fitted[0]) // 2, (size[1] - fitted[1]) // 2))
    return tile


def draw_sheet(tiles: Sequence[SheetTile], title: str = "", columns: int = 4) -> Image.Image:
    """Draws tiles in rows, in their order; pictures of another size are fitted in."""
    heading = text_font(_TITLE, title)
    text = text_font(_TEXT, "".join(line for tile in tiles for line, _ in tile.lines))
    note = text_font(_NOTE, "".join(tile.note for tile in tiles))
    laid = []
    for tile in tiles:
        rows = [(row, color) for line, color in tile.lines for row in wrap_text(line, text, _TILE[0], max_lines=2)]
        laid.append((tile, rows, wrap_text(tile.note, note, _TILE[0], max_lines=1) if tile.note else []))
    columns = max(1, min(columns, len(laid)))
    height = [0] * ceil(len(laid) / columns)
    for index, (_, rows, notes) in enumerate(laid):
        needed = _TILE[1] + 6 + len(rows) * line_height(text) + len(notes) * line_height(note)
        height[index // columns] = max(height[index // columns], needed)
    width = _GAP + columns * (_TILE[0] + _GAP)
    titles = wrap_text(title, heading, width - 2 * _GAP) if title else []
    top = _GAP + len(titles) * line_height(heading) + (_GAP // 2 if titles else 0)
    page = Image.new("RGB", (width, top + sum(height) + _GAP * len(height)), _PAPER)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(titles):
        draw.text((_GAP, _GAP + index * line_height(heading)), line, fill=_INK, font=heading)
    for index, (tile, rows, notes) in enumerate(laid):
        row, column = divmod(index, columns)
        left, y = _GAP + column * (_TILE[0] + _GAP), top + sum(height[:row]) + _GAP * row
        page.paste(tile.picture if tile.picture.size == _TILE else ImageOps.contain(tile.picture, _TILE), (left, y))
        y += _TILE[1] + 4
        for line, color in rows:
            draw.text((left, y), line, fill=color, font=text)
            y += line_height(text)
        for line in notes:
            draw.text((left, y + 1), line, fill=_GREY, font=note)
    return page


def _window(region: DrawnRegion, size: tuple[int, int], shape: float) -> tuple[int, int, int, int]:
    """The part of the image to show: of this shape, width by height, where the image is large enough; inside it."""
    extent = region.extent(size)
    around = 2 * _SURROUNDINGS * max(extent.width, extent.height)
    # A region of a few pixels says nothing without a good deal of its image.
    wanted = np.maximum([extent.width + around, extent.height + around], max(48.0, max(size) / 10))
    wanted = np.array([max(wanted[0], wanted[1] * shape), max(wanted[1], wanted[0] / shape)])
    wanted = np.minimum(wanted, size)
    start = np.clip(np.array(extent.center) - wanted / 2, 0, np.array(size) - wanted)
    left, top = (int(value) for value in np.floor(start))
    right, bottom = (int(value) for value in np.ceil(start + wanted))
    return left, top, max(left + 1, min(right, size[0])), max(top + 1, min(bottom, size[1]))
