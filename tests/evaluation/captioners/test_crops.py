"""Crops, pixel by pixel, against what one cuts by hand."""

import numpy as np
import pytest
from PIL import Image

from sca_hf.evaluation.captioners.crop_captioner import CropStyle, cut_region
from sca_hf.processing.masks_sca import mask_extent
from sca_hf.testing import tiny_image


IMAGE = tiny_image(3)
PIXELS = np.asarray(IMAGE)
BOX = [20.5, 10.0, 50.0, 40.25]


def mask_of(rows, columns):
    """A mask of two steps, so that its corners are outside."""
    mask = np.zeros((60, 80), bool)
    mask[rows[0] : rows[1], columns[0] + 4 : columns[1]] = True
    mask[rows[0] + 3 : rows[1], columns[0] : columns[1] - 6] = True
    return mask


MASK = mask_of((12, 35), (22, 47))


def pixels(style, mask=MASK, image=IMAGE):
    return [np.asarray(crop) for crop in cut_region(image, mask, BOX, style)]


def test_a_published_crop_lacks_the_last_row_and_column():
    plain, shown = pixels(CropStyle())
    assert np.array_equal(plain, PIXELS[12:34, 22:46]) and np.array_equal(shown, plain)


def test_a_whole_crop_lacks_nothing():
    assert np.array_equal(pixels(CropStyle(edges="whole"))[0], PIXELS[12:35, 22:47])


def test_a_box_is_cut_along_all_pixels_it_touches():
    assert np.array_equal(pixels(CropStyle(area="box"), mask=None)[0], PIXELS[10:41, 20:50])


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("gray", 128), ("black", 0)])
def test_what_is_not_in_the_mask_takes_one_color(background, level):
    by_hand = PIXELS.copy()
    for y in range(60):
        for x in range(80):
            if not MASK[y, x]:
                by_hand[y, x] = (level, level, level)
    plain, shown = pixels(CropStyle(background=background))
    assert np.array_equal(shown, by_hand[12:34, 22:46])
    assert np.array_equal(plain, PIXELS[12:34, 22:46]) and not np.array_equal(plain, shown)


def test_a_margin_ends_where_the_image_does():
    # 24 x 22 pixels: half of that on each side.
    assert np.array_equal(pixels(CropStyle(margin=0.5))[0], PIXELS[1:45, 10:58])
    assert np.array_equal(pixels(CropStyle(margin=2.0))[0], PIXELS[0:60, 0:80])


def test_a_margin_around_a_masked_region_is_background_too():
    shown = pixels(CropStyle(margin=0.5, background="white"))[1]
    assert shown.shape == (44, 48, 3)
    assert (shown[:11] == 255).all() and (shown[:, :12] == 255).all()
    assert np.array_equal(shown[11:33, 12:36], pixels(CropStyle(background="white"))[1])


def test_a_mask_of_one_pixel_in_the_corner_is_filled_up_with_black():
    mask = np.zeros((60, 80), bool)
    mask[59, 79] = True
    crop = pixels(CropStyle(), mask)[0]
    assert crop.shape == (2, 2, 3) and np.array_equal(crop[0, 0], PIXELS[59, 79])
    assert (crop[1] == 0).all() and (crop[:, 1] == 0).all()


def test_an_empty_mask_becomes_the_two_pixels_of_the_authors():
    plain, shown = pixels(CropStyle(background="white"), np.zeros((60, 80), bool))
    assert np.array_equal(plain, PIXELS[0:2, 0:2])
    assert np.array_equal(shown[0, 0], PIXELS[0, 0]) and (shown[1] == 255).all() and (shown[0, 1] == 255).all()


def test_a_mask_is_not_changed_and_a_tiny_image_is_no_error():
    empty = np.zeros((1, 2), bool)
    crop, _ = cut_region(Image.new("RGB", (2, 1), (9, 9, 9)), empty, [0, 0, 2, 1], CropStyle())
    assert crop.size == (2, 2) and not empty.any()


def test_what_cannot_be_cut_is_said():
    with pytest.raises(ValueError, match="no mask to crop to"):
        cut_region(IMAGE, None, BOX, CropStyle())
    with pytest.raises(ValueError, match="no mask to crop to"):
        cut_region(IMAGE, None, BOX, CropStyle(area="box", background="white"))
    with pytest.raises(ValueError, match="the mask is 3 x 2 pixels, the image 80 x 60"):
        cut_region(IMAGE, np.ones((2, 3), bool), BOX, CropStyle())
    with pytest.raises(ValueError, match="background is 'pink'"):
        CropStyle(background="pink")
    with pytest.raises(ValueError, match="margin is -1"):
        CropStyle(margin=-1)


def test_extents_are_those_of_the_mask():
    assert mask_extent(MASK) == (22, 12, 47, 35)
