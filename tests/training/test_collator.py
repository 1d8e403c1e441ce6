"""The collator: records in, what the model takes out, the same whatever the batch, an image or its embedding."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sca_hf.data.augmentation import augmentation_from
from sca_hf.data.prompts import DRAWN_KINDS, PromptSource, draw_prompt, mask_center
from sca_hf.data.region import RegionRecordError, region_features
from sca_hf.data.scenes import render_scene, scenes
from sca_hf.processing.masks_sca import MASK_LOGIT, decode_rle
from sca_hf.training.collator import RegionCollator
from sca_hf.training.draws import SeededDataset


HAS_BOX, HAS_MASK, ONE_POINT = 0b001, 0b010, 0b100


@pytest.fixture(scope="module")
def records():
    return [scene.to_record() for scene in scenes("validation", 6) if any(o.describable for o in scene.objects)][:3]


def changed(records, **values):
    return [{**r, "regions": [{**region, **values} for region in r["regions"]]} for r in records]


def layouts(batch):
    return set(batch["prompt_layout"][batch["region_mask"]].tolist())


def rows(batch, image):
    """What a batch says of one image, padding dropped."""
    real = batch["region_mask"][image]
    ids, labels = batch["input_ids"][image][real], batch["labels"][image][real]
    layout = batch["prompt_layout"][image][real]
    found = {
        "texts": [row[real != -100].tolist() for row, real in zip(ids, labels, strict=True)],
        "layout": layout.tolist(),
    }
    if "input_boxes" in batch:
        found["boxes"] = batch["input_boxes"][image][real].tolist()
    if "input_points" in batch:
        points = batch["input_points"][image][real]
        found["points"] = [p[: n >> 2].tolist() for p, n in zip(points, layout.tolist(), strict=True)]
    return found


def test_the_loss_of_a_batch_has_gradients_in_the_mixer_only(records, model, processor):
    batch = RegionCollator(processor, regions_per_image=2)(records)
    model.train()(**batch).loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"mixer"}


@pytest.mark.parametrize(
    ("kind", "key", "expected"),
    [
        ("box", "input_boxes", {HAS_BOX}),
        ("jittered_box", "input_boxes", {HAS_BOX}),
        ("point", "input_points", {ONE_POINT}),
        ("center_point", "input_points", {ONE_POINT}),
        ("mask_center_point", "input_points", {ONE_POINT}),
        ("random_point_in_box", "input_points", {ONE_POINT}),
        ("points", "input_points", {n * ONE_POINT for n in (2, 3, 4, 5)}),
        ("mask", "input_masks", {HAS_MASK}),
    ],
)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_region_gets_the_kind_asked_for(records, processor, kind, key, expected, training):
    batch = RegionCollator(processor, {kind: 2.0}, training=training)(records)
    assert key in batch and layouts(batch) <= expected
    assert batch["region_mask"].sum(1).tolist() == [len(record["regions"]) for record in records]


def test_prompt_probabilities_are_kept_and_need_not_add_up_to_one(processor):
    record = render_scene(0).to_record()
    record["regions"] = [{**record["regions"][0], "region_id": str(k)} for k in range(400)]
    batch = RegionCollator(processor, {"box": 6, "point": 2, "mask": 0}, regions_per_image=None)([record])
    boxes = (batch["prompt_layout"] == HAS_BOX).float().mean()
    assert boxes == pytest.approx(0.75, abs=0.06) and layouts(batch) == {HAS_BOX, ONE_POINT}


@pytest.mark.parametrize("prompt_probabilities", [{"scribble": 1.0}, {}, {"box": -1.0, "point": 2.0}, {"box": 0.0}])
def test_prompt_probabilities_that_make_no_sense_are_refused(processor, prompt_probabilities):
    with pytest.raises(ValueError, match="expected positive numbers for box, jittered_box, point"):
        RegionCollator(processor, prompt_probabilities)


def test_drawn_points_lie_in_the_mask_and_outside_points_do_not(records):
    seen = set()
    rng = np.random.default_rng(0)
    for record in records:
        for region in record["regions"]:
            mask = decode_rle(region["mask"])
            source = PromptSource(region, (record["width"], record["height"]), "here")
            for kind in ("point", "mask_center_point", *["points"] * 5):
                prompt = draw_prompt(kind, source, rng, outside_points=3)
                for (x, y), label in zip(prompt["input_points"], prompt["input_labels"], strict=True):
                    assert mask[int(y), int(x)] == label
                    seen.add(label)
    assert seen == {0, 1}


def test_points_stay_off_the_border_of_a_mask_that_has_an_inside():
    mask = np.zeros((20, 20), bool)
    mask[5:10, 5:10] = mask[12, 10:18] = True  # a square and a thread
    source = PromptSource({"box": [5, 5, 18, 13], "mask": mask}, (20, 20), "here")
    rng = np.random.default_rng(0)
    points = np.concatenate([draw_prompt("points", source, rng)["input_points"] for _ in range(50)])
    assert points.min() == 6.5 and points.max() == 8.5
    assert mask_center(source).tolist() == [7.5, 7.5]
    thread = PromptSource({"box": [3, 3, 4, 9], "mask": np.eye(20, dtype=bool)}, (20, 20), "here")
    x, y = draw_prompt("point", thread, rng)["input_points"][0]
    assert x == y


def test_the_center_of_a_ring_lies_on_the_ring():
    y, x = np.mgrid[:40, :60] + 0.5
    distance = np.hypot(x - 30, y - 20)
    source = PromptSource({"box": [14, 4, 46, 36], "mask": (distance < 16) & (distance > 8)}, (60, 40), "here")
    assert 9 < np.hypot(*(mask_center(source) - [30, 20])) < 15


def test_a_region_without_a_mask_is_prompted_by_its_own_points_or_near_the_middle_of_its_box(processor):
    rng = np.random.default_rng(0)
    own = {"box": [10, 10, 50, 30], "points": [[12, 13], [14, 15], [1, 1]], "labels": [1, 1, 0]}
    source = PromptSource(own, (80, 60), "here")
    drawn = {tuple(draw_prompt("point", source, rng)["input_points"][0]) for _ in range(30)}
    assert drawn == {(12.0, 13.0), (14.0, 15.0)}
    assert sorted(draw_prompt("points", source, rng)["input_points"]) == [[12, 13], [14, 15]]
    bare = PromptSource({"box": [10, 10, 50, 30]}, (80, 60), "here")
    points = np.concatenate([draw_prompt("points", bare, rng)["input_points"] for _ in range(50)])
    assert (points >= [20, 15]).all() and (points <= [40, 25]).all() and np.ptp(points[:, 0]) > 15
    assert draw_prompt("mask_center_point", bare, rng)["input_points"] == [[30, 20]]
    assert draw_prompt("annotated_points", bare, rng) == {"input_boxes": [10, 10, 50, 30]}
    prompts = [draw_prompt("points", bare, rng, outside_points=2) for _ in range(30)]
    outside = [p for q in prompts for p, label in zip(q["input_points"], q["input_labels"], strict=True) if not label]
    assert outside and all(not (10 < x < 50 and 10 < y < 30) for x, y in outside)


def test_boxes_are_jittered_within_the_image_and_in_evaluation_always_alike(processor):
    region = {"box": [0, 0, 80.5, 30], "captions": ["a"], "region_id": "0"}
    image = Image.new("RGB", (80, 60))
    record = dict(image=image, image_id="0", width=80, height=60, task="caption", regions=[region] * 50)
    collator = RegionCollator(processor, {"jittered_box": 1}, None, box_jitter=0.1)
    boxes = collator([record])["input_boxes"][0] * 80 / 64  # the tiny model's input has 64 pixels
    moved = boxes[:, 3] - 30
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 80 and 2 < moved.std() < 4
    measured = RegionCollator(processor, {"jittered_box": 1}, training=False)
    first = measured([record])["input_boxes"]
    assert 2 < (first[0, :, 3] * 80 / 64 - 30).std() < 4 and len(first[0].unique(dim=0)) == 50
    again = measured([{**record, "draw": (1, 2, 3)}])["input_boxes"]
    assert torch.equal(first, again), "drawn by the image alone"
    assert not torch.equal(first, measured([{**record, "image_id": "1"}])["input_boxes"])


def test_a_region_without_a_mask_gets_its_box_unless_masks_alone_are_asked_for(records, processor):
    bare = changed(records, mask=None)
    batch = RegionCollator(processor, {"mask": 1.0, "box": 1e-9})(bare)
    assert layouts(batch) == {HAS_BOX}
    where = f"image {bare[0]['image_id']}, region "
    with pytest.raises(RegionRecordError, match=f"{where}.* has no mask, but prompt_probabilities only allows masks"):
        RegionCollator(processor, {"mask": 1.0, "box": 0})(bare)


def test_evaluation_takes_every_region_in_order_with_its_first_text_and_its_box(records, processor):
    batch = RegionCollator(processor, regions_per_image=1, training=False)(records)
    for row, record in enumerate(records):
        expected = processor(
            original_sizes=[(192, 192)],
            input_boxes=[[r["box"] for r in record["regions"]]],
            captions=[[r["captions"][0] for r in record["regions"]]],
        )
        assert rows(batch, row) == rows(expected, 0)


def test_a_record_is_drawn_the_same_in_every_batch(records, processor):
    drawn = SeededDataset(records, seed=4)
    collator = RegionCollator(processor, regions_per_image=2, outside_points=2)
    whole = collator([drawn[k] for k in range(3)])
    for order in ([0], [2, 1], [1, 2, 0]):
        torch.manual_seed(len(order))
        part = collator([drawn[k] for k in order])
        for row, k in enumerate(order):
            found, expected = rows(part, row), rows(whole, k)
            assert found == {name: expected[name] for name in found}
    drawn.set_epoch(1)
    assert rows(collator([drawn[k] for k in range(3)]), 0) != rows(whole, 0)


def test_an_augmented_record_is_the_same_in_every_batch(records, processor):
    jitter = augmentation_from({"flip": 0.5, "scale": [0.5, 2.0], "rotate": 30, "color": 0.2}, size=64)
    drawn = SeededDataset(records, seed=4, augmentation=jitter)
    collator = RegionCollator(processor, dict.fromkeys(DRAWN_KINDS, 1), mask_labels=True)
    whole, single = collator([drawn[k] for k in range(3)]), collator([drawn[2]])
    assert torch.equal(whole["pixel_values"][2:], single["pixel_values"])
    real = single["region_mask"].sum()
    assert torch.equal(whole["mask_labels"][2, :real], single["mask_labels"][0]) and single["mask_labels"].max() > 0.9
    assert rows(single, 0)["texts"] == rows(whole, 2)["texts"]


def test_points_of_an_evaluation_are_drawn_by_the_image_alone(records, processor):
    collator = RegionCollator(processor, {"point": 1}, training=False)
    first = rows(collator(records), 1)
    assert first == rows(collator(records[1:]), 0) == rows(collator([{**records[1], "draw": (1, 2, 3)}]), 0)


def test_without_a_draw_the_seed_of_torch_settles_the_batch(records, processor):
    collator, batches = RegionCollator(processor, regions_per_image=1), []
    for _ in range(2):
        torch.manual_seed(3)
        batches.append(collator(records))
    assert all((value == batches[1][key]).all() for key, value in batches[0].items())


def test_every_region_and_caption_is_drawn_sooner_or_later(records, processor):
    record = records[0]
    drawn, collator = SeededDataset([record], seed=0), RegionCollator(processor, {"box": 1}, regions_per_image=1)
    found = set()
    for epoch in range(60):
        drawn.set_epoch(epoch)
        found.add(tuple(rows(collator([drawn[0]]), 0)["texts"][0]))
    texts = [[text for r in record["regions"] for text in r["captions"]]]
    boxes = [[r["box"] for r in record["regions"] for _ in r["captions"]]]
    ids = processor(original_sizes=[(192, 192)], input_boxes=boxes, captions=texts)
    assert found == {tuple(text) for text in rows(ids, 0)["texts"]} and len(found) > len(record["regions"])


def test_embeddings_stand_in_for_images(records, model, processor):
    collator = RegionCollator(processor, training=False, mask_labels=True)
    whole = collator(records)
    embeddings = model.get_image_embeddings(whole["pixel_values"])
    cached = [{**record, "image_embedding": embeddings[k]} for k, record in enumerate(records)]
    batch = collator(cached)
    assert "pixel_values" not in batch
    torch.testing.assert_close(batch["mask_labels"], whole["mask_labels"], equal_nan=True)
    torch.testing.assert_close(model(**batch).loss, model(**whole).loss)
    with pytest.raises(RegionRecordError, match=f"image {records[1]['image_id']} has no image_embedding"):
        collator([cached[0], records[1]])


def test_mask_labels_are_the_coverage_that_a_mask_prompt_holds(records, model, processor):
    batch = RegionCollator(processor, {"mask": 1}, training=False, mask_labels=True)(records)
    coverage = (batch["input_masks"] / MASK_LOGIT + 1) / 2
    for row, column in batch["region_mask"].nonzero().tolist():
        expected = coverage[batch["mask_index"][row, column]]
        torch.testing.assert_close(batch["mask_labels"][row, column], expected)
    assert batch["mask_labels"][~batch["region_mask"]].isnan().all()
    model.config.mask_loss_weight = 1.0
    with_masks = model(**batch).loss
    batch.pop("mask_labels")
    assert with_masks > model(**batch).loss + 0.01


def test_mask_labels_of_regions_without_a_mask_are_nan(records, model, processor):
    records = [records[0], *changed(records[1:2], mask=None)]
    batch = RegionCollator(processor, {"box": 1}, training=False, mask_labels=True)(records)
    known = ~batch["mask_labels"].isnan()
    assert known[0, : len(records[0]["regions"])].all() and not known[1].any()
    model.config.mask_loss_weight = 1.0
    assert model(**batch).loss.isfinite()


def test_the_task_decides_between_captions_and_category(records, processor):
    lengths = [RegionCollator(processor, task=task)(records)["task_ids"].unique().tolist() for task in processor.tasks]
    assert lengths == [[0], [1]]
    record = render_scene(0).to_record()
    record["regions"][0]["category"] = None
    with pytest.raises(RegionRecordError, match=r"region .* has no text for the task 'recognition'"):
        RegionCollator(processor, task="recognition")([record])


def test_a_record_without_regions_is_named(records, processor):
    for training in (True, False):
        with pytest.raises(RegionRecordError, match=f"image {records[0]['image_id']} has no region"):
            RegionCollator(processor, training=training)([records[1], {**records[0], "regions": []}])


def test_rows_of_a_data_set_are_records(records, processor):
    datasets = pytest.importorskip("datasets")
    mixed = [records[0], *changed(records[1:], mask=None, points=None, labels=None)]
    table = datasets.Dataset.from_list(mixed, features=region_features())
    collator = RegionCollator(processor, dict.fromkeys(DRAWN_KINDS, 1), training=False, mask_labels=True)
    assert all(rows(collator([table[k]]), 0) == rows(collator([mixed[k]]), 0) for k in range(3))
    undecoded = table.cast_column("image", datasets.Image(decode=False))
    assert torch.equal(collator([undecoded[0]])["pixel_values"], collator([records[0]])["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1", "RGBA", "LA", "I;16"])
def test_images_of_every_mode_are_those_of_inference(processor, tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    image = (
        Image.fromarray(pixels.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    )
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    region = {"region_id": "0", "box": [1, 2, 30, 40], "captions": ["a"]}
    record = dict(image=str(path), image_id="0", width=80, height=60, task="caption", regions=[region])
    batch = RegionCollator(processor)([record])
    assert torch.equal(batch["pixel_values"], processor(str(path), input_boxes=[[[1, 2, 30, 40]]])["pixel_values"])


def test_a_turned_photo_has_its_regions_in_the_upright_one(processor):
    photo, exif, file = Image.new("RGB", (80, 60), "red"), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turn right
    photo.save(file, "jpeg", exif=exif)
    region = {"region_id": "0", "box": [0, 0, 60, 80], "captions": ["a"]}
    record = {"image": {"path": None, "bytes": file.getvalue()}, "image_id": "7", "task": "caption"}
    batch = RegionCollator(processor, {"box": 1})([{**record, "width": 60, "height": 80, "regions": [region]}])
    assert batch["original_sizes"].tolist() == [[80, 60]]
    with pytest.raises(RegionRecordError, match="image 7: the upright picture is 60 x 80, its record says 80 x 60"):
        RegionCollator(processor)([{**record, "width": 80, "height": 60, "regions": [region]}])


def test_an_image_that_cannot_be_read_is_named(processor, tmp_path):
    record = {**render_scene(0).to_record(), "image": "https://example.org/a.jpg"}
    with pytest.raises(RegionRecordError, match=rf"image {record['image_id']}: .*there is no file"):
        RegionCollator(processor)([record])
