import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_hf.processing.masks_sca import decode_rle, encode_rle, tidy_rle


def random_mask(seed, shape=None):
    rng = np.random.default_rng(seed)
    height, width = shape or rng.integers(1, 40, 2)
    mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
    if seed % 2:
        mask[:, : width // 2] = seed % 4 == 1  # long runs, whose counts need several characters
    return mask


@pytest.mark.parametrize("seed", range(24))
def test_decoding_undoes_encoding(seed):
    mask = random_mask(seed)
    rle = json.loads(json.dumps(encode_rle(mask)))
    assert np.array_equal(decode_rle(rle), mask)
    assert np.array_equal(decode_rle({**rle, "counts": rle["counts"].encode()}), mask)


@pytest.mark.parametrize("seed", range(12))
def test_counts_are_those_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.mask")
    mask = random_mask(seed, (300, 200) if seed > 8 else None)
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_rle(mask)["counts"] == theirs["counts"].decode()
    assert np.array_equal(decode_rle(theirs), coco.decode(theirs).astype(bool))


def test_uncompressed_counts_begin_outside_and_run_down_the_columns():
    mask = decode_rle({"size": [2, 3], "counts": [1, 2, 3]})
    assert mask.tolist() == [[False, True, False], [True, False, False]]


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2, 3]},
        {"size": [2], "counts": [6]},
        {"size": "ab", "counts": [6]},
        {"size": [2, 3], "counts": [5]},
        {"size": [2, 3], "counts": [7, -1]},
        {"size": [2, 3], "counts": None},
        {"size": [2, 3], "counts": [None, 6]},
        {"size": [2, 3], "counts": "\x01"},
        {"size": [2, 3], "counts": "ooooooooooooooooooo"},
        {"size": [2, 3], "counts": "é"},
        {"size": [0, 3], "counts": []},
        {"size": [-2, -3], "counts": [6]},
        {"size": [2.5, 3], "counts": [6]},
        {"size": [10**6, 10**6], "counts": [10**12]},
        {"size": [10**30, 1], "counts": [1]},
        {"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62, 6]},
        {"size": [2, 3], "counts": [10**30]},
    ],
)
def test_a_malformed_rle_is_a_value_error(rle):
    with pytest.raises(ValueError, match="here"):
        decode_rle(rle, "here")


@given(st.integers(0, 200), st.lists(st.integers(0, 9), max_size=9))
def test_a_tidy_rle_is_the_one_that_decoding_and_encoding_gives(seed, places):
    mask = random_mask(seed)
    flat = mask.T.reshape(-1).tolist()
    counts, last = [0], False
    for value in flat:
        counts += [0] * (value != last)
        counts[-1] += 1
        last = value
    for place in places:  # runs of nothing in between change nothing
        cut = place % len(counts)
        counts = [*counts[:cut], counts[cut], 0, 0, *counts[cut + 1 :]]
    rle = {"size": list(mask.shape), "counts": counts}
    tidy, box = tidy_rle(rle)
    assert tidy == encode_rle(decode_rle(rle)) == encode_rle(mask)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    assert box == ([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if mask.any() else None)
    assert tidy_rle(tidy) == (tidy, box)
