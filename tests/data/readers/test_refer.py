"""RefCOCO and its kin: pickled refs of Python 2, all sentences, all parts of a mask, the splits of each version."""

import json
from pathlib import Path

import numpy as np
import pytest
from python2_pickle import Unicode, dump
from reading import picture, read, regions

from sca_hf.data.read_report import ReadReport
from sca_hf.data.region import RegionRecordError
from sca_hf.processing.masks_sca import decode_rle, encode_rle


def ref(ref_id, image_id, ann_id, split, *sentences):
    """As refer's files have it; its file_name is of an earlier stage of the data, and not a picture's."""
    sentences = [
        {"tokens": text.split(), "raw": Unicode(text.title()), "sent_id": 10 * ref_id + i, "sent": text}
        for i, text in enumerate(sentences)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": 1,
    }


REFS = [
    ref(7, 200, 21, "train", "left man", "the man in the café"),
    ref(5, 100, 11, "train", "cat"),
    ref(2, 200, 22, "train", "right one"),
    ref(1, 100, 11, "testA", "the cat"),
    ref(3, 300, 31, "val", "dog"),
]
SQUARE = [[2, 3, 12, 3, 12, 13, 2, 13]]
TWO_PARTS = [[2, 3, 12, 3, 12, 13, 2, 13], [20, 5, 30, 5, 30, 15, 20, 15]]


def annotation(ann_id, image_id, segmentation, bbox=(2.25, 3.5, 27.25, 12.0), category=1):
    return {
        "segmentation": segmentation,
        "area": 100.0,
        "iscrowd": 0,
        "image_id": image_id,
        "bbox": list(bbox),
        "category_id": category,
        "id": ann_id,
    }


@pytest.fixture
def root(tmp_path):
    """refer's folders: data/refcoco beside data/images."""
    return write_refer(tmp_path / "data" / "refcoco", REFS)


