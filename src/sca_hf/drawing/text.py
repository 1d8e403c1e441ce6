"""Text in pictures: a font that is always there, measured and broken into lines."""

from functools import lru_cache

from PIL import ImageFont


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=8)
def text_font(size: int) -> Font:
    """DejaVu where it is installed, since it knows most scripts; else the font that comes with Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)


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
