"""Visual Genome: two archives of pictures, phrases of a crowd, boxes that reach out of the image; and GRiT's form."""

import json
import re

import pytest
from reading import picture, read, regions

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError


def region(region_id, phrase, box=(5, 6, 10, 12), image_id=1):
    """Width, height and the rest in the order of the real file."""
    x, y, width, height = box
    return {
        "region_id": region_id,
        "width": width,
        "height": height,
        "image_id": image_id,
        "phrase": phrase,
        "y": y,
        "x": x,
    }


IMAGES = [
    {
        "width": 40,
        "url": f"https://cs.stanford.edu/people/rak248/{folder}/{image_id}.jpg",
        "height": 30,
        "image_id": image_id,
        "coco_id": None,
        "flickr_id": None,
    }
    for image_id, folder in ((1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K_2"))
]
REGIONS = [
    {"regions": [region(1382, "the clock is green in color"), region(1383, "café ☕ sign\n")], "id": 1},
    {"regions": [region(2001, "a dog", image_id=2)], "id": 2},
    {"regions": [], "id": 3},
]


@pytest.fixture
def root(tmp_path):
    for image in IMAGES:
        picture(tmp_path / "/".join(image["url"].split("/")[-2:]))
    (tmp_path / "image_data.json").write_text(json.dumps(IMAGES))
    (tmp_path / "densecap_splits.json").write_text(json.dumps({"train": [2], "val": [3], "test": [1]}))
    return write_regions(tmp_path, REGIONS)


def write_regions(root, entries):
    (root / "region_descriptions.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return root


def test_phrases_and_boxes_are_read_from_both_archives(root):
    records = read("visual_genome", root=root)
    assert [record["image"] for record in records] == [
        str(root / name) for name in ("VG_100K_2/1.jpg", "VG_100K/2.jpg", "VG_100K_2/3.jpg")
    ]
    first = records[0]["regions"]
    assert [r["captions"] for r in first] == [["the clock is green in color"], ["café ☕ sign\n"]]
    assert first[0]["region_id"] == "1382" and first[0]["box"] == [5, 6, 15, 18] and first[0]["category"] is None
    assert records[0]["task"] == "caption" and records[2]["regions"] == []


def test_the_first_release_calls_ids_by_other_names(root):
    images = [{**image, "id": image["image_id"]} for image in IMAGES]
    for image in images:
        del image["image_id"]
    (root / "image_data.json").write_text(json.dumps(images))
    old = region(7, "a tree")
    old["id"] = old.pop("region_id")
    write_regions(root, [{"regions": [old], "id": 1}])
    assert regions(read("visual_genome", root=root))[0]["region_id"] == "7"


def test_densecaps_splits(root):
    assert [r["image_id"] for r in read("visual_genome", root=root, split="test")] == ["1"]
    assert [r["image_id"] for r in read("visual_genome", root=root, split="train")] == ["2"]
    with pytest.raises(ValueError, match=r"split is 'dev', .*densecap_splits\.json has train, val, test"):
        read("visual_genome", root=root, split="dev")


def test_boxes_outside_are_refused_or_cut_and_counted(root):
    boxes = [(30, 20, 10.75, 10.5), (30, 20, 30, 30), (-5, 0, 20, 30), (50, 5, 10, 10), (5, 5, 0, 10)]
    write_regions(root, [{"id": 1, "regions": [region(i, "x", box) for i, box in enumerate(boxes)]}])
    report = ReadReport()
    kept = regions(read("visual_genome", "skip", report, root=root))
    assert [r["box"] for r in kept] == [[30, 20, 40, 30]]
    assert (report.clipped_regions, report.skipped_regions) == (1, 4)
    report = ReadReport()
    kept = regions(read("visual_genome", "skip", report, root=root, clip="image"))
    assert [r["box"] for r in kept] == [[30, 20, 40, 30], [30, 20, 40, 30], [0, 0, 15, 30]]
    assert (report.clipped_regions, report.skipped_regions) == (3, 2)
    assert "region 3: box [50.0, 5.0, 60.0, 15.0] reaches outside" in report.messages[0]
    with pytest.raises(RegionRecordError, match=r"image 1, region 1: box .* reaches outside"):
        read("visual_genome", root=root)


def test_images_without_size_or_picture_are_named(root):
    (root / "image_data.json").write_text(json.dumps(IMAGES[1:]))
    (root / "VG_100K" / "2.jpg").unlink()
    report = ReadReport()
    assert [r["image_id"] for r in read("visual_genome", "skip", report, root=root)] == ["3"]
    assert "image 1: image_data.json does not list" in report.messages[0]
    assert "image 2: the picture 'VG_100K/2.jpg' is not in" in report.messages[1]


@pytest.mark.parametrize("layout", ["images/VG_100K_2/1.jpg", "images/1.jpg", "images/VG_100K/1.jpg", "1.jpg"])
def test_pictures_are_found_however_they_were_unpacked(root, layout):
    (root / "VG_100K_2" / "1.jpg").rename(picture(root / layout))
    assert read("visual_genome", root=root, split="test")[0]["image"] == str(root / layout)


def test_an_address_does_not_lead_out_of_the_folder(root):
    picture(root / "secret.jpg")
    (root / "inner").mkdir()
    (root / "image_data.json").write_text(json.dumps([{**IMAGES[0], "url": "https://x/../secret.jpg"}]))
    with pytest.raises(RegionRecordError, match=r"image 1: the picture '\.\./secret\.jpg' is not in"):
        read("visual_genome", root=root, images=root / "inner", split="test")


def test_bad_entries_and_regions_are_named(root):
    bad = [{"region_id": 5, "x": 1}, region(6, None), region(7, " "), region(8, "a", ("x", 1, 1, 1)), "text"]
    write_regions(root, [{"regions": [*bad, region(9, "good")], "id": 1}, {"id": 2}])
    report = ReadReport()
    assert [r["region_id"] for r in regions(read("visual_genome", "skip", report, root=root))] == ["9"]
    expected = ("region 5: 'y' is missing", "the phrase is None", "a text is blank", "bbox is ['x'", "region ?: ")
    assert all(text in message for text, message in zip(expected, report.messages, strict=False))
    assert "an entry has no id, or no regions" in report.messages[5]


@pytest.mark.parametrize("options", [{}, {"image_data": True}])
def test_grits_file_of_the_same_pictures(root, options):
    content = {
        "info": {},
        "images": [{"id": 2, "file_name": "2.jpg", "width": 40, "height": 30}, {"id": 1, **IMAGES[0]}],
        "annotations": [
            {"id": 11, "image_id": 1, "bbox": [5, 6, 10.5, 12], "caption": "a clock", "category_id": 1, "iscrowd": 0},
            {"id": 12, "image_id": 2, "bbox": [1, 2, 3, 4], "caption": "a dog", "category_id": 1, "iscrowd": 0},
            {"id": 13, "image_id": 9, "bbox": [1, 2, 3, 4], "caption": "nowhere", "category_id": 1, "iscrowd": 0},
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    content["images"][1]["file_name"] = "1.jpg"
    (root / "train.json").write_text(json.dumps(content))
    options = {"image_data": root / "image_data.json"} if options else {}
    report = ReadReport()
    records = read("grit", "skip", report, annotations=root / "train.json", images=root, **options)
    assert [record["image"] for record in records] == [str(root / "VG_100K/2.jpg"), str(root / "VG_100K_2/1.jpg")]
    assert regions(records)[1]["captions"] == ["a clock"] and regions(records)[1]["box"] == [5, 6, 15.5, 18]
    assert report.skipped_records == 1 and "region 13: there is no image 9" in report.messages[0]
    with pytest.raises(ValueError, match="is not in GRiT's format: 'images' is missing"):
        read("grit", annotations=root / "densecap_splits.json", images=root)


LINES = [
    "2376980\t5\t6\t10\t12\tA stop light\tएक स्टॉप लाइट",
    "1\t0\t0\t40\t31\tthe sky is blue \tआकाश नीला है",
    '2376980\t1\t2\t3\t4\ta "red" car\tएक लाल कार',
]


def translation(folder, name="hindi-visual-genome-test", lines=LINES, end="\n"):
    """Files as they are published: seven columns between tabs, pictures in a folder named after the file."""
    for image_id in ("1", "2376980"):
        picture(folder / f"{name}.images" / f"{image_id}.jpg")
    (folder / f"{name}.txt").write_text(end.join([*lines, ""]), encoding="utf-8", newline="")
    return folder


def test_translations_have_both_captions_with_their_languages(tmp_path):
    options = {"root": translation(tmp_path, end="\r\n"), "language": "hi", "split": "test"}
    records = read("multilingual_visual_genome", **options)
    assert [record["image_id"] for record in records] == ["2376980", "1"], "one record per image, as they come"
    assert records[0]["image"] == str(tmp_path / "hindi-visual-genome-test.images" / "2376980.jpg")
    first, again = records[0]["regions"]
    assert first["captions"] == ["एक स्टॉप लाइट", "A stop light"] and first["languages"] == ["hi", "en"]
    assert first["box"] == [5, 6, 15, 18] and (first["region_id"], again["region_id"]) == ("1", "3")
    assert again["captions"] == ["एक लाल कार", 'a "red" car'], "not a CSV: quotes are text"
    assert records[1]["regions"][0]["box"] == [0, 0, 40, 30] and records[1]["task"] == "caption"
    alone = regions(read("multilingual_visual_genome", english=False, **options))
    assert [(r["captions"], r["languages"]) for r in alone][1:] == [
        (["एक लाल कार"], ["hi"]),
        (["आकाश नीला है"], ["hi"]),
    ]


@pytest.mark.parametrize(
    ("language", "split", "name"),
    [
        ("hi", "train", "hindi-visual-genome-train"),
        ("hi", "challenge", "hindi-visual-genome-challenge-test-set"),
        ("bn", "challenge", "bengali-visual-genome-challenge-test-set"),
        ("ml", "dev", "malayalam-visual-genome-dev"),
        ("ml", "challenge", "malayalam-visual-genome-chtest"),
        ("ha", "challenge", "hausa-visual-genome-challenge-test-set"),
    ],
)
def test_each_file_of_translations_is_found_by_its_published_name(tmp_path, language, split, name):
    translation(tmp_path / "unpacked", name)
    found = read("multilingual_visual_genome", root=tmp_path, language=language, split=split)
    assert {tuple(region["languages"]) for region in regions(found)} == {(language, "en")}


@pytest.mark.parametrize("layout", ["VG_100K/1.jpg", "hindi-visual-genome-test.images/1.jpg", "1.jpg"])
def test_pictures_of_translations_are_found_in_other_folders(tmp_path, layout):
    root = translation(tmp_path / "texts")
    (root / "hindi-visual-genome-test.images" / "1.jpg").rename(picture(tmp_path / "all" / layout))
    (root / "hindi-visual-genome-test.images" / "2376980.jpg").rename(tmp_path / "all" / "2376980.jpg")
    options = {"root": root, "images": tmp_path / "all", "language": "hi", "split": "test"}
    assert read("multilingual_visual_genome", **options)[1]["image"] == str(tmp_path / "all" / layout)


def test_broken_lines_of_translations_are_named_and_cost_no_more_than_themselves(tmp_path):
    place = "5\t6\t10\t12"
    broken = [
        "1\t5\t6\t10\t12\tA stop light",  # a column is missing
        f"1\t{place}\tA stop light\tएक\tलाइट",  # a tab in the text
        f"../1\t{place}\tA stop light\tएक",
        f"1\t{place}\tA stop light\t ",
        "1\t5\tsix\t10\t12\tA stop light\tएक",
        "1\t5\t6\t100\t12\tA stop light\tएक",
        f"7\t{place}\tA stop light\tएक",
        "",
    ]
    root = translation(tmp_path, lines=[*LINES, *broken])
    (root / "hindi-visual-genome-test.txt").open("ab").write(f"1\t{place}\tA light\t".encode() + b"\xe0\xa4\n")
    options, report = {"root": root, "language": "hi", "split": "test"}, ReadReport()
    assert len(regions(read("multilingual_visual_genome", "skip", report, **options))) == 3
    assert (report.skipped_records, report.skipped_regions) == (4, 4)
    named = (
        r"line 4: expected image_id, X, Y, .* and its translation between tabs, image_id a number; got b'1",
        r"line 5: expected image_id",
        r"line 6: expected image_id",
        r"image 1, region 7: a text is blank",
        r"image 1, line 8: bbox is \['5', 'six', '10', '12'\], expected left, top, width and height",
        r"image 1, region 9: box \[5.0, 6.0, 105.0, 18.0\] reaches outside",
        r"image 1, region 12: a text has an unpaired surrogate",
        r"image 7: the picture 7.jpg is not in",
    )
    missed = [text for text in named if not any(re.search(text, message) for message in report.messages)]
    assert not missed and len(report.messages) == len(named)
    with pytest.raises(RegionRecordError, match="line 4: expected"):
        read("multilingual_visual_genome", **options)


def test_translations_that_are_not_there_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match=r"there is no hausa-visual-genome-dev\.txt in .*unpack .*txt\.gz there"):
        read("multilingual_visual_genome", root=tmp_path, language="ha", split="dev")
    with pytest.raises(ValueError, match=r"language is 'hindi', expected one of hi, bn, ml, ha"):
        read("multilingual_visual_genome", root=tmp_path, language="hindi")


def test_what_is_not_given_is_asked_for(root):
    for options, message in (
        ({}, "region_descriptions: pass the path"),
        ({"root": root / "VG_100K"}, "region_descriptions: there is no file"),
        ({"root": root, "images": root / "gone"}, "images: there is no folder"),
        ({"root": root, "task": "recognition"}, "task is 'recognition'"),
    ):
        with pytest.raises(ValueError, match=message):
            read("visual_genome", **options)


def test_the_real_set_is_read_whole(shared):
    assert len(regions(read("visual_genome", root=shared("data/coco_permissive")))) == 161
