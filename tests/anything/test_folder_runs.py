"""A run over a folder: what is broken is listed, what is killed goes on, what is shared is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from sca_hf.anything import folder as folder_module
from sca_hf.anything.folder import FolderRun, log_line, open_log, run_folder
from sca_hf.anything.sources import find_images
from sca_hf.cli import main
from sca_hf.data.loading import RecordSource
from sca_hf.data.read_report import ReadReport
from sca_hf.files import LockedError
from sca_hf.run_log import RunLogError, RunMismatchError
from sca_hf.testing import save_tiny_model, tiny_image, tiny_model


SETTINGS = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
SETTINGS |= {"box_nms_thresh": 1.0, "mask_nms_thresh": 0.7}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    import torch

    tiny = tiny_model()
    with torch.no_grad():
        tiny.sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.5)
        tiny.sam.mask_decoder.iou_prediction_head.proj_out.weight.mul_(0.05)
    return save_tiny_model(tmp_path_factory.mktemp("model"), tiny)


def make_folder(folder: Path, good: int, broken: int) -> Path:
    """Pictures in two folders, with broken ones between them."""
    for number in range(good):
        path = folder / ("a" if number % 2 else "b") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_image(number, (40 + number % 3, 30)).save(path)
    for number in range(broken):
        data = (folder / "b" / "000.png").read_bytes()
        (folder / f"broken-{number}.png").write_bytes([data[:200], b"", b"no picture"][number % 3])
    return folder


def anything(model, folder, output, *more) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return ["anything", str(folder), "--output", str(output), "--model", model, "--device", "cpu", *options, *more]


def results(output) -> tuple[list, str, dict]:
    output = Path(output)
    records = [json.loads(line) for line in (output / "records.jsonl").read_text().splitlines()]
    return records, (output / "coco.json").read_text(), json.loads((output / "failed.json").read_text())


def check_same(output, other):
    """The same images, masks and captions; scores up to rounding, as they depend on what is captioned together."""
    scores = []
    for folder in (output, other):
        records, coco, failed = results(folder)
        found = [record.pop("score") for image in records for record in image["records"]]
        coco = json.loads(coco)
        found += [annotation.pop("score") for annotation in coco["annotations"]]
        scores.append((found, records, coco, failed))
    assert scores[0][1:] == scores[1][1:]
    assert scores[0][0] == pytest.approx(scores[1][0], abs=1e-5)


def check_coco(path, images):
    """COCO's own tools load it, and find the same masks and areas in it."""
    coco = COCO(str(path))
    assert len(coco.getImgIds()) == images
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        image = coco.loadImgs(annotation["image_id"])[0]
        assert mask.shape == (image["height"], image["width"]) and mask.sum() == annotation["area"]
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert isinstance(annotation["caption"], str) and annotation["iscrowd"] == 0


