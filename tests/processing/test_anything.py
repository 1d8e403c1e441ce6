import json

import numpy as np
import pytest
import torch

from sca_hf import ScaOutput
from sca_hf.processing.anything_sca import encode_image
from sca_hf.processing.anything_settings_sca import AnythingSettings
from sca_hf.processing.mask_generation_sca import (
    box_iou,
    connected_components,
    generate_crop_boxes,
    mask_iou,
    remove_small_regions,
)
from sca_hf.processing.masks_sca import decode_rle
from sca_hf.testing import tiny_image


# A random model is sure of nothing, and its masks reach all over the image: only those that look alike are dropped.
OPEN = dict(
    points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0, mask_nms_thresh=0.7
)
FIELDS = {"segmentation", "area", "bbox", "predicted_iou", "stability_score", "point_coords", "crop_box"}


@pytest.fixture
def open_model(model):
    """A model that expects every mask to fit."""
    with torch.no_grad():
        model.sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.5)
        model.sam.mask_decoder.iou_prediction_head.proj_out.weight.mul_(0.05)
    return model


def count_calls(monkeypatch, owner, name):
    calls, call = [], getattr(owner, name)

    def counted(*args, **kwargs):
        calls.append((args, kwargs))
        return call(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_an_image_is_encoded_once_and_survivors_alone_are_captioned_once(open_model, processor, monkeypatch):
    encodings = count_calls(monkeypatch, open_model.sam.vision_encoder, "forward")
    spoken = count_calls(monkeypatch, open_model.language_model, "generate")
    settings = {**OPEN, "points_per_batch": 5, "mask_nms_thresh": 0.4}
    records = processor.caption_anything(open_model, tiny_image(), settings)
    assert len(encodings) == 1 and len(spoken) == 1
    assert len(spoken[0][1]["inputs_embeds"]) == len({tuple(r["point_coords"][0]) for r in records}) < 16
    assert 1 < len(records) < 48


def test_records_are_those_of_automatic_masks_with_captions(open_model, processor):
    records = processor.caption_anything(open_model, tiny_image(), OPEN)
    assert json.loads(json.dumps(records)) == records
    assert [r["predicted_iou"] for r in records] == sorted((r["predicted_iou"] for r in records), reverse=True)
    for record in records:
        assert record.keys() == FIELDS | {"caption", "score"} and record["crop_box"] == [0, 0, 80, 60]
        mask = decode_rle(record["segmentation"])
        rows, columns = np.nonzero(mask)
        assert mask.shape == (60, 80) and record["area"] == mask.sum() > 0
        x, y = columns.min(), rows.min()
        assert record["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
        assert record["score"] < 0


@pytest.mark.parametrize("kind", ["point", "box", "mask"])
def test_captions_are_what_the_model_says_of_the_prompt(kind, open_model, processor):
    image = tiny_image()
    records = processor.caption_anything(open_model, image, {**OPEN, "caption_prompt": kind}, num_beams=2)
    if kind == "mask":  # the low-resolution logits that found it are not in the record
        assert len({record["caption"] for record in records}) > 1
        return
    for record in records[:4]:
        x, y, width, height = record["bbox"]
        asked = {"point": {"input_points": [[record["point_coords"]]]}}
        asked["box"] = {"input_boxes": [[[x, y, x + width, y + height]]]}
        output = open_model.generate(**processor(image, **asked[kind]), num_beams=2)
        assert processor.batch_decode(output) == [[record["caption"]]]


def test_the_size_of_batches_changes_nothing(open_model, processor):
    results = [
        processor.caption_anything(open_model, tiny_image(), {**OPEN, "points_per_batch": size}) for size in (3, 64)
    ]
    assert [r["caption"] for r in results[0]] == [r["caption"] for r in results[1]]
    assert [r["segmentation"] for r in results[0]] == [r["segmentation"] for r in results[1]]


def test_suppression_leaves_no_two_alike(open_model, processor):
    records = processor.caption_anything(open_model, tiny_image(), {**OPEN, "mask_nms_thresh": 0.5})
    masks = torch.from_numpy(np.stack([decode_rle(record["segmentation"]) for record in records]))
    # Chosen at a quarter of the resolution, so not to the pixel.
    assert (mask_iou(masks, masks) - torch.eye(len(masks))).max() < 0.75
    everything = processor.caption_anything(open_model, tiny_image(), {**OPEN, "mask_nms_thresh": 1.0})
    boxes = processor.caption_anything(open_model, tiny_image(), {**OPEN, "box_nms_thresh": 0.5})
    assert 0 < len(boxes) < len(records) < len(everything)


def test_what_becomes_alike_by_scaling_is_dropped(open_model, processor, monkeypatch):
    logits = torch.full((1, 4, 3, 32, 32), -9.0)
    logits[0, :2, 0, 8:16, 8:16] = 9.0
    logits[0, 1, 0, 20, 25] = 0.01  # a speck that blows up the box of the coarse mask, and is lost in the fine one
    ious = torch.zeros(1, 4, 3)
    ious[0, :2, 0] = torch.tensor([0.9, 0.8])
    monkeypatch.setattr(open_model, "forward", lambda **_: ScaOutput(pred_masks=logits, iou_scores=ious))
    settings = {**OPEN, "pred_iou_thresh": 0.5, "box_nms_thresh": 0.5, "mask_nms_thresh": 1.0, "points_per_side": 2}
    chosen = processor.select_regions(
        open_model(), [(60, 80)], [(48, 64)], **AnythingSettings(**settings).thresholds(1)
    )
    assert len(chosen[0]["boxes"]) == 2 and box_iou(chosen[0]["boxes"], chosen[0]["boxes"])[0, 1] < 0.5
    (record,) = processor.caption_anything(open_model, tiny_image(), settings)
    assert record["predicted_iou"] == pytest.approx(0.9)


def test_crops_are_encoded_by_themselves_and_their_masks_lie_in_the_whole_image(open_model, processor, monkeypatch):
    encodings = count_calls(monkeypatch, open_model.sam.vision_encoder, "forward")
    image = tiny_image(2, (240, 200))
    settings = {**OPEN, "crop_n_layers": 1, "box_nms_thresh": 1.0, "crop_nms_thresh": 0.9, "points_per_side": 3}
    records = processor.caption_anything(open_model, image, settings)
    assert len(encodings) == 5 and all(decode_rle(r["segmentation"]).shape == (200, 240) for r in records)
    crops = {tuple(record["crop_box"]) for record in records}
    assert (0, 0, 240, 200) in crops
    for record in records:
        x, y, width, height = record["crop_box"]
        outside = decode_rle(record["segmentation"])
        outside[y : y + height, x : x + width] = False
        assert not outside.any()
    assert all(record["caption"] is not None for record in records)


def test_given_boxes_are_all_captioned_in_their_order(open_model, processor, monkeypatch):
    encodings = count_calls(monkeypatch, open_model.sam.vision_encoder, "forward")
    boxes = [[5, 5, 40, 30], [20, 10, 79, 55], [5, 5, 40, 30]]
    records = processor.caption_anything(open_model, tiny_image(), boxes=boxes)
    assert [record["box_prompt"] for record in records] == boxes and len(encodings) == 1
    assert records[0]["caption"] == records[2]["caption"]
    alone = processor.batch_decode(open_model.generate(**processor(tiny_image(), input_boxes=[boxes])))
    assert [record["caption"] for record in records] == alone[0]
    assert processor.caption_anything(open_model, tiny_image(), boxes=[]) == []


def test_several_images_are_refused_and_none_is_dropped(open_model, processor):
    for several in ([tiny_image(0), tiny_image(1)], np.zeros((2, 60, 80, 3), np.uint8)):
        with pytest.raises(ValueError, match="expected one image, got 2; call it once per image"):
            processor.caption_anything(open_model, several, OPEN)
        with pytest.raises(ValueError, match="expected one image, got 2; call it once per image"):
            encode_image(open_model, processor, several)
    assert processor.caption_anything(open_model, [tiny_image()], OPEN)


def test_nothing_found_is_an_empty_list(open_model, processor):
    assert processor.caption_anything(open_model, tiny_image(), {**OPEN, "pred_iou_thresh": 1.0}) == []


def test_captions_can_be_told_once(open_model, processor):
    settings = {**OPEN, "mask_nms_thresh": 1.0}
    several = processor.caption_anything(open_model, tiny_image(), settings, max_new_tokens=1)
    once = processor.caption_anything(
        open_model, tiny_image(), {**settings, "unique_captions": True}, max_new_tokens=1
    )
    captions = [record["caption"] for record in once]
    assert len(captions) == len(set(captions)) < len(several)
    for record in once:
        same = [r["predicted_iou"] for r in several if r["caption"] == record["caption"]]
        assert record["predicted_iou"] == max(same)


def test_an_encoding_that_is_known_is_used(open_model, processor, monkeypatch):
    encoded = encode_image(open_model, processor, tiny_image())
    encodings = count_calls(monkeypatch, open_model.sam.vision_encoder, "forward")
    known = processor.caption_anything(open_model, tiny_image(), OPEN, encoded=encoded)
    assert not encodings and known == processor.caption_anything(open_model, tiny_image(), OPEN)


def test_high_quality_sam_works_too(make_model, processor):
    settings = {**OPEN, "pred_iou_thresh": 0.0, "crop_n_layers": 1}
    model = make_model("gpt2", "sam_hq")
    with torch.no_grad():
        model.sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.5)
        model.sam.mask_decoder.iou_prediction_head.proj_out.weight.mul_(0.05)
    assert processor.caption_anything(model, tiny_image(0, (160, 120)), settings)


def test_settings_of_the_processor_are_the_default_and_are_saved(open_model, processor, tmp_path):
    processor.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "processor_config.json").read_text())
    content["anything_settings"] = {"points_per_side": 2, "pred_iou_thresh": 0.1}
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    loaded = type(processor).from_pretrained(tmp_path)
    assert loaded.anything_settings_for({"pred_iou_thresh": 0.2}) == AnythingSettings(
        points_per_side=2, pred_iou_thresh=0.2
    )
    assert processor.anything_settings_for() == AnythingSettings()


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
        ({"points_per_side": 0}, "points_per_side is 0, expected 1 to"),
        ({"crop_n_layers": 9}, "crop_n_layers is 9"),
        ({"points_per_side": 8.5}, "points_per_side is 8.5, expected a whole number"),
        ({"pred_iou_thresh": "high"}, "pred_iou_thresh is 'high', expected a number"),
        ({"crop_n_layers": True}, "crop_n_layers is True"),
        ({"caption_prompt": "song"}, "expected one of point, box, mask"),
        ({"min_area": 0.5, "max_area": 0.2}, "no mask would be kept"),
    ],
)
def test_settings_out_of_range_are_an_error(wrong, said):
    with pytest.raises((ValueError, TypeError), match=said):
        AnythingSettings(**wrong)


