"""Clips: frames of files and folders, masks through time, and the command by its own output."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sca_hf.cli import main
from sca_hf.data.clips import open_clip, read_masklets, write_clip, write_masklets
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.run_log import RunMismatchError
from sca_hf.testing import save_tiny_model, tiny_image
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
    write_masklets(tmp_path / "masks", records, ["00000", "00001"])
    write_masklets(tmp_path / "mask_dict.json", records, ["00000", "00001"])
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "lists.json").write_text(json.dumps([record["masks"] for record in records]))
    for source in ("masks", "records.json", "lists.json", "mask_dict.json"):
        found = read_masklets(tmp_path / source)
        assert [sorted(masks) for masks in found] == [[0], [0, 1]]
        plain = [[m if isinstance(m, np.ndarray) else decode_rle(m) for m in masks.values()] for masks in found]
        assert np.array_equal(plain[0][0], one) and all(np.array_equal(mask, two) for mask in plain[1])


def folder_of_frames(folder, names=("00000", "00005", "00010")):
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        Image.new("RGB", (64, 48), (5 * k, 5 * k, 5 * k)).save(folder / f"{name}.jpg")
    return open_clip(folder)


def mask(left):
    found = np.zeros((48, 64), bool)
    found[5:20, left : left + 10] = True
    return found


def test_masks_of_some_frames_are_found_by_the_frames_names_and_named_so(tmp_path):
    """As YouTube-VOS and MeViS have them."""
    clip = folder_of_frames(tmp_path / "JPEGImages" / "bear")
    records = [{"masks": [encode_rle(mask(left)) for left in (0, 10, 20)]}]
    write_masklets(tmp_path / "Annotations" / "bear", records, clip.names)
    assert sorted(path.name for path in (tmp_path / "Annotations" / "bear").iterdir())[1] == "00005.png"
    (tmp_path / "Annotations" / "bear" / "00000.png").unlink()
    found = read_masklets(tmp_path / "Annotations" / "bear", clip)
    assert sorted(found[0]) == [1, 2] and np.array_equal(found[0][1], mask(10))
    (tmp_path / "Annotations" / "bear" / "00005.png").rename(tmp_path / "Annotations" / "bear" / "00007.png")
    with pytest.raises(ValueError, match=r"2 pictures for the 3 frames of .*, and 00007 is not the name of a frame"):
        read_masklets(tmp_path / "Annotations" / "bear", clip)


def test_masks_of_mevis_are_those_of_the_clip(tmp_path):
    clip = folder_of_frames(tmp_path / "bear")
    masks = {str(k): [encode_rle(mask(10 * k)), None, None] for k in range(4)}
    (tmp_path / "mask_dict.json").write_text(json.dumps(masks))
    assert len(read_masklets(tmp_path / "mask_dict.json", clip)) == 4
    expressions = {
        "0": {"exp": "the bears", "obj_id": [0, 1], "anno_id": [2, 1]},
        "1": {"exp": "a bear", "anno_id": [2]},
    }
    meta = {"videos": {"bear": {"expressions": expressions, "frames": clip.names}}}
    (tmp_path / "meta_expressions.json").write_text(json.dumps(meta))
    found = read_masklets(tmp_path / "mask_dict.json", clip)
    assert [decode_rle(masks[0]).tolist() for masks in found] == [mask(20).tolist(), mask(10).tolist()]
    with pytest.raises(ValueError, match="have no masks of cat"):
        read_masklets(tmp_path / "mask_dict.json", folder_of_frames(tmp_path / "cat"))


def test_masks_of_videorefer_are_those_of_the_clip(tmp_path):
    clip = folder_of_frames(tmp_path / "bear")
    objects = [{"1": {"segmentation": encode_rle(mask(10))}, "2": {"segmentation": encode_rle(mask(20))}}]
    records = [{"video": "videos/cat.mp4", "annotation": [{"0": {"segmentation": encode_rle(mask(0))}}]},
               {"video": "videos/bear.mp4", "caption": "A bear.", "annotation": objects}]  # fmt: skip
    (tmp_path / "refer.json").write_text(json.dumps(records))
    found = read_masklets(tmp_path / "refer.json", clip)
    assert [sorted(masks) for masks in found] == [[1, 2]] and np.array_equal(decode_rle(found[0][2]), mask(20))
    with pytest.raises(ValueError, match="has no masks of dog"):
        read_masklets(tmp_path / "refer.json", folder_of_frames(tmp_path / "dog"))


@pytest.mark.parametrize("content", [[], {}, [{"caption": "no masks"}], [3], "text", [{"a": {}}]])
def test_what_are_no_masks_is_said_in_words(content, tmp_path):
    (tmp_path / "masks.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"masks.json"):
        read_masklets(tmp_path / "masks.json")


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
    save_tiny_model(folder, tiny_model_of("sam2_video"))
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


# Several clips.


@pytest.fixture
def clips(tmp_path):
    """Three clips, and what to follow in each."""
    for seed, name in enumerate(("bear", "cat", "dog")):
        still = np.asarray(tiny_image(seed, (80, 60)))
        write_clip(tmp_path / f"{name}.mp4", [Image.fromarray(np.roll(still, 3 * k, axis=1)) for k in range(4)])
    regions = {
        "bear": [{"box": [5, 5, 60, 50]}],
        "cat": [{"points": [[40, 30]], "frame": 2}],
        "dog": [{"points": [[9, 9]]}],
    }
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    return [str(tmp_path / f"{name}.mp4") for name in ("bear", "cat", "dog")]


def several(clips, tracker, folder, name="out", overlay=".mp4"):
    regions = ["--regions", str(folder / "regions.json")]
    outputs = ["--json", str(folder / f"{name}.json"), "--overlay", str(folder / f"{name}{overlay}")]
    return ["video", *clips, "--model", str(tracker), *regions, *outputs, "--masks", str(folder / f"{name}-masks")]


def test_several_clips_are_captioned_as_each_alone(clips, tracker, tmp_path, capsys):
    assert main(several(clips, tracker, tmp_path)) == 0
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["clip"] for record in records] == ["bear", "cat", "dog"]
    alone = ["video", clips[1], "--model", str(tracker), "--point", "40,30", "--frame", "2", "--json"]
    assert main([*alone, str(tmp_path / "cat.json")]) == 0
    assert {"clip": "cat", **json.loads((tmp_path / "cat.json").read_text())[0]} == records[1]
    for name in ("bear", "cat", "dog"):
        assert len(open_clip(tmp_path / f"out-{name}.mp4")) == 4
        assert len(list((tmp_path / "out-masks" / name).iterdir())) == 4
    assert not list(tmp_path.glob("out.json.*"))
    again = ["--masklets", str(tmp_path / "out-masks"), "--json", str(tmp_path / "again.json")]
    assert main(["video", *clips, *again]) == 0
    given = json.loads((tmp_path / "again.json").read_text())
    assert [record["masks"] for record in given] == [record["masks"] for record in records]


# However late the kill comes on a busy machine, the third clip is not done.
SLOW_AT_DOG = """
import sys, time
from sca_hf.cli import main
from sca_hf.data import clips
write = clips.write_masklets
clips.write_masklets = lambda path, *rest: time.sleep(600) if "dog" in str(path) else write(path, *rest)
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_keeps_the_clips_that_are_done(clips, tracker, tmp_path, capsys):
    # Overlays as pictures: on a busy machine x264 encodes equal frames to other pixels now and then.
    assert main(several(clips, tracker, tmp_path, "unbroken", "-overlay")) == 0
    command = several(clips, tracker, tmp_path, overlay="-overlay")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", SLOW_AT_DOG, *command], env=environment, stderr=subprocess.PIPE)
    part = tmp_path / "out.json.part-0"
    while process.poll() is None and not (part.is_file() and part.read_bytes().count(b"\n")):
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (tmp_path / "out.json").exists()
    done = part.read_bytes().count(b"\n")
    assert 1 <= done < 3
    with part.open("ab") as file:
        file.write(b'{"clip": "cat", "sta')  # cut short
    kept = (tmp_path / "out-overlay" / "bear").stat().st_mtime_ns
    with pytest.raises(RunMismatchError, match="belongs to a run with other settings"):
        main([*command, "--num-beams", "2", "--debug"])
    assert main(command) == 0
    assert (tmp_path / "out-overlay" / "bear").stat().st_mtime_ns == kept
    frames = [f"out-overlay/{name}/{k:06d}.png" for name in ("bear", "cat", "dog") for k in range(4)]
    for name in ("out.json", "out-masks/cat/00003.png", "out-masks/dog/00003.png", *frames):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("out", "unbroken")).read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*out.json*")) == ["out.json"]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith((".", "tmp")) or ".tmp" in path.name]


