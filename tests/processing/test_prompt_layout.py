import time

import numpy as np
import pytest

from sca_hf.processing.prompts_sca import EDGE_TOLERANCE, build_prompts, resized_size
from sca_hf.processing.region_prompts_sca import read_regions


SIZES, RESIZED = [(60, 80), (50, 20)], [(48, 64), (64, 26)]


def prompts(**given):
    return build_prompts(SIZES, RESIZED, 64, 32, **given)


def test_kinds_and_counts_mix_per_region():
    mask = np.ones((60, 80), bool)
    out = prompts(
        input_boxes=[[[0, 0, 80, 60], None, None, [8, 8, 16, 16]], [[0, 0, 20, 50]]],
        input_points=[[None, [[10, 20], [30, 40], [50, 60]], None, [[1, 1]]], None],
        input_labels=[[None, [1, 0, 1], None, None], None],
        input_masks=[[None, None, mask, mask], None],
    )
    assert out["prompt_layout"].tolist() == [[0b1, 0b1100, 0b10, 0b111], [1, 0, 0, 0]]
    assert out["region_mask"].tolist() == [[True] * 4, [True, False, False, False]]
    assert out["mask_index"].tolist() == [[-1, -1, 0, 1], [-1] * 4]
    assert out["input_labels"][0].tolist() == [[-10] * 3, [1, 0, 1], [-10] * 3, [1, -10, -10]]
    assert np.allclose(out["input_points"][0, 1], np.array([[10, 20], [30, 40], [50, 60]]) * 0.8)
    assert np.allclose(out["input_boxes"][1, 0], [0, 0, 26, 64])


def test_unused_slots_are_zero():
    out = prompts(input_points=[[[[3, 4]], [[1, 2], [5, 6]]], [[[7, 8]]]])
    unused = out["input_labels"] == -10
    assert unused.sum() == 4 and not out["input_points"][unused].any() and not out["input_boxes"].any()


def test_the_types_are_those_the_model_takes():
    out = prompts()
    assert {k: v.dtype.name for k, v in out.items()} == {
        "input_points": "float32",
        "input_labels": "int64",
        "input_boxes": "float32",
        "input_masks": "float32",
        "mask_index": "int64",
        "region_mask": "bool",
        "prompt_layout": "int64",
    }


def test_no_prompt_at_all_means_the_whole_image():
    out = prompts()
    assert out["input_boxes"].tolist() == [[[0, 0, 64, 48]], [[0, 0, 26, 64]]]
    assert out["prompt_layout"].tolist() == [[1], [1]]


def test_an_image_may_have_no_regions_but_not_all_of_them():
    out = prompts(input_boxes=[[], [[0, 0, 1, 1]]])
    assert out["region_mask"].tolist() == [[False], [True]]
    with pytest.raises(ValueError, match="no image has a region"):
        prompts(input_boxes=[[], []])


def test_a_region_without_any_prompt_is_named():
    with pytest.raises(ValueError, match="image 1, region 1 has no prompt"):
        prompts(input_boxes=[[[0, 0, 1, 1]], [[0, 0, 1, 1], None]])


def test_kinds_that_disagree_about_the_regions_are_named():
    with pytest.raises(ValueError, match=r"image 0: .*1 in input_points, 2 in input_boxes"):
        prompts(input_boxes=[[[0, 0, 1, 1]] * 2, None], input_points=[[[[1, 1]]], None])


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ([9, 0, 1, 10], r"box \[9, 0, 1, 10\] is inverted"),
        ([0, 9, 10, 1], "is inverted"),
        ([5, 5, 5, 10], "has no area"),
        ([5, 5, 5 + 1e-9, 10], "has no area"),
        ([0, 0, 20.01, 10], r"reaches outside the image of 20 x 50 pixels \(width x height\)"),
        ([-1, 0, 10, 10], "reaches outside"),
        ([0, 0, float("nan"), 10], "is not finite"),
        ([0, 0, float("inf"), 10], "is not finite"),
        ([0, 0, 10], r"is not a box \[x1, y1, x2, y2\]"),
        ([0, 0, 10, None], "is not finite"),
        ([0, 0, 10, 10**400], "is not a box"),
    ],
)
def test_a_bad_box_is_named_with_its_place_and_the_mend(box, told):
    with pytest.raises(ValueError, match=rf"input_boxes: image 1, region 2.*{told}.*(give|finite)"):
        prompts(input_boxes=[[[0, 0, 1, 1]], [[0, 0, 1, 1], None, box]], input_points=[None, [None, [[1, 1]], None]])


