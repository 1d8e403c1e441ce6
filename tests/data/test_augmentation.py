"""Augmentation: pictures, boxes, masks, points and captions change together, in floats, by the generator alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sca_hf.data.augmentation import MEAN_COLOR, Augmentation, augmentation_from
from sca_hf.data.region import RegionRecordError
from sca_hf.data.views import View, moved_region, picture_view
from sca_hf.processing.masks_sca import decode_rle, encode_rle


WIDTH, HEIGHT = 120, 80


def disc(x=40, y=30, radius=12, size=(WIDTH, HEIGHT)):
    rows, columns = np.mgrid[: size[1], : size[0]] + 0.5
    return np.hypot(columns - x, rows - y) < radius


def region(mask=None, box=(28, 18, 52, 42), captions=("a disc",), **values):
    rle = None if mask is None else encode_rle(mask)
    given = {"region_id": "0", "box": list(box), "mask": rle, "points": None, "labels": None, "category": None}
    return {**given, "captions": list(captions), **values}


def record(*regions, image=None, task="caption"):
    image = image or Image.new("RGB", (WIDTH, HEIGHT), "white")
    width, height = image.size
    regions = list(regions) or [region(disc())]
    return dict(image=image, image_id="7", width=width, height=height, task=task, regions=regions)


def rng(seed=0):
    return np.random.default_rng(seed)


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def views(size=(WIDTH, HEIGHT)):
    angles = st.one_of(st.just(0.0), st.floats(-180, 180))
    cut = st.builds(
        lambda flip, angle, scale, place: View.cut(size, flip, angle, 96, scale, place),
        st.booleans(),
        angles,
        st.floats(0.4, 3),
        st.floats(0, 1),
    )
    whole = st.builds(lambda flip, angle: View.whole(size, flip, angle, 96), st.booleans(), angles)
    around = st.builds(
        lambda flip, angle, context, place: View.around(size, flip, angle, 96, (30, 20, 55, 40), context, place),
        st.booleans(),
        angles,
        st.floats(1, 8),
        st.tuples(st.floats(0, 1), st.floats(0, 1)),
    )
    return st.one_of(cut, whole, around)


DISCS = st.builds(disc, st.floats(20, 100), st.floats(20, 60), st.floats(8, 18))


@given(views(), DISCS)
def test_the_box_of_a_moved_mask_is_the_moved_box(view, mask):
    inner = np.logical_and.reduce([np.roll(mask, shift, axis) for axis in (0, 1) for shift in (-3, 3)])
    points = [[float(x) + 0.5, float(y) + 0.5] for y, x in np.argwhere(inner)[::40]]
    box = bounds(mask)
    moved = moved_region(region(mask, box, points=points, labels=[1] * len(points)), view, 0.25)
    if moved is None:
        # Hardly any of it is to be seen.
        seen = view.box(box).clip(0, np.tile(view.shown, 2))
        assert np.prod(seen[2:] - seen[:2]) <= 0.45 * np.prod(np.ptp(view.box(box).reshape(2, 2), 0))
        return
    seen = decode_rle(moved["mask"])
    assert seen.shape == view.size[::-1]
    np.testing.assert_allclose(moved["box"], bounds(seen), atol=1)
    if view.upright:
        np.testing.assert_allclose(moved["box"], view.box(box).clip(0, np.tile(view.shown, 2)), atol=1.5)
    assert all(seen[int(y), int(x)] for x, y in moved["points"])
    inside = view.points(points)
    well_inside = ((inside >= 1.5) & (inside <= np.array(view.shown) - 1.5)).all(1).sum()
    assert len(moved["points"]) >= well_inside


@given(views(), DISCS)
def test_the_picture_moves_as_its_mask_does(view, mask):
    image = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
    moved = moved_region(region(mask, bounds(mask)), view, 0.25)
    seen = np.asarray(picture_view(image, view, (0, 0, 0)).convert("L")) > 127
    if moved is not None:
        expected = decode_rle(moved["mask"])
        # Pixels on the rim may fall to either side.
        assert (seen ^ expected).sum() <= 0.5 * np.hypot(*np.ptp(np.reshape(moved["box"], (2, 2)), 0)) + 2


def test_mirroring_twice_changes_nothing():
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    marked = region(disc(), captions=["the disc on the left"], points=[[40.25, 30.5], [3, 70]], labels=[1, 0])
    start = record(marked, region(None, (1.25, 2, 30.125, 40)), image=Image.fromarray(pixels))
    mirror = Augmentation(flip=1, crop=1024)
    once = mirror(start, rng())
    assert once["regions"][0]["captions"] == ["the disc on the right"]
    assert once["regions"][0]["points"] == [[79.75, 30.5], [117, 70]] and once["regions"][0]["labels"] == [1, 0]
    assert once["regions"][1]["box"] == [89.875, 2, 118.75, 40]
    assert np.array_equal(np.asarray(once["image"]), pixels[:, ::-1])
    twice = mirror(once, rng())
    assert np.array_equal(np.asarray(twice["image"]), pixels)
    assert twice["regions"] == start["regions"]


@given(st.booleans(), st.floats(1, 8), st.tuples(st.floats(0, 1), st.floats(0, 1)), st.floats(0, 90), st.floats(0, 60))
def test_a_square_around_a_box_holds_it_and_enlarges_nothing_more_than_four_times(mirrored, context, place, x, y):
    box = np.array([x, y, x + 30, y + 20])
    view = View.around((WIDTH, HEIGHT), mirrored, 0.0, 96, box, context, place)
    seen = view.box(box)
    assert view.size == (96, 96) and (seen >= -1).all() and (seen <= np.tile(view.shown, 2) + 1).all()
    assert view.factor <= 4.05
    expected = np.clip(96 / (30 * context), 96 / WIDTH, 4)
    assert (seen[2] - seen[0]) / 30 == pytest.approx(expected, rel=0.02)


def test_a_zoom_shows_one_of_the_regions_larger():
    small, large = region(disc(100, 60, 5), (95, 55, 105, 65), category="ball"), region(disc(), category="moon")
    zoom = Augmentation(zoom=1.0, context=(1.5, 3), crop=96)
    shown = {"ball": [], "moon": []}
    for seed in range(20):
        for found in zoom(record(small, large), rng(seed))["regions"]:
            shown[found["category"]].append(decode_rle(found["mask"]).sum())
    assert min(map(len, shown.values())) >= 4 and min(shown["ball"]) > 4 * disc(100, 60, 5).sum()
    half = [Augmentation(zoom=0.5, crop=96)(record(large), rng(seed))["image"].size for seed in range(20)]
    assert {(96, 96), (96, 64)} == set(half)


@pytest.mark.parametrize("change", [{"tint": 0.5}, {"gray": 1.0}, {"blur": 3.0}])
def test_colors_change_without_moving_anything(change):
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    start = record(image=Image.fromarray(pixels))
    augmentation = Augmentation(crop=1024, **change)
    found = augmentation(start, rng())
    seen = np.asarray(found["image"]).astype(int)
    assert found["regions"] == start["regions"] and not augmentation.keeps_image
    if "tint" in change:
        gains = [np.polyfit(pixels[..., k].ravel(), seen[..., k].ravel(), 1)[0] for k in range(3)]
        assert all(0.45 < gain < 1.55 for gain in gains) and max(gains) - min(gains) > 0.1
    elif "gray" in change:
        assert (seen == seen[..., :1]).all()
    else:
        blurred = [np.asarray(augmentation(start, rng(seed))["image"]).astype(int) for seed in range(10)]
        rough = [np.abs(np.diff(one, axis=1)).mean() for one in (pixels.astype(int), *blurred)]
        assert max(rough[1:]) <= rough[0] and np.median(rough[1:]) < 0.4 * rough[0]


def test_the_published_jitter_is_reproduced():
    """Half size on a square of 96: the longest side has 48 pixels, the rest is padding; nothing is cut off."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "red")
    found = Augmentation(scale=(0.5, 0.5), crop=96)(record(image=image), rng())
    assert (found["width"], found["height"]) == found["image"].size == (96, 96)
    pixels = np.asarray(found["image"])
    assert (pixels[:32, :48] == (255, 0, 0)).all()
    assert (pixels[32:] == MEAN_COLOR).all() and (pixels[:, 48:] == MEAN_COLOR).all()
    np.testing.assert_allclose(found["regions"][0]["box"], np.array([28, 18, 52, 42]) * 0.4)


