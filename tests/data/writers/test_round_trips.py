"""What a writer wrote, its reader reads: boxes, masks, captions of any letters, odd names of files."""

import json
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.data.writers import WRITERS, write_regions
from sca_hf.processing.masks_sca import decode_rle, encode_rle


READ = {
    "cvat": lambda out: ("cvat", {"root": str(out)}),
    "label_studio": lambda out: ("label_studio", {"annotations": str(out / "tasks.json"), "source": "predictions"}),
    "labelme": lambda out: ("labelme", {"root": str(out)}),
    "yolo": lambda out: ("yolo", {"root": str(out), "split": "train"}),
}
NAMES = [
    "plain.png",
    "a/b c.png",
    "100%41 ü#?.png",
    "e\u0301.png",
    "a:b|c.png",
    "line\nbreak.png",
    ".hidden.png",
    "images/x.png",
    "x.y.z.PNG",
    "..\\up.png",
    "'q\" & <t>.png",
    "日本語/写真.png",
    "no suffix",
    "\ud800.png",
]
LABELS = ["cat", "traffic light", "été", "RBC", "чашка", 'a "quoted" & <tag>', "yes", "1.10"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)


@st.composite
def regions(draw, width, height, kinds=("box", "mask")):
    kind = draw(st.sampled_from(kinds))
    region = {"region_id": "?", "category": draw(st.sampled_from(LABELS)), "captions": [draw(TEXTS)]}
    if kind == "mask":
        mask = draw(arrays(bool, (height, width), fill=st.just(False)))
        mask[draw(st.integers(1, height - 1)), draw(st.integers(1, width - 1))] = True
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        return {**region, "box": [float(x) for x in box], "mask": encode_rle(mask)}
    x0, y0 = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
    box = [x0, y0, draw(st.floats(max(x0 + 1, 2), width)), draw(st.floats(y0 + 1, height))]
    return {**region, "box": box, "mask": None}


@st.composite
def data_sets(draw, kinds=("box", "mask")):
    records = []
    for number, name in enumerate(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4))):
        width, height = draw(st.integers(3, 30)), draw(st.integers(3, 30))
        found = draw(st.lists(regions(width, height, kinds), max_size=4))
        picture = Image.new("RGB", (width, height), (0, 0, number))
        records.append({"name": name, "image": picture, "width": width, "height": height, "regions": found})
    return [{**record, "image_id": f"{number} {record['name']}"} for number, record in enumerate(records)]


def write_and_read(tool, records, shapes="pixels"):
    """Writes pictures, told apart by their color, and returns the records as they come back, in the same order."""
    with tempfile.TemporaryDirectory() as folder:
        report = write_regions(tool, records, Path(folder) / "out", shapes)
        read = read_back(tool, Path(folder) / "out")
        for record in read:
            with Image.open(record["image"]) as picture:
                record["image"] = picture.convert("RGB")
    assert report.images == len(records) and report.regions == sum(len(record["regions"]) for record in records)
    return sorted(read, key=lambda record: record["image"].getpixel((0, 0))), report


def read_back(tool, out):
    format, options = READ[tool](out)
    return list(RecordSource(format, options, keep_empty=True).records(ReadReport()))


def expected(tool, record):
    """The regions that must come back: YOLO has no captions, so that the category is read as one."""
    if tool != "yolo":
        return record["regions"]
    return [{**region, "captions": [region["category"]]} for region in record["regions"]]


@pytest.mark.parametrize("tool", WRITERS)
@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_what_was_written_is_what_is_read(tool, data):
    kinds = ("box",) if tool == "yolo" else ("box", "mask")
    records = data.draw(data_sets(kinds))
    if tool == "yolo" and not any(record["regions"] for record in records):
        return  # a set without any region has no class
    read, report = write_and_read(tool, records)
    for record, back in zip(records, read, strict=True):
        assert record["image"].tobytes() == back["image"].tobytes()
        assert (record["width"], record["height"]) == (back["width"], back["height"])
        for region, found in zip(expected(tool, record), back["regions"], strict=True):
            assert found["captions"] == region["captions"]
            assert found["category"] == region["category"]
            assert found["box"] == pytest.approx(region["box"], abs=1e-4)
            assert found["mask"] == region["mask"]
    # COCO's boxes in pixels are told from fractions of the sides by a number that is larger.
    assert set(report.lost) <= {"captions (YOLO has names only)"}


