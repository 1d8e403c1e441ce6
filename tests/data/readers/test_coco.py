"""COCO instances: every polygon, every fraction, and what real files have wrong."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from reading import picture, read, regions, write

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle


# As the official files are written: one line, and keys in this order.
IMAGE = (
    '{{"license": 4,"file_name": "{file_name}","coco_url": "http://images.cocodataset.org/train2017/{file_name}",'
    '"height": 30,"width": 40,"date_captured": "2013-11-14 17:02:52","flickr_url": "http://farm7.staticflickr.com/1.jpg",'
    '"id": {id}}}'
)
ANNOTATION = (
    '{{"segmentation": {segmentation},"area": 54.5,"iscrowd": {iscrowd},"image_id": {image_id},"bbox": {bbox},'
    '"category_id": {category_id},"id": {id}}}'
)
CATEGORIES = (
    '[{"supercategory": "vehicle","id": 2,"name": "bicycle"},{"supercategory": "outdoor","id": 10,"name": '
    '"traffic_light"},{"supercategory": "food","id": 60,"name": "crème brûlée"}]'
)
SQUARE = [[2.5, 3.25, 12.5, 3.25, 12.5, 13.75, 2.5, 13.75]]
PARTS = [*SQUARE, [20, 5, 30.5, 5, 25, 20.5], [33, 1, 33, 8.5, 39, 8.5]]


def image(id=9, file_name="000000000009.jpg"):
    return IMAGE.format(id=id, file_name=file_name)


def annotation(id=1, segmentation=SQUARE, bbox=(2.5, 3.25, 10.05, 10.5), category_id=2, image_id=9, iscrowd=0):
    values = {"segmentation": json.dumps(segmentation), "bbox": json.dumps(bbox), "iscrowd": iscrowd}
    return ANNOTATION.format(id=id, category_id=category_id, image_id=image_id, **values)


@pytest.fixture
def coco(tmp_path):
    """`coco(annotations, images, categories)` writes a file and returns what opens it."""
    picture(tmp_path / "train2017" / "000000000009.jpg")

    def make(annotations, images=None, categories=CATEGORIES):
        images, annotations = ",".join(images or [image()]), ",".join(annotations)
        text = f'{{"images": [{images}],"annotations": [{annotations}],"categories": {categories}}}'
        path = write(tmp_path / "annotations" / "instances_train2017.json", text)
        return {"annotations": path, "images": tmp_path / "train2017"}

    return make


def runs(mask):
    """A run-length code as COCO writes crowds."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return {"counts": np.diff([0, *edges, mask.size]).tolist(), "size": list(mask.shape)}


def test_all_polygons_of_a_region_are_its_mask(coco):
    options = coco([annotation(1, PARTS), annotation(2, SQUARE)])
    parts, square = (decode_rle(region["mask"]) for region in regions(read("coco", **options)))
    reference = COCO(str(options["annotations"]))
    assert np.array_equal(parts, reference.annToMask(reference.anns[1]))
    assert parts.sum() > square.sum() + 50


@pytest.mark.parametrize("name", ["coco_permissive", "dates_figs_nuts"])
def test_real_masks_are_the_ones_that_the_community_reads(name, shared):
    root = shared(f"data/{name}")
    records = read("coco", annotations=root / "instances.json", images=root / "images", crowd="keep")
    reference = COCO(str(root / "instances.json"))
    found = {region["region_id"]: region for region in regions(records)}
    assert found.keys() == {str(key) for key in reference.anns}
    for key, row in reference.anns.items():
        assert np.array_equal(decode_rle(found[str(key)]["mask"]), reference.annToMask(row))
        x, y, width, height = row["bbox"]
        assert found[str(key)]["box"] == pytest.approx([x, y, x + width, y + height], abs=1e-4)


def test_run_lengths_are_read_compressed_or_not(coco):
    mask = np.zeros((30, 40), np.uint8)
    mask[4:9, 30:] = 1
    packed = coco_mask.encode(np.asfortranarray(mask))
    packed["counts"] = packed["counts"].decode()
    options = coco([annotation(1, runs(mask)), annotation(2, packed)])
    first, second = regions(read("coco", **options))
    assert first["mask"] == second["mask"] == packed
    assert np.array_equal(decode_rle(first["mask"]), mask == 1)


def test_crowds_are_left_out_and_counted_unless_asked_for(coco):
    mask = np.ones((30, 40), np.uint8)
    options = coco([annotation(1), annotation(900100042448, runs(mask), iscrowd=1)])
    report = ReadReport()
    assert [region["region_id"] for region in regions(read("coco", report=report, **options))] == ["1"]
    assert report.left_out == {"crowd annotations": 1} and report.skipped_regions == 0
    kept = regions(read("coco", crowd="keep", **options))
    assert kept[1]["region_id"] == "900100042448" and decode_rle(kept[1]["mask"]).all()
    with pytest.raises(ValueError, match="crowd is 'drop', expected one of skip, keep"):
        read("coco", crowd="drop", **options)


@pytest.mark.parametrize("segmentation", [[], None, {}, [[]], [[1, 2, 3, 4]], [[5, 5, 5, 5, 5, 5]]])
def test_a_segmentation_without_area_leaves_the_box(coco, segmentation):
    (region,) = regions(read("coco", **coco([annotation(1, segmentation)])))
    assert region["mask"] is None and region["box"] == pytest.approx([2.5, 3.25, 12.55, 13.75])


