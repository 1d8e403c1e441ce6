"""Where captioners are told to look: drawn for each region from a seed, in floats of the original image."""

import numpy as np
import pytest

from sca_hf.data.prompts import DRAWN_KINDS, PromptSource, draw_prompt
from sca_hf.data.region import RegionRecordError
from sca_hf.evaluation.captioners.interface import point_in_mask
from sca_hf.evaluation.predict import build_query
from sca_hf.processing.masks_sca import decode_rle, encode_rle
from sca_hf.testing import tiny_image
from tests.evaluation.region_files import tiny_record


def row(number=1):
    return {**tiny_record(number), "image": tiny_image(number), "task": "caption"}


def prompts(kind, seed=0, number=1):
    return [region.prompt for region in build_query(row(number), kind, seed).regions]


def test_a_box_is_the_regions_own_without_what_reaches_out_of_the_image():
    record = row()
    record["regions"][0]["box"] = [-0.5, 4, 40, 60.5]
    (first, second) = build_query(record).regions
    assert first.prompt.box == first.box == [0, 4, 40, 60] and second.prompt.box == [30, 20, 70, 55]
    assert second.region_id == "1-1" and second.resample_point is None


def test_centres_points_and_masks_are_those_of_the_record():
    assert [prompt.points for prompt in prompts("center_point")] == [[[22.75, 17.125]], [[50, 37.5]]]
    assert [prompt.labels for prompt in prompts("center_point")] == [[1], [1]]
    (own, _) = prompts("annotated_points")
    assert own.points == [[10.5, 10.5], [79, 59]] and own.labels == [1, 0]
    record = row()
    assert np.array_equal(prompts("mask")[0].mask, decode_rle(record["regions"][0]["mask"]))
    assert prompts("mask")[0].box is None


def test_every_kind_shows_the_same_in_training_and_in_prediction():
    """The middle of an L's box lies outside of it; the middle of the largest square in it does not."""
    mask = np.zeros((100, 100), bool)
    mask[10:90, 10:30] = mask[10:30, 10:90] = True
    region = {
        "region_id": "0",
        "box": [10, 10, 90, 90],
        "mask": encode_rle(mask),
        "captions": ["an L"],
        "category": "l",
    }
    record = {"image_id": "0", "image": tiny_image(0, (100, 100)), "width": 100, "height": 100, "task": "caption"}
    record["regions"] = [{**region, "category": "l", "points": [[12, 12], [60, 60]], "labels": [1, 0]}]
    source = PromptSource(record["regions"][0], (100, 100), "here")
    for kind in DRAWN_KINDS:
        (asked,) = build_query(record, kind).regions
        drawn = draw_prompt(kind, source, np.random.default_rng(0))
        shown = {
            "input_boxes": asked.prompt.box,
            "input_points": asked.prompt.points,
            "input_masks": asked.prompt.mask,
        }
        assert set(drawn) - {"input_labels"} == {
            name for name, value in shown.items() if value is not None and len(value)
        }
    points = {
        kind: build_query(record, kind).regions[0].prompt.points for kind in ("center_point", "mask_center_point")
    }
    assert points == {"center_point": [[50, 50]], "mask_center_point": [[35, 20]]}
    assert draw_prompt("center_point", source, np.random.default_rng(0))["input_points"] == [[50, 50]]
    prompt = build_query(record, "point").regions[0].prompt
    ((x, y),) = prompt.points
    assert mask[int(y), int(x)] and prompt.labels == [1]


def test_random_points_are_uniform_floats_in_the_box_and_the_same_for_the_same_seed():
    drawn = np.array([prompts("random_point_in_box", seed)[0].points[0] for seed in range(300)])
    low, high = np.array([5.5, 4]), np.array([40, 30.25])
    assert ((drawn >= low) & (drawn <= high)).all() and not np.allclose(drawn, drawn.round())
    places = (drawn - low) / (high - low)
    assert abs(places.mean(0) - 0.5).max() < 0.06 and abs(places.std(0) - 12**-0.5).max() < 0.03
    again = np.array([prompts("random_point_in_box", seed)[0].points[0] for seed in range(3)])
    assert np.array_equal(again, drawn[:3]) and len(np.unique(drawn, axis=0)) == 300
    one, other = (prompt.points[0] for prompt in prompts("random_point_in_box"))
    assert one != other


def test_a_point_in_the_predicted_mask_is_left_to_the_captioner():
    regions = build_query(row(), "random_point_in_mask").regions
    assert [region.prompt.box for region in regions] == [[5.5, 4, 40, 30.25], [30, 20, 70, 55]]
    assert len({region.resample_point for region in regions}) == 2
    mask = np.zeros((60, 80), bool)
    mask[7:9, 20:23] = True
    drawn = {tuple(point_in_mask(mask, regions[0].box, seed)) for seed in range(60)}
    assert drawn == {(x + 0.5, y + 0.5) for x in (20, 21, 22) for y in (7, 8)}
    assert point_in_mask(np.zeros((60, 80), bool), [10, 20, 30, 50], 0) == [20, 35]


def test_the_captioner_describes_what_is_at_a_pixel_of_its_own_mask(model, processor):
    from sca_hf.evaluation.captioners import ScaCaptioner
    from sca_hf.processing.region_prompts_sca import RegionPrompt

    captioner = ScaCaptioner(model, processor, {"max_new_tokens": 6})
    image = build_query(row(), "random_point_in_mask", seed=3)
    # Beside another image, with other numbers of regions.
    said = captioner.caption_regions([image, build_query(row(4), "random_point_in_mask")], with_masks=True)[0]
    boxed = build_query(row(), "box")
    (found,) = captioner.caption_regions([boxed], with_masks=True)
    for region, other in zip(image.regions, found, strict=True):
        region.prompt = RegionPrompt(
            points=[point_in_mask(other.best_mask, region.box, region.resample_point)], labels=[1]
        )
        region.resample_point = None
    (by_hand,) = captioner.caption_regions([image], with_masks=True)
    assert [answer.candidates for answer in said] == [answer.candidates for answer in by_hand]
    assert np.allclose([a.iou_scores for a in said], [a.iou_scores for a in by_hand], atol=1e-6)
    assert said[0].masks.shape == (3, 60, 80)


def test_the_image_is_encoded_once_for_both(model, processor):
    from sca_hf.evaluation.captioners import ScaCaptioner

    calls = []
    model.sam.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    ScaCaptioner(model, processor).caption_regions([build_query(row(), "random_point_in_mask")])
    assert len(calls) == 1


def test_what_a_region_lacks_is_said():
    record = row()
    record["regions"][1] |= {"mask": None, "points": None, "labels": None}
    with pytest.raises(RegionRecordError, match="image picture 1, region 1-1 has no points; prompt it by"):
        build_query(record, "annotated_points")
    with pytest.raises(RegionRecordError, match="image picture 1, region 1-1 has no mask; prompt it by"):
        build_query(record, "mask")
    with pytest.raises(RegionRecordError, match="image picture 1, region 1-1 has no mask; prompt it by"):
        build_query(record, "mask_center_point")
    with pytest.raises(ValueError, match="prompt is 'scribble', expected one of box"):
        build_query(record, "scribble")
    with pytest.raises(RegionRecordError, match="the upright picture is 80 x 60, its record says 80 x 61"):
        build_query({**row(), "height": 61}, "box")
