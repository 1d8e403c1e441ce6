"""Predicting a data set: to the same records however often it is killed, and by however many processes."""

import json
import random
import re
import time

import numpy as np
import pytest
from PIL import Image

from sca_hf.evaluation.captioners import BlankImages, ImageQuery, PredictionsFile, RegionQuery
from sca_hf.evaluation.predict import PredictSettings, predict
from sca_hf.evaluation.predictions import (
    PredictionError,
    PredictionRecord,
    read_predictions,
    read_run,
    run_file,
    write_predictions,
)
from sca_hf.evaluation.scoring import score_file
from sca_hf.processing.masks_sca import encode_rle
from sca_hf.processing.region_prompts_sca import RegionPrompt
from tests.evaluation.predict_runs import finish, kill, start, tiny_captioner
from tests.evaluation.region_files import tiny_record, write_regions


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_regions(tmp_path_factory.mktemp("data"), images=25)


@pytest.fixture(scope="module")
def captioner():
    return tiny_captioner()


@pytest.fixture(scope="module")
def whole(data, cache, tmp_path_factory):
    """The bytes of a run that nobody killed."""
    output = tmp_path_factory.mktemp("whole") / "said.jsonl"
    finish(start(data, output, cache, batch_size=2, masks="best"))
    return output.read_bytes()


def test_records_say_all_that_is_known(whole, data):
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 34 and len({(row["image_id"], row["region_id"]) for row in rows}) == 34
    first = rows[0]
    assert first["box"] == [5.5, 4.0, 40.0, 30.25] and first["prompt"] == "box" and first["task"] == "caption"
    assert (
        first["width"] == 80 and first["height"] == 60 and first["system"] == "tiny" and len(first["references"]) == 2
    )
    assert len(first["candidates"]) == 1 and len(first["scores"]) == 1 and len(first["iou_scores"]) == 3
    assert first["mask"]["size"] == first["reference_mask"]["size"] == [60, 80]
    assert len({row["candidates"][0] for row in rows}) > 5


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(kills, whole, data, cache, tmp_path):
    rng = random.Random(0)
    output = tmp_path / "said.jsonl"
    killed, lines = 0, 0
    for _ in range(kills):
        running = start(data, output, cache, batch_size=2, masks="best")
        killed += kill(running, output, min(lines, 30), rng.uniform(0, 0.05))
        lines = output.read_bytes().count(b"\n") + rng.randint(1, 30 // kills) if output.exists() else 1
    finish(start(data, output, cache, batch_size=2, masks="best"))
    assert killed == kills
    assert output.read_bytes() == whole
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["said.jsonl", "said.jsonl.run.json"]


def test_two_processes_write_what_one_does_also_when_killed(whole, data, cache, tmp_path):
    output = tmp_path / "said.jsonl"
    running = start(data, output, cache, processes=2, batch_size=2, masks="best")
    assert kill(running, tmp_path / "said.jsonl.part-1-of-2", 8, 0)
    assert not output.exists()
    finish(start(data, output, cache, processes=2, batch_size=2, masks="best"))
    assert output.read_bytes() == whole
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["said.jsonl", "said.jsonl.run.json"]


def test_workers_write_the_same_bytes_also_when_killed(whole, data, cache, tmp_path):
    output = tmp_path / "said.jsonl"
    running = start(data, output, cache, batch_size=2, masks="best", num_workers=2)
    assert kill(running, output, 8, 0)
    finish(start(data, output, cache, batch_size=2, masks="best", num_workers=2))
    assert output.read_bytes() == whole
    assert "num_workers" not in (tmp_path / "said.jsonl.run.json").read_text()


def test_only_our_model_is_shared_by_workers(data, tmp_path):
    class Other:
        name, segments = "other", False

    with pytest.raises(ValueError, match="num_workers is 2, but other captions in one process"):
        predict(Other(), data, tmp_path / "said.jsonl", progress=False, num_workers=2)


def test_a_torn_line_and_an_unfinished_batch_are_cut_away(whole, data, captioner, tmp_path):
    output, settings = tmp_path / "said.jsonl", PredictSettings(batch_size=2, masks="best")
    predict(captioner, data, output, settings, progress=False)
    for size in (1, len(whole) // 2, len(whole) - 1):
        output.write_bytes(whole[:size])
        sidecar = json.loads(run_file(output).read_text())
        run_file(output).write_text(json.dumps({**sidecar, "complete": False}))
        predict(captioner, data, output, settings, progress=False)
        assert output.read_bytes() == whole


def test_a_finished_run_is_left_alone_and_a_removed_one_is_made_anew(data, captioner, tmp_path):
    output, settings = tmp_path / "said.jsonl", PredictSettings(batch_size=8)
    predict(captioner, data, output, settings, command="sca-hf predict", progress=False)
    run = read_run(output)
    assert run["complete"] and run["records"] == 34 and run["command"] == "sca-hf predict"
    written, stamp = output.read_bytes(), output.stat().st_mtime_ns
    predict(captioner, data, output, settings, progress=False)
    assert output.stat().st_mtime_ns == stamp
    output.unlink()
    predict(captioner, data, output, settings, progress=False)
    assert output.read_bytes() == written


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "center_point"}, "prompt was 'box' and is 'center_point'"),
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"batch_size": 4}, "batch_size was 8 and is 4"),
        ({"masks": "all"}, "masks was 'none' and is 'all'"),
    ],
)
def test_a_changed_setting_is_refused(data, captioner, tmp_path, change, words):
    predict(captioner, {**data, "max_samples": 3}, tmp_path / "said.jsonl", progress=False)
    with pytest.raises(PredictionError, match="belongs to a run with other settings") as error:
        predict(
            captioner, {**data, "max_samples": 3}, tmp_path / "said.jsonl", PredictSettings(**change), progress=False
        )
    assert words in str(error.value)


