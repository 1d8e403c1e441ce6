import json

import numpy as np
import pytest

from sca_hf.processing.masks_sca import decode_rle, encode_rle


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
