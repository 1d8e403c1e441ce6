"""No data set of any format has a picture, a mask or an address opened that lies outside of it: every door."""

import json
import os
import shutil
import signal
import socket
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from valid_sets import MAKERS, SIZE, read, records, tar_of

from sca_hf.data.loading import READERS
from sca_hf.data.region import RegionRecordError
from sca_hf.prompt_arguments import read_regions_file


@contextmanager
def within(seconds):
    """Fails where something waits for a pipe or reads a device without end."""

    def stop(*_):
        raise AssertionError(f"still running after {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outside(folder):
    """A picture that no data set below may have opened."""
    Image.new("RGB", SIZE, (1, 2, 3)).save(folder / "secret.jpg")
    return folder / "secret.jpg"


TRICKS = {
    "a link out of the folder": lambda path, secret: path.symlink_to(secret),
    "a link to a device": lambda path, secret: path.symlink_to("/dev/zero"),
    "a pipe": lambda path, secret: os.mkfifo(path),
    "a folder": lambda path, secret: path.mkdir(),
    "a link to itself": lambda path, secret: path.symlink_to(path),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"hub"}))
def test_a_picture_that_is_none_of_the_folder_is_refused(tmp_path, name, trick):
    secret = outside(tmp_path)
    options = MAKERS[name](tmp_path / "set")
    (first, _), _ = read(name, options)
    for picture in (tmp_path / "set").rglob("*2.jpg"):
        picture.unlink()
        TRICKS[trick](picture, secret)
    with within(30):
        found, report = read(name, options, "skip")
        assert [row for row in found if row["regions"]] == [first]
        # YOLO reads what pictures there are.
        assert report.skipped_records == 1 or name == "yolo"
        if report.skipped_records:
            with pytest.raises(RegionRecordError):
                read(name, options)


@pytest.mark.parametrize("trick", ["a link out of the folder", "a link to a device", "a pipe"])
@pytest.mark.parametrize(
    "name, file", [("voc", "2.xml"), ("labelme", "2.json"), ("sa1b", "sa_2.json"), ("yolo", "labels/2.txt")]
)
def test_a_file_of_labels_that_is_none_of_the_folder_is_refused(tmp_path, name, file, trick):
    options = MAKERS[name](tmp_path / "set")
    (tmp_path / "set" / file).rename(tmp_path / "secret.jpg")
    TRICKS[trick](tmp_path / "set" / file, tmp_path / "secret.jpg")
    with within(30), pytest.raises(ValueError, match="not a regular file"):
        read(name, options)


NAMES = [
    "/etc/passwd",
    "/dev/zero",
    "../secret.jpg",
    "../../secret.jpg",
    "x/../../secret.jpg",
    "..\\secret.jpg",
    "SECRET",
]
NAMES += [
    "file:///SECRET",
    "file://SECRET",
    "http://127.0.0.1:PORT/a.png",
    "HTTP://127.0.0.1:PORT/a.png",
    "//127.0.0.1:PORT/a.png",
]
NAMES += [
    "ftp://127.0.0.1:PORT/a.png",
    "s3://bucket/a.png",
    "zip://a.png::http://127.0.0.1:PORT/a.zip",
    "~/secret.jpg",
    "link/secret.jpg",
]


def in_json(file, *path):
    def put(folder, name):
        content = json.loads((folder / file).read_text())
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = name
        (folder / file).write_text(json.dumps(content))

    return put


def in_text(file, text):
    def put(folder, name):
        (folder / file).write_text((folder / file).read_text().replace(text, name.replace("&", "&amp;")))

    return put


def in_lines(folder, name):
    rows = records()
    rows[1]["image"] = name
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def in_parquet(folder, name):
    rows = records()
    rows[1]["image"] = name
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")


def in_cells(folder, name):
    rows = parquet.read_table(folder / "a.parquet").to_pylist()
    rows[1]["image"] = {"path": name, "bytes": None}
    features = datasets.Features.from_arrow_schema(parquet.read_schema(folder / "a.parquet"))
    table = pyarrow.Table.from_pylist(rows, features.arrow_schema)
    parquet.write_table(table, folder / "a.parquet")


