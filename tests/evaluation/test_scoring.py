"""Scoring of records: best of heads, what a metric needs of them, names of metrics."""

import numpy as np
import pytest

from sca_hf.evaluation.metrics import DocumentFrequency, bleu, cider_d
from sca_hf.evaluation.predictions import PredictionError, PredictionRecord
from sca_hf.evaluation.scoring import DEFAULT_METRICS, ScoringTools, metric_names, score_records
from sca_hf.processing.masks_sca import encode_rle


def records(*pairs, **fields):
    return [
        PredictionRecord(id=str(k), references=references, candidates=[said], **fields)
        for k, (said, references) in enumerate(pairs)
    ]


PAIRS = (("a red star", ["a red star", "the star"]), ("A ring.", ["one ring"]), ("", ["a disc"]))


def test_default_metrics_are_those_of_the_tokens():
    evaluation = score_records(records(*PAIRS))
    assert tuple(evaluation.metrics) == DEFAULT_METRICS
    candidates = [["a", "red", "star"], ["a", "ring"], []]
    references = [[["a", "red", "star"], ["the", "star"]], [["one", "ring"]], [["a", "disc"]]]
    assert evaluation.scores["CIDEr-D"].per_item == cider_d(candidates, references)["per_item"]
    assert evaluation.metrics["BLEU@2"] == bleu(candidates, references)["BLEU@2"]["corpus"]
    assert evaluation.notes == {"cider_df": "corpus"}


def test_of_several_candidates_the_best_predicted_iou_counts():
    heads = PredictionRecord(
        id="x", references=["star"], candidates=["ring", "star", "disc"], iou_scores=[0.1, 0.8, 0.8]
    )
    assert score_records([heads], ["exact-match"]).metrics == {"exact-match": 1}


def test_line_ends_inside_captions_are_spaces():
    odd = score_records(records(("a\rred\u2028star", ["a red\x0bstar"]), *PAIRS), ["exact-match"])
    assert odd.scores["exact-match"].per_item[:2] == [1, 1]


def test_names_are_metrics_or_groups_in_any_case():
    assert metric_names(["bleu@2", "CIDER-D", "BLEU"]) == ["BLEU@2", "CIDEr-D", "BLEU@1", "BLEU@3", "BLEU@4"]
    assert metric_names(["masks"]) == ["mask-mIoU", "mask-mIoU-oracle", "mask-cIoU"]
    with pytest.raises(ValueError, match=r"no metric 'meteor_nltk'; known are CIDEr-D, .* content-recall"):
        metric_names(["meteor_nltk"])


def test_masks_of_a_record():
    small, large = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    small[:2] = True
    fields = dict(reference_mask=encode_rle(large))
    both = records(PAIRS[0], masks=[encode_rle(small), encode_rle(large)], iou_scores=[0.9, 0.4], **fields)
    found = score_records(both, ["masks", "IoU-error"]).metrics
    assert found == pytest.approx({"mask-mIoU": 0.5, "mask-mIoU-oracle": 1, "mask-cIoU": 0.5, "IoU-error": 0.4})
    one = records(PAIRS[0], mask=encode_rle(small), iou_scores=[0.9, 0.4], **fields)
    assert score_records(one, ["IoU-error"]).metrics["IoU-error"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("metric", "field"),
    [("masks", "reference_mask"), ("category-accuracy", "category"), ("IoU-error", "iou_scores")],
)
def test_what_a_metric_needs_is_named(metric, field):
    with pytest.raises(PredictionError, match=f"3 of 3 records have no {field}; the first is 0"):
        score_records(records(*PAIRS), [metric])
    with pytest.raises(PredictionError, match="no record"):
        score_records([])


def test_categories_are_scored_by_name():
    named = records(("Traffic light", ["x"]), ("cat", ["x"]), category="traffic_light")
    assert score_records(named, ["category-accuracy", "semantic-IoU"]).metrics == {
        "category-accuracy": 0.5,
        "semantic-IoU": 0.5,
    }
    with pytest.raises(ValueError, match="needs an encoder"):
        score_records(named, ["semantic-similarity"])


def test_document_frequencies_may_be_given():
    df = DocumentFrequency.of([[["a", "star"]], [["a", "ring"]], [["a", "disc"]], [["the", "red", "star"]]])
    evaluation = score_records(records(*PAIRS), ["CIDEr-D"], ScoringTools(df))
    assert evaluation.notes == {"cider_df": "given, of 4 pairs"}
    assert evaluation.metrics != score_records(records(*PAIRS), ["CIDEr-D"]).metrics
