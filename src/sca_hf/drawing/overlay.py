"""A picture of what the model said: mask contours, prompts and readable captions over the image."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from ..processing.masks_sca import mask_extent
from .labels import (
    Font,
    Rect,
    cover_grid,
    font_size,
    line_height,
    nearest_inside,
    place_labels,
    text_font,
    text_width,
    widest_point,
    wrap_text,
)


# Far apart in hue, light enough for dark text on them.
PALETTE = (
    (64, 196, 255),
    (255, 171, 64),
    (105, 240, 130),
    (255, 110, 150),
    (255, 225, 80),
    (186, 150, 255),
    (50, 225, 200),
    (255, 138, 101),
    (190, 235, 80),
    (240, 130, 240),
    (130, 165, 255),
    (225, 190, 140),
)
_INK = (18, 20, 24)
_CHIP = (22, 25, 31)
_PAPER = (245, 246, 248)
# More captions than these, or captions that would hide more than this fraction of the picture, go into a legend.
_MOST_LABELS, _CROWDED = 8, 0.3
# Brightness of what belongs to no region.
_DIMMED = 0.82
Color = tuple[int, int, int]


@dataclass
class DrawnRegion:
    """One region to draw; coordinates in pixels of the original image.

    Attributes:
        caption: the text of its label; None or empty draws none.
        mask: (H, W) bool of the original image; None draws none.
        box: xyxy of a box prompt; None draws none.
        points: (x, y) of the point prompts.
        labels: 1 inside, 0 outside, for each point; all inside where it is empty.
        number: what it is called and colored by, from 1; None takes its place among those that are drawn.
    """

    caption: str | None = None
    mask: np.ndarray | None = None
    box: Sequence[float] | None = None
    points: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = field(default_factory=list)
    number: int | None = None

    def extent(self, size: tuple[float, float]) -> Rect:
        """The rectangle around mask, box and inside points; the whole picture, of `size`, where there are none."""
        labels = self.labels or [1] * len(self.points)
        corners = [(float(x), float(y)) for (x, y), label in zip(self.points, labels, strict=True) if label > 0]
        if self.mask is not None and self.mask.any():
            left, top, right, bottom = map(float, mask_extent(self.mask))
            corners += [(left, top), (right, bottom)]
        if self.box is not None:
            corners += [(float(self.box[0]), float(self.box[1])), (float(self.box[2]), float(self.box[3]))]
        xs, ys = zip(*(corners or [(0.0, 0.0), size]), strict=True)
        return Rect(min(xs), min(ys), max(xs), max(ys))


def draw_regions(
    image: Image.Image, regions: Sequence[DrawnRegion], smallest: int = 900, largest: int = 1800
) -> Image.Image:
    """Draws regions over an image.

    Region i has color i and number i + 1, or those of its own `number`, in the picture and in its label. Labels lie
    near their regions and cover neither each other nor other regions. Where there is no room for that, and for more
    than eight captions, the regions bear their numbers, and the captions stand in a legend beside or below.

    Args:
        image: the original image.
        regions: what to draw; later ones on top.
        smallest: the longer side is enlarged to this many pixels at least, so that text is readable.
        largest: the longer side is reduced to this many pixels at most.

    Returns:
        An RGB picture: the resized image, wider or higher where it has a legend.
    """
    for index, region in enumerate(regions):
        if region.mask is not None and region.mask.shape != image.size[::-1]:
            raise ValueError(
                f"The mask of region {index} has shape {region.mask.shape}, the image needs {image.size[::-1]}."
            )
    longest = max(image.size)
    scale = min(max(longest, smallest), largest) / longest
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    line = max(2.0, max(size) / 330)
    solids = [
        _enlarge_mask(region.mask, size) if region.mask is not None else Image.new("L", size) for region in regions
    ]
    canvas = _dim(canvas, solids)
    covers = []
    for index, solid in enumerate(solids):
        _draw_mask(canvas, solid, color_of(_number(regions, index) - 1), line)
        covers.append(cover_grid(np.asarray(solid) > 127))
    for index, region in enumerate(regions):
        _draw_prompts(canvas, region, scale, color_of(_number(regions, index) - 1), line)
    return _draw_labels(canvas, regions, covers, scale)


def _number(regions: Sequence[DrawnRegion], index: int) -> int:
    number = regions[index].number
    return index + 1 if number is None else number


def color_of(index: int) -> Color:
    """The color of region `index`: the palette, then the palette in paler and paler turns."""
    turn, place = divmod(index, len(PALETTE))
    pale = 1 - 0.75**turn
    red, green, blue = (round(value + (255 - value) * pale) for value in PALETTE[place])
    return red, green, blue


def _enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A mask at the canvas's size, 0 or 255, its pixel stairs rounded off."""
    source = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)
    scale = size[0] / source.width
    smooth = source.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    if scale > 1.2:
        rounded = smooth.filter(ImageFilter.GaussianBlur(0.6 * scale))
        # Lines of one pixel would be rounded away.
        if np.mean(np.asarray(rounded) > 127) > 0.8 * np.mean(mask):
            smooth = rounded
    return smooth.point([0] * 128 + [255] * 128)


