"""Clips: frames of files and folders, masks through time, and the command by its own output."""

import json

import numpy as np
import pytest
from PIL import Image

from sca_hf import ScaProcessor
from sca_hf.cli import main
from sca_hf.data.clips import open_clip, read_masklets, write_clip, write_masklets
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.testing import tiny_image, tiny_tokenizer
from tests.modeling.tiny_segmenters import tiny_model_of


pytest.importorskip("av", reason="the extra video is not installed")


def frames(count=40, size=(64, 48)):
    """Each frame is told by its brightness."""
    return [Image.new("RGB", size, (5 * k, 5 * k, 5 * k)) for k in range(count)]


def brightness(picture):
    return round(float(np.asarray(picture.convert("L")).mean()) / 5)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov"])
def test_frames_of_a_video_are_right_in_any_order(name, tmp_path):
    write_clip(tmp_path / name, frames(), 10.0)
    clip = open_clip(tmp_path / name)
    assert len(clip) == 40 and clip.rate == 10.0
    order = [*range(40), *range(39, -1, -1), 7, 33, 8, 0, 39]
    assert [brightness(clip[k]) for k in order] == order


def test_a_folder_is_read_by_its_numbers(tmp_path):
    for k in (2, 10, 1, 9):
        Image.new("RGB", (8, 8), (k, k, k)).save(tmp_path / f"frame{k}.png")
    clip = open_clip(tmp_path)
    assert [Image.open(clip[k]).getpixel((0, 0))[0] for k in range(len(clip))] == [1, 2, 9, 10]


def test_a_folder_of_frames_can_be_written_and_read(tmp_path):
    write_clip(tmp_path / "out", frames(3))
    clip = open_clip(tmp_path / "out")
    assert [brightness(Image.open(clip[k])) for k in range(3)] == [0, 1, 2]


def test_masks_come_back_from_both_forms(tmp_path):
    one, two = np.zeros((48, 64), bool), np.zeros((48, 64), bool)
    one[5:20, 5:20], two[30:40, 30:50] = True, True
    records = [{"masks": [encode_rle(one), None]}, {"masks": [encode_rle(two), encode_rle(two)]}]
    write_masklets(tmp_path / "masks", records, (48, 64))
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "lists.json").write_text(json.dumps([record["masks"] for record in records]))
    for source in ("masks", "records.json", "lists.json"):
        found = read_masklets(tmp_path / source)
        assert [sorted(masks) for masks in found] == [[0], [0, 1]]
        plain = [[m if isinstance(m, np.ndarray) else decode_rle(m) for m in masks.values()] for masks in found]
        assert np.array_equal(plain[0][0], one) and all(np.array_equal(mask, two) for mask in plain[1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clip.mp4", b"no video at all", "cannot be read as a video"),
        ("clip.mp4", b"", "cannot be read as a video"),
        ("absent.mp4", None, "there is no clip"),
        ("empty", "folder", "has no picture"),
    ],
)
def test_what_is_no_clip_is_said_in_words(name, content, message, tmp_path):
    if content == "folder":
        (tmp_path / name).mkdir()
    elif content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_clip(tmp_path / name)


def test_a_cut_video_is_said_in_words(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    write_clip(tmp_path / "clip.mkv", [Image.fromarray(one) for one in noise])
    whole = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(whole[: len(whole) // 2])
    try:
        clip = open_clip(tmp_path / "clip.mkv")
        read = [clip[k] for k in range(len(clip))]
        assert len(read) < 30
    except ValueError as error:
        assert "clip.mkv" in str(error)


def test_another_name_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"must end with \.mp4, \.mkv, \.mov"):
        write_clip(tmp_path / "clip.avi", frames(1))


# The command.


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracker")
    model = tiny_model_of("sam2_video")
    model.save_pretrained(folder)
    ScaProcessor.from_config(model.config, tiny_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path):
    still = np.asarray(tiny_image(0, (80, 60)))
    write_clip(tmp_path / "clip.mp4", [Image.fromarray(np.roll(still, 3 * k, axis=1)) for k in range(5)])
    return tmp_path / "clip.mp4"


def test_the_command_follows_draws_and_writes(tracker, clip, tmp_path, capsys):
    (tmp_path / "regions.json").write_text(json.dumps([{"points": [[40, 30]], "frame": 3}]))
    outputs = ["--json", str(tmp_path / "out.json"), "--overlay", str(tmp_path / "out.mp4")]
    prompts = ["--box", "5,5,60,50", "--frame", "1", "--regions", str(tmp_path / "regions.json")]
    assert main(["video", str(clip), "--model", str(tracker), *prompts, *outputs]) == 0
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["object"] for record in records] == [1, 2] and all(len(record["masks"]) == 5 for record in records)
    assert len(open_clip(tmp_path / "out.mp4")) == 5
    out = capsys.readouterr().out
    assert out.count(" of 5 frames  ") == 2


def test_its_records_are_masklets_for_a_model_without_a_tracker(tracker, clip, tmp_path, capsys):
    first = ["--json", str(tmp_path / "out.json"), "--masks", str(tmp_path / "masks")]
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:60] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    prompt = ["--mask", str(tmp_path / "mask.png")]
    assert main(["video", str(clip), "--model", str(tracker), *prompt, *first]) == 0
    said = []
    for source in ("out.json", "masks"):
        output = tmp_path / f"{source}-again.json"
        assert main(["video", str(clip), "--masklets", str(tmp_path / source), "--json", str(output)]) == 0
        said.append(json.loads(output.read_text())[0])
    assert said[0]["caption"] == said[1]["caption"] and said[0]["masks"] == said[1]["masks"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "5,5,60,50"], "is no tracker: give masks of the objects per frame"),
        ([], "name the objects by --box"),
        (["--box", "5,5,60,50", "--frame", "5"], "is no tracker|frame is 5"),
        (["--box", "5,5,60,50", "--overlay", "out.avi"], "must end with .mp4"),
        (["--masklets", "absent.json"], "absent.json"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(arguments, message, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["video", str(clip), *arguments]) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")) and "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_is_the_clip_is_refused(tracker, clip, capsys):
    content = clip.read_bytes()
    assert main(["video", str(clip), "--model", str(tracker), "--box", "5,5,60,50", "--overlay", str(clip)]) == 2
    assert clip.read_bytes() == content
