"""Pasted regions: what is pasted is where its box says, keeps its texts, and hides no other region."""

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from PIL import Image

from sca_hf.data import region_features
from sca_hf.data.pasting import RegionPaster, training_augmentation
from sca_hf.processing.masks_sca import decode_rle, encode_rle


COLORS = {"red thing": (230, 20, 20), "green thing": (20, 230, 20)}
BACKGROUND = (40, 40, 40)


def record(name: str, with_mask: bool = False, size: tuple[int, int] = (120, 90)) -> dict:
    picture = Image.new("RGB", size, BACKGROUND)
    picture.paste(COLORS[name], (10, 20, 40, 40))
    mask = np.zeros(size[::-1], bool)
    mask[20:40, 10:40] = True
    region = {
        "region_id": "0",
        "box": [10.0, 20.0, 40.0, 40.0],
        "mask": encode_rle(mask) if with_mask else None,
        "points": None,
        "labels": None,
        "captions": [name],
        "category": name,
    }
    return {
        "image": picture,
        "image_id": name,
        "width": size[0],
        "height": size[1],
        "task": "caption",
        "regions": [region],
    }


def color_at(picture: Image.Image, box: list[float]) -> np.ndarray:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return np.asarray(picture)[int(y), int(x)].astype(int)


@pytest.mark.parametrize("stretch", [0.0, 0.8])
@pytest.mark.parametrize("with_mask", [False, True])
def test_pasted_regions_are_where_their_boxes_say(with_mask, stretch):
    records = [record(name, with_mask) for name in COLORS]
    paster = RegionPaster(records, number=5, size=(0.15, 0.3), rotate=180, stretch=stretch, color=0.0)
    rng, pasted = np.random.default_rng(0), 0
    for _ in range(20):
        result = paster(records[0], rng)
        first, before = result["regions"][0], records[0]["regions"][0]
        if with_mask:
            seen = np.asarray(result["image"])[decode_rle(first["mask"])].astype(int)
            assert len(seen) >= 0.9**5 * 600 and np.abs(seen - COLORS[first["category"]]).max() <= 128
            first = {**first, "mask": before["mask"], "box": before["box"]}
        assert first == before
        for region in result["regions"][1:]:
            pasted += 1
            assert np.abs(color_at(result["image"], region["box"]) - COLORS[region["category"]]).max() < 5
            assert region["captions"] == [region["category"]]
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= 120 and 0 <= y0 < y1 <= 90
            if with_mask:
                mask = decode_rle(region["mask"])
                picture = np.asarray(result["image"]).astype(int)
                assert np.abs(picture[mask] - COLORS[region["category"]]).max(1).mean() < 60
                rows, columns = np.nonzero(mask)
                assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == region["box"]
    assert pasted > 20


def test_what_is_hidden_is_cut_out_of_the_masks_of_others():
    records = [record(name, with_mask=True, size=(80, 60)) for name in COLORS]
    inside = [[float(x) + 0.5, float(y) + 0.5] for x in range(10, 40, 3) for y in range(20, 40, 3)]
    records[0]["regions"][0] |= {"points": [*inside, [70.0, 50.0]], "labels": [1] * len(inside) + [0]}
    paster = RegionPaster(records, number=6, size=(0.3, 0.6), rotate=180, color=0.0, overlap=0.7)
    rng, cut = np.random.default_rng(0), 0
    for _ in range(30):
        result = paster(records[0], rng)
        masks = np.stack([decode_rle(region["mask"]) for region in result["regions"]])
        assert masks.sum(0).max() == 1 and masks.any((1, 2)).all()
        picture = np.asarray(result["image"]).astype(int)
        for region, mask in zip(result["regions"], masks, strict=True):
            assert np.median(np.abs(picture[mask] - COLORS[region["category"]]).max(1)) < 5
            rows, columns = np.nonzero(mask)
            assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == region["box"]
        first = result["regions"][0]
        told = list(zip(first["points"], first["labels"], strict=True))
        assert all(masks[0][int(y), int(x)] for (x, y), label in told if label) and told[-1] == ([70.0, 50.0], 0)
        kept = masks[0].sum() / 600
        cut += kept < 1
        assert kept >= 0.3**6 and len(told) - 1 == sum(masks[0][int(y), int(x)] for x, y in inside)
    assert cut > 10 and decode_rle(records[0]["regions"][0]["mask"]).sum() == 600


def test_small_things_are_not_pasted_where_that_is_asked_for():
    records = [record(name) for name in COLORS]
    records[0]["regions"][0]["box"] = [10.0, 20.0, 24.0, 30.0]
    paster = RegionPaster(records, number=5, min_source=15)
    rng = np.random.default_rng(0)
    pasted = [region["category"] for _ in range(10) for region in paster(records[0], rng)["regions"][1:]]
    assert set(pasted) == {"green thing"}
    with pytest.raises(ValueError, match="none of 31 pixels or more"):
        RegionPaster(records, min_source=31)


def test_quarter_turns_alone_leave_sides_upright():
    name = next(iter(COLORS))
    wide = {**record(name), "regions": [{**record(name)["regions"][0], "box": [10.0, 10, 50, 30]}]}
    paster = RegionPaster([wide], number=3, size=(0.2, 0.2), color=0.0, quarter_turns=True)
    rng, shapes = np.random.default_rng(0), set()
    for _ in range(20):
        for region in paster(wide, rng)["regions"][1:]:
            x0, y0, x1, y1 = region["box"]
            shapes.add((round(x1 - x0), round(y1 - y0)))
    assert shapes == {(24, 12), (12, 24)}