def test_crops_cover_the_image_and_overlap():
    layers = generate_crop_boxes((100, 160), 2, overlap=0.3)
    assert [len(layer) for layer in layers] == [1, 4, 16] and layers[0] == [(0, 0, 160, 100)]
    for layer in layers:
        covered = np.zeros((100, 160), int)
        for x1, y1, x2, y2 in layer:
            covered[y1:y2, x1:x2] += 1
        assert covered.min() >= 1
    boxes = torch.tensor(layers[1], dtype=torch.float32)
    assert (box_iou(boxes, boxes)[0, 1:] > 0).all()


def flood(mask):
    """Parts of a mask, corners counting, one pixel after the other."""
    left, parts = {tuple(p) for p in np.argwhere(mask)}, []
    while left:
        todo, part = [left.pop()], set()
        while todo:
            y, x = todo.pop()
            part.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo += near
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(8))
def test_parts_are_those_of_a_flood(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((generator.integers(1, 14), generator.integers(1, 14))) < generator.random()
    labels, sizes = connected_components(mask)
    assert sorted(map(len, flood(mask))) == sorted(sizes[1:].tolist()) and sizes[0] == 0
    assert {frozenset(part) for part in flood(mask)} == {
        frozenset(map(tuple, np.argwhere(labels == number))) for number in range(1, len(sizes))
    }
    assert ((labels > 0) == mask).all()


def test_cleaning_fills_holes_and_drops_islands_but_keeps_the_largest():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[5:7, 5:7] = False
    mask[15, 15] = True
    clean = remove_small_regions(mask, 5)
    assert clean[5, 5] and not clean[15, 15] and clean.sum() == 100
    specks = np.zeros((9, 9), bool)
    specks[1, 1] = specks[5, 5:7] = True
    assert remove_small_regions(specks, 5).sum() == 2
    assert (remove_small_regions(mask, 1) == mask).all()
