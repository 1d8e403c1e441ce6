"""The region record: what is wrong with a record is said with file, image and region."""

import copy

import pytest
from PIL import Image

from sca_hf.data.read_report import ReadReport, check_records
from sca_hf.data.region import RegionRecord, RegionRecordError, region_features


GOOD = {
    "image": Image.new("RGB", (40, 30)),
    "image_id": "cat-1",
    "width": 40,
    "height": 30,
    "task": "caption",
    "regions": [
        {
            "region_id": "r0",
            "box": [1.0, 2.0, 20.0, 30.0],
            "mask": None,
            "points": [[5.0, 5.0]],
            "labels": [1],
            "captions": ["a cat"],
            "category": None,
        }
    ],
}


def changed(region=None, **fields):
    record = {**GOOD, "regions": copy.deepcopy(GOOD["regions"]), **fields}
    record["regions"][0].update(region or {})
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (changed({"box": [5, 5, 5, 9]}), "region r0: box .* is empty"),
        (changed({"box": [0, 0.25, 1, 0.75]}), "region r0: box .* are its numbers fractions"),
        (changed({"box": [5, 5, 60, 9]}), "region r0: box .* outside the image of 40 x 30"),
        (changed({"box": [5, 5, float("nan"), 9]}), "region r0: .* four finite numbers"),
        (changed({"box": None}), "region r0: .* four finite numbers"),
        (changed({"mask": {"size": [40, 30], "counts": "x"}}), r"region r0: mask is of size \[40, 30\]"),
        (changed({"points": [[50.0, 5.0]]}), "region r0: point .* inside the image"),
        (changed({"labels": [1, 0]}), "region r0: there are 1 points but 2 labels"),
        (changed({"labels": [7]}), "region r0: labels are"),
        (changed({"captions": []}), "region r0: there is no caption"),
        (changed({"captions": [" "]}), "region r0: a text is blank"),
        (changed({"captions": ["a \ud83d cat"]}), "region r0: a text has an unpaired surrogate"),
        (changed(task="recognition"), "region r0: there is no category"),
        (changed(task="vqa"), "image cat-1: task is 'vqa'"),
        (changed(image="nowhere.png"), "image cat-1: there is no file nowhere.png"),
        (changed(image=None), "image cat-1: there is no image"),
        (changed(width=41), "image cat-1: the picture is 40 x 30"),
        (changed({"color": "red"}), "image cat-1: .*unexpected keyword argument 'color'"),
    ],
)
def test_a_bad_record_is_named(record, message):
    with pytest.raises(RegionRecordError, match=f"^cats.json, {message}|^cats.json, image cat-1, {message}"):
        RegionRecord.from_dict(record, "cats.json")


def test_a_good_record_survives_the_way_to_values_and_back():
    record = RegionRecord.from_dict(GOOD)
    assert RegionRecord.from_dict(record.to_dict()) == record
    assert record.regions[0].texts("caption") == ["a cat"] and record.regions[0].texts("recognition") == []


def test_bad_records_are_skipped_and_counted_on_request():
    counts = ReadReport()
    bad = changed({"captions": []})
    kept = list(check_records([GOOD, bad, changed(task="vqa"), GOOD], "cats.json", "skip", counts))
    assert len(kept) == counts.records == 2
    assert (counts.skipped_records, counts.skipped_regions) == (2, 1)
    assert "region r0" in counts.messages[0] and "task is 'vqa'" in counts.messages[1]
    with pytest.raises(RegionRecordError):
        list(check_records([bad], "cats.json"))


def test_a_bad_region_does_not_cost_its_image():
    record = changed()
    record["regions"] += [
        {**record["regions"][0], "region_id": "r1", "box": [3, 3, 3, 9]},
        RegionRecordError("cats.xml, image cat-1, region r2: there is no bndbox"),
        {**record["regions"][0], "region_id": "r3", "clipped": True},
    ]
    counts = ReadReport()
    (kept,) = check_records([{**record, "source": "cats.xml"}], "cats", "skip", counts)
    assert [region.region_id for region in kept.regions] == ["r0", "r3"]
    assert (counts.records, counts.regions, counts.skipped_records, counts.skipped_regions) == (1, 2, 0, 2)
    assert counts.clipped_regions == 1
    assert counts.messages[0].startswith("cats.xml, image cat-1, region r1: box") and "bndbox" in counts.messages[1]
    with pytest.raises(RegionRecordError, match=r"^cats, image cat-1, region r1"):
        list(check_records([record], "cats"))


def test_an_image_without_regions_is_a_record():
    assert next(check_records([{**GOOD, "regions": []}], "cats.json")).regions == []


def test_a_reader_may_say_why_there_is_no_record():
    counts = ReadReport(kept_messages=1)
    errors = [RegionRecordError("a.xml: no"), RegionRecordError("b.xml: no")]
    assert next(check_records([*errors, GOOD], "cats", "skip", counts)).image_id == "cat-1"
    assert counts.skipped_records == 2 and counts.messages == ["a.xml: no"]
    with pytest.raises(RegionRecordError, match=r"^a.xml: no"):
        list(check_records(errors, "cats"))


def test_the_picture_is_loaded_upright(tmp_path):
    picture = Image.new("CMYK", (30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    picture.save(tmp_path / "turned.jpg", exif=exif)
    record = RegionRecord.from_dict({**GOOD, "image": str(tmp_path / "turned.jpg")})
    assert record.load_image().size == (40, 30) and record.load_image().mode == "RGB"


def test_the_features_hold_a_record():
    datasets = pytest.importorskip("datasets")
    stored = datasets.Dataset.from_list([GOOD], features=region_features())[0]
    assert RegionRecord.from_dict(stored).regions[0].box == [1.0, 2.0, 20.0, 30.0]
