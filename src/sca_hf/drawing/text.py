"""Text in pictures: a font that is always there, measured and broken into lines."""

from functools import lru_cache

from PIL import ImageFont


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


def wrap_text(text: str, font: Font, room: float, most: int | None = None) -> list[str]:
    """Breaks a text at its spaces, or inside a word that is wider than a line.

    Args:
        text: its white space counts as single spaces.
        font: what it is written in.
        room: width of a line in pixels.
        most: lines; a longer text ends in an ellipsis.
    """
    lines: list[str] = [""]
    for word in text.split() or [""]:
        joined = f"{lines[-1]} {word}".strip()
        if text_width(joined, font) <= room:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and text_width(lines[-1] + letter, font) > room:
                lines.append("")
            lines[-1] += letter
    if most is None or len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and text_width(last + "…", font) > room:
        last = last[:-1]
    return [*lines[: most - 1], last.rstrip() + "…"]
