"""What annotation tools export and people keep, beyond the formats: read rightly or refused by name."""

import json
import logging
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image
from reading import picture, read, regions, write

from sca_hf.data.loading import load_regions
from sca_hf.data.read_report import NothingLeftError, ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle, encode_rle


SQUARE = [10, 5, 20, 5, 20, 25, 10, 25]


@pytest.fixture
def coco(tmp_path):
    """`coco({...}, {...})` writes a picture and a COCO file of such annotations beside it; returns the option."""

    def make(*annotations, name="a.jpg", images=None, **content):
        if images is None:
            picture(tmp_path / "a.jpg")
            images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
        rows = [{"id": k, "image_id": 1, "category_id": 1, **row} for k, row in enumerate(annotations)]
        classes = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        values = {"images": images, "annotations": rows, "categories": classes, **content}
        return {"annotations": write(tmp_path / "a.json", json.dumps(values))}

    return make


def corners(center, side, degrees):
    """A square turned clockwise as it is seen."""
    turn = np.deg2rad(degrees + np.array([45, 135, 225, 315]))
    return center + side / np.sqrt(2) * np.stack([np.cos(turn), np.sin(turn)], 1)


@pytest.mark.parametrize("degrees", [45, 30, 300.5, -20])
def test_a_rotated_box_is_its_mask_and_the_box_around_it(coco, degrees):
    (region,) = regions(read("coco", **coco({"bbox": [14, 9, 12, 12], "attributes": {"rotation": degrees}})))
    points = corners(np.array([20, 15]), 12, degrees)
    assert region["box"] == pytest.approx([*points.min(0), *points.max(0)], abs=1e-4)
    area = decode_rle(region["mask"]).sum()
    assert 130 < area < 158 and not decode_rle(region["mask"])[9, 14]


def test_a_rotation_is_clockwise_and_what_it_turns_out_of_the_picture_is_cut_and_counted(coco):
    options = coco(
        {"bbox": [10, 13, 20, 4], "attributes": {"rotation": 20}},
        {"bbox": [0, 0, 20, 10], "attributes": {"rotation": 45}},
        {"bbox": [10, 13, 20, 4], "attributes": {"rotation": 0.0}},
    )
    report = ReadReport()
    turned, cut, straight = regions(read("coco", report=report, **options))
    mask = decode_rle(turned["mask"])
    assert mask[18, 28] and mask[11, 12] and not mask[11, 28]
    assert cut["box"][:2] == [0, 0] and report.clipped_regions == 1
    assert straight["mask"] is None and straight["box"] == [10, 13, 30, 17]


def test_a_rotation_beside_a_polygon_and_angles_of_unknown_units(coco):
    turned = corners(np.array([20.0, 15]), 12, 45).ravel().tolist()
    around = [min(turned[::2]), min(turned[1::2]), 17, 17]
    options = coco(
        {"bbox": [14, 9, 12, 12], "segmentation": [turned], "attributes": {"rotation": 45}},
        {"bbox": around, "segmentation": [turned], "attributes": {"rotation": 45}},
    )
    first, second = regions(read("coco", **options))
    assert first["box"] == pytest.approx(second["box"], abs=0.1) and first["mask"] == second["mask"]
    with pytest.raises(RegionRecordError, match=r"region 0: its box is rotated by angle = 0\.5.*export polygons"):
        read("coco", **coco({"bbox": [14, 9, 12, 12], "angle": 0.5}))


def test_boxes_in_fractions_are_scaled_where_the_whole_file_shows_them(coco, caplog):
    rows = [{"bbox": [0.1, 0.2, 0.5, 0.4], "segmentation": [[0.1, 0.2, 0.6, 0.2, 0.6, 0.6]]}, {"bbox": [0, 0, 1, 1]}]
    report = ReadReport()
    first, whole = regions(read("coco", report=report, **coco(*rows)))
    assert first["box"] == pytest.approx([4, 6, 24, 18]) and whole["box"] == [0, 0, 40, 30]
    assert decode_rle(first["mask"])[8, 20] and "fractions of the image's sides" in report.notes[0]
    with caplog.at_level(logging.WARNING):
        load_regions("coco", **coco(*rows))
    assert "fractions of the image's sides" in caplog.text
    with pytest.raises(RegionRecordError, match=r"region 0: .*less than a pixel.*fractions"):
        read("coco", **coco(rows[0], {"bbox": [1, 2, 30, 20]}))


