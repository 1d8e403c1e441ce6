"""The report on photographs: what it measures, its tables, and that a killed run resumes."""

import json

import numpy as np
import pytest

from experiments.photographs import measure, report, sheet, tables
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from tests.experiments.photograph_sets import make_sets


def region(of="coco_permissive", category="dog", size="large", box=1.0, said="a dog", confidence=0.9, number=0):
    iou = {"box": box, "jittered": box, "point": box / 2, "touched": 0.5, "filled": 0.6, "ellipse": 0.4}
    row = {"id": f"{of} {number}", "category": category, "size": size, "iou": iou, "area": 1}
    return {
        **row,
        "caption": {"box": said, "point": "a cat"},
        "confidence": {"box": confidence, "point": None},
        "of": of,
    }


def test_shapes_and_the_deepest_point_are_of_pixel_centers():
    box, size = [1.6, 1.0, 4.4, 3.0], (5, 6)
    assert np.argwhere(measure.filled_box(box, size)).tolist() == [[y, x] for y in (1, 2) for x in (2, 3)]
    assert measure.touched_box(box, size).sum() == 2 * 4
    ellipse = measure.inscribed_ellipse([0, 0, 100, 60], (60, 100))
    assert abs(ellipse.mean() - np.pi / 4) < 2e-3 and (ellipse == ellipse[::-1, ::-1]).all()
    mask = np.zeros((9, 12), bool)
    mask[2:7, 3:8] = True
    assert measure.deepest_point(mask) == [5.5, 4.5]
    assert [measure.size_of(area) for area in (1023, 1024, 9215, 9216)] == ["small", "medium", "medium", "large"]


def test_objects_and_regions_are_paired_once_each_by_the_best_overlap():
    true = np.zeros((3, 10, 10), bool)
    true[0, :5, :4], true[1, :5, 5:], true[2, 8:, :] = True, True, True
    near = true[0].copy()
    near[0] = False
    empty = np.zeros((10, 10), bool)
    iou = measure.overlaps([near, true[0], true[1], empty], list(true))
    assert iou[:, 0].tolist() == pytest.approx([0.8, 1, 0, 0]) and not iou[3].any()
    assert sorted(measure.match(iou)) == [(1, 0), (2, 1)]


def test_tables_are_means_over_the_regions_that_they_name():
    regions = [
        region(box=1.0),
        region(category="person", size="small", box=0.5, said="a tree", confidence=0.2),
        region(category="person", size="medium", box=0.0, said="a man"),
        region(of="taco_litter", category="cigarette", size="small", box=0.5, said="a cigarette butt"),
    ]
    assert tables.mask_row(regions, "box") == [0.5, 0.5, 0.0, 1.0, 0.5, None, 0.5]
    row = dict(zip(tables.WORD_COLUMNS, tables.word_row(regions, "box"), strict=True))
    assert row["all"] == pytest.approx(2 / 3) and row["medium + large"] == row["large"] == row["not person"] == 1
    assert row["macro recall"] == 0.75 and row["litter"] == 1
    assert row["unsure"] == pytest.approx(1 / 3) and row["right where sure"] == 1
    always = dict(zip(tables.WORD_COLUMNS, tables.word_row(regions, "box", tables.commonest(regions)), strict=True))
    assert always["all"] == pytest.approx(2 / 3) and always["not person"] == 0 and always["unsure"] is None
    assert tables.averaged([{"a": [1.0, None]}, {"a": [0.5, 0.25], "b": [1.0, 1.0]}]) == {
        "a": [0.75, 0.25],
        "b": [1.0, 1.0],
    }


def test_anything_mode_is_scored_by_what_it_found():
    regions = [region(size=size, number=number) for number, size in enumerate(("small", "medium", "large", "large"))]
    everything = {"found": 5, "matched": {regions[2]["id"]: "a dog", regions[1]["id"]: "a"}, "cpu": 2.0}
    row = tables.anything_row([{"regions": regions, "anything": everything}, {"regions": regions}])
    assert row == pytest.approx([0.5, 2 / 3, 0.5, 0.4, 5, 2.0])


@pytest.mark.slow
def test_a_report_resumes_and_makes_its_tables_again_without_a_model(tmp_path, monkeypatch, capsys):
    folder, output = make_sets(tmp_path / "data"), tmp_path / "report"
    page = tmp_path / "page.md"
    page.write_text("before\n" + "\n".join(report.MARKS) + "\nafter\n")
    command = ["--model", "old=sca-tiny", "--seeds", "0", "1", "--data", str(folder), "--output", str(output)]
    command += ["--page", str(page)]
    report.main(command)
    first = page.read_text()
    (file,) = output.glob("*.jsonl")
    lines = file.read_text().splitlines()
    assert "old, jittered box" in first and "mean of 2 seeds" in first and first.endswith("after\n")
    for result in map(json.loads, lines):
        assert result["regions"][0]["iou"]["filled"] == pytest.approx(1.0) and "anything" in result
    # A kill cut the last line short and another never came.
    file.write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:40])
    capsys.readouterr()
    report.main(command)
    assert "2 of 2 pictures" in capsys.readouterr().out
    assert results(file.read_text().splitlines()) == results(lines)
    monkeypatch.setattr(measure.Measurement, "picture", None)
    report.main(command)
    assert page.read_text().count("| old, box |") == first.count("| old, box |")


def results(lines):
    """By picture, without the seconds."""
    found = [{**json.loads(line), "cpu": 0} for line in lines]
    return {one["picture"]: {**one, "anything": {**one["anything"], "cpu": 0}} for one in found}


def test_drawn_and_listed_regions_depend_on_names_alone(tmp_path):
    folder = make_sets(tmp_path)
    records = measure.read_pictures(folder, 0, "test")
    assert all(decode_rle(record["regions"][0]["mask"]).sum() == 600 for record in records)
    assert not sheet.chosen(records, 5, 2)  # all are small
    monkeyed = [{**record, "regions": [grown(record["regions"][0])]} for record in records]
    names = [record["picture"] for record, _ in sheet.chosen(monkeyed, 5, 2)]
    assert names == [record["picture"] for record, _ in sheet.chosen(monkeyed[::-1], 5, 2)] and len(names) == 5
    tiles, rows = sheet.listed(sheet.chosen(monkeyed, 5, 1))
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5] and len(tiles) == 5
    assert [row["picture"] for row in rows] == names and "caption" not in rows[0]


def grown(region):
    return {**region, "box": [0, 0, 64, 48], "mask": encode_rle(np.ones((48, 64), bool))}