def test_a_cut_lies_at_the_same_share_of_the_way_on_both_axes():
    corners = set()
    for seed in range(40):
        view = View.cut((WIDTH, HEIGHT), False, 0.0, 96, 2.0, float(rng(seed).random()))
        x, y = -view.matrix[:, 2]
        assert 0 <= x <= 96 and 0 <= y <= 32 and x / 96 == pytest.approx(y / 32, abs=0.03)
        corners.add((x, y))
    assert len(corners) > 20


def test_the_picture_is_resized_as_inference_does():
    image = Image.effect_noise((300, 200), 80).convert("RGB")
    found = Augmentation(scale=(1, 1), crop=96)(record(region(None, (0, 0, 300, 200)), image=image), rng())
    expected = np.asarray(image.resize((96, 64), Image.Resampling.BILINEAR), np.int64)
    assert np.abs(np.asarray(found["image"])[:64] - expected).max() <= 1


@pytest.mark.parametrize("factor", [0.05, 0.2])
def test_a_turned_picture_shrinks_without_skipping_pixels(factor):
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (400, 200))).convert("RGB")
    view = View.cut((400, 400), False, 45.0, 400, factor, 0.0)
    seen = np.asarray(picture_view(stripes, view, (127, 127, 127)))
    assert np.abs(seen.astype(int) - 127).max() < 30