def _dim(canvas: Image.Image, solids: Sequence[Image.Image]) -> Image.Image:
    """Darkens what belongs to no mask a little, so that the regions step forward."""
    union = Image.new("L", canvas.size)
    for solid in solids:
        union = ImageChops.lighter(union, solid)
    if union.getbbox() is None:
        return canvas
    return Image.composite(canvas, ImageEnhance.Brightness(canvas).enhance(_DIMMED), union)


def _draw_mask(canvas: Image.Image, solid: Image.Image, color: Color, line: float) -> None:
    """Paints a contour, a glow along its inner side and a faint fill, so that the surface keeps its own colors."""
    extent = solid.getbbox()
    if extent is None:
        return
    margin = round(8 * line)
    window = (
        max(0, extent[0] - margin),
        max(0, extent[1] - margin),
        min(canvas.width, extent[2] + margin),
        min(canvas.height, extent[3] + margin),
    )
    # The border is repeated outwards, so that blurring draws no line where a mask leaves the picture.
    part = Image.fromarray(np.pad(np.asarray(solid.crop(window)), margin, mode="edge"))
    glow = part.filter(ImageFilter.GaussianBlur(4 * line)).point([round(0.7 * (255 - v)) for v in range(256)])
    fill = Image.fromarray(
        np.where(np.asarray(part) > 127, np.maximum(np.asarray(glow), round(0.18 * 255)), 0).astype(np.uint8)
    )
    edge = part.filter(ImageFilter.GaussianBlur(line))
    depths = [line * _depth(value) for value in range(256)]
    dark = edge.point([round(140 * _ramp(1.3 * line - abs(d + 0.6 * line))) for d in depths])
    bright = edge.point([round(255 * _ramp(0.55 * line - abs(d))) for d in depths])
    inner = (margin, margin, part.width - margin, part.height - margin)
    for paint, alpha in ((color, fill), (_INK, dark), (color, bright)):
        canvas.paste(paint, window, alpha.crop(inner))


def _depth(value: int) -> float:
    """Distance to a straight edge, in blur radii and positive inside, at which a blurred mask has this value."""
    return NormalDist().inv_cdf(min(max(value / 255, 1e-3), 1 - 1e-3))


def _ramp(distance: float) -> float:
    """Coverage of a pixel whose center lies `distance` pixels inside a shape."""
    return min(max(distance + 0.5, 0.0), 1.0)


def _draw_prompts(canvas: Image.Image, region: DrawnRegion, scale: float, color: Color, line: float) -> None:
    """Draws a box as thin dashes and points as discs with a plus or a minus."""
    if region.box is not None:
        _draw_box(canvas, [float(value) * scale for value in region.box], color, line)
    for rect, inside in _markers(region, scale, canvas.size):
        _draw_marker(canvas, rect, color if inside else (225, 60, 60), inside)


