"""What the readers share: JSON in pieces, paths that are not trusted, boxes at the edge."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from sca_hf.data.pictures import image_size
from sca_hf.data.readers import common
from sca_hf.data.readers.common import find_file, inside, read_json_list, region_fields
from sca_hf.files import read_json


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


# A loaded machine is no fault of the code.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(VALUES, max_size=6), st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
@example([0.0, 1e30, -2.5e-7, [1.5]], 1, None, True)
def test_a_list_in_pieces_is_the_whole_list(tmp_path_factory, values, block, indent, ascii_only):
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_text(
        json.dumps(values, indent=indent, ensure_ascii=ascii_only), encoding="utf-8", errors="surrogatepass"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "_BLOCK", block)
        assert list(read_json_list(path)) == values


@pytest.mark.parametrize("text", ["", "{}", "[1", "[1, 2", "[1 2]", "[1,]", '["a', '[{"a": }]', "[1, nothing]"])
def test_a_broken_list_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json"):
        list(read_json_list(tmp_path / "broken.json"))
    if text not in ("{}",):
        with pytest.raises(ValueError, match=r"broken\.json is (not JSON|empty)"):
            read_json(tmp_path / "broken.json")


@pytest.mark.parametrize("name", ["a/b.jpg", "a\\b.jpg", "./a/b.jpg"])
def test_names_inside_are_joined(name):
    assert inside(Path("root"), name) == Path("root/a/b.jpg")


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/passwd", "C:\\a", "\\\\host\\a", "..\\a", "", "a\0b"])
def test_names_that_lead_out_are_refused(name):
    assert inside(Path("root"), name) is None and find_file([Path("/")], [name]) is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_the_size_is_that_of_the_upright_picture(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (30, 40)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert image_size(tmp_path / f"a.{suffix}") == (40, 30)
    Image.new("RGB", (30, 40)).save(tmp_path / f"b.{suffix}")
    assert image_size(tmp_path / f"b.{suffix}") == (30, 40)


@pytest.mark.parametrize(
    ("box", "clip", "expected", "clipped"),
    [
        ([0, 0, 40, 30], "rounding", [0, 0, 40, 30], False),
        ([-1, 0, 41, 30.5], "rounding", [0, 0, 40, 30], True),
        ([-1, 0, 41.5, 30], "rounding", [-1, 0, 41.5, 30], False),
        ([-9, -9, 99, 99], "image", [0, 0, 40, 30], True),
        ([50, 5, 60, 9], "image", [50, 5, 60, 9], False),
    ],
)
def test_boxes_are_cut_at_the_edge(box, clip, expected, clipped):
    row = region_fields("r", box, (40, 30), clip, captions=["x"])
    assert row["box"] == expected and row.get("clipped", False) is clipped