@pytest.mark.parametrize(
    ("point", "told"),
    [
        ([81, 5], r"point \[81, 5\] lies outside the image of 80 x 60"),
        ([5, -0.1], "outside"),
        ([float("nan"), 5], "not finite"),
        ([1, 2, 3], r"is not a point \[x, y\]"),
        ([1, None], "is not finite"),
        (None, "is not a point"),
    ],
)
def test_a_bad_point_is_named_with_its_place(point, told):
    with pytest.raises(ValueError, match=f"input_points: image 0, region 1.*{told}"):
        prompts(input_points=[[[[1, 1]], [[2, 2], point]], None], input_boxes=[None, [[0, 0, 1, 1]]])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1, 2], "a label is 1 .inside. or 0"),
        ([1, 0.5], "a label is 1"),
        ([-1, 1], "a label is 1"),
        ([1], r"1 label\(s\) for 2 point\(s\)"),
        ([1, None], "a label is 1"),
        ([1, 10**400], "cannot read"),
        ([1, float("nan")], "a label is 1"),
    ],
)
def test_bad_labels_are_named_with_their_place(labels, told):
    with pytest.raises(ValueError, match=f"input_labels: image 0, region 0.*{told}"):
        prompts(input_points=[[[[1, 1], [2, 2]]], [[[1, 1]]]], input_labels=[[labels], [[1]]])


def test_labels_need_points():
    with pytest.raises(ValueError, match="input_labels were given without input_points"):
        prompts(input_labels=[[[1]], [[1]]])
    with pytest.raises(ValueError, match="image 1 has labels but no points"):
        prompts(input_points=[[[[1, 1]]], None], input_labels=[None, [[1]]], input_boxes=[None, [[0, 0, 1, 1]]])


def test_a_label_list_may_skip_regions_without_points():
    out = prompts(
        input_points=[[[[1, 1]], None], None],
        input_labels=[[[0], None], None],
        input_boxes=[[None, [0, 0, 1, 1]], [[0, 0, 1, 1]]],
    )
    assert out["input_labels"].tolist() == [[[0], [-10]], [[-10], [-10]]]


def test_edges_are_legal_and_rounding_beyond_them_is_taken_as_the_edge():
    over = EDGE_TOLERANCE * 0.9
    out = prompts(input_boxes=[[[-over, 0, 80 + over, 60]], [[0, 0, 20, 50]]], input_points=[[[[80, 60]]], None])
    assert out["input_boxes"].tolist() == [[[0, 0, 64, 48]], [[0, 0, 26, 64]]]
    assert out["input_points"][0, 0].tolist() == [[64, 48]]


def test_points_as_arrays_and_as_lists_are_laid_out_alike():
    points = np.random.default_rng(0).uniform(0, 20, (2, 3, 4, 2))
    as_lists = prompts(input_points=points.tolist())
    for name, value in prompts(input_points=points).items():
        assert np.array_equal(value, as_lists[name])


def test_a_thousand_boxes_take_no_time():
    boxes = [[i % 50, 5, i % 50 + 10, 20] for i in range(2000)]
    start = time.process_time()
    build_prompts([(60, 80)], [(48, 64)], 64, 32, input_boxes=boxes)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("size", [(60, 80), (1, 3), (333, 1000), (1000, 333), (64, 64), (1365, 2048)])
def test_the_resized_size_is_the_librarys(size):
    from transformers import SamImageProcessorPil

    assert resized_size(size, 1024) == SamImageProcessorPil()._get_preprocess_shape(size, 1024)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_boxes": [[[0.1, 0.2, 0.6, 0.9]]]}, r"image 0, region 0: box \[0.1, 0.2, 0.6, 0.9\] lies within the"),
        ({"input_boxes": [[[0.1, 0.2, 0.6, 0.9], [0, 0, 1, 1]]]}, "x times 100, y times 80"),
        ({"input_points": [[[[0.5, 0.5]], [[0.2, 0.9]]]]}, r"image 0, region 0: point \[0.5, 0.5\] lies within the"),
        ({"input_points": [[[[0, 1], [0.2, 0.9]]]]}, r"fractions of the sides \(0 to 1\); pass pixels: x times 100"),
        ({"input_points": [[[[70, 90]]]]}, "it would fit with x and y swapped: x comes first"),
        ({"input_boxes": [[[70, 10, 80, 90]]]}, "it would fit with x and y swapped"),
    ],
)
def test_units_that_cannot_be_pixels_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        build_prompts([(80, 100)], [(51, 64)], 64, 16, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"input_boxes": [[[0.1, 0.2, 0.6, 0.9], [3, 4, 9, 9]]]},
        {"input_points": [[[[0.5, 0.5]], [[20, 9]]]]},
        {"input_points": [[[[0, 0]], [[1, 1]]]]},
    ],
)
def test_a_prompt_in_the_first_pixel_is_taken_where_others_are_in_pixels(given):
    assert build_prompts([(80, 100)], [(51, 64)], 64, 16, **given)["region_mask"].all()


def test_points_in_fractions_are_refused_as_json_too():
    with pytest.raises(ValueError, match=r"regions\[0\]: point 0 lies within .* x times 100, y times 80"):
        read_regions([{"points": [[0.5, 0.4]]}], (80, 100))
    assert read_regions([{"points": [[0, 0]]}, {"points": [[0.5, 0.5], [9, 9]]}], (80, 100))


def test_what_may_be_fractions_is_said(caplog):
    for given in ({"input_boxes": [[[0, 0, 1, 1]]]}, {"input_points": [[[[0.5, 0.5]]]]}):
        caplog.clear()
        build_prompts([(80, 100)], [(51, 64)], 64, 16, **given)
        assert "these look like fractions of the sides (0 to 1)" in caplog.text
