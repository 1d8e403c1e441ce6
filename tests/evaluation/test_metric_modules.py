"""The metrics as modules of `evaluate`, offline, and as `compute_metrics` of a Trainer."""

import numpy as np
import pytest
from transformers import EvalPrediction

from sca_hf.evaluation.evaluate_metrics import EVALUATE_METRICS, evaluate_metric
from sca_hf.evaluation.scoring import DEFAULT_METRICS
from sca_hf.evaluation.trainer_metrics import make_compute_metrics
from sca_hf.processing.masks_sca import encode_rle


SAID, WANTED = ["a red star", "one ring"], [["a star", "the red star"], ["one ring"]]


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    library = pytest.importorskip("evaluate")
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", str(tmp_path))
    return library


def test_instances_combine_offline(evaluate):
    combined = evaluate.combine([evaluate_metric(name) for name in ("cider-d", "BLEU", "ROUGE-L", "exact-match")])
    found = combined.compute(predictions=SAID, references=WANTED)
    assert set(found) == {*DEFAULT_METRICS, "exact-match"} and found["exact-match"] == 0.5
    for one, refs in zip(SAID, WANTED, strict=True):
        combined.add(prediction=one, reference=refs)
    assert combined.compute() == found


def test_one_reference_may_be_a_text(evaluate):
    metric = evaluate_metric("ROUGE-L")
    as_text = metric.compute(predictions=SAID, references=["a star", "one ring"], per_item=True)
    assert as_text == metric.compute(predictions=SAID, references=[["a star"], ["one ring"]], per_item=True)
    assert as_text["ROUGE-L per item"][1] == 1


def test_names_and_masks_and_words(evaluate):
    named = evaluate_metric("category-accuracy").compute(predictions=["cat", "dog"], references=["cat", "cat"])
    assert named == {"category-accuracy": 0.5}
    rle = encode_rle(np.eye(4, dtype=bool))
    masks = evaluate_metric("masks").compute(predictions=[rle], references=[rle], iou_scores=[0.75])
    assert masks == {"mask-mIoU": 1, "mask-cIoU": 1, "IoU-error": 0.25}
    recall = evaluate_metric("content-recall").compute(
        predictions=SAID, references=WANTED, tagger=lambda text: [(word, "NOUN") for word in text.split()]
    )
    assert recall["noun-recall"] == pytest.approx((3 / 4 + 1) / 2, abs=1e-6) and recall["verb-recall"] == 0


def test_dense_captions(evaluate):
    box = [[0.0, 0.0, 9.0, 9.0]]
    found = evaluate_metric("dense-captioning").compute(
        predictions=[{"boxes": box, "captions": ["a"], "scores": [0.5]}],
        references=[{"boxes": box, "captions": ["a"]}],
        scorer=lambda said, refs: [1.0] * len(said),
    )
    assert found == {"dense-mAP": 1, "detection-mAP": 1}


def test_every_module_can_be_made(evaluate):
    names = [evaluate_metric(name).name for name in EVALUATE_METRICS]
    assert len(set(names)) == len(names)
    with pytest.raises(ValueError, match="no metric 'foo'; known are CIDEr-D"):
        evaluate_metric("foo")


def ids(tokenizer, *texts, length=12):
    rows = np.full((len(texts), length), -100)
    for row, text in zip(rows, texts, strict=True):
        found = tokenizer(text)["input_ids"]
        row[: len(found)] = found
    return rows


def test_a_trainer_gets_the_scores_of_the_best_heads(tokenizer):
    heads = np.stack([ids(tokenizer, "one ring", "a red star"), ids(tokenizer, "one ring", "a disc")])
    labels = ids(tokenizer, "a red star", "one ring")
    ious = np.array([[0.2, 0.7], [0.9, 0.1]])
    compute = make_compute_metrics(tokenizer, ["exact-match", "BLEU@1"])
    assert compute(EvalPrediction((heads, ious), labels)) == {"exact-match": 1, "BLEU@1": pytest.approx(1)}
    assert compute(EvalPrediction((heads, 1 - ious), labels))["exact-match"] == 0
    alone = make_compute_metrics(tokenizer, ["exact-match"])
    assert alone(EvalPrediction(heads[:, 0], labels))["exact-match"] == 0.5


def test_regions_without_a_label_are_padding_and_references_may_be_the_data_sets_own(tokenizer):
    said = ids(tokenizer, "a red star", "one ring", "one ring")
    labels = ids(tokenizer, "a disc", "", "one ring")
    assert (labels[1] == -100).all()
    compute = make_compute_metrics(tokenizer, ["exact-match"], references=[["A red star!", "x"], ["a ring"]])
    assert compute(EvalPrediction(said, labels))["exact-match"] == 0.5
    several = np.stack([labels, ids(tokenizer, "a red star", "", "x")], 1)
    assert make_compute_metrics(tokenizer, ["exact-match"])(EvalPrediction(said, several))["exact-match"] == 1


def test_shapes_that_do_not_fit_are_an_error(tokenizer):
    compute = make_compute_metrics(tokenizer, references=[["a"]])
    rows = ids(tokenizer, "a", "b")
    for prediction, labels, message in [
        (rows, rows[:1], "2 generated regions and 1 labelled"),
        (rows, rows, "1 lists of references and 2 labelled"),
        (rows[0], rows, r"shape \(12,\), expected"),
        ((rows, np.zeros((2, 3))), rows[0], r"label_ids have the shape"),
        ((np.stack([rows, rows]), np.zeros((2, 3))), rows, r"IoUs have the shape \(2, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            compute(EvalPrediction(prediction, labels))