@pytest.mark.parametrize("box", [[5, 5, 5.3, 20], [5, 5, 20, 5.4], [5, 5, 5.9, 5.9]])
def test_a_box_has_a_least_side(coco, box):
    x0, y0, x1, y1 = box
    with pytest.raises(RegionRecordError, match="less than a pixel"):
        read("coco", **coco({"bbox": [x0, y0, x1 - x0, y1 - y0]}, {"bbox": [1, 2, 30, 20]}))


def test_a_caption_in_an_annotation_is_the_caption(coco):
    options = coco(
        {"bbox": [1, 2, 30, 20], "caption": "a cat on a mat"},
        {"bbox": [1, 2, 30, 20], "captions": ["one", "two"]},
        {"bbox": [1, 2, 30, 20], "attributes": {"caption": "corrected", "occluded": False}},
        {"bbox": [1, 2, 30, 20], "caption": " "},
    )
    found = regions(read("coco", **options))
    expected = [["a cat on a mat"], ["one", "two"], ["corrected"], ["cat"]]
    assert [region["captions"] for region in found] == expected
    assert {region["category"] for region in found} == {"cat"}
    content = json.loads(options["annotations"].read_text())
    del content["categories"], content["annotations"][3]
    write(options["annotations"], json.dumps(content))
    assert [region["category"] for region in regions(read("coco", **options))] == [None] * 3
    report = ReadReport()
    read("coco", report=report, **coco({"bbox": [1, 2, 30, 20], "description": "a cat"}))
    assert report.notes == ["texts of annotations in description are not read; those in caption are"]


@pytest.mark.parametrize("form", ["polygon", "flat", "runs"])
def test_a_segmentation_without_a_box_gives_the_box(coco, form):
    mask = np.zeros((30, 40), bool)
    mask[5:25, 10:20] = True
    segmentation = {"polygon": [SQUARE], "flat": SQUARE, "runs": encode_rle(mask)}[form]
    for box in ({}, {"bbox": []}, {"bbox": [0, 0, 0, 0]}):
        (region,) = regions(read("coco", **coco({"segmentation": segmentation, **box})))
        assert region["box"] == [10, 5, 20, 25] and np.array_equal(decode_rle(region["mask"]), mask)


def test_ids_that_are_texts_here_and_numbers_there_are_the_same(coco):
    options = coco({"image_id": "1", "category_id": "2", "segmentation": SQUARE, "bbox": [10, 5, 10, 20]})
    (region,) = regions(read("coco", **options))
    assert region["category"] == "dog" and region["mask"] is not None


@pytest.mark.parametrize(
    "name",
    [
        "/data/local-files/?d=photos/a b.jpg",
        "..\\..\\a b.jpg",
        "C:\\Users\\me\\a b.jpg",
        "a%20b.jpg",
        "https://host/bucket/a%20b.jpg?sig=1",
        "A B.JPG",
        "./a b.jpg",
    ],
)
def test_a_picture_is_found_by_any_spelling_of_its_name(coco, tmp_path, name):
    path = picture(tmp_path / "a b.jpg")
    images = [{"id": 1, "file_name": name, "width": 40, "height": 30}]
    (record,) = read("coco", **coco({"bbox": [1, 2, 30, 20]}, images=images))
    assert record["image"] == str(path)


def test_names_match_whether_composed_or_not(tmp_path, coco):
    composed, apart = (unicodedata.normalize(form, "Bär é.jpg") for form in ("NFC", "NFD"))
    for written, stored in ((composed, apart), (apart, composed)):
        path = picture(tmp_path / stored)
        images = [{"id": 1, "file_name": written, "width": 40, "height": 30}]
        assert read("coco", **coco({"bbox": [1, 2, 30, 20]}, images=images))[0]["image"] == str(path)
        row = {"image": written, "regions": [{"box": [1, 2, 30, 20], "captions": ["x"]}]}
        write(tmp_path / "rows.jsonl", json.dumps(row))
        assert read("jsonl", path=tmp_path / "rows.jsonl")[0]["image"] == str(path)
        path.unlink()