def test_turning_keeps_the_whole_picture_and_gives_masks_tight_boxes():
    square = np.zeros((HEIGHT, WIDTH), bool)
    square[30:50, 50:70] = True
    view = View.whole((WIDTH, HEIGHT), False, 45.0, 1024)
    assert view.size == (141, 141)
    with_mask = moved_region(region(square, (50, 30, 70, 50)), view, 0.25)
    np.testing.assert_allclose(with_mask["box"], [56.4, 56.4, 84.6, 84.6], atol=1.1)
    without = moved_region(region(None, (50, 30, 70, 50)), view, 0.25)
    np.testing.assert_allclose(without["box"], [60.5, 60.5, 80.5, 80.5], atol=0.3)
    quarter = View.whole((WIDTH, HEIGHT), False, 90.0, 1024)
    assert quarter.size == (HEIGHT, WIDTH)
    np.testing.assert_allclose(quarter.box([0, 0, 30, 20]), [60, 0, 80, 30], atol=1e-9)


def test_regions_that_are_cut_off_are_dropped_by_what_is_left_of_them():
    view = View.cut((WIDTH, HEIGHT), False, 0.0, WIDTH, 2.0, 0.0)  # the left half, twice as large
    boxes = {"inside": (10, 10, 20, 20), "cut": (50, 10, 70, 20), "sliver": (58, 10, 78, 20), "gone": (61, 0, 80, 9)}
    found = {name: moved_region(region(None, box), view, 0.25) for name, box in boxes.items()}
    assert found["inside"]["box"] == [20, 20, 40, 40]
    assert found["cut"]["box"] == [100, 20, 120, 40]
    assert found["sliver"] is None and found["gone"] is None
    assert moved_region(region(None, boxes["sliver"]), view, 0.05)["box"] == [116, 20, 120, 40]


def test_a_cut_that_shows_no_region_is_drawn_again():
    small = record(region(None, (100, 60, 119, 79)))
    zoom = Augmentation(scale=(4, 4), crop=96)
    assert all(zoom(small, rng(seed))["regions"] for seed in range(40))


def test_a_region_too_small_for_any_view_is_named():
    with pytest.raises(RegionRecordError, match="image 7 has no visible region"):
        Augmentation(scale=(0.1, 0.1), crop=8)(record(region(None, (1, 1, 2, 2))), rng())


@pytest.mark.parametrize(
    ("texts", "mirrored", "kept"),
    [
        (["a disc", "now on the right"], True, [["a disc"], ["now on the left"]]),
        # One of three that cannot be told in a mirror is dropped, one of two keeps the picture as it is.
        (["a disc", "number 7", "on the left"], True, [["a disc"], ["on the right"]]),
        (["number 7", "on the left"], False, [["number 7"], ["on the left"]]),
        (["it is right there"], False, [["it is right there"]]),
    ],
)
def test_captions_that_a_mirror_makes_untrue_are_dropped_or_keep_the_picture(texts, mirrored, kept):
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    ImageDraw.Draw(image).rectangle((0, 0, 9, 79), fill="white")
    found = Augmentation(flip=1)(record(*(region(captions=[text]) for text in texts), image=image), rng())
    assert [r["captions"] for r in found["regions"]] == kept
    assert found["image"].getpixel((115 if mirrored else 5, 40)) == (255, 255, 255)


def test_a_region_keeps_every_kind_of_text_or_goes():
    named = [region(category="turn left", captions=["a sign"]), *[region(category="tree") for _ in range(2)]]
    assert [r["category"] for r in Augmentation(flip=1)(record(*named), rng())["regions"]] == [
        "turn right",
        "tree",
        "tree",
    ]
    named[0]["category"] = "speed limit 30"
    assert len(Augmentation(flip=1)(record(*named), rng())["regions"]) == 2