def _draw_box(canvas: Image.Image, box: list[float], color: Color, line: float) -> None:
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = box
    width = max(2, round(0.7 * line))
    limit = (canvas.width - 1 - width, canvas.height - 1 - width)
    left, right = (min(max(v, width), limit[0]) for v in (left, right))
    top, bottom = (min(max(v, width), limit[1]) for v in (top, bottom))
    for ink, grow in ((_INK, 2), (color, 0)):
        rows = (left, top, right, top), (left, bottom, right, bottom)
        for ends in (*rows, (left, top, left, bottom), (right, top, right, bottom)):
            _dashes(draw, ends, ink, width + grow, 5 * line)


def _dashes(
    draw: ImageDraw.ImageDraw, ends: tuple[float, float, float, float], ink: Color, width: int, dash: float
) -> None:
    """A dashed line that begins and ends with a dash."""
    start, end = np.array(ends[:2]), np.array(ends[2:])
    pieces = 2 * max(1, round(float(np.hypot(*(end - start))) / (2 * dash))) - 1
    for piece in range(0, pieces, 2):
        a, b = (start + (end - start) * share for share in (piece / pieces, (piece + 1) / pieces))
        draw.line([*map(float, a), *map(float, b)], fill=ink, width=width)


def _markers(region: DrawnRegion, scale: float, size: tuple[int, int]) -> list[tuple[Rect, bool]]:
    """Where the discs of a region's points are drawn, and whether each point is inside."""
    radius = max(7.0, max(size) / 100)
    labels = list(region.labels) or [1] * len(region.points)
    return [
        (Rect(x * scale, y * scale, x * scale, y * scale).grown(radius), label > 0)
        for (x, y), label in zip(region.points, labels, strict=True)
        if label >= 0
    ]


def _draw_marker(canvas: Image.Image, rect: Rect, color: Color, inside: bool) -> None:
    factor = 4
    side = round(rect.width) + 4
    tile = Image.new("RGBA", (side * factor, side * factor))
    draw = ImageDraw.Draw(tile)
    middle, radius, bar = side * factor / 2, rect.width * factor / 2, rect.width * factor / 14
    draw.ellipse([middle - radius - factor] * 2 + [middle + radius + factor] * 2, fill=(*_INK, 255))
    draw.ellipse([middle - radius] * 2 + [middle + radius] * 2, fill=(255, 255, 255, 255))
    draw.ellipse([middle - 0.78 * radius] * 2 + [middle + 0.78 * radius] * 2, fill=(*color, 255))
    arm = 0.46 * radius
    ink = _INK if inside else (255, 255, 255)
    draw.rectangle([middle - arm, middle - bar, middle + arm, middle + bar], fill=ink)
    if inside:
        draw.rectangle([middle - bar, middle - arm, middle + bar, middle + arm], fill=ink)
    tile = tile.resize((side, side), Image.Resampling.LANCZOS)
    x, y = rect.center
    canvas.paste(tile, (round(x - side / 2), round(y - side / 2)), tile)


@dataclass(frozen=True)
class _Label:
    """The wrapped text of one region, measured."""

    index: int
    lines: list[str]
    size: tuple[int, int]
    number: int


