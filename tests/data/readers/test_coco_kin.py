"""The formats that follow COCO's: LVIS, Objects365 version 2, V3Det, captions, SBU."""

import json

import pytest
from reading import picture, read, regions, write

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError


LVIS_IMAGE = (
    '{"date_captured": "2013-11-20 09:58:17", "neg_category_ids": [747, 3], "id": 391895, "license": 3, "height": 30, '
    '"width": 40, "flickr_url": "http://farm9.staticflickr.com/1.jpg", "coco_url": '
    '"http://images.cocodataset.org/val2017/000000391895.jpg", "not_exhaustive_category_ids": [3]}'
)
LVIS = (
    '{"info": {"description": "LVIS v1"}, "annotations": [{"area": 50.0, "id": 7, "segmentation": [[2.5, 3.0, 12.5, '
    '3.0, 12.5, 13.0]], "image_id": 391895, "bbox": [2.5, 3.0, 10.0, 10.0], "category_id": 3}], "images": [%s], '
    '"licenses": [], "categories": [{"image_count": 9, "synonyms": ["bow"], "def": "a weapon", "id": 3, "synset": '
    '"bow.n.04", '
    '"name": "bow_(weapon)", "instance_count": 12, "frequency": "r"}]}'
)


@pytest.mark.parametrize("folder", ["val2017", "."])
def test_lvis_finds_a_picture_by_its_url(tmp_path, folder):
    path = picture(tmp_path / folder / "000000391895.jpg")
    file = write(tmp_path / "lvis_v1_train.json", LVIS % LVIS_IMAGE)
    (record,) = read("lvis", annotations=file, images=tmp_path)
    assert record["image"] == str(path) and record["regions"][0]["mask"] is not None
    assert record["regions"][0]["captions"] == ["bow"]
    (region,) = regions(read("lvis", annotations=file, images=tmp_path, names={"bow_(weapon)": "a bow and arrow"}))
    assert region["category"] == "a bow and arrow"


def test_lvis_of_version_half_finds_a_picture_by_its_old_name(tmp_path):
    path = picture(tmp_path / "train2017" / "000000391895.jpg")
    image = json.loads(LVIS_IMAGE)
    del image["coco_url"]
    image["file_name"] = "COCO_train2014_000000391895.jpg"
    file = write(tmp_path / "lvis_v0.5_train.json", LVIS % json.dumps(image))
    assert read("lvis", annotations=file, images=tmp_path)[0]["image"] == str(path)


def test_lvis_names_a_picture_that_is_missing(tmp_path):
    file = write(tmp_path / "lvis.json", LVIS % LVIS_IMAGE)
    with pytest.raises(RegionRecordError, match=r"image 391895: there is no file .*val2017.000000391895\.jpg"):
        read("lvis", annotations=file, images=tmp_path)
    escaping = LVIS % LVIS_IMAGE.replace("/val2017/000000391895.jpg", "/../x.jpg")
    with pytest.raises(RegionRecordError, match="points outside the image folder"):
        read("lvis", annotations=write(tmp_path / "lvis.json", escaping), images=tmp_path)


def box_only(file_name):
    return json.dumps(
        {
            "images": [{"height": 30, "id": 420917, "license": 5, "width": 40, "file_name": file_name, "url": ""}],
            "annotations": [
                {"id": 1, "iscrowd": 0, "isfake": 0, "area": 9, "isreflected": 0, "bbox": [0.96, 2, 30.5, 9.25]}
                | {"image_id": 420917, "category_id": 13},
                {"id": 2, "iscrowd": 1, "isfake": 0, "area": 9, "isreflected": 0, "bbox": [1, 2, 3, 4]}
                | {"image_id": 420917, "category_id": 13},
            ],
            "licenses": [{"name": "CC0", "id": 5}],
            "categories": [{"name": "Cabinet/shelf", "id": 13}],
        }
    )


@pytest.mark.parametrize("place", ["images/v1/patch8/{}", "patch8/{}", "{}"])
def test_objects365_finds_a_picture_in_each_known_layout(tmp_path, place):
    name = "objects365_v1_00420917.jpg"
    path = picture(tmp_path / "train" / place.format(name))
    file = write(tmp_path / "zhiyuan_objv2_train.json", box_only(f"images/v1/patch8/{name}"))
    report = ReadReport()
    (record,) = read("objects365", report=report, annotations=file, images=tmp_path / "train")
    assert record["image"] == str(path) and report.left_out == {"crowd annotations": 1}
    assert record["regions"][0]["box"] == pytest.approx([0.96, 2, 31.46, 11.25])
    assert record["regions"][0]["captions"] == ["Cabinet/shelf"]
    assert len(regions(read("objects365", crowd="keep", annotations=file, images=tmp_path / "train"))) == 2