def test_a_name_that_may_mean_two_files_or_a_file_that_two_names_may_mean_is_refused(tmp_path, coco):
    for folder in "xy":
        picture(tmp_path / folder / "c.jpg")
    images = [{"id": 1, "file_name": "c.jpg", "width": 40, "height": 30}]
    with pytest.raises(RegionRecordError, match=r"image 1: 'c\.jpg' may be any of x/c\.jpg, y/c\.jpg"):
        read("coco", **coco({"bbox": [1, 2, 30, 20]}, images=images))
    picture(tmp_path / "d.jpg")
    images = [{"id": k, "file_name": f"{k}/d.jpg", "width": 40, "height": 30} for k in (1, 2)]
    with pytest.raises(RegionRecordError, match=r"'1/d\.jpg' is not in .*d\.jpg there may belong to another image"):
        read("coco", **coco({"bbox": [1, 2, 30, 20]}, images=images))
    images = [{"id": 1, "file_name": "z/c.jpg", "width": 40, "height": 30}]
    with pytest.raises(RegionRecordError, match=r"there is no file .*z/c\.jpg"):
        read("coco", **coco({"bbox": [1, 2, 30, 20]}, images=images))


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("_annotations.coco.json", "a.jpg"),
        ("annotations/instances_default.json", "images/default/a.jpg"),
        ("annotations/instances_train2017.json", "train2017/a.jpg"),
        ("result.json", "images/a.jpg"),
    ],
)
def test_pictures_beside_the_file_need_no_option(coco, tmp_path, file, place):
    made = coco({"bbox": [1, 2, 30, 20]})["annotations"]
    path = write(tmp_path / "set" / file, made.read_text())
    found = picture(tmp_path / "set" / place)
    assert read("coco", annotations=path)[0]["image"] == str(found)


def brush(label, crowd=1):
    return {"segmentation": [SQUARE], "bbox": [10, 5, 10, 20], "category_id": label, "iscrowd": crowd}


def test_what_a_rule_leaves_out_is_weighed(coco, caplog):
    for rows, message in (
        ([brush(1, 0)] * 9 + [brush(2)], "and with them all of the class dog"),
        ([brush(1, 0)] * 15 + [brush(1)], r"1 of 16 regions \(6%\) are left out"),
    ):
        caplog.clear()
        load_regions("coco", **coco(*rows))
        assert [r for r in caplog.records if r.levelno == logging.WARNING and "crowd=keep" in r.getMessage()]
        report = ReadReport()
        read("coco", report=report, **coco(*rows))
        (text,) = report.warnings()
        assert re.search(message, text)
    report = ReadReport()
    read("coco", report=report, **coco(*[brush(1, 0)] * 30, brush(1)))
    assert report.warnings() == [] and report.left_out == {"crowd annotations": 1}
    for streaming in (False, True):
        with pytest.raises(NothingLeftError, match=r"left out 2 crowd annotations.*crowd=keep reads them") as error:
            list(load_regions("coco", streaming=streaming, **coco(brush(1), brush(2))))
        assert error.value.exit_code == 1
    assert len(regions(read("coco", crowd="keep", **coco(brush(1), brush(2))))) == 2


def test_nothing_left_ends_a_command_with_1(coco, capsys):
    from sca_hf.cli import main

    some = coco(brush(1, 0), brush(2))["annotations"]
    assert main(["data", "check", f"coco:annotations={some}"]) == 0 and "WARNING" in capsys.readouterr().out
    none = coco(brush(1), brush(2))["annotations"]
    assert main(["data", "check", f"coco:annotations={none}"]) == 1
    assert "no usable image" in capsys.readouterr().err
    assert main(["predict", "--data", f"coco:annotations={none}", "--output", f"{none}.jsonl"]) == 1


@pytest.fixture
def yolo(tmp_path):
    """`yolo(lines, more of data.yaml)` writes a set of one picture with the classes a, b, c."""

    def make(lines, config="", names="[a, b, c]"):
        picture(tmp_path / "images" / "p.jpg", (100, 100))
        write(tmp_path / "labels" / "p.txt", lines)
        write(tmp_path / "data.yaml", f"train: images\nnames: {names}\n{config}")
        return {"root": tmp_path}

    return make


POINTS = "0.45 0.4 {0} 0.55 0.4 {0} 0.55 0.6 {0} 0.45 0.6 {0}"


@pytest.mark.parametrize(
    ("line", "config"),
    [
        ("0 .5 .5 .2 .3 " + POINTS.format(1), "kpt_shape: [4, 3]"),
        ("0 .5 .5 .2 .3 " + POINTS.format(""), "kpt_shape: [4, 2]"),
        ("0 .5 .5 .2 .3 " + POINTS.format(2), ""),
        ("0 .5 .5 .2 .3 " + POINTS.format(1) + " 0 0 0", ""),
        ("0 .5 .5 .2 .3", "kpt_shape: [4, 3]"),
    ],
)
def test_a_line_with_key_points_is_its_box(yolo, line, config):
    (region,) = regions(read("yolo", **yolo(line, config)))
    assert region["box"] == pytest.approx([40, 35, 60, 65], abs=1e-4) and region["mask"] is None


