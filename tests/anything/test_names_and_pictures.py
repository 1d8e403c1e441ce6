"""Names of any bytes come back from a run over a folder, and each picture's lines are of that picture."""

import errno
import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from sca_hf.anything import folder as folder_module
from sca_hf.anything.sources import find_images, read_boxes
from sca_hf.cli import main
from sca_hf.data.writers import WRITERS
from sca_hf.testing import tiny_image
from tests.anything import test_folder_runs as runs
from tests.anything.test_folder_runs import check_same, model, results  # noqa: F401, a fixture


AWKWARD = [
    "a b.png",
    "a-b.png",
    "a.b.png",
    "a/b.png",
    os.fsdecode(b"caf\xe9 \xff.png"),
    "x" * 247 + ".png",
    "\u5716" * 83 + ".png",
    unicodedata.normalize("NFC", "\u00e9.png"),
    unicodedata.normalize("NFD", "\u00e9.png"),
    "-dash.png",
    'a "quoted"\n\\ \u2028.png',
    "2007/1.png",
]


FEW = 5


def anything(*arguments):
    return [*runs.anything(*arguments), "--points-per-side=1"]


def take(folder, names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_image(number, (40, 30 + number)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path):
    return take(tmp_path / "photos", AWKWARD[:FEW])


def test_names_come_back_as_they_are(model, tmp_path):  # noqa: F811
    photos = take(tmp_path / "photos", AWKWARD)
    tools = [part for tool in sorted(WRITERS) for part in ("--write", tool)]
    command = anything(model, photos, tmp_path / "out", "--overlays", *tools)
    assert main(command) == 0 and main(command) == 0
    records, coco, failed = results(tmp_path / "out")
    sizes = {name: 30 + number for number, name in enumerate(AWKWARD)}
    assert {record["image"]: record["height"] for record in records} == sizes and not failed
    assert {image["file_name"]: image["height"] for image in json.loads(coco)["images"]} == sizes
    heights = sorted(Image.open(path).height for path in (tmp_path / "out" / "overlays").iterdir())
    assert len(heights) == len(AWKWARD), "an overlay for each"
    for tool in WRITERS:
        copied = [path for path in (tmp_path / "out" / tool).rglob("*.png") if path.is_file()]
        assert sorted(Image.open(path).height for path in copied) == sorted(sizes.values())


@pytest.mark.parametrize("place", ["photos/out", "photos/sub/out", "photos"])
def test_a_run_does_not_caption_what_it_has_written(model, photos, tmp_path, place, capsys):  # noqa: F811
    command = anything(model, photos, tmp_path / place, "--overlays", "--write", "labelme")
    if place == "photos":
        assert main(command) == 2 and "photos would be overwritten, but is read too" in capsys.readouterr().err
        return
    first = [main(command), results(tmp_path / place)]
    assert [main(command), results(tmp_path / place)] == first and len(first[1][0]) == FEW


def test_a_full_disk_stops_the_run_and_is_no_fault_of_a_picture(model, photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    command = anything(model, photos, tmp_path / "out", "--overlays", "--num-workers", "0")
    drawn = []

    def full(self, *arguments, **options):
        drawn.append(1)
        if len(drawn) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(self, *arguments, **options)

    save = Image.Image.save
    with monkeypatch.context() as disk:
        disk.setattr(Image.Image, "save", full)
        assert main(command) == 2
    said = capsys.readouterr().err
    assert "overlays" in said and "the disk is full" in said and "failed:" not in said
    assert not json.loads((tmp_path / "out" / "journal" / "run.json").read_text())["complete"]
    assert main(command) == 0
    assert len(results(tmp_path / "out")[0]) == FEW == len(list((tmp_path / "out" / "overlays").iterdir()))


def test_a_journal_without_room_is_resumed_with_the_same_result(model, photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    assert main(anything(model, photos, tmp_path / "whole")) == 0
    real = folder_module.RunLog.append
    lines = []

    class Full:
        """A file on a disk that has room for 15 bytes."""

        def __init__(self, file):
            self.file, self.room = file, 15

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written, self.room = self.file.write(data[: self.room]), 0
            return written

    def append(self, more):
        lines.append(1)
        if len(lines) == 3:
            self._file = Full(self._file)
        real(self, more)

    with monkeypatch.context() as disk:
        disk.setattr(folder_module.RunLog, "append", append)
        assert main(anything(model, photos, tmp_path / "out")) == 2
    assert "part-00000.jsonl could not be written, the disk is full" in capsys.readouterr().err
    assert (tmp_path / "out" / "journal" / "part-00000.jsonl").read_bytes().endswith(b"\n")
    assert main(anything(model, photos, tmp_path / "out")) == 0
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_pictures_replaced_under_their_names_are_captioned_again(model, photos, tmp_path):  # noqa: F811
    command = anything(model, photos, tmp_path / "out", "--overlays")
    assert main(command) == 0
    tiny_image(90, (44, 33)).save(photos / "a b.png")
    tiny_image(91, (50, 20)).save(photos / "new.png")
    (photos / "a-b.png").unlink()
    (tmp_path / "out" / "overlays" / "a.b.png.png").unlink()
    assert main(command) == 0
    assert main(anything(model, photos, tmp_path / "fresh", "--overlays")) == 0
    check_same(tmp_path / "out", tmp_path / "fresh")
    overlays = {path.name: path.read_bytes() for path in (tmp_path / "out" / "overlays").iterdir()}
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "fresh" / "overlays").iterdir()}
    assert {name: overlays[name] for name in fresh} == fresh


@pytest.mark.parametrize("file", ["model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_a_model_changed_under_its_name_is_another_run(model, photos, tmp_path, capsys, file):  # noqa: F811
    shutil.copytree(model, tmp_path / "model")
    command = anything(str(tmp_path / "model"), photos, tmp_path / "out")
    assert main(command) == 0
    shutil.move(tmp_path / "model", tmp_path / "moved")
    shutil.move(photos, tmp_path / "elsewhere")
    again = anything(os.path.relpath(tmp_path / "moved"), tmp_path / "elsewhere", f"{tmp_path}/./out")
    assert main(again) == 0, "folders may move"
    path = next(path for path in (tmp_path / "moved" / file, tmp_path / "moved" / "config.json") if path.is_file())
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    assert main(again) == 2
    assert "belongs to a run with other settings: model was" in capsys.readouterr().err


def test_a_flipped_letter_in_a_journal_is_named(model, photos, tmp_path, capsys):  # noqa: F811
    command = anything(model, photos, tmp_path / "out")
    assert main(command) == 0
    part = tmp_path / "out" / "journal" / "part-00000.jsonl"
    whole = part.read_bytes()
    for place in (20, len(whole) // 2, len(whole) - 4):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert main(command) == 2
        assert "part-00000.jsonl, line" in capsys.readouterr().err
    part.write_bytes(whole)
    assert main(command) == 0


def test_other_code_is_another_run(model, photos, tmp_path, capsys, monkeypatch):  # noqa: F811
    assert main(anything(model, photos, tmp_path / "out")) == 0
    monkeypatch.setattr("sca_hf.run_identity.__version__", "99.0")
    assert main(anything(model, photos, tmp_path / "out")) == 2
    assert "versions.sca-hf was" in capsys.readouterr().err
    assert not list(Path(tmp_path / "out").glob("*.part"))


def test_links_that_lead_out_of_a_folder_are_named_and_not_followed(tmp_path, caplog):
    photos, outside = take(tmp_path / "photos", AWKWARD[:1]), take(tmp_path / "outside", ["secret.png"])
    (photos / "inside.png").symlink_to("a b.png")
    (photos / "out.png").symlink_to(outside / "secret.png")
    (photos / "gone.png").symlink_to("nothing.png")
    (photos / "more").symlink_to(outside)
    os.mkfifo(photos / "pipe.png")
    items = {item.name: item for item in find_images([str(photos)])}
    assert list(items) == ["a b.png", "gone.png", "inside.png", "out.png", "pipe.png"]
    assert items["inside.png"].load().size == items["a b.png"].load().size
    for name, words in (("gone", "there is no file"), ("out", "leads out of"), ("pipe", "not a regular file")):
        with pytest.raises((OSError, ValueError), match=words):
            items[f"{name}.png"].load()
    assert f"{photos / 'more'} is a link that leads out of {photos}" in caplog.text
    named = find_images([str(photos / "*.png"), str(photos / "more")])
    assert {item.name for item in named} >= {"out.png", "secret.png"}, "what is named is taken"


def test_boxes_of_any_score_are_taken_unless_a_lowest_is_named(model, photos, tmp_path):  # noqa: F811
    command = anything(model, photos, tmp_path / "first")
    assert main(command) == 0
    found = [len(entry["records"]) for entry in results(tmp_path / "first")[0]]
    boxes = tmp_path / "first" / "coco.json"  # its scores are log-probabilities
    assert main([*anything(model, photos, tmp_path / "again"), "--boxes", str(boxes)]) == 0
    assert [len(entry["records"]) for entry in results(tmp_path / "again")[0]] == found and sum(found)
    assert not any(read_boxes(boxes, 0.0).values())


def test_a_detector_that_found_nothing_and_one_whose_scores_are_no_numbers(tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text("[]", encoding="utf-16")  # as PowerShell writes
    assert read_boxes(boxes) == {}
    for score in (float("nan"), "0.4", True):
        boxes.write_text(json.dumps([{"image_id": "a", "bbox": [1, 2, 3, 4], "score": score}]))
        with pytest.raises(ValueError, match=r"boxes\.json, entry 0: score is .*, expected a number"):
            read_boxes(boxes)


def test_what_a_model_cannot_be_asked_for_is_no_fault_of_a_picture(model, photos, tmp_path, capsys):  # noqa: F811
    assert main(anything(model, photos, tmp_path / "out", "--length", "short")) == 2
    said = capsys.readouterr().err
    assert "length is 'short', but of lengths" in said and "failed:" not in said
