"""LabelMe: shapes of every kind, groups, masks in pixels, where pictures lie."""

import base64
import json
import math
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from reading import picture, read, regions

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle


SQUARE = np.zeros((30, 40), bool)
SQUARE[6:24, 10:30] = True


def shape(kind="rectangle", points=((10, 6), (30, 24)), label="cat", **fields):
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **fields}


def png(array):
    data = BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


@pytest.fixture
def labels(tmp_path):
    picture(tmp_path / "a.jpg")

    def write(*shapes, name="a.json", **fields):
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
        content |= {"imageHeight": 30, "imageWidth": 40, **fields}
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_a_description_is_a_caption_and_else_the_label_is(labels):
    root = labels(shape(description="a cat on a chair"), shape(label="RedBus", description=" "), shape())
    (record,) = read("labelme", root=root)
    assert (record["image_id"], record["width"], record["height"]) == ("a", 40, 30)
    assert [region["captions"] for region in record["regions"]] == [["a cat on a chair"], ["red bus"], ["cat"]]
    assert record["regions"][0]["box"] == [10, 6, 30, 24] and record["regions"][0]["mask"] is None
    (record,) = read("labelme", root=root, task="recognition", names={"RedBus": "omnibus"})
    assert [(r["category"], r["captions"]) for r in record["regions"]] == [("cat", []), ("omnibus", []), ("cat", [])]


@pytest.mark.parametrize(
    ("kind", "points", "mask"),
    [
        ("rectangle", ((30, 24), (10, 6)), None),
        ("rectangle", ((10, 24), (30, 24), (30, 6), (10, 6)), None),
        ("polygon", ((10, 6), (30, 6), (30, 24), (10, 24)), SQUARE),
        (None, ((10, 6), (30, 6), (30, 24), (10, 24)), SQUARE),
        ("oriented_rectangle", ((10, 6), (30, 6), (30, 24), (10, 24)), SQUARE),
    ],
)
def test_shapes_are_boxes_and_masks(labels, kind, points, mask):
    (region,) = regions(read("labelme", root=labels(shape(kind, points))))
    assert region["box"] == [10, 6, 30, 24]
    assert region["mask"] is None if mask is None else np.array_equal(decode_rle(region["mask"]), mask)


def test_masks_lie_from_their_first_to_their_last_pixel(labels):
    part = SQUARE[5:25, 10:30].astype(np.uint8)
    (region,) = regions(read("labelme", root=labels(shape("mask", ((10, 5), (29, 24)), mask=png(part)))))
    assert region["box"] == [10, 6, 30, 24] and np.array_equal(decode_rle(region["mask"]), SQUARE)


def test_circles_are_round_and_turned_rectangles_turned(labels):
    circle, turned = regions(
        read(
            "labelme",
            root=labels(
                shape("circle", ((20, 15), (30, 15))), shape("rotation", ((20, 5), (30, 15), (20, 25), (10, 15)))
            ),
        )
    )
    assert circle["box"] == pytest.approx([10, 5, 30, 25], abs=0.01)
    assert decode_rle(circle["mask"]).sum() == pytest.approx(math.pi * 100, rel=0.05)
    assert turned["box"] == [10, 5, 30, 25]
    assert decode_rle(turned["mask"]).sum() == pytest.approx(200, rel=0.1)


def test_shapes_of_one_group_and_label_are_one_region(labels):
    left, right = ((2, 2), (8, 2), (8, 8), (2, 8)), ((20, 10), (30, 10), (30, 20), (20, 20))
    root = labels(
        shape("polygon", left, group_id=1, description="two parts"),
        shape("polygon", right, group_id=1),
        shape("polygon", right, label="dog", group_id=1),
        shape("rectangle", ((0, 0), (4, 4)), label="bird", group_id=2),
        shape("rectangle", ((6, 6), (9, 9)), label="bird", group_id=2),
    )
    cat, dog, bird = regions(read("labelme", root=root))
    assert cat["box"] == [2, 2, 30, 20] and decode_rle(cat["mask"]).sum() == 36 + 100
    assert cat["captions"] == ["two parts"]
    assert dog["box"] == [20, 10, 30, 20] and bird["box"] == [0, 0, 9, 9] and bird["mask"] is None


