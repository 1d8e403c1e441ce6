"""Prediction files: every format gives back what was written, and what is wrong is named with file, line and id."""

import json

import numpy as np
import pytest

from sca_hf.evaluation.predictions import PredictionError, PredictionRecord, read_predictions, write_predictions
from sca_hf.processing.masks_sca import encode_rle


ODD = "a red\rstar\x0b\x0c\u2028of\u2029two\x85lines\ttab \U0001f600"
MASK = encode_rle(np.eye(4, 6, dtype=bool))


def full_record(**changes):
    values = {
        "image_id": "scene-1",
        "region_id": "0",
        "width": 6,
        "height": 4,
        "box": [0.5, 0, 3, 4],
        "prompt": "center_point",
        "task": "caption",
        "category": "star",
        "references": ["a star", ODD],
        "candidates": [ODD, "a ring"],
        "scores": [-0.5, -0.25],
        "iou_scores": [0.5, 0.75],
        "mask": MASK,
        "masks": [encode_rle(np.zeros((4, 6), bool)), MASK],
        "reference_mask": MASK,
        "system": "ours",
        "metadata": {"beams": 3, "width": 7, "nested": {"a": [1, None]}},
    }
    return PredictionRecord.from_dict({**values, **changes})


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".json"])
def test_every_format_gives_back_what_was_written(tmp_path, suffix):
    records = [full_record(), PredictionRecord(["a", "b"], [""], id="2")]
    path = tmp_path / f"predictions{suffix}"
    write_predictions(records, path)
    assert read_predictions(path) == records
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_line_ends_with_a_line_feed_only(tmp_path):
    path = tmp_path / "raw.jsonl"
    # As another tool writes it: what is no line feed may stand in a text unescaped.
    lines = [json.dumps({"id": k, "references": [ODD], "candidates": [ODD]}, ensure_ascii=False) for k in range(2)]
    path.write_bytes("\r\n".join([*lines, ""]).encode())
    assert [(r.id, r.references, r.candidates) for r in read_predictions(path)] == [(k, [ODD], [ODD]) for k in "01"]


def test_lines_that_we_write_are_lines_for_any_reader(tmp_path):
    write_predictions([full_record()], tmp_path / "predictions.jsonl")
    assert len((tmp_path / "predictions.jsonl").read_text("utf-8").splitlines()) == 1


def test_the_layout_of_the_original_is_read(tmp_path):
    row = {
        "_id": 7,
        "split": "inference",
        "references": ["a star"],
        "candidates": ["ring", "star", "disc"],
        "metadata": {
            "metadata_input_boxes": [1.0, 2.0, 3.0, 4.0],
            "metadata_image_id": [2407890],
            "metadata_region_id": 12,
        },
        "logits": {"iou_scores": [0.2, 0.9, 0.9]},
    }
    path = tmp_path / "infer.json"
    path.write_text(json.dumps([row]))
    (record,) = read_predictions(path)
    assert (record.id, record.image_id, record.region_id) == ("7", "2407890", "12")
    assert record.box == [1, 2, 3, 4] and record.caption == "star" and record.metadata is None
    write_predictions([record], path)
    written = json.loads(path.read_text())[0]
    assert written["split"] == "inference" and written["logits"] == row["logits"] and written["_id"] == "7"
    assert written["metadata"]["metadata_input_boxes"] == [1, 2, 3, 4]


def test_one_candidate_may_have_an_iou_for_each_mask_or_none():
    assert full_record(candidates=["a"], scores=None).caption == "a"
    assert PredictionRecord.from_dict({"_id": 1, "references": ["a"], "candidates": ["b"]}).caption == "b"


def test_fields_that_we_do_not_know_are_kept():
    record = PredictionRecord.from_dict({"id": 1, "references": ["a"], "candidates": ["b"], "kind": "x"})
    assert record.metadata == {"kind": "x"}


def test_counts_of_any_kind_become_the_string_that_json_holds():
    uncompressed = {"size": [4, 6], "counts": [24]}
    assert full_record(mask=uncompressed).mask == encode_rle(np.zeros((4, 6), bool))
    assert full_record(mask={**MASK, "counts": MASK["counts"].encode()}).mask == MASK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": []}, "record scene-1/0: there is no reference"),
        ({"references": "a star"}, "references is 'a star', expected a list"),
        ({"references": [None]}, "references is .None., expected a list"),
        ({"candidates": []}, "there is no candidate"),
        ({"candidates": ["\ud800", "b"]}, "an unpaired surrogate"),
        ({"iou_scores": None, "masks": None}, "scene-1/0: there are 2 candidates but no iou_scores"),
        ({"iou_scores": [0.5]}, "2 candidates and 1 iou_scores"),
        ({"iou_scores": [0.5, float("nan")]}, "expected a list of finite numbers"),
        ({"scores": [1.0]}, "2 candidates but 1 scores"),
        ({"masks": [MASK]}, "1 masks and 2 iou_scores"),
        ({"box": [1, 2, 3]}, "box is .1, 2, 3., expected four"),
        ({"prompt": "circle"}, "prompt is 'circle', expected one of box"),
        ({"height": 5}, r"mask is of size \[4, 6\], expected .* \[5, 6\]"),
        ({"mask": {"size": [4, 6]}}, "expected a COCO RLE"),
        ({"mask": {"size": [4, 6], "counts": [3]}}, "cover 3 pixels"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(changes, message):
    with pytest.raises(PredictionError, match=message):
        full_record(**changes)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no predictions"),
        (["{"], "line 1: is not JSON"),
        (["[]"], "line 1: is a list, expected an object"),
        (['{"id": 1, "candidates": ["b"]}'], "line 1: record 1: the field references is missing"),
        (['{"references": ["a"], "candidates": ["b"]}'], "line 1: record None: there is no id"),
        (['{"id": 1, "references": ["a"], "candidates": ["b"]}'] * 2, "line 2: the id 1 is already used by line 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_line(tmp_path, lines, message):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(PredictionError, match=f"p.jsonl.*{message}"):
        read_predictions(path)


def test_files_that_are_none_of_ours_are_an_error(tmp_path):
    (tmp_path / "p.json").write_text("{}")
    (tmp_path / "p.parquet").write_text("PAR0")
    for name, message in {
        "p.json": "expected a list",
        "p.parquet": "cannot be read",
        "p.csv": "files must end with",
    }.items():
        with pytest.raises(PredictionError, match=f"{name}.*{message}"):
            read_predictions(tmp_path / name)
    with pytest.raises(PredictionError, match="files must end with"):
        write_predictions([full_record()], tmp_path / "p.csv")