def test_key_points_that_may_be_a_polygon_are_refused_until_told(yolo):
    line = "0 .5 .5 .2 .3 " + POINTS.format(1)
    with pytest.raises(RegionRecordError, match=r"line 1: 16 numbers may be a polygon.*kpt_shape.*keypoints=12 or"):
        read("yolo", **yolo(line))
    assert regions(read("yolo", keypoints=12, **yolo(line)))[0]["mask"] is None
    # A polygon in a corner of the picture has ones and noughts too.
    polygon = "0 0.1 0.9 0.3 0.7 0 0.5 0 0.3 0 1"
    assert regions(read("yolo", **yolo(polygon)))[0]["mask"] is not None
    assert regions(read("yolo", keypoints=0, **yolo("0 .5 .5 .2 .3 .4 .4 1 .6 .6 1")))[0]["mask"] is not None
    with pytest.raises(RegionRecordError, match="10 numbers follow the class, expected 4 of a box and 12"):
        read("yolo", **yolo("0 .5 .5 .2 .3 .4 .4 1 .6 .6 1", "kpt_shape: [4, 3]"))


def test_a_set_of_polygons_that_are_all_boxes_with_key_points_is_refused(yolo):
    lines = "\n".join(f"0 {x} .5 .2 .3 {x} .45 {x} .5 {x} .55" for x in (0.3, 0.5, 0.7))
    with pytest.raises(ValueError, match=r"all 3 lines .* 10 numbers.*keypoints=6 or keypoints=0"):
        read("yolo", "skip", **yolo(lines))
    assert len(regions(read("yolo", keypoints=6, **yolo(lines)))) == 3
    others = lines + "\n1 .1 .1 .3 .1 .3 .3 .2 .4 .1 .3"
    assert len(regions(read("yolo", **yolo(others)))) == 4


def test_turned_boxes_are_their_four_corners(yolo):
    (region,) = regions(read("yolo", **yolo("0 .5 .3 .7 .5 .5 .7 .3 .5")))
    assert region["box"] == pytest.approx([30, 30, 70, 70], abs=1e-4) and decode_rle(region["mask"]).sum() < 900


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, no, on]", ["yes", "no", "on"]),
        ("{0: 1.10, 1: null, 2: 007}", ["1.10", "null", "007"]),
        ("[True, 1e3, 0x1F]", ["True", "1e3", "0x1F"]),
    ],
)
def test_class_names_are_what_is_written(yolo, names, expected):
    lines = "\n".join(f"{number} .5 .5 .2 .2" for number in range(3))
    assert [region["category"] for region in regions(read("yolo", **yolo(lines, names=names)))] == expected


def test_a_blank_line_keeps_its_number(tmp_path):
    picture(tmp_path / "images" / "p.jpg")
    write(tmp_path / "labels" / "p.txt", "0 .5 .5 .2 .2\n2 .5 .5 .2 .2\n")
    write(tmp_path / "classes.txt", "a\n\nc\n\n")
    assert [region["category"] for region in regions(read("yolo", root=tmp_path))] == ["a", "c"]
    write(tmp_path / "labels" / "p.txt", "1 .5 .5 .2 .2\n")
    with pytest.raises(RegionRecordError, match=r"class 1 has no name: its line .* is blank"):
        read("yolo", root=tmp_path)