def write_refer(root, refs, protocol=0, split_by="unc", segmentation=TWO_PARTS, folder="mscoco/images/train2014"):
    root.mkdir(parents=True)
    ids = sorted({ref["image_id"] for ref in refs})
    images = [{"file_name": f"COCO_{i}.jpg", "height": 30, "width": 40, "id": i} for i in ids]
    for image in images:
        picture(root.parent / "images" / folder / image["file_name"])
    annotations = [
        annotation(ref["ann_id"], ref["image_id"], segmentation if ref["ann_id"] % 10 == 1 else SQUARE) for ref in refs
    ]
    categories = [{"supercategory": "person", "id": 1, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories, "info": {}, "licenses": []}
    (root / "instances.json").write_text(json.dumps(content))
    (root / f"refs({split_by}).p").write_bytes(dump(refs, protocol))
    return root


@pytest.mark.parametrize("protocol", [0, 2])
def test_a_region_is_a_ref_with_all_its_sentences(tmp_path, protocol):
    root = write_refer(tmp_path / "refcoco+", REFS, protocol)
    first, second = read("refcoco", root=root, split_by="unc", split="train")
    assert [first["image_id"], second["image_id"]] == ["100", "200"]  # by id, not as they come
    assert [region["region_id"] for region in second["regions"]] == ["2", "7"]
    man = second["regions"][1]
    assert man["captions"] == ["left man", "the man in the café"] and man["category"] == "person"
    assert man["box"] == [2.25, 3.5, 29.5, 15.5]  # fractions kept
    raw = read("refcoco", root=root, split_by="unc", split="train", text="raw", names={"person": "human"})
    assert regions(raw)[2]["captions"][0] == "Left Man" and regions(raw)[2]["category"] == "human"
    named = read("refcoco", root=root, split_by="unc", split="val", task="recognition")
    assert named[0]["task"] == "recognition" and named[0]["regions"][0]["captions"] == ["dog"]


def test_a_mask_is_the_union_of_all_polygons(root):
    masks = [decode_rle(r["mask"]) for r in regions(read("refcoco", root=root, split_by="unc", split="train"))]
    both, square = masks[0], masks[1]
    assert both[3:13, 2:12].all() and both[5:15, 20:30].all() and both.sum() == 200
    assert square.sum() == 100
    without = regions(read("refcoco", root=root, split_by="unc", split="train", masks=False))
    assert all(region["mask"] is None for region in without)


def test_refclefs_lists_of_codes_are_united(tmp_path):
    """RefCLEF keeps masks as a list of run-length codes, and its tests overlap."""
    parts = np.zeros((2, 30, 40), bool)
    parts[0, 3:13, 2:12], parts[1, 5:15, 20:30] = True, True
    codes = [encode_rle(part) for part in parts]
    refs = [ref(1, 1, 11, "testAB", "a"), ref(2, 2, 21, "testBC", "b"), ref(3, 3, 31, "testA", "c")]
    root = write_refer(tmp_path / "refclef", refs, segmentation=codes, folder="saiapr_tc-12")

    def ids(split):
        return [record["image_id"] for record in read("refcoco", root=root, split_by="unc", split=split)]

    assert (
        decode_rle(regions(read("refcoco", root=root, split_by="unc", split="testC"))[0]["mask"]) == parts.any(0)
    ).all()
    assert (ids("testA"), ids("testB"), ids("testC")) == (["1", "3"], ["1", "2"], ["2"])
    assert ids("test") == ["1", "2", "3"] and ids("testAB") == ["1"]


@pytest.mark.parametrize("place", ["19579.jpg", "19/images/19579.jpg"])
def test_imageclefs_pictures_are_found_in_their_folders(tmp_path, place):
    root = write_refer(tmp_path / "refclef", [ref(1, 19579, 11, "train", "a")])
    content = json.loads((root / "instances.json").read_text())
    content["images"][0]["file_name"] = "19579.jpg"
    (root / "instances.json").write_text(json.dumps(content))
    path = picture(tmp_path / "images" / "saiapr_tc-12" / place)
    record = read("refcoco", root=root, split_by="unc", split="train")[0]
    assert Path(record["image"]).samefile(path)


def test_an_empty_segmentation_leaves_the_box(tmp_path):
    root = write_refer(tmp_path / "refcocog", REFS, split_by="umd", segmentation=[])
    assert regions(read("refcoco", root=root, split_by="umd", split="train"))[0]["mask"] is None


def test_a_split_that_is_not_there_is_named(root):
    for split in ("testB", "minival", ""):
        with pytest.raises(ValueError, match=f"split is '{split}', .* has testA, train, val"):
            read("refcoco", root=root, split_by="unc", split=split)


def test_what_is_missing_costs_its_image_or_region(root):
    content = json.loads((root / "instances.json").read_text())
    content["annotations"] = [row for row in content["annotations"] if row["id"] != 22]
    content["images"].append({"file_name": "../../secret.jpg", "height": 30, "width": 40, "id": 400})
    (root / "instances.json").write_text(json.dumps(content))
    picture(root.parent / "secret.jpg")
    more = [ref(8, 400, 11, "train", "a"), ref(9, 500, 11, "train", "b")]
    (root / "refs(unc).p").write_bytes(dump([*REFS, *more]))
    options = {"root": root, "split_by": "unc", "split": "train"}
    report = ReadReport()
    assert [r["region_id"] for r in regions(read("refcoco", "skip", report, **options))] == ["5", "7"]
    assert (report.skipped_records, report.skipped_regions) == (2, 1)
    expected = (
        "image 200, region 2: 22 is missing",
        "image 400: there is no picture",
        "image 500: instances.json does",
    )
    assert all(text in message for text, message in zip(expected, report.messages, strict=True))
    with pytest.raises(RegionRecordError, match="region 2"):
        read("refcoco", **options)


def test_files_that_are_not_refers_are_named(root):
    with pytest.raises(ValueError, match=r"no file .*refs\(umd\)\.p; .* has unc"):
        read("refcoco", root=root, split_by="umd", split="train")
    (root / "refs(unc).p").write_bytes(dump([{"split": "train"}]))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not in refer's format"):
        read("refcoco", root=root, split_by="unc", split="train")
    (root / "refs(unc).p").write_bytes(dump(REFS))
    (root / "instances.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"instances\.json is not in refer's format: 'annotations' is missing"):
        read("refcoco", root=root, split_by="unc", split="train")