def test_a_folder_becomes_records_and_coco_json_and_what_is_broken_is_listed(model, tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", 5, 3)
    assert main(anything(model, folder, tmp_path / "out")) == 1
    records, _, failed = results(tmp_path / "out")
    assert [r["image"] for r in records] == ["a/001.png", "a/003.png", "b/000.png", "b/002.png", "b/004.png"]
    assert sorted(failed) == ["broken-0.png", "broken-1.png", "broken-2.png"] and all(failed.values())
    check_coco(tmp_path / "out" / "coco.json", 5)
    output = capsys.readouterr()
    assert "5 images" in output.out and "3 failed" in output.out and "failed: broken-1.png" in output.err


def test_done_is_done_and_other_settings_are_refused(model, tmp_path, capsys, monkeypatch):
    folder = make_folder(tmp_path / "photos", 2, 1)
    assert main(anything(model, folder, tmp_path / "out")) == 1
    before = results(tmp_path / "out")
    monkeypatch.setattr("sca_hf.anything.folder.caption_each", None)  # nothing is left to caption
    assert main(anything(model, folder, tmp_path / "out")) == 1
    assert results(tmp_path / "out") == before
    assert main(anything(model, folder, tmp_path / "out", "--min-area=0.1")) == 2
    error = capsys.readouterr().err
    assert "belongs to a run with other settings: settings.min_area was None and is 0.1" in error


def test_what_tools_import_is_written_once_and_left_to_be_corrected(model, tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", 3, 1)
    command = anything(model, folder, tmp_path / "out", "--write", "labelme", "--write", "cvat")
    assert main(command) == 1
    (corrected,) = (tmp_path / "out" / "labelme" / "a").glob("*.json")
    content = json.loads(corrected.read_text())
    content["shapes"][0]["description"] = "corrected"
    corrected.write_text(json.dumps(content))
    assert main(command) == 1
    assert "labelme is left as it is; remove or rename it" in capsys.readouterr().out
    read = {
        tool: list(RecordSource(tool, {"root": tmp_path / "out" / tool}, keep_empty=True).records(ReadReport()))
        for tool in ("labelme", "cvat")
    }
    records = results(tmp_path / "out")[0]
    assert [record["image_id"] for record in read["labelme"]] == [
        Path(r["image"]).with_suffix("").as_posix() for r in records
    ]
    for tool in read:
        for record, back in zip(records, read[tool], strict=True):
            assert [region["mask"] for region in back["regions"]] == [one["segmentation"] for one in record["records"]]
    captions = [region["captions"][0] for record in read["labelme"] for region in record["regions"]]
    assert captions == ["corrected"] + [one["caption"] or "object" for r in records for one in r["records"]][1:]
    assert main(anything(model, folder, tmp_path / "out")[:2] + ["--write", "yolo"]) == 2
    assert "--write needs an output folder: add --output FOLDER" in capsys.readouterr().err


def test_failed_images_can_be_tried_again(model, tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "photos", 2, 1)
    with monkeypatch.context() as broken:
        broken.setattr("sca_hf.anything.folder.caption_each", None)
        assert main(anything(model, folder, tmp_path / "out")) == 1
    assert main(anything(model, folder, tmp_path / "out")) == 1
    assert len(results(tmp_path / "out")[2]) == 3
    assert main(anything(model, folder, tmp_path / "out", "--retry")) == 1
    assert list(results(tmp_path / "out")[2]) == ["broken-0.png"]
    tiny_image(9, (30, 30)).save(folder / "broken-0.png")
    assert main(anything(model, folder, tmp_path / "out")) == 0, "another picture is tried in any case"
    records, _, failed = results(tmp_path / "out")
    assert not failed and "broken-0.png" in [record["image"] for record in records]


def test_a_share_of_the_run_waits_for_the_others(model, tmp_path):
    items = find_images([str(make_folder(tmp_path / "photos", 5, 1))])
    whole = FolderRun(str(tmp_path / "one"), model, SETTINGS, device="cpu")
    parts = FolderRun(str(tmp_path / "two"), model, SETTINGS, device="cpu")
    result = run_folder(whole, items)
    assert run_folder(parts, items, rank=1, world=2) is None
    assert not (tmp_path / "two" / "coco.json").exists()
    assert run_folder(parts, items, rank=0, world=2) == result
    check_same(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("more", [[], ["--num-beams=2"], ["--crop-n-layers=1"], ["--boxes=data"]])
def test_workers_and_batches_give_the_records_of_one_by_one(more, model, tmp_path):
    folder = str(make_folder(tmp_path / "photos", 9, 3))
    if more == ["--boxes=data"]:
        folder = "scenes:split=test,count=6"
    code = int(more != ["--boxes=data"])
    together = ["--batch-size=3", "--num-workers=2", "--overlays"]
    assert main(anything(model, folder, tmp_path / "one", "--batch-size=1", "--num-workers=0", *more)) == code
    assert main(anything(model, folder, tmp_path / "many", *together, *more)) == code
    check_same(tmp_path / "many", tmp_path / "one")
    drawn = {path.name for path in (tmp_path / "many" / "overlays").iterdir()}
    assert len(drawn) == len(results(tmp_path / "one")[0]) >= 6


def test_an_image_that_breaks_a_batch_costs_only_itself(model, tmp_path, monkeypatch):
    items = find_images([str(make_folder(tmp_path / "photos", 5, 0))])
    boxes = {item.name: [[1.0, 1.0, 9.0, 9.0]] for item in items}
    boxes["b/002.png"] = [[0.0, 0.0, 9.0, 9.0], [500.0, 500.0, 600.0, 600.0]]
    for batch_size in (1, 5):
        run = FolderRun(str(tmp_path / str(batch_size)), model, boxes=boxes, device="cpu", batch_size=batch_size)
        assert list(run_folder(run, items).failed) == ["b/002.png"]
    assert results(tmp_path / "1")[2] == results(tmp_path / "5")[2]
    check_same(tmp_path / "1", tmp_path / "5")


def append(run, rank, *entries):
    with open_log(run, rank) as log:
        log.append(log_line({"image": entry.pop("image"), "picture": "as it is", **entry}) for entry in entries)


def test_a_line_cut_short_is_dropped_and_written_again(tmp_path):
    run = FolderRun(str(tmp_path), "m")
    append(run, 0, {"image": "one", "records": []})
    append(run, 0, {"image": "two", "records": []})
    path = tmp_path / "journal" / "part-00000.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert set(open_log(run).lines()) == {"one\nas it is"}
    append(run, 0, {"image": "two", "records": [1]})
    log = open_log(run)
    lines = log.lines()
    assert [entry["records"] for entry in log.entries(lines[f"{name}\nas it is"] for name in ("two", "one"))] == [
        [1],
        [],
    ]


def test_a_failure_gives_way_to_a_success_whatever_the_name(tmp_path):
    name, run = 'a "quoted", "error": \\ name\u2028.png', FolderRun(str(tmp_path), "m")
    for rank, entry in enumerate([{"error": "no"}, {"records": [], "note": "error"}, {"error": "no"}]):
        append(run, rank, {"image": name, **entry})
    lines = open_log(run).lines()
    assert list(lines) == [f"{name}\nas it is"] and not lines[f"{name}\nas it is"].about


def test_two_processes_cannot_write_the_same_part(tmp_path):
    run = FolderRun(str(tmp_path), "m")
    with open_log(run, 0), pytest.raises(LockedError, match="being written by another process"), open_log(run, 0):
        pass
    with open_log(run, 0):
        pass


def test_other_boxes_are_another_run(tmp_path):
    append(FolderRun(str(tmp_path), "m", boxes={"one": [[0.0, 0.0, 9.0, 9.0]]}), 0, {"image": "one", "records": []})
    open_log(FolderRun(str(tmp_path), "m", boxes={"one": [[0.0, 0.0, 9.0, 9.0]]}))
    with pytest.raises(RunMismatchError, match="boxes was 'sha256 "):
        open_log(FolderRun(str(tmp_path), "m", boxes={"one": [[0.0, 0.0, 9.0, 8.0]]}))


DETECTIONS = {
    "coco": {
        "images": [{"id": 7, "file_name": "a/001.png"}, {"id": 8, "file_name": "b/000.png"}],
        "annotations": [{"image_id": 7, "bbox": [2, 3, 20, 10]}, {"image_id": 8, "bbox": [1, 1, 9, 9], "score": 0.9}],
    },
    "results": [
        {"image_id": 1, "bbox": [2, 3, 20, 10], "score": 0.9},
        {"image_id": 0, "bbox": [1, 1, 9, 9], "score": 0.9},
        {"image_id": 0, "bbox": [5, 5, 9, 9], "score": 0.1},
    ],
    "regions": {"a/001.png": [{"box": [2, 3, 22, 13]}], "000.png": [{"box": [1, 1, 10, 10]}]},
}


@pytest.mark.parametrize("form", DETECTIONS)
def test_boxes_of_a_detector_take_the_place_of_the_grid(form, model, tmp_path):
    folder = make_folder(tmp_path / "photos", 2, 0)
    (tmp_path / "boxes.json").write_text(json.dumps(DETECTIONS[form]))
    more = ["--boxes", str(tmp_path / "boxes.json"), "--min-score", "0.5", "--overlays"]
    assert main(anything(model, folder, tmp_path / "out", *more)) == 0
    records, _, _ = results(tmp_path / "out")
    assert [[r["box_prompt"] for r in image["records"]] for image in records] == [[[2, 3, 22, 13]], [[1, 1, 10, 10]]]
    drawn = sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir())
    assert [name[:9] for name in drawn] == ["a-001.png", "b-000.png"]


def test_where_a_detector_found_nothing_nothing_is_captioned(model, tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", 2, 0)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"a/001.png": [{"box": [2, 3, 22, 13]}]}))
    assert main(anything(model, folder, tmp_path / "out", "--boxes", str(boxes))) == 0
    records, _, failed = results(tmp_path / "out")
    assert [len(image["records"]) for image in records] == [1, 0] and not failed
    assert "boxes.json has no boxes for 1 of 2 images, such as b/000.png" in capsys.readouterr().err
    boxes.write_text(json.dumps({"other.png": [{"box": [2, 3, 22, 13]}]}))
    assert main(anything(model, folder, tmp_path / "none", "--boxes", str(boxes))) == 2
    said = capsys.readouterr().err
    assert "has no boxes for any of the images, such as a/001.png; it names other.png" in said
    assert not (tmp_path / "none").exists()


def test_no_two_images_share_an_overlay(model, tmp_path):
    names = ("a b.png", "a-b.png", "a_b.png", "\u00e9.png", "\u00ea.png", ".a.png", "x" * 150 + ".png")
    (tmp_path / "photos").mkdir()
    for name in names:
        tiny_image(0, (40, 30)).save(tmp_path / "photos" / name)
    assert main(anything(model, tmp_path / "photos", tmp_path / "out", "--overlays")) == 0
    records, _, _ = results(tmp_path / "out")
    drawn = {path.name for path in (tmp_path / "out" / "overlays").iterdir()}
    assert len(drawn) == len(records) >= len(names) - 1 and {"a-b.png.png", "a_b.png.png"} <= drawn


def test_data_sets_are_sources_too_and_have_boxes(model, tmp_path):
    spec = "scenes:split=test,count=2,start=5"
    assert main(anything(model, spec, tmp_path / "out", "--boxes", "data")) == 0
    records, _, _ = results(tmp_path / "out")
    assert len(records) == 2 and all(r["box_prompt"] for image in records for r in image["records"])


def test_single_images_are_printed(model, tmp_path, capsys):
    tiny_image(1).save(tmp_path / "one.png")
    arguments = anything(model, tmp_path / "one.png", "x")
    del arguments[2:4]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("one.png: ") and "iou 0." in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["missing-folder"], "is not an image, a folder or a data spec"),
        (["."], "there is no image"),
        (["x.png", "--points-per-side", "500"], "points_per_side is 500"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["anything", *arguments, "--output", "out"]) == 2
    assert said in capsys.readouterr().err


def start(model, folder, output, rank=0, world=1, *more) -> subprocess.Popen:
    environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": str(world)}
    command = [sys.executable, "-m", "sca_hf", *anything(model, folder, output, *more)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines_of(output) -> int:
    return sum(path.read_bytes().count(b"\n") for path in Path(output).glob("journal/part-*.jsonl"))


@pytest.mark.slow
def test_500_images_with_10_broken_survive_5_kills_and_2_processes_equal_1(model, tmp_path):
    folder = make_folder(tmp_path / "photos", 490, 10)
    for kill in range(1, 6):
        process = start(model, folder, tmp_path / "killed", 0, 1, f"--num-workers={2 * (kill % 2)}")
        while lines_of(tmp_path / "killed") < 80 * kill and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "coco.json").exists()
    assert start(model, folder, tmp_path / "killed").wait() == 1
    records, _, failed = results(tmp_path / "killed")
    names = [record["image"] for record in records]
    assert len(names) == len(set(names)) == 490 and len(failed) == 10
    check_coco(tmp_path / "killed" / "coco.json", 490)
    assert lines_of(tmp_path / "killed") == 500, "no image was done twice"
    pair = [start(model, folder, tmp_path / "pair", rank, 2) for rank in (0, 1)]
    # Only whoever is last knows that images failed; torchrun would end the others at once.
    assert max([process.wait() for process in pair]) == 1
    check_same(tmp_path / "pair", tmp_path / "killed")


@pytest.mark.slow
def test_ray_gives_the_same(model, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    folder = make_folder(tmp_path / "photos", 12, 2)
    assert start(model, folder, tmp_path / "alone").wait() == 1
    assert start(model, folder, tmp_path / "ray", 0, 1, "--ray", "2").wait() == 1
    check_same(tmp_path / "ray", tmp_path / "alone")


def test_a_folder_that_is_removed_meanwhile_is_an_error_not_a_success(model, tmp_path, capsys, monkeypatch):
    folder = make_folder(tmp_path / "photos", 2, 0)
    real = folder_module.ImageCaptioner.__call__

    def removes(self, item):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return real(self, item)

    monkeypatch.setattr(folder_module.ImageCaptioner, "__call__", removes)
    assert main(anything(model, folder, tmp_path / "out")) == 2
    output = capsys.readouterr()
    assert f"{tmp_path / 'out'} was removed while the run wrote to it" in output.err and not output.out


@pytest.mark.parametrize("name", ["records.jsonl", "coco.json", "failed.json"])
def test_what_is_written_is_read_before_it_is_called_complete(model, tmp_path, monkeypatch, name):
    run = FolderRun(str(tmp_path / "out"), model, SETTINGS, device="cpu")
    real = folder_module.write_whole

    def cuts(path, content, *more):
        real(path, content, *more)
        if Path(path).name == name:
            Path(path).write_bytes(Path(path).read_bytes()[:-2])

    monkeypatch.setattr(folder_module, "write_whole", cuts)
    with pytest.raises(RunLogError, match=f"{name} does not hold what was written"):
        run_folder(run, find_images([str(make_folder(tmp_path / "photos", 2, 1))]))
    assert not json.loads((tmp_path / "out" / "journal" / "run.json").read_text())["complete"]


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_alone_of_several_waits_with_a_word_and_a_limit(
    rank, model, tmp_path, capsys, caplog, monkeypatch
):
    folder = make_folder(tmp_path / "photos", 4, 0)
    monkeypatch.setattr("sca_hf.run_log.WAIT_SECONDS", 1.0)
    monkeypatch.setattr("sca_hf.run_log.SAY_SECONDS", 0.1)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(anything(model, folder, tmp_path / "out")) == 2
    assert "2 of 4 are missing, which other processes should write" in capsys.readouterr().err
    assert "waiting for them" in caplog.text
