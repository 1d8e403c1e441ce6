"""Opening data sets: stored or streamed, from the cache or not, and what is said of what is left out."""

import inspect
import json
import logging
import os
import pickle
import re
from pathlib import Path

import pytest
from PIL import Image

from sca_hf.data import loading
from sca_hf.data.loading import RecordSource, load_regions, load_spec, parse_spec, spec_source
from sca_hf.data.region import RegionRecord, RegionRecordError, region_features


datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(name="a.png", box=(0.1, 2, 20, 30), **fields):
    region = {"box": list(box), "captions": "a cat", "points": [[3.3, 4]]}
    return {"image": name, "width": 40, "height": 30, "regions": [region], **fields}


@pytest.fixture
def rows(tmp_path):
    """The path of a file of two good rows and a bad one."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    return write_rows(
        tmp_path / "rows.jsonl", row(image_id="1"), row(image_id="2", box=(5, 5, 5, 9)), row(image_id="3")
    )


def test_stored_and_streamed_records_are_the_same(rows):
    sources = [{"format": "jsonl", "path": rows, "on_error": "skip"}, {"format": "scenes", "count": 1}]
    for spec in sources:
        stored, streamed = load_spec(spec), load_spec({**spec, "streaming": True})
        assert stored.features == streamed.features == region_features()
        for one, other in zip(stored, streamed, strict=True):
            assert one.pop("image").tobytes() == other.pop("image").tobytes() and one == other
            assert list(one) == list(other)


def test_a_row_is_a_record(rows):
    record = RegionRecord.from_dict(load_regions("jsonl", path=rows, on_error="skip")[0])
    assert record.image_id == "1" and record.regions[0].captions == ["a cat"]


def test_a_picture_that_is_none_is_an_error_by_its_own_name_on_opening(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = write_rows(tmp_path / "rows.jsonl", row("broken.png"))
    for streaming in (False, True):
        with pytest.raises(RegionRecordError, match=r"line 1.*broken\.png: the picture cannot be read"):
            list(load_regions("jsonl", path=rows, streaming=streaming))


def test_a_bad_region_is_an_error_by_its_own_name(rows):
    for streaming in (False, True):
        with pytest.raises(RegionRecordError, match=r"^.*rows\.jsonl, line 2, image 2, region 0: box .* is empty"):
            list(load_regions("jsonl", path=rows, streaming=streaming))


def test_what_is_skipped_is_told_on_every_opening(rows, caplog):
    for _ in ("read", "from the cache"):
        caplog.clear()
        assert len(load_regions("jsonl", path=rows, on_error="skip")) == 2
        (warning,) = [entry for entry in caplog.records if entry.name.startswith("sca_hf")]
        assert warning.levelno == logging.WARNING
        assert "skipped 1 bad images and 1 bad regions, kept 2 images with 2 regions" in warning.getMessage()
        assert "rows.jsonl, line 2, image 2, region 0" in warning.getMessage()
    caplog.clear()
    list(load_regions("jsonl", path=rows, on_error="skip", streaming=True))
    assert "skipped 1 bad images" in caplog.text


def test_a_file_is_read_once_until_it_or_an_option_changes(rows, monkeypatch):
    read = []

    def reader(path, flavour=""):
        read.append(flavour)
        yield from loading.find_reader("jsonl")(path)

    monkeypatch.setitem(loading.READERS, "counted", reader)
    options = {"path": str(rows), "on_error": "skip"}
    for _ in range(2):
        assert len(load_regions("counted", **options)) == 2
    assert len(read) == 1
    status = rows.stat()
    write_rows(rows, row(image_id="1"), row(image_id="2"), row(image_id="3"))
    assert len(load_regions("counted", **options)) == 3
    # As large and as old as before, and yet another: only its time to the nanosecond tells.
    rows.write_text(rows.read_text().replace("a cat", "a dog"))
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load_regions("counted", **options)[0]["regions"][0]["captions"] == ["a dog"]
    assert len(load_regions("counted", flavour="sweet", **options)) == 3
    assert len(load_regions("counted", max_samples=1, **options)) == 1
    assert read == ["", "", "", "sweet", ""]


def test_a_file_deep_in_a_folder_counts_too(tmp_path):
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "deep" / "a.txt").write_text("1")
    keys = [RecordSource("jsonl", {"path": tmp_path / "data"}).cache_key() for _ in range(2)]
    (tmp_path / "data" / "deep" / "a.txt").write_text("12")
    keys.append(RecordSource("jsonl", {"path": tmp_path / "data"}).cache_key())
    assert keys[0] == keys[1] != keys[2]


def test_a_stream_is_told_by_its_options_and_files_and_not_by_where_they_are(tmp_path):
    def identity(place, **more):
        return spec_source({"format": "jsonl", "path": str(tmp_path / place), "streaming": True, **more}).identity()

    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "a.jsonl", row())
    first = identity("data")
    assert identity("data", max_samples=3) != first != identity("data", task="recognition")
    (tmp_path / "data").rename(tmp_path / "moved")
    assert identity("moved") == first == identity("./moved/../moved")
    write_rows(tmp_path / "moved" / "a.jsonl", row(), row(image_id="2"))
    assert identity("moved") != first


def test_a_stored_set_opens_from_any_folder(rows, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    stored = load_regions("jsonl", path="rows.jsonl", on_error="skip")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert stored[0]["image"].size == (40, 30)


def test_images_without_regions_are_kept_on_request(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    rows = write_rows(tmp_path / "rows.jsonl", row(), row(regions=[]))
    assert len(load_regions("jsonl", path=rows)) == 1
    assert load_regions("jsonl", path=rows, keep_empty=True)[1]["regions"] == []


def test_a_set_of_which_nothing_is_left_is_an_error(tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", row("gone.png"), row("gone too.png"))
    for streaming in (False, True):
        with pytest.raises(ValueError, match=r"no usable image \(.*there is no file .*gone\.png"):
            list(load_regions("jsonl", path=rows, on_error="skip", streaming=streaming))


def test_the_first_samples_are_taken(rows):
    options = {"path": rows, "on_error": "skip", "max_samples": 1}
    assert [record["image_id"] for record in load_regions("jsonl", **options)] == ["1"]
    assert [record["image_id"] for record in load_regions("jsonl", streaming=True, **options)] == ["1"]


def test_a_task_replaces_the_readers_own(rows):
    assert load_regions("scenes", count=1, task="recognition")[0]["task"] == "recognition"
    with pytest.raises(RegionRecordError, match='no category, which the task "recognition" needs'):
        load_regions("jsonl", path=rows, task="recognition")


def test_a_streamed_set_travels_to_workers(rows):
    torch_data = pytest.importorskip("torch.utils.data")
    streamed = load_regions("jsonl", path=rows, on_error="skip", streaming=True)
    again = pickle.loads(pickle.dumps(streamed))
    assert [record["image_id"] for record in again] == ["1", "3"]
    loader = torch_data.DataLoader(streamed, batch_size=None, num_workers=1)
    assert [record["image_id"] for record in loader] == ["1", "3"]


def test_workers_share_the_files_of_a_folder(tmp_path):
    torch_data = pytest.importorskip("torch.utils.data")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for name in "cab":
        write_rows(tmp_path / f"{name}.jsonl", row(), row())
    (tmp_path / "d.jsonl").write_text("")
    streamed = load_regions("jsonl", path=tmp_path, streaming=True)
    order = [record["image_id"] for record in streamed]
    assert order == ["a-1", "a-2", "b-1", "b-2", "c-1", "c-2"] == load_regions("jsonl", path=tmp_path)["image_id"][:]
    assert streamed.num_shards == 4
    loader = torch_data.DataLoader(streamed, batch_size=None, num_workers=2)
    assert sorted(record["image_id"] for record in loader) == order
    first = load_regions("jsonl", path=tmp_path, streaming=True, max_samples=3)
    assert first.num_shards == 1 and len(list(first)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "coko"}, "format is 'coko', expected one of coco, lvis"),
        ({"format": "jsonl"}, "jsonl: missing a required argument: 'path'; its options are path, images, task, names"),
        (
            {"format": "jsonl", "path": "a", "pathh": 1},
            "jsonl: got an unexpected keyword argument 'pathh'; its options",
        ),
        ({"format": "jsonl", "path": "a", "on_error": "ignore"}, "on_error is 'ignore'"),
        ({"format": "jsonl", "path": "a", "task": "vqa"}, "task is 'vqa', expected one of recognition, caption"),
        ({"format": "jsonl", "path": "a", "max_samples": 0}, "max_samples is 0"),
        ({"path": "a"}, "a data spec needs a format"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_before_reading(options, message):
    with pytest.raises(ValueError, match=message):
        load_spec(options)


def test_every_format_has_its_reader():
    for name in list(loading.READERS):
        assert callable(loading.find_reader(name))


def test_the_page_about_data_names_every_format_and_option():
    general = set(inspect.signature(load_regions).parameters) | {"task"}
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| (`.*) \|$", page, re.MULTILINE))
    for name in loading.READERS:
        options = set(inspect.signature(loading.find_reader(name)).parameters) - general
        assert set(re.findall(r"`(\w+)`", told[name])) - {"skip", "keep"} == options


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("scenes", {"format": "scenes"}),
        ("voc:root=my signs,task=caption", {"format": "voc", "root": "my signs", "task": "caption"}),
        ("scenes:count=5,start=-1", {"format": "scenes", "count": 5, "start": -1}),
        ("jsonl:path=a.jsonl,images=none", {"format": "jsonl", "path": "a.jsonl", "images": None}),
        ("sa1b:images=a=b:c,min_score=0.5", {"format": "sa1b", "images": "a=b:c", "min_score": 0.5}),
        ("hub:path=u/d,columns.boxes=objects.bbox,normalized=true", None),
    ],
)
def test_a_spec_is_read_from_the_command_line(text, spec):
    columns = {"boxes": "objects.bbox"}
    assert parse_spec(text) == (spec or {"format": "hub", "path": "u/d", "columns": columns, "normalized": True})


def test_a_spec_is_read_from_a_file(tmp_path):
    (tmp_path / "a.yaml").write_text("format: voc\nroot: signs\nnames: {do_not_turn_r: do not turn right}\n")
    spec = {"format": "voc", "root": "signs", "names": {"do_not_turn_r": "do not turn right"}}
    assert parse_spec(tmp_path / "a.yaml") == parse_spec(str(tmp_path / "a.yaml")) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("voc:root", "'root' is not option=value"),
        ("voc:root=a,root=b", "root is given twice"),
        ("voc:names=a.yaml,names.a=b", "names is a value and a mapping"),
        ("vok:root=a", "format is 'vok'"),
        ("gone.yaml", r"gone\.yaml"),
    ],
)
def test_a_spec_that_says_nothing_is_refused(text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        parse_spec(text)


def test_any_picture_and_any_caption_becomes_a_batch(tmp_path, processor):
    from sca_hf.training.collator import RegionCollator

    pictures = {"gray.png": "L", "cmyk.jpg": "CMYK", "alpha.png": "RGBA", "palette.png": "P", "deep.png": "I;16"}
    for name, mode in pictures.items():
        Image.new(mode, (40, 30)).save(tmp_path / name)
    region = {"box": [0, 0, 40, 30], "captions": "eine Straße — 道路 " + "and another word " * 30}
    rows = write_rows(tmp_path / "rows.jsonl", *(row(name, regions=[region]) for name in pictures))
    records = list(load_regions("jsonl", path=rows))
    assert len(records[0]["regions"][0]["captions"][0].split()) > 90
    batch = RegionCollator(processor, {"box": 1.0}, training=False)(records)
    assert batch["pixel_values"].shape[:2] == (len(pictures), 3)
    assert ((batch["labels"] != -100).sum(-1) == 20).all()
