import io

import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf.processing.masks_sca import MASK_LOGIT, encode_rle, mask_logits, read_mask
from sca_hf.processing.prompts_sca import nest
from sca_hf.testing import tiny_image


SIZE, RESIZED, FRAME, CELLS = (30, 50), (38, 64), 64, 16


def logits(mask, size=SIZE, resized=RESIZED):
    return mask_logits(mask, size, resized, FRAME, CELLS, "input_masks: image 0, region 0")


def overlap(a, b, c, d):
    return max(0.0, min(b, d) - max(a, c))


def covered_by_hand(mask, resized):
    """The fraction of each cell that the mask covers, pixel by pixel."""
    cell, height, width = FRAME / CELLS, resized[0] / mask.shape[0], resized[1] / mask.shape[1]
    rows = [
        [overlap(i * cell, (i + 1) * cell, y * height, (y + 1) * height) for y in range(len(mask))]
        for i in range(CELLS)
    ]
    columns = [
        [overlap(j * cell, (j + 1) * cell, x * width, (x + 1) * width) for x in range(mask.shape[1])]
        for j in range(CELLS)
    ]
    return np.array(rows) @ mask @ np.array(columns).T / cell**2


@pytest.mark.parametrize("shape", [SIZE, (3, 5), (60, 100), (20, 33)])
def test_logits_are_the_exact_share_of_each_cell(shape):
    mask = np.random.default_rng(0).random(shape) < 0.4
    expected = (2 * covered_by_hand(mask, RESIZED) - 1) * MASK_LOGIT
    assert np.allclose(logits(mask), expected, atol=1e-5)
    assert logits(mask).dtype == np.float32 and logits(mask).min() >= -MASK_LOGIT


def test_a_full_mask_ends_where_the_padding_begins():
    out = logits(np.ones(SIZE, bool))
    assert (out[:9] == MASK_LOGIT).all() and (out[10:] == -MASK_LOGIT).all()
    assert np.allclose(out[9], 0)  # the image ends 38 / 4 = 9.5 cells down


def test_a_mask_lies_where_its_box_does():
    mask = np.zeros((80, 80), bool)
    mask[10:30, 40:60] = True
    out = mask_logits(mask, (80, 80), (64, 64), 64, 16) > 0
    assert np.argwhere(out).min(0).tolist() == [2, 8] and np.argwhere(out).max(0).tolist() == [5, 11]


@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.astype(np.uint8),
        lambda m: m.astype(np.uint8) * 255,
        lambda m: m.astype(np.int64),
        torch.from_numpy,
        lambda m: Image.fromarray(m),
        lambda m: Image.fromarray(m.astype(np.uint8) * 255),
        lambda m: Image.fromarray(m).convert("RGB"),
        lambda m: Image.fromarray(m).convert("RGBA"),
        lambda m: Image.fromarray(m).convert("P"),
        lambda m: palette(m, white=1),
        lambda m: palette(m, white=0),
        lambda m: encoded(m),
        lambda m: io.BytesIO(encoded(m)),
        lambda m: {"bytes": encoded(m), "path": None},
        encode_rle,
        lambda m: m[..., None],
        lambda m: m[None],
        lambda m: np.repeat(m[..., None], 3, -1),
        lambda m: np.repeat(m[..., None], 3, -1).astype(np.uint8) * 255,
        lambda m: np.repeat(m[..., None], 4, -1) | [False, False, False, True],
        lambda m: m[..., None] * np.array([200, 0, 30], np.uint8),
        lambda m: m.astype(np.uint8) * 7,
        lambda m: m.astype(np.float32),
        lambda m: m.astype(np.float64) * 255,
        lambda m: torch.from_numpy(m).to(torch.bfloat16)[None],
        lambda m: np.where(m, 0.8, 0.3),
        lambda m: np.where(m, 250, 5) - np.arange(50) % 3,
        lambda m: Image.fromarray(m.astype(np.uint16) * 65535),
    ],
)
def test_every_form_of_a_mask_is_the_same_mask(convert):
    mask = np.random.default_rng(1).random(SIZE) < 0.5
    assert np.array_equal(logits(convert(mask)), logits(mask))


def palette(mask, white):
    """A picture of indices, of which `white` is the white one."""
    picture = Image.fromarray(np.where(mask, white, 1 - white).astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 255, 255, 255] if white else [255, 255, 255, 0, 0, 0])
    return picture


def encoded(mask, kind="PNG", **options):
    data = io.BytesIO()
    Image.fromarray(mask).save(data, kind, **options)
    return data.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [95, 75, 40])