def blobs(seed, count=3):
    """A picture of ellipses with holes, some of them in several parts."""
    generator, size = np.random.default_rng(seed), (120, 90)
    found = []
    for number in range(count):
        canvas = Image.new("1", size)
        for _ in range(1 + number):
            x, y = generator.integers(20, 100), generator.integers(20, 70)
            a, b = generator.integers(2, 20, 2)
            ImageDraw.Draw(canvas).ellipse([x - a, y - b, x + a, y + b], fill=1)
            ImageDraw.Draw(canvas).ellipse([x - a // 3, y - b // 3, x + a // 3, y + b // 3], fill=0)
        mask = np.asarray(canvas)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]
        found.append(
            {
                "region_id": str(number),
                "box": box,
                "mask": encode_rle(mask),
                "captions": [f"blob {number}"],
                "category": "blob",
            }
        )
    image = Image.new("RGB", size, (0, 0, seed))
    return {"image": image, "image_id": f"{seed}.png", "width": 120, "height": 90, "regions": found}


@pytest.mark.parametrize("tool", WRITERS)
def test_polygons_follow_masks_to_a_pixel_through_holes_and_parts(tool):
    records = [blobs(seed) for seed in range(8)]
    read, _ = write_and_read(tool, records, shapes="polygons")
    for record, back in zip(records, read, strict=True):
        for region, found in zip(record["regions"], back["regions"], strict=True):
            before, after = decode_rle(region["mask"]), decode_rle(found["mask"])
            assert not (after & ~grown(before)).any() and not (~after & ~grown(~before, True)).any()
            assert (before & after).sum() / (before | after).sum() > 0.95
            assert found["box"] == pytest.approx(region["box"], abs=1)
            assert found["captions"] == [region["category"] if tool == "yolo" else region["captions"][0]]


@pytest.mark.parametrize(
    ("shapes", "label_studio", "labelme"),
    [
        ("pixels", "brushlabels", {"mask"}),
        ("polygons", "polygonlabels", {"polygon"}),
        ("boxes", "rectanglelabels", {"rectangle"}),
    ],
)
def test_regions_have_the_shape_that_was_asked_for(tmp_path, shapes, label_studio, labelme):
    for tool in ("label_studio", "labelme", "cvat"):
        write_regions(tool, [blobs(7)], tmp_path / tool, shapes)
    (task,) = json.loads((tmp_path / "label_studio" / "tasks.json").read_text(encoding="utf-8"))
    assert {one["type"] for one in task["predictions"][0]["result"]} == {label_studio, "textarea"}
    content = json.loads((tmp_path / "labelme" / "7.json").read_text(encoding="utf-8"))
    assert {one["shape_type"] for one in content["shapes"]} == labelme
    content = json.loads((tmp_path / "cvat" / "annotations" / "instances_default.json").read_text(encoding="utf-8"))
    kinds = {"pixels": dict, "polygons": list, "boxes": list}
    assert all(isinstance(one["segmentation"], kinds[shapes]) for one in content["annotations"])
    assert all(bool(one["segmentation"]) == (shapes != "boxes") for one in content["annotations"])


def grown(mask, outside=False):
    """A mask with all neighbors of its pixels."""
    padded = np.pad(mask, 1, constant_values=outside)
    return np.logical_or.reduce([padded[y : y + len(mask), x : x + mask.shape[1]] for y in range(3) for x in range(3)])


@given(mask=arrays(bool, (9, 11)).filter(np.any))
def test_polygons_of_specks_cover_each_pixel(mask):
    record = {"image": Image.new("RGB", (11, 9)), "image_id": "a.png", "width": 11, "height": 9}
    region = {"region_id": "0", "box": [0, 0, 11, 9], "mask": encode_rle(mask), "captions": ["speck"]}
    for tool in ("cvat", "yolo"):
        read, _ = write_and_read(tool, [{**record, "regions": [region]}], shapes="polygons")
        after = decode_rle(read[0]["regions"][0]["mask"])
        assert not (after & ~grown(mask)).any() and not (~after & ~grown(~mask, True)).any()


def test_yolo_writes_a_mixture_as_polygons_and_says_so():
    record = blobs(0)
    record["regions"].append({"region_id": "b", "box": [10, 20.5, 30, 40], "mask": None, "captions": ["a box"]})
    read, report = write_and_read("yolo", [record])
    back = read[0]["regions"][3]
    assert back["box"] == pytest.approx([10, 20.5, 30, 40], abs=1e-3) and back["mask"] is not None
    assert back["category"] == "object"
    assert report.lost == {
        "boxes without a mask (written as polygons of four corners)": 1,
        "captions (YOLO has names only)": 4,
    }


def test_what_a_form_cannot_keep_is_counted(tmp_path):
    record = blobs(1, 1)
    region = record["regions"][0]
    region |= {"captions": ["one", "two", "three"], "points": [[1.0, 1.0]], "labels": [1], "box": [0, 0, 120, 90]}
    assert write_regions("labelme", [record], tmp_path / "a").lost == {
        "further captions of a region": 2,
        "regions' points": 1,
        "boxes that differ from the extent of their mask": 1,
    }
    report = write_regions("label_studio", [record], tmp_path / "b")
    assert "further captions of a region" not in report.lost and "not kept: 1 boxes that differ" in str(report)
    (back,) = read_back("label_studio", tmp_path / "b")
    assert back["regions"][0]["captions"] == ["one", "two", "three"]


def test_a_folder_that_may_hold_corrections_is_left_alone(tmp_path):
    write_regions("labelme", [blobs(0)], tmp_path / "out")
    with pytest.raises(FileExistsError, match="may contain corrections; rename or remove"):
        write_regions("labelme", [blobs(0)], tmp_path / "out")
    with pytest.raises(ValueError, match="tool is 'paint', expected one of cvat"):
        write_regions("paint", [], tmp_path / "more")

    def broken():
        yield blobs(0)
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_regions("yolo", broken(), tmp_path / "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_pictures_of_one_stem_get_label_files_of_their_own(tmp_path):
    for name in ("a.png", "a.bmp", "A.png", "a_2.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    names = ["a.png", "a.bmp", "A.png", "a_2.png"]
    region = {"region_id": "0", "box": [0, 0, 8, 6], "mask": None, "category": None}
    records = [
        {"image": str(tmp_path / n), "image_id": n, "width": 8, "height": 6, "regions": [{**region, "captions": [n]}]}
        for n in names
    ]
    write_regions("labelme", records, tmp_path / "out")
    back = RecordSource("labelme", {"root": tmp_path / "out"}).records(ReadReport())
    assert {record["regions"][0]["captions"][0] for record in back} == set(names)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".json") == [
        "A_3.png",
        "a.png",
        "a_2.bmp",
        "a_2_2.png",
    ]


def test_a_caption_corrected_in_label_studio_comes_back(tmp_path):
    record = blobs(2, 2)
    write_regions("label_studio", [record], tmp_path / "out")
    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text(encoding="utf-8"))
    # As Label Studio exports it: submitted, the prediction kept beside it, its own ids, geometry repeated in each
    # result, and a picture by its address.
    results = task["predictions"][0]["result"]
    for result in results:
        if result["type"] == "textarea":
            brush = next(one for one in results if one["id"] == result["id"])
            result["value"] = {"format": "rle", "rle": brush["value"]["rle"], "text": ["a blob, corrected ☕"]}
            result["origin"] = "prediction-changed"
    task |= {"id": 7, "annotations": [{"id": 1, "was_cancelled": False, "result": results}], "file_upload": ""}
    (tmp_path / "out" / "export.json").write_text(json.dumps([task]), encoding="utf-8")
    source = RecordSource("label_studio", {"annotations": tmp_path / "out" / "export.json"})
    (back,) = source.records(ReadReport())
    assert back["image_id"] == "2.png"
    assert [region["captions"] for region in back["regions"]] == [["a blob, corrected ☕"]] * 2
    assert [region["mask"] for region in back["regions"]] == [region["mask"] for region in record["regions"]]


def test_a_caption_corrected_in_labelme_comes_back(tmp_path):
    record = blobs(3, 2)
    write_regions("labelme", [record], tmp_path / "out")
    path = tmp_path / "out" / "3.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert {shape["shape_type"] for shape in content["shapes"]} == {"mask"}
    content["shapes"][1]["description"] = "corrected\nin two lines"
    path.write_text(json.dumps(content), encoding="utf-8")
    (back,) = RecordSource("labelme", {"root": tmp_path / "out"}).records(ReadReport())
    assert [region["captions"] for region in back["regions"]] == [["blob 0"], ["corrected\nin two lines"]]


def test_a_caption_corrected_in_cvat_comes_back(tmp_path):
    """CVAT returns the attribute alone, masks as uncompressed RLE of a crowd, and polygons as polygons."""
    record = blobs(4, 2)
    write_regions("cvat", [record], tmp_path / "out")
    labels = json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8"))
    assert labels[0]["name"] == "blob" and labels[0]["attributes"][0]["name"] == "caption"
    path = tmp_path / "out" / "annotations" / "instances_default.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for annotation in content["annotations"]:
        assert annotation["attributes"]["caption"].startswith("blob ") and "caption" not in annotation
        annotation["attributes"] = {"caption": "corrected", "occluded": False}
        mask = decode_rle(annotation["segmentation"])
        runs = [len(list(group)) for _, group in groupby(mask.T.ravel())]
        runs = [0, *runs] if mask[0, 0] else runs
        annotation |= {"iscrowd": 1, "segmentation": {"size": list(mask.shape), "counts": runs}}
    path.write_text(json.dumps(content), encoding="utf-8")
    (back,) = RecordSource("cvat", {"root": tmp_path / "out"}).records(ReadReport())
    assert [region["captions"] for region in back["regions"]] == [["corrected"]] * 2
    assert [region["mask"] for region in back["regions"]] == [region["mask"] for region in record["regions"]]


def test_the_labeling_interface_names_every_label(tmp_path):
    from xml.etree import ElementTree

    records = [blobs(0, 1)]
    records[0]["regions"][0]["category"] = 'a "quoted" & <tag>'
    write_regions("label_studio", records, tmp_path / "out")
    view = ElementTree.parse(tmp_path / "out" / "config.xml").getroot()
    assert {tag.tag: [label.get("value") for label in tag] for tag in view if len(tag)} == {
        "BrushLabels": ['a "quoted" & <tag>'],
        "PolygonLabels": ['a "quoted" & <tag>'],
        "RectangleLabels": ['a "quoted" & <tag>'],
    }
    area = view.find("TextArea")
    assert (area.get("perRegion"), area.get("name"), area.get("toName")) == ("true", "caption", "image")


def test_blank_captions_are_read_as_the_category(tmp_path):
    record = blobs(5, 1)
    record["regions"][0]["captions"] = [" "]
    for tool in WRITERS:
        write_regions(tool, [record], tmp_path / tool)
        assert read_back(tool, tmp_path / tool)[0]["regions"][0]["captions"] == ["blob"]


def test_refusals_name_what_cannot_be_read(tmp_path):
    write_regions("label_studio", [blobs(0, 1)], tmp_path / "out")
    options = {"annotations": tmp_path / "out" / "tasks.json"}
    with pytest.raises(ValueError, match=r'none of 1 tasks has annotations.*source="predictions"'):
        list(RecordSource("label_studio", options).records(ReadReport()))
    with pytest.raises(RegionRecordError, match=r"no picture 'images/0.png'.*say images=FOLDER"):
        options |= {"images": tmp_path, "source": "predictions"}
        (tmp_path / "out" / "images" / "0.png").unlink()
        list(RecordSource("label_studio", options).records(ReadReport()))
