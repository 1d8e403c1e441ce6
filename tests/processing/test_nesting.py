import numpy as np
import pytest
import torch

from sca_hf.processing.prompts_sca import depth_of, nest


BOX, OTHER = [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]


@pytest.mark.parametrize(
    "boxes", [BOX, [BOX], [[BOX]], (BOX,), np.array(BOX), np.array([[BOX]]), torch.tensor([BOX]), [np.array(BOX)]]
)
def test_one_box_of_one_image_may_be_written_at_any_depth(boxes):
    (regions,) = nest(boxes, "input_boxes", 1)
    assert np.array_equal(np.asarray(regions), [BOX])


def test_half_precision_tensors_are_read_exactly():
    (regions,) = nest(torch.tensor([BOX], dtype=torch.bfloat16, requires_grad=True), "input_boxes", 1)
    assert np.array_equal(regions, [BOX])


@pytest.mark.parametrize("empty", [[], [[]], [None], [[], []], [[None, None], None], [[], [None]]])
def test_lists_that_hold_nothing_are_taken_at_the_depth_that_fits(empty):
    images = max(len(empty), 1)
    assert all(regions is None or all(r is None for r in regions) for regions in nest(empty, "input_boxes", images))


def test_nones_of_a_single_image_stand_for_its_regions():
    assert nest([None, None, None], "input_boxes", 1) == [[None, None, None]]


def test_two_flat_points_are_ambiguous_until_flat_labels_tell():
    points = [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match="one region of 2 points or 2 regions of one point"):
        nest(points, "input_points", 1)
    assert nest(points, "input_points", 1, one_region=True) == [[points]]


@pytest.mark.parametrize("boxes", [[BOX, OTHER], np.array([BOX, OTHER]), BOX])
def test_a_missing_level_is_an_error_for_several_images(boxes):
    with pytest.raises(ValueError, match=r"input_boxes is nested . deep for 2 image.* expected nesting: \[image\]"):
        nest(boxes, "input_boxes", 2)


def test_a_wrong_number_of_images_is_told():
    with pytest.raises(ValueError, match=r"given for 3 image.s., but the call has 2"):
        nest([[BOX], [BOX], [BOX]], "input_boxes", 2)


@pytest.mark.parametrize("mixed", [[BOX, [OTHER]], [[BOX], OTHER], [[[]], BOX]])
def test_mixed_depths_are_an_error(mixed):
    with pytest.raises(ValueError, match="mixes nesting depths"):
        nest(mixed, "input_boxes", 1)


@pytest.mark.parametrize("odd", ["box", {"x": 1}, {1, 2}, [["a", "b"]], [[object()]], np.array(["a"]), 1j])
def test_other_types_are_a_type_error_that_names_the_argument(odd):
    with pytest.raises(TypeError, match=r"input_boxes"):
        nest(odd, "input_boxes", 1)


def test_endless_nesting_ends_in_an_error():
    loop: list = []
    loop.append(loop)
    with pytest.raises(ValueError, match="nested more than"):
        nest(loop, "input_boxes", 1)


def test_a_mask_is_a_leaf_of_two_axes():
    mask = np.ones((4, 6), bool)
    assert depth_of(mask, "input_masks") == 0
    assert [m.shape for m in nest(np.stack([mask, mask]), "input_masks", 1)[0]] == [(4, 6), (4, 6)]
    assert nest([[mask, None], None], "input_masks", 2)[0][1] is None
