"""Prompts as text: what belongs to one region, and no surprise but a ValueError."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sca_hf.processing.region_prompts_sca import RegionPrompt, processor_arguments
from sca_hf.prompt_arguments import parse_prompt, read_mask_file, read_regions_file


def regions_of(*prompts):
    regions = []
    for kind, text in prompts:
        parse_prompt(kind, text, regions)
    return regions


def test_every_box_and_inside_point_is_a_region_of_its_own():
    regions = regions_of(("point", "1,2"), ("box", "1,2,3,4"), ("point", "5.5,6,1"))
    assert [region.to_json() for region in regions] == [
        {"points": [[1, 2]], "labels": [1]},
        {"box": [1, 2, 3, 4]},
        {"points": [[5.5, 6]], "labels": [1]},
    ]


def test_points_after_a_semicolon_belong_to_the_same_region():
    (box,) = regions_of(("box", "1,2,3,4;5,6;7,8,0"))
    assert (box.box, box.points, box.labels) == ([1, 2, 3, 4], [[5, 6], [7, 8]], [1, 0])
    (points,) = regions_of(("point", "5,6,0;7,8"))
    assert (points.box, points.labels) == (None, [0, 1])


def test_a_lone_outside_point_belongs_to_the_region_before_it():
    first, second = regions_of(("box", "1,2,3,4"), ("point", "5,6"), ("point", "7,8,0"))
    assert (first.points, second.points, second.labels) == ([], [[5, 6], [7, 8]], [1, 0])


@given(kind=st.sampled_from(["box", "point"]), text=st.text(alphabet="0123456789.,;-e xnaif", max_size=30))
def test_any_text_gives_prompts_or_a_value_error(kind, text):
    regions = []
    try:
        parse_prompt(kind, text, regions)
    except ValueError as error:
        assert f"--{kind}" in str(error)
    else:
        assert len(regions) == 1 and len(regions[0].points) == len(regions[0].labels)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["box", "points", "labels", "mask", "regions", "a"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_any_json_gives_regions_or_an_error_that_names_the_file(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "any.json"
    path.write_text(json.dumps(content))
    try:
        found = read_regions_file(path)
    except (ValueError, OSError) as error:
        assert "any" in str(error)
    else:
        for regions in found.values():
            assert all(r.box is not None or r.points or r.has_mask for r in regions)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_a_mask_means_the_same_in_every_kind_of_picture(mode, tmp_path):
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:7] = True
    if mode == "I;16":
        picture = Image.fromarray(mask.astype(np.uint16) * 1000)
    elif mode == "P":
        picture = Image.fromarray(mask.astype(np.uint8), "P")
        picture.putpalette([0, 0, 0, 200, 10, 10])
    else:
        picture = Image.fromarray(mask.astype(np.uint8) * 255).convert(mode)
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask_file(tmp_path / "mask.png"), mask)


def test_soft_edges_of_a_grey_picture_are_cut_in_the_middle(tmp_path):
    Image.fromarray(np.array([[0, 100, 200, 255]], np.uint8)).save(tmp_path / "soft.png")
    assert read_mask_file(tmp_path / "soft.png").tolist() == [[False, False, True, True]]


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"evil\.npy is not an array of numbers"):
        read_mask_file(tmp_path / "evil.npy")


def test_kinds_that_nobody_uses_are_not_passed_on():
    arguments = processor_arguments([[RegionPrompt(box=[1, 2, 3, 4])], [RegionPrompt(box=[1, 2, 3, 5])]])
    assert arguments == {"input_boxes": [[[1, 2, 3, 4]], [[1, 2, 3, 5]]]}
    mixed = processor_arguments([[RegionPrompt(box=[1, 2, 3, 4]), RegionPrompt(points=[[1, 2]], labels=[1])]])
    assert mixed == {
        "input_boxes": [[[1, 2, 3, 4], None]],
        "input_points": [[None, [[1, 2]]]],
        "input_labels": [[None, [1]]],
    }
