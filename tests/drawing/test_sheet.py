"""The contact sheet: every region seen with its surroundings, in its place, whatever its size."""

import numpy as np
import pytest
from PIL import Image

from sca_hf.drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from sca_hf.drawing.labels import text_font, text_width, wrap_text


def gradient(width, height):
    """Red tells x, green tells y."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(640, 480), (300, 2000), (2000, 300), (20, 10)])
@pytest.mark.parametrize("box", [(0.4, 0.4, 0.6, 0.6), (0, 0, 0.05, 0.05), (0.9, 0.5, 1, 1), (0, 0, 1, 1)])
def test_a_cut_is_of_one_size_and_shows_the_region(size, box):
    box = [share * size[axis % 2] for axis, share in enumerate(box)]
    tile = np.asarray(cut_region(gradient(*size), DrawnRegion(box=box)).convert("RGB")).astype(int)
    assert tile.shape == (225, 300, 3)
    # Somewhere in the tile is the color that the picture has in the middle of the box.
    center = [255 * (box[0] + box[2]) / 2 / size[0], 255 * (box[1] + box[3]) / 2 / size[1]]
    assert np.abs(tile[..., :2] - center).max(-1).min() <= max(12, 300 / min(size))


def test_the_surroundings_of_a_small_region_are_seen():
    tile = np.asarray(cut_region(gradient(1000, 1000), DrawnRegion(box=[500, 500, 504, 504])).convert("RGB"))
    span = tile[5, -5, 0].astype(int) - tile[5, 5, 0]
    assert 255 * 90 / 1000 < span < 255 * 200 / 1000


def test_a_mask_is_drawn_where_it_is():
    mask = np.zeros((400, 400), bool)
    mask[180:220, 150:250] = True
    plain = np.asarray(cut_region(gradient(400, 400), DrawnRegion(box=[150, 180, 250, 220]))).astype(int)
    drawn = np.asarray(cut_region(gradient(400, 400), DrawnRegion(box=[150, 180, 250, 220], mask=mask))).astype(int)
    changed = np.abs(drawn - plain).max(-1)
    blue = drawn[..., 2] - plain[..., 2]
    assert blue[112, 150] > 10 and blue[20, 150] < 0 and changed[112, 150] > 10  # tinted inside, darker outside


def test_a_sheet_has_room_for_all_its_text():
    picture = cut_region(gradient(100, 100), DrawnRegion(box=[10, 10, 50, 50]))
    ink = (255, 0, 0)
    short = draw_sheet([SheetTile(picture, [("one", ink)])] * 5)
    longer = draw_sheet([SheetTile(picture, [("one", ink), ("many words " * 40, ink)], "note")] * 5, "a title")
    assert short.width == longer.width and longer.height > short.height
    assert draw_sheet([SheetTile(picture, [])]).width < short.width / 2
    rows = np.asarray(draw_sheet([SheetTile(picture, [("Mg", ink)])]))
    assert (rows[-12:] == 255).all()  # nothing is cut off below
    assert ((rows[..., 0] > 200) & (rows[..., 1] < 60)).any()


def test_text_is_broken_to_its_room_and_says_where_it_was_cut():
    font = text_font(15)
    text = "a very long caption of many words, and a wordthatisfartoolongforanylineatall " * 3
    assert all(text_width(line, font) <= 120 for line in wrap_text(text, font, 120))
    cut = wrap_text(text, font, 120, max_lines=2)
    assert len(cut) == 2 and cut[-1].endswith("…") and text_width(cut[-1], font) <= 120
    assert wrap_text("short", font, 120, max_lines=2) == ["short"] and wrap_text("", font, 120) == [""]