def test_boxes_keep_their_fractions(coco):
    (region,) = regions(read("coco", **coco([annotation(bbox=(0.36, 1.64, 10.02, 3.99))])))
    assert region["box"] == [float(np.float32(value)) for value in (0.36, 1.64, 10.38, 5.63)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (annotation(1, bbox=(5, 5, 0, 9)), "region 1: box .* is empty"),
        (annotation(1, bbox=(5, 5, 9.5, 0.0)), "region 1: box .* is empty"),
        (annotation(1, bbox=(5, 5, 37, 9)), "region 1: box .* outside the image of 40 x 30"),
        (annotation(1, bbox=(5, 5, 9)), "region 1: bbox is .*, expected left, top, width and height"),
        (annotation(1, None, bbox=None), "region 1: bbox is None"),
        (annotation(2), "region 2: two annotations have this id"),
        (annotation(1, category_id=3), "region 1: there is no category with the id 3"),
        (annotation(1, image_id=8), "image 8: annotation 1 refers to this image, which does not exist"),
    ],
)
def test_a_bad_annotation_is_named_and_costs_itself_only(coco, row, message):
    options = coco([annotation(2), row, annotation(3)])
    with pytest.raises(RegionRecordError, match=rf"instances_train2017\.json, (image 9, )?{message}"):
        read("coco", **options)
    report = ReadReport()
    assert [region["region_id"] for region in regions(read("coco", "skip", report, **options))] == ["2", "3"]
    assert report.skipped_regions + report.skipped_records == 1


def test_a_box_that_reaches_out_by_rounding_ends_at_the_border(coco):
    options = coco([annotation(1, bbox=(-0.4, 0, 40.9, 30.2)), annotation(2, bbox=(30, 20, 90, 90))])
    report = ReadReport()
    assert regions(read("coco", "skip", report, **options))[0]["box"] == [0, 0, 40, 30]
    assert report.skipped_regions == 1 and report.clipped_regions == 1
    assert regions(read("coco", clip="image", **options))[1]["box"] == [30, 20, 40, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "is not JSON"),
        ("[]", "has no list of categories"),
        ('{"images": [], "categories": []}', "has no list of annotations"),
        ('{"images": [], "annotations": {}, "categories": []}', "has no list of annotations"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, text, message):
    path = write(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        read("coco", "skip", annotations=path, images=tmp_path)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 2, 3, 4, 5, 6, 7]], "segmentation has a polygon with an odd number"),
        ([[1, 2, 3, 4, 5, float("inf")]], "segmentation has a polygon"),
        (["polygon"], "segmentation holds 'polygon'"),
        ({"size": [40, 30], "counts": [0, 1200]}, r"segmentation is of size \[40, 30\]"),
        ({"size": [30, 40], "counts": [0, 12]}, "segmentation: the RLE counts cover 12"),
        ({"size": [30, 40], "counts": "~~~"}, "segmentation"),
    ],
)
def test_a_mask_that_cannot_be_read_is_named_and_costs_itself_only(coco, segmentation, message):
    options = coco([annotation(1), annotation(2, segmentation)])
    with pytest.raises(RegionRecordError, match=rf"image 9, region 2: {message}.*keeps its box"):
        read("coco", **options)
    report = ReadReport()
    whole, damaged = regions(read("coco", "skip", report, **options))
    assert damaged["mask"] is None and damaged["box"] == whole["box"] and whole["mask"] is not None
    assert report.damaged_regions == 1 and "region 2" in report.messages[0] and "its box is kept" in report.messages[0]


def test_ids_that_stand_for_two_things_are_refused(coco):
    images = [image(), image(id=8), image(file_name="b.jpg")]
    with pytest.raises(RegionRecordError, match="two images have the id 9"):
        read("coco", **coco([annotation(1), annotation(2, image_id=8)], images=images))
    report = ReadReport()
    (left,) = read("coco", "skip", report, **coco([annotation(1), annotation(2, image_id=8)], images=images))
    assert left["image_id"] == "8" and len(report.messages) == 2 and "two images have the id 9" in report.messages[0]
    with pytest.raises(ValueError, match="two categories have the same id"):
        read("coco", "skip", **coco([], categories='[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]'))


def test_a_picture_is_looked_for_inside_its_folder_only(coco):
    rows = [annotation(1), annotation(2, image_id=10), annotation(3, image_id=11)]
    options = coco(rows, [image(), image(10, "../secret.jpg"), image(11, "gone.jpg")])
    report = ReadReport()
    (record,) = read("coco", "skip", report, **options)
    assert record["image"].endswith("000000000009.jpg") and record["image_id"] == "9"
    assert "image 10: its file name points outside" in report.messages[0] and "there is no file" in report.messages[1]


def test_names_become_words_for_the_task(coco):
    options = coco([annotation(1, category_id=10), annotation(2, category_id=60)])
    light, brulee = regions(read("coco", **options))
    assert light["captions"] == ["traffic light"] and brulee["category"] == "crème brûlée"
    (record,) = read("coco", task="recognition", names={"traffic_light": "a light"}, **options)
    assert record["task"] == "recognition"
    assert (record["regions"][0]["category"], record["regions"][0]["captions"]) == ("a light", [])
    with pytest.raises(ValueError, match="has no class 'trafic_light'; it has bicycle"):
        read("coco", names={"trafic_light": "a light"}, **options)


def test_records_follow_the_files_order(coco):
    images = [image(key, "000000000009.jpg") for key in (30, 4, 17)]
    options = coco([annotation(k, image_id=key) for k, key in enumerate((17, 30, 4, 30))], images)
    records = read("coco", **options)
    assert [record["image_id"] for record in records] == ["30", "4", "17"]
    assert [region["region_id"] for region in records[0]["regions"]] == ["1", "3"]


def test_masks_need_not_be_read(coco):
    assert regions(read("coco", masks=False, **coco([annotation(1)])))[0]["mask"] is None
