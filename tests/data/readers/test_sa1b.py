"""SA-1B: pictures and masks in tar files or folders, captions in a table."""

import io
import json
import tarfile

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from reading import read, regions, write

from sca_hf.data.loading import load_regions
from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle, encode_rle


def square(x, y, side=10):
    mask = np.zeros((30, 40), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def annotation(number, keys):
    """As the official files have it."""
    rows = [
        {
            "bbox": [5.0, 5.0, 9.0, 9.0],
            "area": 100 // (1 + index),
            "segmentation": encode_rle(square(5, 5)),
            "predicted_iou": 0.97,
            "point_coords": [[9.5, 9.5]],
            "crop_box": [0.0, 0.0, 40.0, 30.0],
            "id": key,
            "stability_score": 0.98,
        }
        for index, key in enumerate(keys)
    ]
    image = {"image_id": number, "width": 40, "height": 30, "file_name": f"sa_{number}.jpg"}
    return json.dumps({"image": image, "annotations": rows}).encode()


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 90, 9)).save(file, "JPEG")
    return file.getvalue()


def files(numbers=(223750, 223751)):
    for number in numbers:
        yield f"sa_{number}.jpg", jpeg()
        yield f"sa_{number}.json", annotation(number, [10 * number, 10 * number + 1])


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


ROWS = [
    ("223751", 2237510, '"quoted" green — 緑 — wall', 0.9),
    ("223750", 2237500, "a green wall", 0.5),
    ("223750", 2237500, "a field", 0.2),
    ("223750", 2237501, "grass", 0.1),
]


@pytest.fixture
def table(tmp_path):
    text = "".join("\t".join(map(str, row)) + "\n" for row in ROWS)
    return write(tmp_path / "captions.tsv", "image_id\tregion_id\tcaption\tscore\n" + text)


def test_captions_meet_their_masks(tmp_path, table):
    images = tar(tmp_path / "sa_000020.tar", [(f"./{name}", content) for name, content in files()])
    first, second = read("sa1b", images=images, captions=table)
    assert [first["image_id"], second["image_id"]] == ["sa_223750", "sa_223751"]
    assert first["image"]["bytes"] == jpeg() and (first["width"], first["height"]) == (40, 30)
    assert [region["captions"] for region in first["regions"]] == [["a green wall", "a field"], ["grass"]]
    assert first["regions"][0]["box"] == [5, 5, 14, 14]
    assert np.array_equal(decode_rle(first["regions"][0]["mask"]), square(5, 5))
    assert second["regions"][0]["captions"] == ['"quoted" green — 緑 — wall']


def test_tar_files_folders_and_every_table_give_the_same(tmp_path, table):
    rows = [dict(zip(("image_id", "region_id", "caption", "score"), row, strict=True)) for row in ROWS]
    write(
        tmp_path / "captions.jsonl", "".join(json.dumps({**r, "image_id": f"sa_{r['image_id']}"}) + "\n" for r in rows)
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "captions.parquet")
    (tmp_path / "tars").mkdir()
    tar(tmp_path / "tars" / "sa_000001.tar", files([223751]))
    tar(tmp_path / "tars" / "sa_000000.tar", reversed(list(files([223750]))))
    (tmp_path / "extracted").mkdir()
    for name, content in files():
        (tmp_path / "extracted" / name).write_bytes(content)
    wanted = regions(read("sa1b", images=tmp_path / "tars", captions=table))
    assert len(wanted) == 3
    for name in ("captions.jsonl", "captions.parquet"):
        assert regions(read("sa1b", images=tmp_path / "tars", captions=tmp_path / name)) == wanted
    extracted = read("sa1b", images=tmp_path / "extracted", captions=table)
    assert regions(extracted) == wanted
    assert extracted[0]["image"] == str(tmp_path / "extracted" / "sa_223750.jpg")