def _draw_labels(
    canvas: Image.Image, regions: Sequence[DrawnRegion], covers: list[np.ndarray], scale: float
) -> Image.Image:
    named = [index for index, region in enumerate(regions) if region.caption]
    if not named:
        return canvas
    captions = "".join(str(regions[index].caption) for index in named)
    font = text_font(round(max(17.0, (canvas.width * canvas.height) ** 0.5 / 40)), captions)
    clear = [rect.grown(2) for region in regions for rect, _ in _markers(region, scale, canvas.size)]
    anchors = [regions[index].extent((canvas.width / scale, canvas.height / scale)) for index in named]
    anchors = [Rect(*(value * scale for value in anchor)) for anchor in anchors]
    covers = [covers[index] for index in named]
    choices = [[_measure(regions, index, font, share * canvas.width) for share in (0.42, 0.3)] for index in named]
    sizes = [[label.size for label in options] for options in choices]
    share = sum(width * height for (width, height), *_ in sizes) / (canvas.width * canvas.height)
    places = None
    if len(named) <= _MOST_LABELS and share <= _CROWDED:
        places = place_labels(sizes, anchors, covers, canvas.size, clear)
    if places is None:
        return _draw_legend(canvas, [options[0] for options in choices], regions, anchors, covers, clear, font)
    labels = [
        next(label for label in options if label.size == (round(place.width), round(place.height)))
        for options, place in zip(choices, places, strict=True)
    ]
    for label, place, cover, anchor in zip(labels, places, covers, anchors, strict=True):
        _draw_leader(canvas, place, cover, anchor, color_of(label.number - 1), 1.5 * _pad(font))
    for label, place in zip(labels, places, strict=True):
        _draw_chip(canvas, place, label, font)
    return canvas


def _draw_leader(
    canvas: Image.Image, place: Rect, cover: np.ndarray, anchor: Rect, color: Color, nearby: float
) -> None:
    """Draws a line from the edge of a region to its label, unless the label is `nearby`."""
    end = nearest_inside(cover, place) or anchor.nearest(*place.center)
    start = place.nearest(*end)
    if np.hypot(start[0] - end[0], start[1] - end[1]) <= nearby:
        return
    draw = ImageDraw.Draw(canvas)
    dot = max(5.0, max(canvas.size) / 200)
    draw.line([start, end], fill=_INK, width=round(dot))
    draw.line([start, end], fill=color, width=round(dot / 2))
    x, y = end
    draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=color, outline=_INK, width=round(dot / 2.5))


def _draw_chip(canvas: Image.Image, place: Rect, label: _Label, font: Font) -> None:
    """A dark rounded chip with the region's number in its color, then the text."""
    width, height = round(place.width), round(place.height)
    left, top = round(place.left), round(place.top)
    shape = _rounded(width, height, _pad(font))
    canvas.paste(_CHIP, (left, top), shape.point([round(v * 0.88) for v in range(256)]))
    badge = _badge_width(font)
    stripe = shape.crop((0, 0, badge, height))
    canvas.paste(color_of(label.number - 1), (left, top), stripe)
    draw = ImageDraw.Draw(canvas)
    draw.text((left + badge / 2, top + height / 2), str(label.number), fill=_INK, font=font, anchor="mm")
    for number, line in enumerate(label.lines):
        place_of_line = (left + badge + _pad(font), top + _pad(font) + number * line_height(font))
        draw.text(place_of_line, line, fill=_PAPER, font=font)


