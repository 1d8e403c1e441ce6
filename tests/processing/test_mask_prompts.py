import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf.processing.masks_sca import MASK_LOGIT, encode_rle, mask_logits


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
        encode_rle,
    ],
)
def test_every_form_of_a_mask_is_the_same_mask(convert):
    mask = np.random.default_rng(1).random(SIZE) < 0.5
    assert np.array_equal(logits(convert(mask)), logits(mask))


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
        (np.full(SIZE, 7), r"holds \{0, 1\} or \{0, 255\}, got 7 to 7"),
        (np.eye(30, 50, dtype=int) * 2 - 1, "got -1 to 1"),
        (np.ones(SIZE), "taken as logits of 16 x 16 cells"),
        (np.full((CELLS, CELLS), np.nan), "not finite"),
        (np.ones((2, 2, 2), bool), "two axes"),
        (np.ones((0, 4), bool), "two axes"),
        ({"size": [30, 50], "counts": "!"}, "RLE"),
        ("mask.png", "expected an array"),
    ],
)
def test_a_bad_mask_is_named_with_its_place(mask, told):
    with pytest.raises((ValueError, TypeError), match=f"input_masks: image 0, region 0.*{told}"):
        logits(mask)
