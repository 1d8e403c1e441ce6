"""The first stage: what is proposed, in which views, and what a kill or a second process changes: nothing."""

import json
import os

import pytest
from taught import finish, kill_when, lines_of, make_pictures, propose_command, start

from sca_hf.anything.sources import find_images
from sca_hf.captioning import load
from sca_hf.cli import main
from sca_hf.data.scenes import scenes
from sca_hf.data.sides import mirrored_text
from sca_hf.processing.anything_sca import encode_image
from sca_hf.self_training import ProposeRun, propose
from sca_hf.self_training.settings import VIEWS
from sca_hf.self_training.views import ViewCaptioner


@pytest.fixture
def place(tmp_path):
    make_pictures(tmp_path)
    return tmp_path


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_each_box_of_a_detector_is_captioned_in_every_view(model, place, capsys):
    (place / "photos" / "broken.png").write_bytes(b"not a picture")
    (place / "photos" / "5.png").rename(place / "photos" / "unknown.png")
    assert main(propose_command(place, place / "out", model)) == 1
    said = capsys.readouterr()
    assert "failed: broken.png" in said.err and "failed: unknown.png" not in said.err
    assert "boxes.json has no boxes for 2 of 7 images, such as broken.png" in said.err
    found = records(place / "out")
    assert [entry["image"] for entry in found] == [*(f"{number}.png" for number in range(5)), "unknown.png"]
    assert [len(entry["records"]) for entry in found] == [1, 2, 3, 1, 2, 0]
    for entry in found:
        assert os.path.samefile(place / "out" / entry["file"], place / "photos" / entry["image"])
        for record in entry["records"]:
            views = [view["view"] for view in record["views"]]
            # A mask may be empty, and a side of a caption may not be turned back safely.
            assert views[0] == "box" and {"beams", "smaller"} <= set(views) <= set(VIEWS)
            assert record["views"][0]["caption"] == record["caption"]


def test_regions_of_anything_mode_and_of_a_data_set(model, tmp_path):
    settings = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    items = find_images(["scenes:split=test,count=2"])
    found = propose(ProposeRun(str(tmp_path / "grid"), model, settings, device="cpu"), items, progress=False)
    assert found.images == 2 and not found.failed
    data = ProposeRun(str(tmp_path / "data"), model, boxes="data", views=("box", "flip"), device="cpu")
    found = propose(data, items, progress=False)
    assert found.regions == sum(len(item.boxes()) for item in items)
    first = records(tmp_path / "data")[0]
    assert first["file"] == "pictures/scene-20000000.png" and (tmp_path / "data" / first["file"]).is_file()
    assert {view["view"] for record in first["records"] for view in record["views"]} <= {"box", "flip"}


def test_a_mirrored_picture_says_the_same_with_its_sides_turned_back():
    model, processor = load("sca-tiny", "cpu")
    scene = next(iter(scenes("test", 1, 0)))
    picture = scene.to_pil()
    regions = [{"box": list(one.box), "mask": None} for one in scene.objects if one.describable]
    views = ViewCaptioner(model, processor, ("flip",), 1, None)
    said = views.captions(picture, regions, encode_image(model, processor, picture))
    mirror = picture.transpose(0)  # left to right
    boxes = [[picture.width - x1, y0, picture.width - x0, y1] for x0, y0, x1, y1 in (r["box"] for r in regions)]
    there = processor.batch_decode(model.generate(**processor(mirror, input_boxes=[boxes])))[0]
    assert [[view["caption"] for view in one] for one in said] == [
        [text for text in [mirrored_text(caption)] if text is not None] for caption in there
    ]
    assert any("left" in caption or "right" in caption for caption in there)


def test_other_views_are_another_run_and_unknown_ones_are_refused(model, place, capsys):
    assert main(propose_command(place, place / "out", model, "--views", "box")) == 0
    assert main(propose_command(place, place / "out", model, "--views", "box", "flip")) == 2
    assert "belongs to a run with other settings: views was [] and is ['flip']" in capsys.readouterr().err
    with pytest.raises(ValueError, match="views has 'sideways', expected some of box, point"):
        ProposeRun("out", views=("sideways",))


def test_an_output_among_the_pictures_is_refused(model, place, capsys):
    assert main(propose_command(place, place / "photos" / "out", model)) == 2
    assert "whose pictures are read: choose an output outside of it" in capsys.readouterr().err


def test_a_picture_that_was_removed_is_put_back(model, place):
    command = propose_command(place, place / "out", model, "--views", "box")
    assert main(command) == 0
    (place / "out" / "pictures" / "2.png").unlink()
    assert main(command) == 0
    assert os.path.samefile(place / "out" / "pictures" / "2.png", place / "photos" / "2.png")


@pytest.mark.slow
def test_proposing_killed_at_any_line_and_shared_by_two_ends_with_the_same_bytes(model, place):
    finish(start(propose_command(place, place / "whole", model), place / "cache"))
    whole = (place / "whole" / "records.jsonl").read_bytes()
    killed = 0
    for lines in (1, 3, 5):
        process = start(propose_command(place, place / "killed", model), place / "cache")
        killed += kill_when(process, lambda lines=lines: lines_of(place / "killed") >= lines)
    assert killed >= 2
    finish(start(propose_command(place, place / "killed", model), place / "cache"))
    assert (place / "killed" / "records.jsonl").read_bytes() == whole
    finish(*(start(propose_command(place, place / "two", model), place / "cache", rank, 2) for rank in (0, 1)))
    assert (place / "two" / "records.jsonl").read_bytes() == whole
    assert len(list((place / "two" / "journal").glob("part-*.jsonl"))) == 2