def _draw_legend(
    canvas: Image.Image,
    labels: list[_Label],
    regions: Sequence[DrawnRegion],
    anchors: list[Rect],
    covers: list[np.ndarray],
    clear: list[Rect],
    font: Font,
) -> Image.Image:
    """Numbers on the regions, the captions in columns beside or below, whichever keeps the picture smaller."""
    _draw_numbers(canvas, labels, anchors, covers, clear, font)
    pad = _pad(font)
    beside = round(max(0.45 * canvas.width, 18 * font_size(font)))
    across = max(1, canvas.width // (18 * font_size(font)))
    below = (canvas.width - 2 * pad) // across - 2 * pad
    ways = []
    for column, height in ((beside, canvas.height), (below, None)):
        texts = [_measure(regions, label.index, font, column) for label in labels]
        if height is None:
            tallest = max(text.size[1] for text in texts)
            height = sum(text.size[1] + pad for text in texts) // across + tallest + 4 * pad
        columns = _columns(texts, height - 3 * pad, pad)
        used = max(sum(text.size[1] + pad for text in texts) for texts in columns) + 3 * pad
        if column == beside:
            size = canvas.width + len(columns) * (column + 2 * pad) + 2 * pad, max(canvas.height, used)
            ways.append((size, (canvas.width, 0), column, columns))
        else:
            ways.append(((canvas.width, canvas.height + used), (0, canvas.height), column, columns))
    size, (left, top), column, columns = min(ways, key=lambda way: max(way[0]))
    page = Image.new("RGB", size, _INK)
    page.paste(canvas, (0, 0))
    for place, texts in enumerate(columns):
        x, y = left + 2 * pad + place * (column + 2 * pad), top + 2 * pad
        for text in texts:
            _draw_chip(page, Rect(x, y, x + text.size[0], y + text.size[1]), text, font)
            y += text.size[1] + pad
    return page


def _columns(labels: list[_Label], height: int, pad: int) -> list[list[_Label]]:
    """Labels in columns that are as high as this, or hold a single label."""
    columns: list[list[_Label]] = [[]]
    filled = 0
    for label in labels:
        if columns[-1] and filled + label.size[1] > height:
            columns.append([])
            filled = 0
        columns[-1].append(label)
        filled += label.size[1] + pad
    return columns


def _draw_numbers(
    canvas: Image.Image,
    labels: list[_Label],
    anchors: list[Rect],
    covers: list[np.ndarray],
    clear: list[Rect],
    font: Font,
) -> None:
    """Numbers where the regions are widest; beside those that they would hide, with a line to them."""
    width, height = _badge_width(font), line_height(font) + _pad(font)
    spots, inside = list(anchors), [False] * len(labels)
    above = np.zeros_like(covers[0], bool)
    for index in sorted(range(len(labels)), key=lambda i: float(covers[i].sum())):
        own = covers[index] > 0.5
        # Not where a smaller region lies on it, unless that hides all of it.
        x, y, radius = widest_point(own & ~above) or widest_point(own) or (0.0, 0.0, 0.0)
        above |= own
        if 4 * radius >= 0.6 * height:
            spots[index] = Rect(4 * x - width / 2, 4 * y - height / 2, 4 * x + width / 2, 4 * y + height / 2)
            inside[index] = True
    sizes = [[(width, height)]] * len(labels)
    # Where not even the numbers fit beside each other, those of later regions lie on top.
    placed = place_labels(sizes, spots, covers, canvas.size, clear, 1.0, inside) or place_labels(
        sizes, spots, covers, canvas.size, clear, 1.0, [True] * len(labels)
    )
    draw = ImageDraw.Draw(canvas)
    for label, rect, cover, anchor in zip(labels, placed or spots, covers, anchors, strict=True):
        color = color_of(label.number - 1)
        left, top = (round(middle - side / 2) for middle, side in zip(rect.center, (width, height), strict=True))
        _draw_leader(canvas, rect, cover, anchor, color, _pad(font))
        canvas.paste(_INK, (left - 1, top - 1), _rounded(width + 2, height + 2, _pad(font)))
        canvas.paste(color, (left, top), _rounded(width, height, _pad(font)))
        draw.text((left + width / 2, top + height / 2), str(label.number), fill=_INK, font=font, anchor="mm")


def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """A filled rounded rectangle as a smooth alpha mask."""
    large = Image.new("L", (width * 4, height * 4))
    ImageDraw.Draw(large).rounded_rectangle([0, 0, width * 4 - 1, height * 4 - 1], radius * 4, fill=255)
    return large.resize((width, height), Image.Resampling.LANCZOS)


def _measure(regions: Sequence[DrawnRegion], index: int, font: Font, widest: float) -> _Label:
    width = max(widest - _badge_width(font) - 2 * _pad(font), 6 * font_size(font))
    lines = wrap_text(str(regions[index].caption), font, width)
    width = _badge_width(font) + 2 * _pad(font) + max(round(text_width(line, font)) for line in lines)
    size = (width, len(lines) * line_height(font) + 2 * _pad(font))
    return _Label(index, lines, size, _number(regions, index))


def _pad(font: Font) -> int:
    return max(4, round(0.4 * font_size(font)))


def _badge_width(font: Font) -> int:
    return round(1.7 * font_size(font))
