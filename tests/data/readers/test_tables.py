"""Region records in JSON lines and Parquet."""

import base64
import io
import json

import pytest
from PIL import Image
from reading import picture, read, regions, write

from sca_hf.data.loading import load_regions
from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError, region_features


REGION = {"box": [1, 2, 20.5, 30], "captions": "ein Kätzchen 🐈"}


def lines(path, *rows):
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def png(size=(40, 30), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


def test_a_line_needs_a_picture_and_regions_only(tmp_path):
    path = picture(tmp_path / "pictures" / "a.jpg")
    file = lines(tmp_path / "cats.jsonl", {"image": "pictures/a.jpg", "regions": [REGION, REGION]})
    (record,) = read("jsonl", path=file)
    assert record["image"] == str(path) and record["image_id"] == "cats-1" and record["task"] == "caption"
    assert (record["width"], record["height"]) == (40, 30)
    assert [region["region_id"] for region in record["regions"]] == ["0", "1"]
    assert record["regions"][0]["captions"] == ["ein Kätzchen 🐈"]


def test_everything_that_the_schema_has_is_kept(tmp_path):
    picture(tmp_path / "a.jpg")
    full = {
        "region_id": "r",
        "box": [0, 0, 9, 9],
        "mask": {"size": [30, 40], "counts": [0, 5, 1195]},
        "points": [[1, 2], [3.5, 4]],
        "labels": [1, 0],
        "captions": ["a", "b"],
        "category": "cat_food",
    }
    row = {"image": "a.jpg", "image_id": "x", "width": 40, "height": 30, "task": "recognition", "regions": [full]}
    (record,) = read("jsonl", path=lines(tmp_path / "a.jsonl", row))
    (region,) = record["regions"]
    assert region["mask"]["size"] == [30, 40] and isinstance(region["mask"]["counts"], str)
    assert {**region, "mask": None} == {**full, "mask": None} and record["task"] == "recognition"
    (region,) = regions(read("jsonl", path=tmp_path / "a.jsonl", task="caption", names={"cat_food": "food of cats"}))
    assert region["category"] == "food of cats"


def test_pictures_may_stand_in_the_line(tmp_path):
    row = {"image": {"bytes": base64.b64encode(png(mode="L")).decode()}, "regions": [REGION]}
    (record,) = read("jsonl", path=lines(tmp_path / "a.jsonl", row))
    assert record["image"]["bytes"] == png(mode="L") and record["width"] == 40


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: is not JSON"),
        ("[]", "line 2: expected an object with image"),
        ('{"image": "a.jpg", "regions": {}}', "line 2: expected an object with image and a list"),
        ('{"image": 5, "regions": []}', "line 2: image is 5, expected a file name"),
        ('{"image": "../a.jpg", "regions": []}', r"line 2: its image '\.\./a\.jpg' is not in"),
        ('{"image": "/etc/passwd", "regions": []}', "line 2: its image '/etc/passwd' is not in"),
        ('{"image": "gone.jpg", "regions": []}', r"line 2: .*gone\.jpg: the picture cannot be read"),
        ('{"image": {"bytes": "?"}, "regions": []}', "line 2: the bytes of its image are not base64"),
        ('{"image": "a.jpg", "regions": [5]}', "line 2, region 0: is a int, expected an object"),
        (
            '{"image": "a.jpg", "regions": [{"box": [0, 0, 1, 1], "caption": "a"}]}',
            "unexpected keyword argument 'caption'",
        ),
        ('{"image": "a.jpg", "regions": [{"box": [0, 0, 0, 1], "captions": "a"}]}', "region 0: box .* is empty"),
        ('{"image": "a.jpg", "color": 1, "regions": []}', "unexpected keyword argument 'color'"),
    ],
)
def test_a_bad_line_is_named_and_costs_itself_only(tmp_path, line, message):
    picture(tmp_path / "a.jpg")
    good = json.dumps({"image": "a.jpg", "regions": [REGION]})
    file = write(tmp_path / "a.jsonl", f"{good}\n{line}\n\n{good}\n")
    with pytest.raises(RegionRecordError, match=rf"a\.jsonl, .*{message}|a\.jsonl, {message}"):
        read("jsonl", path=file)
    report = ReadReport()
    assert [record["image_id"] for record in read("jsonl", "skip", report, path=file)] == ["a-1", "a-4"]
    assert len(report.messages) == 1


def test_pictures_may_lie_in_another_folder_by_any_path_within_it(tmp_path):
    path = picture(tmp_path / "elsewhere" / "a.jpg")
    rows = [{"image": "a.jpg", "regions": [REGION]}, {"image": str(path), "regions": [REGION]}]
    records = read("jsonl", path=lines(tmp_path / "a.jsonl", *rows), images=tmp_path / "elsewhere")
    assert [record["image"] for record in records] == [str(path)] * 2


def test_a_folder_of_files_is_read_in_the_order_of_their_names(tmp_path):
    picture(tmp_path / "a.jpg")
    for name in ("b", "a"):
        lines(tmp_path / f"{name}.jsonl", {"image": "a.jpg", "regions": [REGION]})
    assert [record["image_id"] for record in read("jsonl", path=tmp_path)] == ["a-1", "b-1"]
    with pytest.raises(ValueError, match=r"there is no file .*nowhere"):
        read("jsonl", path=tmp_path / "nowhere")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return load_regions("scenes", count=3)


def test_parquet_gives_back_what_a_data_set_of_regions_wrote(tmp_path, stored):
    stored.to_parquet(tmp_path / "regions.parquet")
    again = load_regions("parquet", path=str(tmp_path / "regions.parquet"))
    assert again.features == region_features() and len(again) == 3
    for old, new in zip(stored, again, strict=True):
        assert old.pop("image").tobytes() == new.pop("image").tobytes() and old == new


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        read("parquet", path=write(tmp_path / "a.parquet", "PAR0"))