def test_class_names_of_another_encoding_are_decoded_or_named(tmp_path):
    picture(tmp_path / "images" / "p.jpg")
    write(tmp_path / "labels" / "p.txt", "1 .5 .5 .2 .2\n")
    (tmp_path / "classes.txt").write_bytes("thé\r\ncafé\r\n".encode("utf-16"))
    assert regions(read("yolo", root=tmp_path))[0]["category"] == "café"
    (tmp_path / "classes.txt").write_bytes("tea\r\ncafé\r\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"classes\.txt, line 2: b'caf.*is not UTF-8; save the file"):
        read("yolo", root=tmp_path)


def test_labels_are_found_by_any_spelling_and_those_without_a_picture_are_noticed(tmp_path):
    write(tmp_path / "classes.txt", "a\n")
    for name in ("photo 1", "photo 2", "Bär"):
        picture(tmp_path / "images" / f"{name}.jpg")
    for name in ("photo%201", "photo 2", unicodedata.normalize("NFD", "Bär")):
        write(tmp_path / "labels" / f"{name}.txt", "0 .5 .5 .2 .2\n")
    assert [len(record["regions"]) for record in read("yolo", root=tmp_path)] == [1, 1, 1]
    write(tmp_path / "labels" / "gone.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "labels" / "notes.txt", "these are not labels\n")
    with pytest.raises(RegionRecordError, match=r"gone\.txt: labels without a picture"):
        read("yolo", root=tmp_path)
    report = ReadReport()
    assert len(read("yolo", "skip", report, root=tmp_path)) == 3 and report.skipped_records == 1


def test_near_misses_of_the_layout_are_read(tmp_path):
    for name in ("1", "11"):
        picture(tmp_path / "cvat" / "obj_train_data" / f"{name}.jpg")
        write(tmp_path / "cvat" / "obj_train_data" / f"{name}.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "cvat" / "train.txt", "data/obj_train_data/1.jpg\n/home/me/x/obj_train_data/11.jpg\n")
    write(tmp_path / "cvat" / "obj.data", "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = b/\n")
    write(tmp_path / "cvat" / "obj.names", "no\n")
    for format in ("yolo", "cvat"):
        found = regions(read(format, root=tmp_path / "cvat"))
        assert [region["category"] for region in found] == ["no", "no"]
    root = tmp_path / "fiftyone"
    for split in ("train", "val"):
        picture(root / "images" / split / "1.jpg")
        write(root / "labels" / split / "1.txt", "0 .5 .5 .2 .2\n")
    config = "names:\n- fig\nnc: 1\npath: /home/me/export\ntrain: ./images/train/\nvalidation: ./images/val/\n"
    write(root / "dataset.yaml", config)
    for split in ("val", "valid", "validation"):
        assert read("fiftyone", root=root, split=split)[0]["image_id"] == "images/val/1.jpg"
    with pytest.raises(ValueError, match=r"choose a split.*train, validation"):
        read("yolo", root=root)
    (root / "dataset.yaml").unlink()
    with pytest.raises(ValueError, match=r"no folder .*; .* has train, val"):
        read("yolo", root=root, split="dev", classes=["fig"])


VOC = """<annotation><filename>a.jpg</filename><size><width>40</width><height>30</height></size>{}</annotation>"""
OBJECT = (
    "<object><name>{}</name>{}<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc(root, *objects, stem="a"):
    rows = [OBJECT.format(name, more, *box) for name, more, box in objects]
    picture(root / "JPEGImages" / f"{stem}.jpg")
    text = VOC.format("".join(rows)).replace("a.jpg", f"{stem}.jpg")
    return write(root / "Annotations" / f"{stem}.xml", text)


def test_an_edge_of_0_shows_what_pixels_count_from(tmp_path):
    voc(tmp_path, ("cat", "", (2, 3, 20, 25)))
    assert regions(read("voc", root=tmp_path))[0]["box"] == [1, 2, 20, 25]
    voc(tmp_path, ("cat", "", (5, "0.0", 20, 25)), stem="b")
    report = ReadReport()
    found = regions(read("voc", report=report, root=tmp_path))
    assert [region["box"] for region in found] == [[2, 3, 20, 25], [5, 0, 20, 25]]
    assert len(report.notes) == 1 and "0-based" in report.notes[0] and "b.xml" in report.notes[0]
    with pytest.raises(RegionRecordError, match=r"b\.xml.*an edge is 0, but one_based=True"):
        read("voc", root=tmp_path, one_based=True)
    assert regions(read("voc", root=tmp_path, one_based=False))[1]["box"] == [5, 0, 20, 25]


def test_polygons_and_rotations_of_voc_are_masks(tmp_path):
    names = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
    polygon = "".join(f"<{name}>{value}</{name}>" for name, value in zip(names, SQUARE, strict=True))
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in zip(SQUARE[::2], SQUARE[1::2], strict=True))
    rotation = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes>"
    voc(
        tmp_path,
        ("cat", f"<polygon>{polygon}</polygon>", (10, 5, 20, 25)),
        ("cat", f"<polygon>{points}</polygon>", (10, 5, 20, 25)),
        ("cat", rotation, (10, 10, 30, 14)),
        ("cat", "<polygon><x1>1</x1><y1>?</y1></polygon>", (10, 5, 20, 25)),
    )
    report = ReadReport()
    first, second, turned = regions(read("voc", "skip", report, root=tmp_path, one_based=False))
    assert first == {**second, "region_id": first["region_id"]}
    assert decode_rle(first["mask"])[5:25, 10:20].all() and decode_rle(first["mask"]).sum() == 200
    assert turned["box"] == pytest.approx([18, 2, 22, 22]) and decode_rle(turned["mask"]).sum() == 80
    assert "its polygon holds" in report.messages[0]


def test_a_folder_may_be_called_by_a_number(tmp_path, monkeypatch):
    from sca_hf.data.loading import parse_spec

    voc(tmp_path / "2007_12", ("cat", "", (2, 3, 20, 25)))
    voc(tmp_path / "2007", ("cat", "", (2, 3, 20, 25)))
    monkeypatch.chdir(tmp_path)
    for text in ("voc:root=2007", "voc:root=2007_12"):
        assert len(regions(read(**parse_spec(text)))) == 1
    assert len(load_regions("voc", root=2007)) == 1
    assert parse_spec("sa1b:images=1e3,captions=true.tsv,min_score=0.5,masks=false") == {
        "format": "sa1b",
        "images": "1e3",
        "captions": "true.tsv",
        "min_score": 0.5,
        "masks": False,
    }


def test_a_split_that_is_missing_is_told_with_those_there_are(tmp_path):
    voc(tmp_path, ("cat", "", (2, 3, 20, 25)))
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "a\n")
    with pytest.raises(ValueError, match=r"val\.txt; that folder has train"):
        read("voc", root=tmp_path, split="val")
    picture(tmp_path / "robo" / "train" / "a.jpg")
    with pytest.raises(ValueError, match=r"there is no folder .*valid; .* has train"):
        read("roboflow", root=tmp_path / "robo", split="valid")


def test_boxes_of_a_folder_with_metadata_that_cannot_be_corners_are_named(tmp_path):
    picture(tmp_path / "a.jpg")
    rows = {"file_name": "a.jpg", "objects": {"bbox": [[2, 3, 30, 20], [25, 3, 10, 20]], "category": ["a", "b"]}}
    write(tmp_path / "metadata.jsonl", json.dumps(rows))
    options = {"path": str(tmp_path), "columns": {"image": "image", "boxes": "objects.bbox"}}
    options["columns"]["categories"] = "objects.category"
    with pytest.raises(ValueError, match=r"row 0: the box .* is not one of corners.*box_format=xywh"):
        read("hub", "skip", **options)
    first, second = regions(read("hub", box_format="xywh", **options))
    assert (first["box"], second["box"]) == ([2, 3, 32, 23], [25, 3, 35, 23])


def test_tools_are_read_by_name(tmp_path, coco):
    file = coco(brush(1), brush(2, 0))["annotations"]
    write(tmp_path / "cvat" / "annotations" / "instances_train.json", file.read_text())
    picture(tmp_path / "cvat" / "images" / "train" / "a.jpg")
    assert len(regions(read("cvat", root=tmp_path / "cvat"))) == 2
    with pytest.raises(ValueError, match=r"split is 'val', .* has train"):
        read("cvat", root=tmp_path / "cvat", split="val")
    write(tmp_path / "cvat2" / "annotations.xml", "<annotations/>")
    with pytest.raises(ValueError, match=r'export the task as "COCO 1\.0"'):
        read("cvat", root=tmp_path / "cvat2")
    write(tmp_path / "robo" / "valid" / "_annotations.coco.json", file.read_text())
    picture(tmp_path / "robo" / "valid" / "a.jpg")
    assert len(regions(read("roboflow", root=tmp_path / "robo", split="valid"))) == 1
    write(tmp_path / "fifty" / "labels.json", file.read_text())
    picture(tmp_path / "fifty" / "data" / "a.jpg")
    assert len(regions(read("fiftyone", root=tmp_path / "fifty"))) == 1
    assert len(regions(read("via", root=file))) == 1
    write(tmp_path / "via.json", '{"_via_img_metadata": {}}')
    with pytest.raises(ValueError, match="project of VIA; choose"):
        read("via", root=tmp_path / "via.json")


def test_a_picture_of_one_file_only_is_not_read_for_another(tmp_path, coco):
    """Exact names win, whatever else lies below the folder."""
    picture(tmp_path / "sub" / "a.jpg", (8, 8))
    assert Image.open(read("coco", **coco({"bbox": [1, 2, 30, 20]}))[0]["image"]).size == (40, 30)