def in_list(folder, name):
    (folder / "list.txt").write_text(f"images/1.jpg\n{name}\n")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")


DOORS = {
    **dict.fromkeys(
        ("coco", "objects365", "v3det", "coco_captions", "grit"), in_json("a.json", "images", 1, "file_name")
    ),
    "lvis": in_json("a.json", "images", 1, "coco_url"),
    "via": in_json("a.json", "images", 1, "file_name"),
    "cvat": in_json("annotations/instances_default.json", "images", 1, "file_name"),
    "roboflow": in_json("train/_annotations.coco.json", "images", 1, "file_name"),
    "fiftyone": in_json("labels.json", "images", 1, "file_name"),
    "sbu": in_json("a.json", 1, "image"),
    "label_studio": in_json("a.json", 1, "data", "image"),
    "labelme": in_json("2.json", "imagePath"),
    "visual_genome": in_json("image_data.json", 1, "url"),
    "refcoco": in_json("instances.json", "images", 1, "file_name"),
    "voc": in_text("2.xml", "2.jpg"),
    "yolo": in_list,
    "jsonl": in_lines,
    "parquet": in_parquet,
    "hub": in_cells,
}


def test_every_reader_that_opens_files_by_name_is_a_door():
    # Scenes are drawn; pictures of SA-1B and of translations of Visual Genome are told by numbers.
    assert DOORS.keys() == READERS.keys() - {"scenes", "sa1b", "multilingual_visual_genome"}


@pytest.mark.parametrize("name", DOORS)
def test_no_name_or_address_in_a_data_set_leads_out_of_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    secret = outside(tmp_path / "elsewhere" if (tmp_path / "elsewhere").mkdir() is None else None)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0)
        port = str(server.getsockname()[1])
        for number, given in enumerate(NAMES):
            folder = tmp_path / "elsewhere" / f"set{number}" / "deep"
            options = MAKERS[name](folder)
            (folder / "link").symlink_to(secret.parent)
            for picture in folder.rglob("*2.jpg"):
                picture.unlink()
            DOORS[name](folder, given.replace("SECRET", str(secret)).replace("PORT", port))
            with within(60):
                try:
                    found, _ = read(name, options, "skip")
                except ValueError as error:
                    assert str(error), given
                    found = []
            for row in found:
                image = row["image"] if isinstance(row["image"], str) else row["image"]["path"]
                assert image is None or Path(image).resolve().is_relative_to(folder.resolve()), (given, image)
            assert len(found) <= 1 or not found[1]["regions"], given
            with pytest.raises(BlockingIOError):
                server.accept()
            shutil.rmtree(folder.parent)


@pytest.mark.parametrize("trick", TRICKS)
def test_masks_of_region_files_lie_beside_them(tmp_path, trick):
    (tmp_path / "set").mkdir()
    for file in (tmp_path / "set" / "mask.png", tmp_path / "secret.png"):
        Image.new("L", SIZE, 255).save(file)
    regions = tmp_path / "set" / "regions.json"

    def prompts(name):
        regions.write_text(json.dumps([{"mask": name}]))
        with within(30):
            return read_regions_file(regions)[None]

    assert prompts("mask.png")[0].mask.all() and prompts("./mask.png")[0].mask.all()
    for name in (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "/dev/zero",
        "http://127.0.0.1:1/a.png",
        "x/../../secret.png",
    ):
        with pytest.raises(ValueError, match="outside"):
            prompts(name)
    (tmp_path / "set" / "mask.png").unlink()
    TRICKS[trick](tmp_path / "set" / "mask.png", tmp_path / "secret.png")
    with pytest.raises((ValueError, OSError)):
        prompts("mask.png")


def test_members_of_tar_files_that_are_no_files_are_left_out(tmp_path):
    options = MAKERS["sa1b"](tmp_path / "set")
    (first, _), _ = read("sa1b", options)
    (tmp_path / "set" / "sa_2.jpg").unlink()
    (tmp_path / "set" / "sa_2.jpg").symlink_to(outside(tmp_path))
    found, report = read("sa1b", {**options, "images": tar_of(tmp_path / "set", "a.tar")}, "skip")
    assert [row["image_id"] for row in found] == [first["image_id"]] and report.skipped_records == 1
