"""Label Studio's JSON export: shapes in percent, labels and texts of one id, several annotations, odd addresses."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from reading import picture, read, regions

from sca_hf.data.read_report import ReadReport
from sca_hf.data.readers.label_studio import decode_brush, encode_brush
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle


BOX = {"x": 25, "y": 20, "width": 50, "height": 60, "rotation": 0}


def result(kind, value, region_id="r1", **fields):
    shared = {"id": region_id, "type": kind, "from_name": kind, "to_name": "image", "value": value}
    return {**shared, "original_width": 40, "original_height": 30, **fields}


def labelled(kind="rectanglelabels", value=BOX, label="cat", **fields):
    return result(kind, {**value, kind: [label]}, **fields)


def text(texts, region_id="r1", name="caption"):
    return result("textarea", {"text": texts}, region_id, from_name=name)


def task(*results, image="/data/upload/3/0a1b2c3d-a.jpg", **fields):
    return {"id": 5, "data": {"image": image}, "annotations": [{"id": 1, "result": list(results)}], **fields}


@pytest.fixture
def export(tmp_path):
    picture(tmp_path / "a.jpg")

    def write(*tasks):
        (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
        return tmp_path / "export.json"

    return write


def test_a_region_is_what_has_one_id(export):
    path = export(task(text(["a cat on a chair", "a cat"]), labelled(), labelled(label="RedBus", region_id="r2")))
    (record,) = read("label_studio", annotations=path)
    assert (record["image_id"], record["width"], record["height"]) == ("5", 40, 30)
    one, two = record["regions"]
    assert (one["region_id"], one["box"], one["mask"]) == ("r1", [10, 6, 30, 24], None)
    assert (one["category"], one["captions"]) == ("cat", ["a cat on a chair", "a cat"])
    assert (two["category"], two["captions"]) == ("red bus", ["red bus"])
    (record,) = read("label_studio", annotations=path, task="recognition", names={"RedBus": "omnibus"})
    assert [(r["category"], r["captions"]) for r in record["regions"]] == [("cat", []), ("omnibus", [])]


def test_shapes_of_every_kind_are_boxes_and_masks(export):
    square = {"points": [[25, 20], [75, 20], [75, 80], [25, 80]], "closed": True}
    turned = {"x": 75, "y": 20, "width": 45, "height": 200 / 3, "rotation": 90}  # 18 x 20 pixels, from its corner down
    ellipse = {"x": 50, "y": 50, "radiusX": 25, "radiusY": 20, "rotation": 0}
    brush = np.zeros((30, 40), bool)
    brush[6:24, 10:30] = True
    found = regions(
        read(
            "label_studio",
            annotations=export(
                task(
                    labelled("polygonlabels", square, region_id="polygon"),
                    labelled(value=turned, region_id="turned"),
                    labelled("ellipselabels", ellipse, region_id="ellipse"),
                    labelled("brushlabels", {"format": "rle", "rle": encode_brush(brush)}, region_id="brush"),
                    # The tags Labels and Brush by themselves: the place and the label are two results.
                    result("brush", {"format": "rle", "rle": encode_brush(brush)}, "apart"),
                    result("labels", {"labels": ["cat"]}, "apart"),
                )
            ),
        )
    )
    assert [region["category"] for region in found] == ["cat"] * 5
    boxes = {region["region_id"]: region["box"] for region in found}
    for name in ("polygon", "brush", "apart", "turned"):
        assert boxes[name] == pytest.approx([10, 6, 30, 24], abs=1e-3), name
    assert boxes["ellipse"] == pytest.approx([10, 9, 30, 21], abs=0.05)
    masks = {region["region_id"]: decode_rle(region["mask"]) for region in found}
    for name in ("polygon", "brush", "apart", "turned"):
        assert np.array_equal(masks[name], brush), name
    assert masks["ellipse"].sum() == pytest.approx(math.pi * 10 * 6, rel=0.05)


def test_several_annotations_need_a_choice(export):
    first = {"id": 1, "result": [labelled()], "updated_at": "2026-01-02"}
    second = {"id": 2, "result": [labelled(label="dog")], "updated_at": "2026-01-01"}
    skipped = {"id": 3, "was_cancelled": True, "result": [], "updated_at": "2026-01-03"}
    path = export(task(annotations=[second, first, skipped]))
    with pytest.raises(RegionRecordError, match=r'image 5: the task has 2 annotations.*version="latest"'):
        read("label_studio", annotations=path)
    assert regions(read("label_studio", annotations=path, version="latest"))[0]["category"] == "cat"
    assert regions(read("label_studio", annotations=path, version="first"))[0]["category"] == "dog"


def test_tasks_that_nobody_annotated_have_no_regions(export):
    proposal = [{"result": [labelled()]}]
    report = ReadReport()
    path = export(task(labelled()), {**task(annotations=[], predictions=proposal), "id": 6})
    assert [len(record["regions"]) for record in read("label_studio", report=report, annotations=path)] == [1, 0]
    assert report.notes == ["tasks without annotations, or skipped ones, have no regions"]
    path = export(task(annotations=[], predictions=proposal))
    with pytest.raises(ValueError, match=r'none of 1 tasks has annotations.*source="predictions"'):
        read("label_studio", annotations=path)
    assert len(regions(read("label_studio", annotations=path, source="predictions"))) == 1


@pytest.mark.parametrize(
    "address",
    [
        "a.jpg",
        "photos/a.jpg",
        "/data/upload/a.jpg",
        "/data/upload/3/0a1b2c3d-a.jpg",
        "/data/local-files/?d=photos%2Fa.jpg",
        "https://example.com/x/a.jpg?token=1",
        "s3://bucket/deep/a.jpg",
        "C:\\photos\\a.jpg",
    ],
)
def test_pictures_are_found_by_any_address(export, address):
    (record,) = read("label_studio", annotations=export(task(labelled(), image=address)))
    assert record["image"].endswith("a.jpg")


def test_what_is_not_a_region_is_counted_or_noted(export):
    report = ReadReport()
    point = labelled("keypointlabels", {"x": 1, "y": 1, "width": 1}, "tip", region_id="k")
    whole = result("choices", {"choices": ["blurred"]}, "c")
    found = read("label_studio", report=report, annotations=export(task(labelled(), point, whole)))
    assert len(regions(found)) == 1
    assert report.left_out == {"keypointlabels regions": 1} and report.left_out_classes == {"tip": 1}
    assert report.notes == ["results of type choices without a region are not read"]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([labelled(value={"x": 1})], r"the rectangle is .* expected its numbers in percent"),
        ([labelled(original_width=80)], r"drawn on 80 x 30 pixels, the picture in .* is 40 x 30.*images=FOLDER"),
        ([result("brushlabels", {"brushlabels": ["cat"]})], "the brush has no rle"),
        ([labelled("brushlabels", {"rle": [1, 2]})], "cut short"),
        ([labelled("brushlabels", {"rle": encode_brush(np.ones((2, 3), bool))})], "24 values, a picture of 40 x 30"),
        ([labelled("brushlabels", {"rle": encode_brush(np.zeros((30, 40), bool))})], "covers no pixel"),
        ([labelled(), labelled(label="dog")], "has the labels cat, dog; a region must have only one"),
        ([labelled(), text(["a"]), text(["b"], name="notes")], r'text areas caption, notes.*text="NAME"'),
        ([labelled("polygonlabels", {"points": [[1, 1], [2, 2]]})], "has 2 points, expected at least 3"),
        ([result("rectangle", BOX)], "there is no caption"),
    ],
)
def test_a_bad_region_is_named(export, results, message):
    with pytest.raises(RegionRecordError, match=r"export\.json, image 5, region r1: .*" + message):
        read("label_studio", annotations=export(task(*results)))


def test_other_exports_are_refused_with_the_right_one(export):
    with pytest.raises(RegionRecordError, match="export as JSON, not as JSON-MIN"):
        read("label_studio", annotations=export({"image": "a.jpg", "label": []}))
    with pytest.raises(RegionRecordError, match=r'image="KEY"; its data has left, right'):
        read("label_studio", annotations=export({**task(), "data": {"left": "a.jpg", "right": "b.jpg"}}))
    with pytest.raises(ValueError, match="two tasks have the id 5"):
        read("label_studio", annotations=export(task(labelled()), task(labelled())))


def test_the_text_area_that_is_named_holds_the_captions(export):
    path = export(task(labelled(), text(["a"]), text(["b"], name="notes")))
    assert regions(read("label_studio", annotations=path, text="notes"))[0]["captions"] == ["b"]


def test_brushes_are_the_bytes_that_label_studio_writes():
    # label_studio_sdk.converter.brush.mask2rle of the same mask, its values 0 and 255.
    rle = [0, 0, 0, 24, 57, 27, 252, 96, 23, 255, 227, 0, 0]
    mask = np.array([[0, 1, 1], [1, 1, 0]], bool)
    assert encode_brush(mask) == rle
    assert np.array_equal(decode_brush(rle, (3, 2)), mask)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40)), st.booleans())
def test_brushes_come_back(mask, larger):
    mask = np.kron(mask, np.ones((20, 20), bool)) if larger else mask
    assert np.array_equal(decode_brush(encode_brush(mask), mask.shape[::-1]), mask)


def test_runs_of_single_values_and_other_widths_are_read():
    # 4 values, one bit each, lengths of 2, 3, 4, 5 bits: the values 1, 1, 1, 1 one by one.
    bits = f"{4:032b}{0:05b}{1:04b}{2:04b}{3:04b}{4:04b}" + "0" + "00" + "11" + "1111"
    bits += "0" * (-len(bits) % 8)
    rle = list(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    assert decode_brush(rle, (1, 1)).tolist() == [[True]]