def test_a_mask_survives_jpeg(mode, quality, tmp_path):
    rows, columns = np.mgrid[:90, :150]
    mask = (rows - 40) ** 2 + (columns - 70) ** 2 < 30**2
    Image.fromarray(mask).convert(mode).save(tmp_path / "mask.jpg", quality=quality)
    for source in (str(tmp_path / "mask.jpg"), Image.open(tmp_path / "mask.jpg")):
        assert (read_mask(source) != mask).mean() < 0.002


def test_a_mask_of_a_photo_taken_sideways_is_upright():
    mask = np.zeros(SIZE, bool)
    mask[:10] = True
    exif = Image.Exif()
    exif[274] = 6
    assert np.array_equal(read_mask(encoded(np.rot90(mask), exif=exif)), mask)


def test_masks_nest_as_they_are_whatever_form_they_have():
    mask = np.zeros(SIZE, bool)
    mask[3:20, 5:30] = True
    for one in (mask, mask[..., None], mask[None], np.repeat(mask[..., None], 3, -1), encoded(mask), palette(mask, 1)):
        for given, count in ((one, 1), ([one], 1), ([one, one], 2), ([[one, one]], 2)):
            (regions,) = nest(given, "input_masks", 1)
            assert len(regions) == count and all(np.array_equal(read_mask(region), mask) for region in regions)
        both = nest([[one], [one, None]], "input_masks", 2)
        assert [len(image) for image in both] == [1, 2] and np.array_equal(read_mask(both[1][0]), mask)
    stack = np.stack([mask[None]] * 3)
    assert len(nest(stack, "input_masks", 1)[0]) == 3 and len(nest(stack, "input_masks", 3)) == 3
    assert len(nest(np.stack([mask[..., None]] * 2), "input_masks", 1)[0]) == 2


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.array([[0, 3, 15, 255]] * 4), r"got 0 to 255; .*\(mask == label\) for labels"),
        (np.arange(21).repeat(9).reshape(9, 21), "got 0 to 20; .*mask == label"),
        (Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10), "P"), "for labels"),
        (tiny_image().convert("L").point(lambda v: 64 + v // 2), "mask > 127"),
        (tiny_image(), "color picture"),
        (Image.new("RGBA", (50, 30), (9, 9, 9, 0)), "transparency"),
        (np.dstack([np.full((9, 9, 3), 200), np.eye(9) * 255]).astype(np.uint8), r"getchannel\('A'\)"),
        (np.full(SIZE, 0.4), "the mask is empty"),
        (np.linspace(-4, 4, 1500).reshape(SIZE), r"must be within 0 to 1, got -4 to 4; .*mask > 0"),
        (np.full(SIZE, np.inf), "not finite"),
        (b"nothing", "cannot be read"),
        ({"path": "nowhere.png", "bytes": None}, "there is no file"),
        (7, "expected an array, a picture"),
        ([[0, 1]], "expected an array, a picture"),
    ],
)
def test_what_may_mean_several_things_is_refused(mask, told):
    with pytest.raises((ValueError, TypeError, OSError), match=f"input_masks: image 0, region 0.*{told}"):
        logits(mask)
    with pytest.raises(ValueError, match=r"could be logits or a mask of the image; for a mask pass bool"):
        logits(np.linspace(0, 1, CELLS**2).reshape(CELLS, CELLS), (64, 64), (64, 64))


def test_floats_of_the_low_resolution_are_logits_as_they_are():
    given = np.random.default_rng(0).normal(size=(CELLS, CELLS)).astype(np.float32)
    assert np.array_equal(logits(given), given)
    assert np.array_equal(logits(torch.from_numpy(given).requires_grad_()), given)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (np.ones((50, 30), bool), r"the mask is 30 x 50 pixels \(width x height\), the image 50 x 30"),
        (np.ones((31, 50), bool), "the mask is 50 x 31"),
        (np.zeros(SIZE, bool), "the mask is empty"),
        (np.full(SIZE, 7), r"must be \{0, 1\} or \{0, 255\}, got 7 to 7"),
        (np.eye(30, 50, dtype=int) * 2 - 1, "got -1 to 1"),
        (np.full((CELLS, CELLS), np.nan), "not finite"),
        (np.ones((2, 2, 2), bool), "two axes"),
        (np.ones((0, 4), bool), "two axes"),
        ({"size": [30, 50], "counts": "!"}, "RLE"),
        ("mask.png", "there is no file 'mask.png'"),
    ],
)
def test_a_bad_mask_is_named_with_its_place(mask, told):
    with pytest.raises((ValueError, TypeError, OSError), match=f"input_masks: image 0, region 0.*{told}"):
        logits(mask)
