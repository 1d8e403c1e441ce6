"""The scenes report: perfect captions score one, foreign ones do not, and a model is asked for every object."""

import math

import numpy as np
import pytest

from experiments.sca_tiny.scenes_report import RegionResult, caption_scores, markdown_table, mask_iou, score_model
from sca_hf.data.scenes import scenes


WORDS = ("color", "shape", "texture", "size", "relation", "reference", "size_left_out", "relation_left_out")


@pytest.fixture(scope="module")
def objects():
    return [obj for scene in scenes("validation", 60) for obj in scene.objects]


def test_true_captions_score_one(objects):
    scores = caption_scores([RegionResult(obj, obj.captions[-1], 1.0) for obj in objects])
    assert all(scores[name] == 1.0 for name in (*WORDS, "exact_match", "mask_iou"))
    assert scores["states_size_or_relation"] >= 0.4


def test_captions_of_other_objects_score_at_chance(objects):
    order = np.random.default_rng(0).permutation(len(objects))
    scores = caption_scores(
        [RegionResult(obj, objects[k].captions[0], 0.0) for obj, k in zip(objects, order, strict=True)]
    )
    assert scores["color"] < 0.3 and scores["shape"] < 0.35 and scores["relation"] < 0.4


def test_a_wrong_word_counts_against_its_attribute_only(objects):
    told = [obj for obj in objects if obj.describable and obj.color == "red"]
    results = [RegionResult(obj, obj.captions[0].replace(" red ", " blue ", 1), 1.0) for obj in told]
    scores = caption_scores(results)
    assert scores["color"] == 0 and scores["shape"] == scores["texture"] == 1 and scores["exact_match"] == 0


def test_words_that_the_truth_leaves_out_are_not_asked_for(objects):
    landmarks = [obj for obj in objects if obj.describable and obj.size == "large"]
    scores = caption_scores([RegionResult(obj, obj.captions[0], 1.0) for obj in landmarks])
    assert scores["size"] == 1 and math.isnan(scores["relation"]) and scores["relation_left_out"] == 1


def test_mask_iou_counts_pixels():
    square, half = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    square[:2], half[:1] = True, True
    assert mask_iou(square, half) == 0.5 and mask_iou(half & ~half, half & ~half) == 1.0


def test_a_model_is_scored_by_every_prompt_and_both_controls(model, processor):
    report = score_model(model.eval(), processor, 2)
    count = sum(len(scene.objects) for scene in scenes("test", 2))
    assert set(report["scores"]) == {"box", "point", "mask", "shuffled regions", "blank image"}
    assert all(scores["regions"] == count for scores in report["scores"].values())
    assert math.isnan(report["scores"]["shuffled regions"]["mask_iou"])
    assert markdown_table(report).count("\n") == 9
