"""YOLO: fractions of the image's size, with the folders of Ultralytics, Roboflow, LabelImg and darknet."""

import pytest
from reading import picture, read, regions, write

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle


@pytest.fixture
def root(tmp_path):
    """As Ultralytics has it: images/train, labels/train, data.yaml."""
    picture(tmp_path / "images" / "train" / "a.jpg")
    write(tmp_path / "labels" / "train" / "a.txt", "1 0.5 0.5 0.25 0.2\n0 0.125 0.5 0.25 1.0\n")
    write(tmp_path / "data.yaml", "path: .\ntrain: images/train\nnames:\n  0: traffic_light\n  1: bus\n")
    return tmp_path


def test_boxes_are_fractions_of_the_image(root):
    (record,) = read("yolo", root=root, split="train")
    assert (record["width"], record["height"], record["image_id"]) == (40, 30, "images/train/a.jpg")
    assert [region["box"] for region in record["regions"]] == [[15, 12, 25, 18], [0, 0, 10, 30]]
    assert [region["captions"] for region in record["regions"]] == [["bus"], ["traffic light"]]
    (record,) = read("yolo", root=root, split="train", task="recognition", names={"bus": "omnibus"})
    assert record["regions"][0]["category"] == "omnibus" and record["regions"][0]["captions"] == []


def test_a_polygon_is_a_mask_and_its_box(root):
    write(root / "labels" / "train" / "a.txt", "0 0.25 0.2 0.75 0.2 0.75 0.8 0.25 0.8\n1 0.5 0.5 0.25 0.2\n")
    polygon, box = regions(read("yolo", root=root, split="train"))
    assert polygon["box"] == [10, 6, 30, 24] and box["mask"] is None
    assert decode_rle(polygon["mask"])[6:24, 10:30].all() and decode_rle(polygon["mask"]).sum() == 20 * 18


def test_an_empty_file_and_no_file_are_an_image_without_regions(root):
    picture(root / "images" / "train" / "b.jpg")
    picture(root / "images" / "train" / "c.jpg")
    write(root / "labels" / "train" / "b.txt", "\n")
    assert [len(record["regions"]) for record in read("yolo", root=root, split="train")] == [2, 0, 0]
    with pytest.raises(RegionRecordError, match=r"c\.txt.*no such label file"):
        read("yolo", root=root, split="train", unlabeled=False)


def test_a_wrong_folder_of_labels_does_not_pass_for_empty_images(root):
    with pytest.raises(ValueError, match="none of 1 pictures has a label file"):
        read("yolo", root=root, split="train", labels=root / "images")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "class is 2, expected a whole number from 0 to 1"),
        ("bus 0.5 0.5 0.1 0.1", "contains something that is not a number"),
        ("0 0.5 0.5 0.1", "3 numbers follow the class"),
        ("0 120 80 40 40", "not fractions of the image's size"),
        ("0 nan 0.5 0.1 0.1", "not fractions of the image's size"),
        ("0 0.5 0.5 0 0.1", "is empty"),
        ("0 0.9 0.5 0.5 0.1", "reaches outside"),
    ],
)
def test_a_bad_line_is_named_and_costs_itself_only(root, line, message):
    path = root / "labels" / "train" / "a.txt"
    path.write_text(path.read_text() + line)
    with pytest.raises(RegionRecordError, match=rf"a\.txt, image .*, region images/train/a\.jpg/2: .*{message}"):
        read("yolo", root=root, split="train")
    report = ReadReport()
    assert len(regions(read("yolo", "skip", report, root=root, split="train"))) == 2 and report.skipped_regions == 1


def test_roboflows_paths_beside_the_file(tmp_path):
    picture(tmp_path / "train" / "images" / "a_jpg.rf.1.jpg")
    write(tmp_path / "train" / "labels" / "a_jpg.rf.1.txt", "0 0.5 0.5 0.5 0.5")
    write(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['red_light']\n")
    assert regions(read("yolo", root=tmp_path, split="train"))[0]["category"] == "red light"
    assert read("yolo", root=tmp_path / "data.yaml", split="train") == read("yolo", root=tmp_path, split="train")
    with pytest.raises(ValueError, match=r"names '../valid/images', which does not exist"):
        read("yolo", root=tmp_path, split="val")


def test_labelimgs_files_beside_the_pictures(tmp_path):
    picture(tmp_path / "a.png")
    write(tmp_path / "a.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "classes.txt", "blood cell\n")
    (record,) = read("yolo", root=tmp_path)
    assert record["regions"][0]["captions"] == ["blood cell"]


def test_darknets_list_of_pictures(tmp_path):
    for name in ("b", "a"):
        picture(tmp_path / "pictures" / f"{name}.jpg")
        write(tmp_path / "pictures" / f"{name}.txt", "0 0.5 0.5 0.5 0.5\n")
    write(tmp_path / "train.txt", "./pictures/b.jpg\npictures/a.jpg\n")
    write(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")
    read_ids = [record["image_id"] for record in read("yolo", root=tmp_path, split="train")]
    assert read_ids == ["pictures/b.jpg", "pictures/a.jpg"]


def test_no_path_in_a_file_leads_out_of_the_folder(tmp_path):
    picture(tmp_path / "outside" / "a.jpg")
    root = tmp_path / "set"
    picture(root / "images" / "a.jpg")
    for entry in (str(tmp_path / "outside"), "x/../../outside", "../outside"):
        write(root / "data.yaml", f"path: /\ntrain: {entry}\nnames: [cat]\n")
        with pytest.raises(ValueError, match="does not exist or is outside"):
            read("yolo", root=root, split="train")
    write(root / "data.yaml", "train: list.txt\nnames: [cat]\n")
    write(root / "list.txt", "../outside/a.jpg\n")
    with pytest.raises(ValueError, match="does not exist or is outside"):
        read("yolo", root=root, split="train")


def test_what_is_missing_is_said(tmp_path, root):
    with (root / "data.yaml").open("a") as file:
        file.write("val: images/val\n")
    for options, message in (
        ({"root": root}, "choose a split.*: train, val"),
        ({"root": root, "split": "dev"}, "has no 'dev'; it has train, val"),
        ({"root": root, "split": "train", "names": {"tram": "x"}}, "no class 'tram'"),
        ({"root": root / "images"}, "classes=FILE"),
        ({"root": root / "gone"}, "no file or folder"),
    ):
        with pytest.raises(ValueError, match=message):
            read("yolo", **options)


def test_class_names_are_words_whatever_yaml_used_to_make_of_them(tmp_path):
    root = tmp_path
    picture(root / "images" / "a.jpg", (20, 10))
    write(root / "labels" / "a.txt", "1 0.5 0.5 0.2 0.2\n")
    write(root / "data.yaml", "train: images\nnames: [yes, no]\n")
    (record,) = read("yolo", root=root, split="train")
    assert record["regions"][0]["category"] == "no"


def test_splits_of_one_folder_need_no_choice(root):
    """Ultralytics asks for `val` too, and who has one folder names it twice."""
    once = read("yolo", root=root, split="train")
    with (root / "data.yaml").open("a") as file:
        file.write("val: images/train\n")
    assert read("yolo", root=root) == once