def test_stretched_regions_keep_their_area_and_change_their_shape():
    records = [record(name, with_mask=True) for name in COLORS]
    ratios, areas = [], []
    for stretch in (0.0, 1.0):
        paster = RegionPaster(records, number=3, size=(0.25, 0.25), stretch=stretch, color=0.0)
        rng = np.random.default_rng(0)
        regions = [one for _ in range(30) for one in paster(records[0], rng)["regions"][1:]]
        sides = np.array([np.diff(np.reshape(one["box"], (2, 2)), axis=0)[0] for one in regions])
        ratios.append(np.log(sides[:, 0] / sides[:, 1]).std())
        areas.append(np.mean([decode_rle(one["mask"]).sum() for one in regions]))
    assert ratios[0] < 0.05 and ratios[1] > 0.2
    assert areas[1] == pytest.approx(areas[0], rel=0.05)


def test_the_record_and_its_picture_stay_as_they_were():
    records = [record(name) for name in COLORS]
    before = records[0]["image"].copy()
    paster = RegionPaster(records, number=5)
    results = [paster(records[0], np.random.default_rng(seed)) for seed in range(10)]
    assert any(len(result["regions"]) > 1 for result in results)
    assert records[0]["image"].tobytes() == before.tobytes() and len(records[0]["regions"]) == 1


def test_only_regions_with_a_text_for_the_task_are_pasted():
    one, other = (record(name) for name in COLORS)
    one["task"], one["regions"][0]["captions"] = "recognition", []  # as names that a model made
    other["regions"][0]["category"] = None
    paster, rng = RegionPaster([one, other], number=4, size=(0.15, 0.3)), np.random.default_rng(0)
    for task, name in (("recognition", "category"), ("caption", "captions")):
        pasted = [region for _ in range(10) for region in paster({**other, "task": task}, rng)["regions"][1:]]
        assert pasted and all(region[name] for region in pasted)


def test_rare_texts_are_pasted_as_often_as_common_ones():
    records = [record("red thing") for _ in range(19)] + [record("green thing")]
    paster = RegionPaster(records, number=3, size=(0.1, 0.2))
    rng = np.random.default_rng(1)
    names = [region["category"] for k in range(80) for region in paster(records[k % 20], rng)["regions"][1:]]
    assert 0.35 < np.mean([name == "green thing" for name in names]) < 0.65


def test_the_same_generator_pastes_the_same():
    records = [record(name) for name in COLORS]
    first, second = (RegionPaster(records, number=4)(records[0], np.random.default_rng(7)) for _ in range(2))
    assert first["image"].tobytes() == second["image"].tobytes() and first["regions"] == second["regions"]


def test_pasted_regions_hide_no_other():
    records = [record(name) for name in COLORS]
    paster = RegionPaster(records, number=8, size=(0.2, 0.4))
    for seed in range(20):
        regions = paster(records[0], np.random.default_rng(seed))["regions"]
        boxes = np.array([region["box"] for region in regions])
        for k, box in enumerate(boxes):
            for other in boxes[k + 1 :]:
                sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
                smaller = min(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
                assert np.prod(sides.clip(0)) <= 0.1 * smaller + 1e-9


@pytest.mark.parametrize(
    "wrong", [{"number": 0}, {"size": (0.5, 0.2)}, {"rotate": -1}, {"stretch": 3}, {"color": 1.5}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="paste has number"):
        RegionPaster([record("red thing")], **wrong)


def test_a_recipe_augments_each_source_in_its_own_way():
    def source(name: str) -> Dataset:
        dataset = Dataset.from_list([record(name) for _ in range(3)], features=region_features())
        return dataset.add_column("source", [name] * 3)

    mixture = concatenate_datasets([source("red thing"), source("green thing")])
    augmentation = training_augmentation({"by_source": {"red thing": {"paste": {"number": 4}}}}, 96, mixture)
    rng = np.random.default_rng(0)
    red = [augmentation(mixture[0], rng)["regions"] for _ in range(10)]
    assert {region["category"] for regions in red for region in regions} == {"red thing"}
    assert sum(map(len, red)) > 15 and not augmentation.keeps_image
    assert all(len(augmentation(mixture[4], rng)["regions"]) == 1 for _ in range(10))
    with pytest.raises(ValueError, match="names blue thing; the training sets are named green thing, red thing"):
        training_augmentation({"by_source": {"blue thing": {}}}, 96, mixture)


def test_pictures_are_changed_before_others_are_pasted_into_them():
    records = [record(name) for name in COLORS]
    augmentation = training_augmentation({"scale": [0.5, 0.5], "crop": 64, "paste": {"number": 3}}, 96, records)
    results = [augmentation(records[0], np.random.default_rng(seed)) for seed in range(12)]
    for result in results:
        assert result["image"].size == (64, 64) == (result["width"], result["height"])
        x0, _, x1, _ = result["regions"][0]["box"]
        assert x1 - x0 == pytest.approx(30 * 32 / 120, abs=0.6)
    assert sum(len(result["regions"]) for result in results) > 18
    assert training_augmentation(None, 96, records) is None
    assert training_augmentation({}, 96, records).keeps_image