def test_objects365_names_a_picture_that_was_never_published(tmp_path):
    file = write(tmp_path / "train.json", box_only("images/v1/patch6/objects365_v1_00320532.jpg"))
    with pytest.raises(RegionRecordError, match=r"there is no file .*images/v1/patch6/objects365_v1_00320532\.jpg"):
        read("objects365", annotations=file, images=tmp_path)


@pytest.mark.parametrize("place", ["images/a00000066/{}", "a00000066/{}"])
def test_v3det_finds_a_picture_with_and_without_the_folder_of_images(tmp_path, place):
    name = "2_363_3576131784_dfac6fc6ce_c.jpg"
    path = picture(tmp_path / place.format(name))
    file = write(tmp_path / "v3det_2023_v1_train.json", box_only(f"images/a00000066/{name}"))
    assert read("v3det", annotations=file, images=tmp_path)[0]["image"] == str(path)


CAPTIONS = (
    '{"images": [{"license": 5,"file_name": "COCO_train2014_000000057870.jpg","height": 30,"width": 40,"id": 57870},'
    '{"license": 5,"file_name": "b.jpg","height": 30,"width": 40,"id": 9}],'
    '"annotations": [{"image_id": 57870,"id": 787980,"caption": "A restaurant has wooden tables and chairs.\\n"},'
    '{"image_id": 57870,"id": 789366,"caption": "Ein langer Tisch mit Stühlen — très long, 長いテーブル"}]}'
)


def test_coco_captions_are_those_of_the_whole_image(tmp_path):
    picture(tmp_path / "COCO_train2014_000000057870.jpg")
    picture(tmp_path / "b.jpg")
    file = write(tmp_path / "captions_train2014.json", CAPTIONS)
    first, second = read("coco_captions", annotations=file, images=tmp_path)
    (region,) = first["regions"]
    assert region["box"] == [0, 0, 40, 30] and region["category"] is None
    assert region["captions"][0] == "A restaurant has wooden tables and chairs."
    assert region["captions"][1].endswith("très long, 長いテーブル")
    assert second["regions"] == []
    with pytest.raises(ValueError, match="these captions name no category"):
        read("coco_captions", annotations=file, images=tmp_path, task="recognition")


def test_captions_of_unknown_or_doubled_images_are_refused(tmp_path):
    picture(tmp_path / "COCO_train2014_000000057870.jpg")
    file = write(tmp_path / "a.json", CAPTIONS.replace('"id": 9}', '"id": 57870}'))
    with pytest.raises(ValueError, match="two images have the same id"):
        read("coco_captions", annotations=file, images=tmp_path)
    file = write(tmp_path / "a.json", CAPTIONS.replace('"image_id": 57870,"id": 789366', '"image_id": 5,"id": 789366'))
    with pytest.raises(RegionRecordError, match="image 5: caption 789366 refers to this image, which does not exist"):
        read("coco_captions", annotations=file, images=tmp_path)


def test_sbu_gives_one_caption_a_picture_whatever_its_shape(tmp_path):
    upright = {0x0112: 6}
    picture(tmp_path / "images" / "4385058960_b0f291553e.jpg", (25, 50))
    picture(tmp_path / "images" / "turned.jpg", (25, 50), exif=_exif(upright))
    rows = [
        {
            "image": "4385058960_b0f291553e.jpg",
            "caption": "a wooden chair in the living room",
            "url": "http://x/1.jpg",
        },
        {"image": "turned.jpg", "caption": "word " * 30, "url": "http://x/2.jpg"},
        {"image": "gone.jpg", "caption": "a dead link", "url": "http://x/3.jpg"},
        {"image": "../../x.jpg", "caption": "a thief", "url": "http://x/4.jpg"},
        {"caption": "no picture"},
    ]
    file = write(tmp_path / "sbu.json", json.dumps(rows))
    report = ReadReport()
    first, second = read("sbu", "skip", report, annotations=file, images=tmp_path / "images")
    assert first["regions"][0]["box"] == [0, 0, 25, 50] and first["regions"][0]["captions"][0].startswith("a wooden")
    assert second["regions"][0]["box"] == [0, 0, 50, 25] and len(second["regions"][0]["captions"][0].split()) == 30
    assert report.skipped_records == 3 and "item 2" in report.messages[0] and "points outside" in report.messages[1]


def _exif(values):
    from PIL import Image

    exif = Image.Exif()
    exif.update(values)
    return exif