def test_a_clip_that_fails_does_not_stop_the_others(clips, tracker, tmp_path, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "alone.png")
    folder = tmp_path / "cat"
    folder.mkdir()
    for k, size in enumerate([(80, 60), (40, 60)]):
        tiny_image(0, size).save(folder / f"{k}.png")
    clips[1] = str(folder)
    regions = {"bear": [{"box": [5, 5, 60, 50]}], "cat": [{"box": [5, 5, 60, 50]}], "dog": [{"points": [[9, 9]]}]}
    (tmp_path / "regions.json").write_text(json.dumps(regions))
    assert main(several(clips, tracker, tmp_path)) == 1
    error = capsys.readouterr().err
    assert "failed: cat: frame 1 is 40 x 60 pixels" in error and "1 of 3 clips failed" in error
    assert [one["clip"] for one in json.loads((tmp_path / "out.json").read_text())] == ["bear", "dog"]
    assert not (tmp_path / "out-cat.mp4").exists() and not (tmp_path / "out-masks" / "cat").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line, folder: [line[0], folder / "absent.mp4", *line[1:]], "there is no clip"),
        (lambda line, folder: [*line[:2], folder / "copy" / "bear.mp4", *line[2:]], "are both called bear"),
        (lambda line, folder: [*line[:3], *line[4:]], "'dog', which is not among the CLIPs"),
        (lambda line, folder: [*line, "--masklets", folder / "absent"], "name the objects of bear by --box"),
        (lambda line, folder: [*line[:4], "--masklets", folder], "has neither bear nor bear.json"),
        (lambda line, folder: [*line, "--masks", folder / "masks.png"], "a folder or a .json file"),
    ],
)
def test_mistakes_in_several_clips_are_said_before_a_model_is_loaded(
    change, message, clips, tracker, tmp_path, capsys
):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "bear.mp4").write_bytes((tmp_path / "bear.mp4").read_bytes())
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    line = change(["video", *clips, "--regions", tmp_path / "regions.json"], tmp_path)
    assert main([*map(str, line)]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and "loading" not in error
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