def test_another_captioner_other_data_and_other_files_are_refused(data, captioner, tmp_path, monkeypatch):
    few, output = {**data, "max_samples": 3}, tmp_path / "said.jsonl"
    predict(captioner, few, output, progress=False)
    with pytest.raises(PredictionError, match=r"captioner\.control was None and is 'blank'"):
        predict(BlankImages(captioner), few, output, progress=False)
    with pytest.raises(PredictionError, match=r"data\.images was 3 and is 4"):
        predict(captioner, {**data, "max_samples": 4}, output, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PredictionError, match="processes was 1 and is 2"):
        predict(captioner, few, output, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(PredictionError, match=r"prediction files must end with \.jsonl, \.parquet, \.json"):
        predict(captioner, few, tmp_path / "said.txt", progress=False)
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(PredictionError, match="already exists and is not from a run"):
        predict(captioner, few, tmp_path / "mine.jsonl", progress=False)


def test_a_run_that_came_to_nothing_stands_in_nobodys_way(data, captioner, tmp_path):
    few, output = {**data, "max_samples": 2}, tmp_path / "said.jsonl"

    class Failing:
        name, segments = "failing", False

        def settings(self):
            return {"kind": "failing"}

        def caption_regions(self, images, with_masks=False):
            raise ValueError("not today")

    with pytest.raises(ValueError, match="not today"):
        predict(Failing(), few, output, progress=False)
    predict(captioner, few, output, progress=False)
    assert {record.system for record in read_predictions(output)} == {"tiny"}


def test_two_runs_do_not_write_one_file(data, cache, captioner, tmp_path):
    output = tmp_path / "said.jsonl"
    running = start(data, output, cache, batch_size=1)
    while not output.exists() or not output.stat().st_size:
        time.sleep(0.01)
    with pytest.raises(PredictionError, match="is being written by another process"):
        predict(captioner, data, output, PredictSettings(batch_size=1), progress=False)
    finish(running)
    assert len(read_predictions(output)) == 34


def test_data_that_changed_under_a_run_are_noticed(captioner, tmp_path):
    spec, output = write_regions(tmp_path / "data", images=4), tmp_path / "said.jsonl"
    predict(captioner, spec, output, progress=False)
    sidecar = json.loads(run_file(output).read_text())
    run_file(output).write_text(json.dumps({**sidecar, "complete": False}))
    file = tmp_path / "data" / "regions.jsonl"
    file.write_text(file.read_text().replace("[5.5, 4, 40, 30.25]", "[5.5, 5, 40, 30.25]", 1))
    with pytest.raises(PredictionError, match=r"data\.contents of the records was"):
        predict(captioner, spec, output, progress=False)


def test_every_format_and_a_stream_hold_the_same(data, captioner, tmp_path):
    few = {**data, "max_samples": 6}
    settings = PredictSettings(masks="all")
    lines, original, table = (tmp_path / f"said.{kind}" for kind in ("jsonl", "json", "parquet"))
    for output in (lines, original, table):
        predict(captioner, few, output, settings, progress=False)
        assert not list(tmp_path.glob("*.part-*"))
    assert read_predictions(lines) == read_predictions(original) == read_predictions(table)
    assert set(json.loads(original.read_text())[0]) == {
        "_id",
        "split",
        "references",
        "candidates",
        "metadata",
        "logits",
    }
    stream = {"streaming": True, **data}
    stream.pop("keep_empty")
    predict(captioner, stream, tmp_path / "streamed.jsonl", PredictSettings(batch_size=40), progress=False)
    assert [r.id for r in read_predictions(tmp_path / "streamed.jsonl")][:6] == [r.id for r in read_predictions(lines)]


def test_a_file_of_predictions_is_a_captioner_and_shuffled_a_control(data, captioner, tmp_path):
    few, settings = {**data, "max_samples": 9}, PredictSettings(masks="best")
    first = predict(captioner, few, tmp_path / "said.jsonl", settings, progress=False)
    again = predict(PredictionsFile(first), few, tmp_path / "again.jsonl", settings, progress=False)
    assert again.read_bytes() == first.read_bytes()
    records = read_predictions(first)
    shuffled = read_predictions(
        predict(PredictionsFile(first, shuffle=1), few, tmp_path / "shuffled.jsonl", settings, progress=False)
    )
    assert sorted(r.scores[0] for r in records) == sorted(r.scores[0] for r in shuffled)
    assert all(a.scores != b.scores for a, b in zip(records, shuffled, strict=True)), "nobody keeps their own"
    assert {r.system for r in shuffled} == {"tiny, shuffled regions"}
    with pytest.raises(PredictionError, match="has no prediction for image picture 9"):
        predict(PredictionsFile(first), {**data, "max_samples": 10}, tmp_path / "more.jsonl", progress=False)


def test_a_mask_shuffled_to_a_picture_of_another_size_is_scaled_to_it(tmp_path):
    sizes = [(60, 80), (30, 20)]
    masks = [np.zeros(size, bool) for size in sizes]
    masks[0][:30, :40] = masks[1][15:, 10:] = True
    records = [
        PredictionRecord(["x"], [str(k)], str(k), "0", width=w, height=h, iou_scores=[0.5], mask=encode_rle(masks[k]))
        for k, (h, w) in enumerate(sizes)
    ]
    write_predictions(records, tmp_path / "said.jsonl")
    shuffled = PredictionsFile(tmp_path / "said.jsonl", shuffle=0)
    for own, size in enumerate(sizes):
        asked = ImageQuery(Image.new("RGB", size[::-1]), str(own), [RegionQuery("0", [0, 0, 9, 9], RegionPrompt())])
        ((answer,),) = shuffled.caption_regions([asked], with_masks=True)
        assert answer.candidates == [str(1 - own)] and answer.masks[0].shape == size
        expected = np.zeros(size, bool)
        first = slice(size[0] // 2), slice(size[1] // 2)
        last = slice(size[0] // 2, None), slice(size[1] // 2, None)
        expected[first if own else last] = True
        assert (answer.masks[0] == expected).all()


def test_lines_that_were_changed_before_a_run_is_resumed_are_named(data, captioner, tmp_path):
    output, settings = tmp_path / "said.jsonl", PredictSettings(batch_size=2)
    predict(captioner, data, output, settings, progress=False)
    lines = output.read_bytes().splitlines(True)[:8]
    state = json.loads(run_file(output).read_text())
    for place, changed in (
        (1, [lines[1], lines[0], *lines[2:]]),
        (1, [lines[0].replace(b"[5.5, ", b"[6.5, ", 1), *lines[1:]]),
        (3, [*lines[:2], json.dumps(json.loads(lines[2]) | {"references": ["x"]}).encode() + b"\n", *lines[3:]]),
    ):
        output.write_bytes(b"".join(changed))
        run_file(output).write_text(json.dumps({**state, "complete": False}))
        with pytest.raises(PredictionError, match=rf"said\.jsonl, line {place} is not of image"):
            predict(captioner, data, output, settings, progress=False)


def test_records_of_other_tools_are_found_by_what_they_name(captioner, tmp_path):
    from sca_hf.evaluation.predict import build_query
    from sca_hf.testing import tiny_image

    asked = [build_query({**tiny_record(1), "image": tiny_image(1), "task": "caption"})]

    def said(*rows):
        (tmp_path / "theirs.json").write_text(json.dumps([{"references": ["x"], **row} for row in rows]))
        return [answer.candidates for answer in PredictionsFile(tmp_path / "theirs.json").caption_regions(asked)[0]]

    def metadata(region):
        return {"metadata_image_id": "picture 1", "metadata_region_id": region}

    # Numbers of their own, which look like regions of ours, mean nothing where a record names its region.
    swapped = [
        {"_id": "1-1", "candidates": ["first"], "metadata": metadata("1-0")},
        {"_id": "1-0", "candidates": ["second"], "metadata": metadata("1-1")},
    ]
    assert said(*swapped) == [["first"], ["second"]]
    assert said({"_id": "1-0", "candidates": ["a"]}, {"_id": "1-1", "candidates": ["b"]}) == [["a"], ["b"]]
    whole = [{"_id": f"picture 1/1-{k}", "candidates": [str(k)]} for k in range(2)]
    assert said(*whole) == [["0"], ["1"]]


def test_a_blank_control_sees_nothing_but_the_prompt(data, captioner, tmp_path):
    records = read_predictions(
        predict(BlankImages(captioner), data, tmp_path / "blank.jsonl", PredictSettings(batch_size=25), progress=False)
    )
    by_box = {}
    for record in records:
        by_box.setdefault(tuple(record.box), set()).add(record.caption)
    assert len(by_box) == 3 and all(len(said) == 1 for said in by_box.values())


def test_repeated_ids_are_refused(captioner, tmp_path):
    spec = write_regions(tmp_path / "data", images=2)
    file = tmp_path / "data" / "regions.jsonl"
    text = file.read_text()
    file.write_text(text.replace("1-1", "1-0"))
    with pytest.raises(PredictionError, match="image picture 1 has two regions with the id 1-0"):
        predict(captioner, spec, tmp_path / "one.jsonl", progress=False)


class Meddling:
    """A captioner during whose work something happens to the files of the run."""

    def __init__(self, captioner, meddle):
        self.captioner, self.meddle = captioner, meddle

    def __getattr__(self, name):
        return getattr(self.captioner, name)

    def caption_regions(self, *arguments, **options):
        self.meddle()
        return self.captioner.caption_regions(*arguments, **options)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_output_that_is_removed_meanwhile_is_an_error_and_not_complete(data, captioner, tmp_path, suffix):
    output = tmp_path / f"said.{suffix}"

    def remove():
        for path in tmp_path.glob(f"said.{suffix}*"):
            if path != run_file(output):
                path.unlink()

    with pytest.raises(PredictionError, match=r"removed while it was being written|is missing 34 of the 34"):
        predict(Meddling(captioner, remove), data, output, progress=False)
    assert not json.loads(run_file(output).read_text())["complete"]
    predict(captioner, data, output, progress=False)
    assert len(read_predictions(output)) == 34


@pytest.mark.parametrize("kept", [10, 0])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_finished_file_that_was_cut_is_no_result(data, captioner, tmp_path, kept, suffix):
    output = tmp_path / f"said.{suffix}"
    predict(captioner, data, output, progress=False)
    whole = output.read_bytes()
    write_predictions(read_predictions(output)[:kept], output) if kept else output.write_bytes(b"")
    words = "10 of the 34 records that its run wrote" if kept else re.escape(str(output))
    for use in (lambda: predict(captioner, data, output, progress=False), lambda: score_file(output)):
        with pytest.raises(PredictionError, match=words):
            use()
    output.unlink()
    predict(captioner, data, output, progress=False)
    assert output.read_bytes() == whole or suffix == "parquet"


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_finished_run_is_compared_with_its_data(captioner, tmp_path, suffix):
    output, data = tmp_path / f"said.{suffix}", write_regions(tmp_path / "data", images=4)
    predict(captioner, data, output, progress=False)
    predict(captioner, data, output, progress=False)
    file = tmp_path / "data" / "regions.jsonl"
    text = file.read_text()
    for changed in (
        "".join(text.splitlines(True)[:1]),
        text.replace(tiny_record(0)["regions"][0]["captions"][0], "a"),
    ):
        file.write_text(changed)
        with pytest.raises(PredictionError, match=r"data\.contents of the records was"):
            predict(captioner, data, output, progress=False)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_alone_of_several_waits_with_a_word_and_a_limit(
    rank, data, captioner, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr("sca_hf.run_log.WAIT_SECONDS", 1.0)
    monkeypatch.setattr("sca_hf.run_log.SAY_SECONDS", 0.1)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PredictionError, match="of 34 are missing, which other processes should write"):
        predict(captioner, data, tmp_path / "said.jsonl", progress=False)
    assert "waiting for them" in caplog.text
    assert not json.loads(run_file(tmp_path / "said.jsonl").read_text())["complete"]


def test_a_finished_file_that_was_edited_is_no_result(data, captioner, tmp_path):
    output = tmp_path / "said.jsonl"
    predict(captioner, data, output, progress=False)
    output.write_text(output.read_text().replace('"candidates": ["', '"candidates": ["not ', 1))
    for use in (lambda: predict(captioner, data, output, progress=False), lambda: score_file(output)):
        with pytest.raises(PredictionError, match="does not hold what its run wrote: it was changed since"):
            use()
    run_file(output).unlink()
    assert score_file(output)


def test_a_run_is_told_by_its_pictures_and_not_by_where_they_are(captioner, tmp_path, monkeypatch):
    spec, output = write_regions(tmp_path / "data", images=4), tmp_path / "said.jsonl"
    predict(captioner, spec, output, progress=False)
    (tmp_path / "data").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = {**spec, "path": "moved/../moved/regions.jsonl"}
    predict(captioner, moved, "./said.jsonl", progress=False)
    picture = sorted((tmp_path / "moved").glob("*.png"))[-1]
    picture.write_bytes(picture.read_bytes())
    with pytest.raises(PredictionError, match="sizes and times of the pictures was"):
        predict(captioner, moved, output, progress=False)
    with pytest.raises(PredictionError, match="sizes and times of the pictures was"):
        predict(captioner, {**moved, "streaming": True}, output, progress=False)


@pytest.mark.parametrize("damage", [b"", b'{"sett', b"[]", b'{"complete": true}'])
def test_a_damaged_run_file_is_named(data, captioner, tmp_path, damage):
    output = tmp_path / "said.jsonl"
    predict(captioner, data, output, progress=False)
    run_file(output).write_bytes(damage)
    with pytest.raises(ValueError, match=r"said\.jsonl\.run\.json"):
        predict(captioner, data, output, progress=False)
    if damage != b'{"complete": true}':
        with pytest.raises(ValueError, match=r"said\.jsonl\.run\.json"):
            score_file(output)
