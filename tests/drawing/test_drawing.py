"""The overlay: what it shows, and that its labels never cover each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from sca_hf.drawing import DrawnRegion, SheetTile, color_of, draw_regions, draw_sheet, labels, overlay
from sca_hf.drawing.labels import Rect, cover_grid, nearest_inside, place_labels, widest_point


def gray(width: int = 120, height: int = 90) -> Image.Image:
    return Image.new("RGB", (width, height), (128, 128, 128))


def block(left: int, top: int, right: int, bottom: int, width: int = 120, height: int = 90) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def chips(monkeypatch):
    """The rectangles of all captions that a picture shows."""
    seen: list[Rect] = []
    draw_chip = overlay._draw_chip
    monkeypatch.setattr(
        overlay, "_draw_chip", lambda canvas, place, *rest: (seen.append(place), draw_chip(canvas, place, *rest))
    )
    return seen


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_placed_labels_stay_inside_and_apart(data):
    canvas = data.draw(st.tuples(st.integers(40, 900), st.integers(40, 700)))
    number = data.draw(st.integers(1, 12))
    sizes = [[data.draw(st.tuples(st.integers(10, 300), st.integers(8, 90)))] for _ in range(number)]
    anchors = []
    for _ in range(number):
        x, y = (data.draw(st.floats(0, side)) for side in canvas)
        anchors.append(Rect(x, y, min(canvas[0], x + data.draw(st.floats(0, 200))), min(canvas[1], y + 50)))
    covers = [cover_grid(np.zeros(canvas[::-1]))] * number
    clear = [Rect(10, 10, 30, 30)]
    placed = place_labels(sizes, anchors, covers, canvas, clear, gap=4.0)
    for i, rect in enumerate(placed or []):
        assert rect.left >= 0 and rect.top >= 0 and rect.right <= canvas[0] and rect.bottom <= canvas[1]
        assert (rect.width, rect.height) == pytest.approx(sizes[i][0])
        assert not rect.overlaps(clear[0])
        assert not any(rect.overlaps(other) for other in placed[:i])


def test_a_label_avoids_its_region_when_there_is_room():
    mask = np.zeros((400, 400))
    mask[150:250, 150:250] = 1
    anchor = Rect(150, 150, 250, 250)
    (place,) = place_labels([[(90, 30)]], [anchor], [cover_grid(mask)], (400, 400))
    assert not place.overlaps(anchor)
    assert np.hypot(*np.subtract(place.nearest(200, 200), (200, 200))) < 100


def test_labels_that_cannot_fit_are_refused():
    nothing = cover_grid(np.zeros((100, 100)))
    assert place_labels([[(200, 20)]], [Rect(0, 0, 9, 9)], [nothing], (100, 100)) is None
    assert place_labels([[(80, 60)]] * 2, [Rect(0, 0, 9, 9)] * 2, [nothing] * 2, (100, 100)) is None


def test_regions_that_lie_on_each_other_keep_separate_captions(chips):
    regions = [DrawnRegion(f"thing number {i} of several", block(40, 30, 80, 60)) for i in range(5)]
    picture = draw_regions(gray(), regions)
    assert len(chips) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(chips) for b in chips[:i])
    assert all(rect.right <= picture.width and rect.bottom <= picture.height for rect in chips)


def disc(x: int, y: int, radius: int, width: int = 800, height: int = 600) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


@pytest.mark.parametrize("size", [(1000, 700), (500, 1200)])
def test_a_crowded_picture_gets_its_captions_beside_or_below_it(size, chips):
    masks = [block(i, 10, i + 9, 20, *size) for i in range(0, 80, 4)]
    picture = draw_regions(gray(*size), [DrawnRegion("a rather long caption of a thing " * 2, m) for m in masks])
    scale = max(900, *size) / max(size)
    assert len(chips) == 20
    assert all(rect.left >= scale * size[0] or rect.top >= scale * size[1] for rect in chips)
    assert all(rect.right <= picture.width and rect.bottom <= picture.height for rect in chips)
    assert not any(a.overlaps(b) for i, a in enumerate(chips) for b in chips[:i])


def test_labels_never_lie_on_the_regions_of_others(chips):
    masks = [disc(100 + 200 * (i % 4), 170 + 260 * (i // 4), 85) for i in range(8)]
    picture = draw_regions(gray(800, 600), [DrawnRegion("a round plate with a rim", mask) for mask in masks])
    assert picture.size == (900, 675) and len(chips) == 8
    for index, chip in enumerate(chips):
        left, top, right, bottom = (round(side / 900 * 800) for side in chip)
        others = [mask for other, mask in enumerate(masks) if other != index]
        assert not np.any(others, 0)[top:bottom, left:right].any()


def test_regions_without_room_for_labels_bear_numbers_and_have_a_legend(chips):
    wall, plate, hole = np.ones((600, 800), bool), disc(400, 300, 120), disc(400, 300, 30)
    picture = np.asarray(draw_regions(gray(800, 600), [DrawnRegion("a thing", m) for m in (wall, plate, hole)]))
    assert len(chips) == 3 and all(chip.top >= 675 for chip in chips)
    for number, own in enumerate([wall & ~plate, plate & ~hole, hole]):
        found = (picture[:675] == color_of(number)).all(-1)
        rows, columns = (np.median(places) for places in np.nonzero(found))
        assert found.sum() > 200 and own[int(rows / 900 * 800), int(columns / 900 * 800)]


def test_beyond_eight_captions_there_is_a_legend_and_numbers_hide_no_region(chips):
    masks = [disc(150 + 250 * (i % 3), 100 + 200 * (i // 3), 70 if i else 6) for i in range(9)]
    draw_regions(gray(800, 600), [DrawnRegion("short", mask) for mask in masks[:8]])
    assert all(chip.right < 900 and chip.bottom < 675 for chip in chips)
    chips.clear()
    picture = np.asarray(draw_regions(gray(800, 600), [DrawnRegion("short", mask) for mask in masks]))
    assert len(chips) == 9 and all(chip.left >= 900 or chip.top >= 675 for chip in chips)
    for number, (x, y) in enumerate((150 + 250 * (i % 3), 100 + 200 * (i // 3)) for i in range(9)):
        x, y = round(x * 1.125), round(y * 1.125)
        reach = 12 if number else 3  # what is smaller than its number stays visible
        badge = (picture[y - reach : y + reach, x - reach : x + reach] == color_of(number)).all(-1)
        assert badge.sum() > 200 if number else not badge.any()


def test_a_line_begins_where_the_mask_is_nearest_to_the_label():
    corner = np.zeros((400, 400), bool)
    corner[:, :40] = corner[360:, :] = True
    x, y = nearest_inside(cover_grid(corner), Rect(200, 100, 260, 130))
    assert abs(x - 40) <= 4 and 100 <= y <= 130  # its rectangle is everywhere: the label lies inside that
    assert nearest_inside(cover_grid(np.zeros((40, 40))), Rect(0, 0, 9, 9)) is None


def test_the_widest_point_of_a_region_is_inside_it():
    ring = disc(400, 300, 200) & ~disc(430, 300, 150)
    x, y, radius = widest_point(ring)
    assert ring[int(y), int(x)] and 25 < radius < 50 and x < 300
    x, y, radius = widest_point(np.eye(50) > 0)
    assert abs(x - y) < 2 and radius < 2
    assert widest_point(np.zeros((5, 5), bool)) is None


@pytest.mark.parametrize("width", [400, 4000])
@pytest.mark.parametrize("number", [2, 12])
def test_text_can_be_read_in_small_and_in_large_pictures(width, number, chips):
    size = (width, width * 3 // 4)
    masks = [disc(*(int(size[0] * (0.1 + 0.07 * i)), size[1] // 2), size[0] // 40, *size) for i in range(number)]
    picture = draw_regions(gray(*size), [DrawnRegion("a thing", mask) for mask in masks])
    assert picture.width <= 1800 and len(chips) == number
    assert all(chip.height >= 25 and chip.height >= 0.03 * picture.width for chip in chips)


def test_a_small_image_is_enlarged_and_a_huge_one_reduced():
    assert draw_regions(gray(), []).size == (900, 675)
    assert draw_regions(gray(4000, 1000), []).size == (1800, 450)
    assert draw_regions(gray(1, 1), [DrawnRegion("a pixel", np.ones((1, 1), bool))]).width >= 900


def test_the_contour_has_the_color_of_the_region():
    picture = np.asarray(draw_regions(gray(), [DrawnRegion(None, None), DrawnRegion(None, block(30, 30, 90, 60))]))
    edge = picture[338, 215:235].astype(int)
    assert np.abs(edge - color_of(1)).sum(1).min() < 30
    inside, outside = picture[338, 450].astype(int), picture[60, 60].astype(int)
    assert np.abs(inside - 128).sum() > 10 and (outside < 128).all()


def test_colors_are_stable_and_distinct():
    assert color_of(3) == color_of(3)
    assert len({color_of(i) for i in range(48)}) == 48


def test_prompts_are_drawn_where_they_were_given():
    plain = np.asarray(draw_regions(gray(), [DrawnRegion()])).astype(int)
    prompts = DrawnRegion(box=(20, 20, 100, 70), points=[(60, 45), (5, 5)], labels=[1, 0])
    changed = np.abs(np.asarray(draw_regions(gray(), [prompts])).astype(int) - plain).sum(2) > 30
    assert changed[330:345, 440:460].any() and changed[30:45, 30:45].any()
    assert changed[145:156, 150:750].any() and changed[150:525, 745:756].any()
    assert not changed[200:300, 200:400].any()


@pytest.mark.parametrize(
    "caption", ["漢字と仮名 \U0001f680", "caffè naïve", "عربى", "line\nbreak\ttab", "x" * 400, "nul\x00byte"]
)
@pytest.mark.parametrize("installed", [True, False])
def test_any_caption_can_be_drawn(caption, installed, monkeypatch):
    if not installed:
        monkeypatch.setattr(overlay, "text_font", lambda size, text: ImageFont.load_default(size))
    draw_regions(gray(), [DrawnRegion(caption, block(30, 30, 90, 60))])


def test_a_line_of_one_pixel_stays_visible():
    picture = np.asarray(draw_regions(gray(30, 20), [DrawnRegion(None, np.eye(20, 30) > 0)])).astype(int)
    assert np.abs(picture[315, 315] - picture[60, 800]).sum() > 30


def test_a_mask_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"mask of region 0 has shape \(5, 5\).*\(90, 120\)"):
        draw_regions(gray(), [DrawnRegion("a thing", np.ones((5, 5), bool))])


def test_a_region_keeps_its_number_and_color_whatever_is_drawn_with_it():
    mask = np.zeros((90, 90), bool)
    mask[30:60, 30:60] = True
    alone = draw_regions(Image.new("RGB", (90, 90)), [DrawnRegion(mask=mask, number=3)])
    with_others = [DrawnRegion(), DrawnRegion(), DrawnRegion(mask=mask)]
    assert alone.tobytes() == draw_regions(Image.new("RGB", (90, 90)), with_others).tobytes()
    assert alone.tobytes() != draw_regions(Image.new("RGB", (90, 90)), [DrawnRegion(mask=mask)]).tobytes()


def test_the_font_is_one_that_knows_the_letters():
    from sca_hf.drawing.labels import _fonts, _knows, text_font

    assert text_font(20) is text_font(20, "plain words") is _fonts(20)[0]
    for text in ("Ein großer Kreis", "красный круг", "大きな赤い円"):
        known = [sum(_knows(font, letter) for letter in text) for font in _fonts(20)]
        assert sum(_knows(text_font(20, text), letter) for letter in text) == max(known)


@pytest.mark.parametrize("text", ["红色圆环在左边", "एक लाल अंगूठी", "ein großer grüner Kreis"])
def test_letters_are_drawn_or_it_is_said_that_no_font_knows_them(text, caplog, monkeypatch):
    monkeypatch.setattr(labels, "_WARNED", set())
    known = all(labels._knows(labels.text_font(20, text), letter) for letter in text if not letter.isascii())
    draw_regions(Image.new("RGB", (400, 300)), [DrawnRegion(box=[5, 5, 80, 80], caption=text)])
    draw_sheet([SheetTile(Image.new("RGB", (100, 100)), [(text, (0, 0, 0))])])
    told = [record.getMessage() for record in caplog.records]
    assert known == (not told) and len(told) <= 1, "once for each script"
    assert known or "are drawn as boxes. Install a font that does" in told[0]
