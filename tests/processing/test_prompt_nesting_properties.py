"""Whatever a user nests into a call, a valid batch or one clear error comes out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sca_hf.processing.captions_sca import region_captions, region_tasks
from sca_hf.processing.prompts_sca import build_prompts


HEIGHT, WIDTH = 30, 40
numbers = st.one_of(
    st.integers(-3, 45),
    st.floats(0, 40),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, 1e-320, np.float16(3), np.int8(7), True]),
)
odd = st.one_of(st.none(), st.text(max_size=3), st.just({}), st.just(object()), st.just({1}), st.complex_numbers())
masks = st.sampled_from(
    [
        np.ones((HEIGHT, WIDTH), bool),
        np.zeros((HEIGHT, WIDTH), bool),
        np.ones((3, 4), np.uint8),
        np.zeros((16, 16), np.float32),
        torch.ones(HEIGHT, WIDTH, dtype=torch.bool),
        np.ones((2, HEIGHT, WIDTH), bool),
        {"size": [3, 4], "counts": [3, 9]},
        {"size": [3, 4], "counts": "abc"},
    ]
)


def nested(leaves):
    lists = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner), max_leaves=12)
    arrays = st.lists(st.integers(0, 4), max_size=5).map(lambda shape: np.full(shape, 5.0))
    return lists | arrays | arrays.map(torch.from_numpy)


anything = nested(numbers | odd | masks)
prompts = st.none() | anything


def lay_out(images, **given_prompts):
    sizes, resized = [(HEIGHT, WIDTH)] * images, [(48, 64)] * images
    return build_prompts(sizes, resized, 64, 16, **given_prompts)


def check_batch(out, images):
    real, layout = out["region_mask"], out["prompt_layout"]
    assert real.shape[0] == images and np.array_equal(real, layout > 0)
    for name in ("input_points", "input_boxes", "input_masks"):
        assert np.isfinite(out[name]).all() and out[name].dtype == np.float32
    assert ((layout >> 2) == (out["input_labels"] != -10).sum(-1)).all()
    assert (((layout >> 1) & 1) == (out["mask_index"] >= 0)).all()
    assert ((layout & 1) == out["input_boxes"].any(-1)).all()
    assert sorted(out["mask_index"][out["mask_index"] >= 0]) == list(range(len(out["input_masks"])))
    assert (out["input_points"] <= [64, 48]).all() and (out["input_boxes"] <= [64, 48, 64, 48]).all()


@settings(max_examples=300)
@given(st.integers(1, 3), prompts, prompts, prompts, prompts)
def test_any_nesting_is_a_batch_or_a_clear_error(images, points, labels, boxes, mask):
    given_prompts = dict(input_points=points, input_labels=labels, input_boxes=boxes, input_masks=mask)
    try:
        out = lay_out(images, **given_prompts)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(("input_", "image ", "no image has a region")), error
    else:
        check_batch(out, images)


@settings(max_examples=150)
@given(st.integers(1, 3), st.sampled_from(["input_points", "input_boxes", "input_masks"]), anything)
def test_one_kind_of_any_nesting_is_a_batch_or_names_itself(images, name, value):
    try:
        out = lay_out(images, **{name: value})
    except (ValueError, TypeError) as error:
        assert str(error).startswith((name, "image ", "no image has a region")), error
    else:
        check_batch(out, images)


coordinates = st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT)).map(list)


@st.composite
def good_boxes(draw):
    (x1, y1), (x2, y2) = draw(coordinates), draw(coordinates)
    box = [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]
    assume(np.float32(box[0]) < np.float32(box[2]) and np.float32(box[1]) < np.float32(box[3]))
    return box


@st.composite
def good_regions(draw):
    points = draw(st.none() | st.lists(coordinates, min_size=1, max_size=4))
    labels = (
        draw(st.none() | st.lists(st.integers(0, 1), min_size=len(points), max_size=len(points))) if points else None
    )
    box = draw(st.none() | good_boxes())
    mask = draw(st.sampled_from([None, np.ones((3, 4), bool)])) if points or box else np.ones((3, 4), bool)
    return {"input_points": points, "input_labels": labels, "input_boxes": box, "input_masks": mask}


@settings(max_examples=100)
@given(st.lists(st.lists(good_regions(), max_size=4), min_size=1, max_size=3).filter(any))
def test_every_well_formed_batch_is_taken_region_by_region(batch):
    kinds = ("input_points", "input_labels", "input_boxes", "input_masks")
    given_prompts = {kind: [[region[kind] for region in image] for image in batch] for kind in kinds}
    out = lay_out(len(batch), **given_prompts)
    check_batch(out, len(batch))
    for i, image in enumerate(batch):
        assert out["region_mask"][i].sum() == len(image)
        for r, region in enumerate(image):
            count = len(region["input_points"] or [])
            has_box, has_mask = region["input_boxes"] is not None, region["input_masks"] is not None
            assert out["prompt_layout"][i, r] == count << 2 | has_mask << 1 | has_box
            assert np.allclose(out["input_points"][i, r, :count] / 1.6, region["input_points"] or np.zeros((0, 2)))
            assert out["input_labels"][i, r, :count].tolist() == (region["input_labels"] or [1] * count)
            assert not has_box or np.allclose(out["input_boxes"][i, r] / 1.6, region["input_boxes"])


@settings(max_examples=100)
@given(st.lists(good_regions(), min_size=1, max_size=4))
def test_a_single_image_may_leave_the_outer_level_out(regions):
    kinds = ("input_points", "input_labels", "input_boxes", "input_masks")
    flat = {kind: [region[kind] for region in regions] for kind in kinds}
    whole = lay_out(1, **{kind: [value] for kind, value in flat.items()})
    for name, value in lay_out(1, **flat).items():
        assert np.array_equal(value, whole[name])


words = st.none() | st.sampled_from(["a cat", "caption", "", "recognition"]) | numbers | odd


@settings(max_examples=150)
@given(nested(words), st.lists(st.integers(0, 3), min_size=1, max_size=3))
@pytest.mark.parametrize("what", ["captions", "task"])
def test_captions_and_tasks_of_any_nesting_fit_or_are_named(what, value, counts):
    assume(value is not None)
    shape = (len(counts), max(1, *counts))
    try:
        if what == "captions":
            assert [len(regions) for regions in region_captions(value, counts)] == counts
        else:
            assert region_tasks(value, ["recognition", "caption"], counts, shape).shape == shape
    except (ValueError, TypeError) as error:
        assert str(error).startswith(what), error