def test_shapes_without_an_inside_are_weighed(labels):
    report = ReadReport()
    points = shape("point", ((1, 1),), label="eye"), shape("linestrip", ((1, 1), (2, 2)), label="tail")
    assert len(regions(read("labelme", report=report, root=labels(shape(), *points)))) == 1
    assert report.left_out == {"point shapes": 1, "linestrip shapes": 1}
    assert "eye, tail" in report.warnings()[0]


def test_pictures_lie_where_the_file_says_or_beside_it_or_in_it(labels, tmp_path):
    root = labels(shape(), imagePath="..\\a.jpg", name="labels/b.json")
    (record,) = read("labelme", root=root / "labels")
    assert record["image"].endswith("a.jpg") and record["image_id"] == "b"
    labels(shape(), imagePath="C:\\photos\\a.jpg", name="labels/b.json")
    (record,) = read("labelme", root=root / "labels", images=root)
    assert record["image"].endswith("a.jpg")
    data = base64.b64encode((tmp_path / "a.jpg").read_bytes()).decode()
    labels(shape(), imagePath="gone.jpg", imageData=data, name="labels/b.json")
    (record,) = read("labelme", root=root / "labels")
    assert record["image"]["bytes"] == (tmp_path / "a.jpg").read_bytes()
    labels(shape(), imagePath="gone.jpg", name="labels/b.json")
    with pytest.raises(RegionRecordError, match=r"there is no picture 'gone.jpg' in .*images=FOLDER"):
        read("labelme", root=root / "labels")


def test_pictures_without_a_file_are_told(labels, tmp_path):
    picture(tmp_path / "b.jpg")
    report = ReadReport()
    assert len(read("labelme", report=report, root=labels(shape()))) == 1
    assert report.notes == ["1 pictures without a JSON file are left out"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape(points=((1, 2, 3),)), "points are .* expected pairs"),
        (shape(points=((1, 2),)), "the rectangle has 1 points"),
        (shape("polygon", ((1, 2), (3, 4))), "the polygon has 2 points, expected at least 3"),
        (shape("cuboid"), "shape_type is 'cuboid', expected rectangle"),
        (shape(label=" "), "it has no label"),
        (shape("mask", mask="?"), "its mask is not a picture in base64"),
        (shape("mask", mask=png(np.ones((3, 3), np.uint8))), "its mask of 3 x 3 pixels does not fill"),
        (shape("mask", ((0, 0), (2, 2)), mask=png(np.zeros((3, 3), np.uint8))), "covers no pixel"),
        (shape(points=((30, 6), (60, 24))), "reaches outside"),
    ],
)
def test_a_bad_shape_is_named(labels, bad, message):
    with pytest.raises(RegionRecordError, match=r"a\.json, image a, region a/0: .*" + message):
        read("labelme", root=labels(bad))


def test_bad_files_are_named(labels, tmp_path):
    with pytest.raises(RegionRecordError, match=r"a\.json, image a: the file says 80 x 30, the picture is 40 x 30"):
        read("labelme", root=labels(shape(), imageWidth=80))
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(RegionRecordError, match=r"a\.json has no list of shapes.*move it elsewhere"):
        read("labelme", root=tmp_path)
    with pytest.raises(ValueError, match="has no JSON files"):
        (tmp_path / "empty").mkdir()
        read("labelme", root=tmp_path / "empty")
    with pytest.raises(RegionRecordError, match="mixes rectangles and polygons"):
        read("labelme", root=labels(shape(group_id=3), shape("polygon", ((1, 1), (9, 1), (9, 9)), group_id=3)))