def test_workers_share_the_tar_files(tmp_path, table):
    for number in (223750, 223751):
        tar(tmp_path / f"sa_{number}.tar", files([number]))
    streamed = load_regions("sa1b", images=tmp_path, captions=table, streaming=True)
    assert streamed.num_shards == 2
    assert [record["image_id"] for record in streamed] == ["sa_223750", "sa_223751"]
    assert next(iter(streamed))["image"].size == (40, 30)


def test_weak_captions_and_small_regions_are_left_out_and_counted(tmp_path, table):
    images = tar(tmp_path / "a.tar", files())
    report = ReadReport()
    records = read("sa1b", report=report, images=images, captions=table, min_score=0.2, min_area=60 / 1200)
    assert [region["captions"] for region in regions(records)] == [
        ["a green wall", "a field"],
        ['"quoted" green — 緑 — wall'],
    ]
    assert report.left_out == {"captions below min_score": 1}
    report = ReadReport()
    assert len(regions(read("sa1b", report=report, images=images, captions=table, min_area=60 / 1200))) == 2
    assert report.left_out == {"regions below min_area": 1}


def test_pictures_without_captions_are_not_even_read(tmp_path, table):
    members = [("sa_1.jpg", b"no picture"), ("sa_1.json", b"no JSON"), ("README", b""), *files([223750])]
    (record,) = read("sa1b", images=tar(tmp_path / "a.tar", members), captions=table)
    assert record["image_id"] == "sa_223750"


def test_names_in_a_tar_lead_nowhere(tmp_path, table):
    (tmp_path / "data").mkdir()
    members = [(f"../../{name}", content) for name, content in files([223750])]
    link = tarfile.TarInfo("sa_223751.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tar(tmp_path / "data" / "a.tar", [*members, *list(files([223751]))[1:]]), "a") as archive:
        archive.addfile(link)
    report = ReadReport()
    (record,) = read("sa1b", "skip", report, images=tmp_path / "data" / "a.tar", captions=table)
    assert record["image"] == {"path": None, "bytes": jpeg()}
    assert "there is no sa_223751.jpg" in report.messages[0]
    assert not list(tmp_path.rglob("sa_*.jpg")) and not list(tmp_path.parent.glob("sa_*.jpg"))


def test_what_is_wrong_is_named(tmp_path, table):
    members = [("sa_223750.jpg", jpeg()), ("sa_223750.json", annotation(223750, [2237500])), *files([223751])]
    report = ReadReport()
    records = read("sa1b", "skip", report, images=tar(tmp_path / "a.tar", members), captions=table)
    assert len(regions(records)) == 2
    assert "image sa_223750, region 2237501: it is in the table but not in the annotations" in report.messages[0]
    members = [("sa_223750.jpg", jpeg()), ("sa_223750.json", b"{}")]
    with pytest.raises(RegionRecordError, match=r"image sa_223750: its annotation cannot be read"):
        read("sa1b", images=tar(tmp_path / "a.tar", members), captions=table)


def test_an_incomplete_tar_is_refused(tmp_path, table):
    whole = tar(tmp_path / "a.tar", files()).read_bytes()
    (tmp_path / "incomplete.tar").write_bytes(whole[:1000])
    for path in (tmp_path / "incomplete.tar", write(tmp_path / "no.tar", "no tar")):
        with pytest.raises(ValueError, match=r"\.tar is not a tar file, or cut short"):
            read("sa1b", "skip", images=path, captions=table)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image_id\tcaption\n1\ta\n", {}, "has no column region_id"),
        ("image_id\tregion_id\tcaption\n1\t2\ta\n", {"min_score": 0.1}, "has no column score"),
        ("image_id\tregion_id\tcaption\none\t2\ta\n", {}, "image_id is not a number everywhere"),
        ("image_id\tregion_id\tcaption\n1\t2\n", {}, "cannot be read"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, options, message):
    path = write(tmp_path / "captions.tsv", text)
    with pytest.raises(ValueError, match=rf"captions\.tsv.*{message}"):
        read("sa1b", images=tmp_path, captions=path, **options)
