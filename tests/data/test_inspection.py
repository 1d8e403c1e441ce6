"""The check of a data set: every count by hand on a small one, and every fault told."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from sca_hf.data.inspection import Distribution, RegionSample, check_data, draw_contact_sheet, format_report
from sca_hf.processing.masks_sca import encode_rle


def picture(path, size=(400, 300)):
    Image.new("RGB", size, (90, 120, 60)).save(path)
    return str(path)


def region(region_id, box, *captions, **fields):
    return {"region_id": region_id, "box": box, "captions": list(captions), **fields}


@pytest.fixture
def records(tmp_path):
    import numpy as np

    mask = encode_rle(np.arange(300 * 400).reshape(300, 400) % 2)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    common = {"width": 400, "height": 300, "task": "caption"}
    return [
        {
            **common,
            "image": picture(tmp_path / "a.png"),
            "image_id": "a",
            "regions": [
                region("0", [0, 0, 20, 30], "a cat", "A  cat", category="cat", mask=mask),
                region("0", [0, 0, 400, 300], "a dog of a kind", category="dog"),
                region("1", [5, 5, 5, 9], "empty"),
            ],
        },
        {
            **common,
            "image": picture(tmp_path / "b.png"),
            "image_id": "b",
            "regions": [region("0", [10, 10, 60, 60], "a cat", category="cat", points=[[11, 11]], labels=[1])],
        },
        {**common, "image": picture(tmp_path / "b.png"), "image_id": "b", "regions": []},
        {**common, "image": str(tmp_path / "gone.png"), "image_id": "c", "regions": []},
        {**common, "image": str(tmp_path / "broken.jpg"), "image_id": "d", "regions": []},
        {**common, "image": picture(tmp_path / "e.png", (300, 400)), "image_id": "e", "regions": []},
    ]


def words(texts, add_special_tokens):
    """Counts words as tokens; a caption of more than 4 letters takes 25."""
    assert add_special_tokens is False
    return {"input_ids": [[0] * (25 if len(text) > 6 else len(text.split())) for text in texts]}


def test_everything_is_counted(records):
    report = check_data(records, tokenizer=words)
    assert (report.read.records, report.read.regions) == (5, 3)
    assert report.tasks == {"caption": 5} and report.categories == {"cat": 2, "dog": 1}
    assert report.regions_per_image.counts == {2: 1, 1: 1, 0: 3}
    assert report.captions_per_region.counts == {2: 1, 1: 2} and report.different_captions == 2
    assert report.caption_words.counts == {2: 3, 5: 1}
    assert report.caption_tokens.counts == {3: 3, 26: 1} and report.caption_tokens.over(20) == 1
    assert report.widths.counts == {20: 1, 400: 1, 50: 1} and report.heights.counts == {30: 1, 300: 1, 50: 1}
    assert report.sizes == {"small": 1, "medium": 1, "large": 1}
    assert (report.masks, report.points) == (1, 1)


def test_what_is_wrong_is_told(records):
    report = check_data(records)
    assert (report.read.skipped_records, report.read.skipped_regions, report.bad) == (1, 1, 2)
    assert report.duplicate_images == ["b"] and report.duplicate_regions == ["a: 0"]
    assert report.unreadable is None
    report = check_data(records, images=True)
    assert report.bad == 4 and ["image d" in report.unreadable[0], "image e" in report.unreadable[1]] == [True, True]
    assert "300 x 400" in report.unreadable[1] and report.regions_per_image.counts.total() == 3
    text = format_report(report)
    for expected in ("1 images, 1 regions, 2 unreadable pictures", "gone.png", "region 1: box", "a: 0", "67%  cat"):
        assert expected in text


def test_a_report_is_json(records):
    values = json.loads(json.dumps(check_data(records, words, images=True).to_dict()))
    assert values["bad"] == 4 and values["captions_over_limit"] == 1
    assert values["caption_words"] == {"min": 2, "median": 2, "mean": 2.75, "max": 5}


def test_a_spec_with_what_its_reader_left_out_is_reported(tmp_path):
    picture(tmp_path / "a.png")
    rows = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": crowd, "segmentation": []}
        for number, crowd in ((1, 0), (2, 1))
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 300}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "traffic_light"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    spec = {"format": "coco", "annotations": str(tmp_path / "instances.json"), "images": str(tmp_path)}
    report = check_data({**spec, "on_error": "raise", "streaming": True, "task": "recognition"})
    assert report.categories == {"traffic light": 1} and report.tasks == {"recognition": 1} and report.bad == 0
    assert json.loads(json.dumps(report.to_dict()))["read"]["left_out"] == {"crowd annotations": 1}
    assert "left out    1 crowd annotations" in format_report(report)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_library_is_checked(records, streaming):
    datasets = pytest.importorskip("datasets")
    from sca_hf.data.region import region_features

    rows = [{**row, "regions": [{**BLANK, **r} for r in row["regions"]]} for row in records]
    dataset = datasets.Dataset.from_list(rows, features=region_features())
    report = check_data(dataset.to_iterable_dataset() if streaming else dataset, images=True, max_samples=2)
    assert (report.read.records, report.masks, report.points) == (2, 1, 1)


BLANK = {"mask": None, "points": None, "labels": None, "category": None}


def test_quantiles_are_those_of_the_sorted_values():
    values = Distribution(Counter([3, 1, 2, 2, 9]))
    assert values.summary() == {"min": 1, "median": 2, "mean": 3.4, "max": 9}
    assert Distribution().summary() == {"min": 0, "median": 0, "mean": 0, "max": 0}


def many(count, rare=1):
    for number in range(count):
        name = "rare" if number < rare else "common"
        fields = {"category": name, "mask": None, "points": None, "labels": None}
        yield {"image_id": number, "regions": [region(str(number), [0, 0, 9, 9], name, **fields)]}


def test_a_sample_is_spread_repeatable_and_has_rare_categories():
    def chosen(seed):
        sample = RegionSample(8, seed)
        for record in many(500):
            sample.add(record)
        return [record["image_id"] for record, _ in sample.chosen()]

    assert len(chosen(0)) == 8 and chosen(0)[-1] == 0  # the rare one, last
    assert chosen(0) == chosen(0) != chosen(1)
    assert max(chosen(0)) > 250 and len(set(chosen(0))) == 8


def test_every_region_is_as_likely_as_any_other():
    met = Counter()
    for seed in range(400):
        sample = RegionSample(4, seed)
        for record in many(20, rare=0):
            sample.add(record)
        met.update(record["image_id"] for record, _ in sample.chosen())
    assert met.total() == 1600 and min(met.values()) > 45 and max(met.values()) < 120  # 80 expected, deviation 8


def test_a_sheet_is_drawn_also_of_pictures_that_cannot_be_read(records):
    sample = RegionSample(6)
    check_data(records, watch=sample.add)
    whole = draw_contact_sheet(sample, "three regions")
    assert whole.mode == "RGB" and whole.width > 900

    Path(records[0]["image"]).unlink()
    assert draw_contact_sheet(sample).width == whole.width
    with pytest.raises(ValueError, match="no region"):
        draw_contact_sheet(RegionSample(3))


def test_lengths_and_languages_of_captions_are_counted_where_they_are_said():
    report = check_data({"format": "scenes", "count": 2, "lengths": True, "languages": ["en", "de"]})
    text = format_report(report)
    regions = report.widths.counts.total()
    assert report.languages == {"en": 8 * regions, "de": 3 * regions}
    assert f"  languages   {8 * regions} en, {3 * regions} de\n" in text
    assert f"  lengths     {6 * regions} sentence, {3 * regions} detailed, {2 * regions} short\n" in text
    assert report.to_dict()["languages"] == dict(report.languages)
    assert "languages" not in format_report(check_data({"format": "scenes", "count": 2}))