def test_quarter_turns_keep_boxes_tight():
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[10:30, 5:65] = True  # a rectangle, whose box an ellipse would not fill
    image = Image.fromarray(np.where(corner[..., None], np.uint8(255), np.uint8(0)).repeat(3, 2))
    turn, seen = Augmentation(quarter_turns=True), set()
    for seed in range(20):
        turned = turn(record(region(box=(5, 10, 65, 30)), image=image), rng(seed))
        shown = np.asarray(turned["image"])[..., 0] > 127
        assert shown.sum() == corner.sum()
        assert turned["regions"][0]["box"] == pytest.approx(bounds(shown), abs=1e-6)
        seen.add((turned["width"], turned["height"], *np.round(turned["regions"][0]["box"]).astype(int).tolist()))
    assert len(seen) == 4


def test_a_turned_picture_keeps_no_caption_with_a_direction():
    both = record(region(captions=["a disc", "a disc above the line"]))
    turn, seen = Augmentation(rotate=180), set()
    for seed in range(30):
        found = turn(both, rng(seed))
        angle = rng(seed)
        angle.random()
        level = abs(angle.uniform(-180, 180)) <= 20
        assert len(found["regions"][0]["captions"]) == (2 if level else 1)
        seen.add(level)
    assert seen == {True, False}


def test_color_changes_the_picture_only():
    image = Image.effect_noise((WIDTH, HEIGHT), 60).convert("RGB")
    start = record(image=image)
    found = Augmentation(color=0.4)(start, rng())
    assert found["regions"] == start["regions"] and found["image"].size == image.size
    assert np.abs(np.asarray(found["image"], int) - np.asarray(image, int)).mean() > 5
    padded = np.asarray(Augmentation(color=0.4, scale=(0.5, 0.5), crop=96)(start, rng())["image"])
    assert (padded[32:] == MEAN_COLOR).all()


def test_the_generator_settles_everything_and_the_record_stays_as_it_is():
    augmentation = Augmentation(flip=0.5, scale=(0.5, 2), rotate=30, color=0.3, crop=96)
    start = record(region(disc(), points=[[40, 30]], labels=[1]))
    before = {**start, "regions": [dict(r) for r in start["regions"]]}
    first, second, other = (augmentation(start, rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(np.asarray(first["image"]), np.asarray(second["image"]))
    assert first["regions"] == second["regions"] and first["regions"] != other["regions"]
    assert start == before and first["image_id"] == "7"


def test_masks_as_arrays_stay_arrays_and_those_of_another_size_are_refused():
    as_array = {**region(), "mask": disc()}
    moved = moved_region(as_array, View.whole((WIDTH, HEIGHT), True, 0.0, 1024), 0.25)
    assert np.array_equal(moved["mask"], disc()[:, ::-1])
    with pytest.raises(RegionRecordError, match=r"region 0: mask is of size \[40, 50\], expected"):
        Augmentation(flip=1)(record(region(disc(size=(50, 40)))), rng())


@pytest.mark.parametrize(
    ("spec", "geometry", "kept"),
    [
        ({"flip": 0.5}, True, False),
        ({"rotate": 5}, True, False),
        ({"quarter_turns": True}, True, False),
        ({"scale": [1, 1]}, True, False),
        ({"color": 0.1}, False, False),
        ({}, False, True),
    ],
)
def test_it_says_whether_embeddings_would_still_hold(spec, geometry, kept):
    augmentation = augmentation_from(spec)
    assert (augmentation.changes_geometry, augmentation.keeps_image) == (geometry, kept)


def test_specifications_are_read():
    assert augmentation_from("lsj-0.1-2.0", size=512) == Augmentation(0.5, (0.1, 2.0), crop=512)
    assert augmentation_from("lsj-1-2") == Augmentation(0.5, (1.0, 2.0), crop=1024)
    assert augmentation_from({"scale": [0.5, 2], "rotate": 180}, 96) == Augmentation(0, (0.5, 2.0), 180, crop=96)
    assert augmentation_from(None) is None and augmentation_from(Augmentation(0.5)) == Augmentation(0.5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("jitter", "expected .lsj-MIN-MAX. such as"),
        ("lsj-2.0-0.1", "two factors above 0, the smaller first"),
        ({"shade": 0.1}, "unknown keys shade; known are flip, scale, rotate, quarter_turns, zoom"),
        ({"flip": 2}, "flip is 2, expected a number from 0 to 1"),
        ({"scale": 2}, "scale is 2, expected two factors"),
        ({"crop": 0}, "crop is 0, expected at least 8 pixels"),
        ({"rotate": "much"}, "rotate is 'much', expected a number from 0 to 180"),
    ],
)
def test_specifications_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        augmentation_from(spec)


def test_an_embedding_cannot_be_augmented():
    cached = {**record(), "image_embedding": np.zeros((4, 2, 2))}
    assert Augmentation()(cached, rng()) == cached
    with pytest.raises(RegionRecordError, match="image 7 comes as an embedding, which cannot be augmented"):
        Augmentation(flip=1)(cached, rng())
