"""Data sets that `datasets` opens, through a map of columns; here from local files, as the Hub keeps them."""

import json

import pytest
from PIL import Image
from reading import picture, read, regions, write

from sca_hf.data.loading import load_regions
from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError


datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def detection(tmp_path):
    """A Parquet file of objects with labels, the most common form on the Hub."""
    objects = {"bbox": [[4.5, 3, 10, 6], [0, 0, 40, 30]], "category": [1, 0], "id": [114, 115]}
    rows = {
        "image_id": [15, 16],
        "image": [Image.new("RGB", (40, 30)), Image.new("L", (40, 30))],
        "objects": [objects] * 2,
    }
    features = {
        "image_id": datasets.Value("int64"),
        "image": datasets.Image(),
        "objects": {
            "id": datasets.List(datasets.Value("int64")),
            "bbox": datasets.List(datasets.List(datasets.Value("float32"), length=4)),
            "category": datasets.List(datasets.ClassLabel(names=["Coverall", "face_shield"])),
        },
    }
    path = tmp_path / "data" / "train.parquet"
    path.parent.mkdir()
    datasets.Dataset.from_dict(rows, datasets.Features(features)).to_parquet(path)
    return {"path": "parquet", "data_files": str(path)}


COLUMNS = {"image": "image", "boxes": "objects.bbox", "categories": "objects.category", "image_id": "image_id"}


@pytest.mark.parametrize("download", [True, False])
def test_objects_with_labels_become_regions(detection, download):
    columns = {**COLUMNS, "region_ids": "objects.id"}
    records = read("hub", columns=columns, box_format="xywh", download=download, **detection)
    assert [record["image_id"] for record in records] == ["15", "16"]
    first, second = records[0]["regions"]
    assert first["box"] == [4.5, 3, 14.5, 9] and first["region_id"] == "114"
    assert first["captions"] == ["face shield"] and second["category"] == "Coverall"
    assert records[0]["image"]["bytes"][:4] == b"\x89PNG" and records[0]["width"] == 40
    options = {"columns": columns, "box_format": "xywh", "task": "recognition", "names": {"face_shield": "a shield"}}
    (region, _), _ = (record["regions"] for record in read("hub", **options, **detection))
    assert region["captions"] == [] and region["category"] == "a shield"


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures with metadata, one caption a region."""

    def make(**columns):
        picture(tmp_path / "pictures" / "a.jpg")
        write(tmp_path / "pictures" / "metadata.jsonl", json.dumps({"file_name": "a.jpg", **columns}) + "\n")
        return {"path": "imagefolder", "data_files": str(tmp_path / "pictures" / "**")}

    return make


@pytest.mark.parametrize(
    ("box", "box_format", "normalized"),
    [
        ([10, 6, 20, 12], "xyxy", False),
        ([10, 6, 10, 6], "xywh", False),
        ([15, 9, 10, 6], "cxcywh", False),
        ([0.25, 0.2, 0.5, 0.4], "xyxy", True),
        ([0.25, 0.2, 0.25, 0.2], "xywh", True),
        ([0.375, 0.3, 0.25, 0.2], "cxcywh", True),
    ],
)
def test_every_form_of_box_is_the_same_region(folder, box, box_format, normalized):
    source = folder(boxes=[box], captions=["ein Ä, eine 図"])
    columns = {"image": "image", "boxes": "boxes", "captions": "captions"}
    (record,) = read("hub", columns=columns, box_format=box_format, normalized=normalized, **source)
    (region,) = record["regions"]
    assert region["box"] == pytest.approx([10, 6, 20, 12], abs=1e-5) and region["captions"] == ["ein Ä, eine 図"]
    assert record["image"].endswith("a.jpg")


def test_a_row_may_hold_one_box_or_none(folder):
    columns = {"image": "image", "boxes": "box", "captions": "phrases"}
    (region,) = regions(read("hub", columns=columns, **folder(box=[1, 2, 3, 4], phrases=["a", "b"])))
    assert region["box"] == [1, 2, 3, 4] and region["captions"] == ["a", "b"]
    (region,) = regions(read("hub", columns={"image": "image", "captions": "text"}, **folder(text="the whole")))
    assert region["box"] == [0, 0, 40, 30] and region["captions"] == ["the whole"]


def test_lists_of_objects_are_looked_into(folder):
    source = folder(regions=[{"box": [1, 2, 3, 4], "text": "a"}, {"box": [5, 5, 9, 9], "text": "b"}])
    columns = {"image": "image", "boxes": "regions.box", "captions": "regions.text"}
    assert [region["captions"] for region in regions(read("hub", columns=columns, **source))] == [["a"], ["b"]]


def test_what_does_not_fit_is_named(folder):
    columns = {"image": "image", "boxes": "boxes", "captions": "captions"}
    with pytest.raises(RegionRecordError, match="row 0: there are 2 boxes, but 1 of captions"):
        read("hub", columns=columns, **folder(boxes=[[1, 2, 3, 4]] * 2, captions=["a"]))
    report = ReadReport()
    source = folder(boxes=[[1, 2, 3, 4], [1, 2, 3]], captions=["a", "b"])
    assert len(regions(read("hub", "skip", report, columns=columns, **source))) == 1
    assert "row 0, region 1: box is [1" in report.messages[0]
    with pytest.raises(RegionRecordError, match="row 0: there is no column objects"):
        read("hub", columns={**columns, "boxes": "objects.bbox"}, **source)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"boxes": "boxes", "captions": "captions"}, "expected a mapping with image and with captions or categories"),
        ({"image": "image", "captions": "c", "color": "d"}, "there is no color, expected some of image, boxes"),
        ({"image": "picture", "captions": "c"}, "has no column 'picture'; it has image, captions"),
        ({"image": "captions", "captions": "c"}, "column 'captions' of .* has no pictures"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(folder, columns, message):
    with pytest.raises(ValueError, match=f"^columns.*{message}"):
        read("hub", columns=columns, **folder(captions="a"))


def test_a_changed_file_is_read_again(tmp_path, folder):
    options = {"columns": {"image": "image", "captions": "text"}}
    assert load_regions("hub", **options, **folder(text="first"))[0]["regions"][0]["captions"] == ["first"]
    source = folder(text="second")
    assert load_regions("hub", **options, **source)[0]["regions"][0]["captions"] == ["second"]
    streamed = next(iter(load_regions("hub", streaming=True, **options, **source)))
    assert streamed["regions"][0]["captions"] == ["second"] and streamed["image"].size == (40, 30)
