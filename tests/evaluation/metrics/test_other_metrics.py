"""Masks, names, content words and dense captions, by hand."""

import math

import numpy as np
import pytest

from sca_hf.evaluation.metrics import (
    DenseImage,
    MaskOverlaps,
    category_accuracy,
    content_recall,
    dense_map,
    iou_error,
    mask_ciou,
    mask_miou,
    mask_miou_oracle,
    mean_pooled_encoder,
    semantic_iou,
    semantic_similarity,
    spacy_tools,
)
from sca_hf.evaluation.metrics.dense import average_precision, merge_boxes


def mask(pixels, size=10):
    return np.arange(size)[None] < pixels


def test_masks_are_chosen_by_predicted_iou_and_the_oracle_by_the_true_one():
    candidates, truth = [[mask(4), mask(8)], [mask(0), mask(10)]], [mask(8), mask(0)]
    overlaps = MaskOverlaps.of(candidates, truth, [[0.9, 0.9], [0.1, 0.7]])
    assert mask_miou(overlaps) == {"corpus": 0.25, "per_item": [0.5, 0.0]}  # the first of equals; one of two empty
    assert mask_miou_oracle(overlaps)["per_item"] == [1.0, 1.0]  # both empty
    assert mask_ciou(overlaps)["corpus"] == pytest.approx(4 / 18)
    assert iou_error(overlaps)["per_item"] == pytest.approx([0.4, 0.7])


@pytest.mark.parametrize(
    ("candidates", "truth", "scores", "message"),
    [
        ([], [], None, "0 lists of masks"),
        ([[mask(1)]], [], None, "1 lists of masks and 0"),
        ([[]], [mask(1)], None, "region 0 has no mask"),
        ([[mask(1), mask(2)]], [mask(1)], None, "region 0 has 2 masks and no iou_scores"),
        ([[mask(1), mask(2)]], [mask(1)], [[0.1]], "2 masks and 1 iou_scores"),
        ([[mask(1)]], [mask(1, 9)], None, r"shape \(1, 10\), its true mask of \(1, 9\)"),
    ],
)
def test_masks_that_do_not_belong_together_are_an_error(candidates, truth, scores, message):
    with pytest.raises(ValueError, match=message):
        MaskOverlaps.of(candidates, truth, scores)


def test_categories_are_words_whatever_their_case():
    result = category_accuracy(["Traffic light.", "a cat", "", "dog"], ["traffic_light", "cat", "", "dog"])
    assert result == {"corpus": 0.5, "per_item": [1, 0, 0, 1]}


def test_semantic_iou_drops_what_stands_before_a_colon():
    result = semantic_iou(["The answer: a red,Traffic light.", "", "cat"], ["traffic_light:", "", "dog"])
    assert result["per_item"] == pytest.approx([2 / 4, 0, 0])


def test_semantic_similarity_is_the_cosine_of_the_encoder_that_is_given():
    vectors = {"cat": [1.0, 0], "dog": [0, 2.0], " cat": [3.0, 3.0], "": [0, 0]}
    result = semantic_similarity(
        ["it is: cat", "dog", ""], ["cat", "dog", "cat"], lambda texts: [vectors[t] for t in texts]
    )
    assert result["per_item"] == pytest.approx([1 / math.sqrt(2), 1, 0])


def test_a_mean_pooled_encoder_does_not_see_padding(tmp_path, tokenizer):
    from transformers import BertConfig, BertModel

    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config = BertConfig(vocab_size=len(tokenizer), **sizes)
    BertModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encode = mean_pooled_encoder(str(tmp_path), batch_size=2)
    together = encode(["a star", "a small red star on the ring", "ring"])
    assert together.shape == (3, 16) and np.allclose(together[0], encode(["a star"])[0], atol=1e-5)


WORDS = {"Star": "NOUN", "star": "NOUN", "ring": "NOUN", "Ann": "PROPN", "runs": "VERB", "ran": "VERB"}


def tag(text):
    return [(word, WORDS.get(word, "X")) for word in text.split()]


def alike(word, other):
    return 1.0 if word == other else 0.5 if {word, other} == {"star", "ring"} else -0.25


def test_recall_of_nouns_is_of_distinct_forms_as_they_are_written():
    candidates, references = ["a star and a star", "Star"], [["ring by Ann", "a star"], ["runs"]]
    result = content_recall(candidates, references, tag)
    assert result["per_item"] == pytest.approx([1 / 3, 0], abs=1e-7) and result["without_target"] == 1
    assert result["corpus"] == pytest.approx(1 / 6, abs=1e-7)  # what has no target stays in the mean
    assert content_recall(["Star"], [["star"]], tag)["corpus"] == 0


def test_fuzzy_recall_takes_the_likest_word():
    result = content_recall(["a star", "x", "runs"], [["ring star Ann"], ["ring"], ["ran"]], tag, similarity=alike)
    assert result["per_item"] == pytest.approx([(0.5 + 1 - 0.25) / 3, 0, 0], abs=1e-7)
    assert content_recall(["runs"], [["ran"]], tag, "verb", alike)["corpus"] == pytest.approx(-0.25, abs=1e-7)


def test_a_missing_tagger_is_named_with_its_extra():
    with pytest.raises((ImportError, ValueError), match=r"pip install .*spacy|python -m spacy download no-such-model"):
        spacy_tools("no-such-model")


def same_words(candidates, references):
    return [float(candidate in refs) for candidate, refs in zip(candidates, references, strict=True)]


def test_boxes_that_overlap_become_one_with_all_captions():
    boxes = np.array([[0, 0, 99, 99], [0, 0, 99, 89], [0, 0, 99, 79], [200, 200, 250, 250]], float)
    assert merge_boxes(boxes) == [[0, 1, 2], [3]]
    # The middle one has most neighbours: 1.0 to 0.7 of three steps.
    steps = np.array([[0, 0, 99, 99], [0, 0, 99, 79], [0, 0, 99, 59]], float)
    assert merge_boxes(steps) == [[0, 1, 2]]
    assert merge_boxes(np.array([[0, 0, 99, 99], [0, 0, 99, 59]], float)) == [[0], [1]]


def test_dense_captions_need_place_and_words():
    truth = np.array([[0, 0, 99, 99], [200, 0, 299, 99]], float)
    image = DenseImage(
        boxes=np.array([[0, 0, 99, 99], [0, 0, 99, 98], [200, 0, 299, 49], [500, 500, 520, 520]], float),
        captions=["star", "star", "disc", "star"],
        scores=[0.9, 0.8, 0.7, 0.95],
        true_boxes=truth,
        true_captions=["star", "ring"],
    )
    result = dense_map([image], same_words)
    # By confidence: one that is nowhere, the star, its double, and half of the ring with the wrong word.
    assert result["ap"][0.3, 0.0] == pytest.approx(0.5 * 51 / 101)
    boxes = [(0.5 * 101 / 101) if iou <= 0.5 else 0.5 * 51 / 101 for iou in (0.3, 0.4, 0.5, 0.6, 0.7)]
    assert result["detection_map"] == pytest.approx(np.mean(boxes))


def test_a_language_score_must_be_above_its_threshold():
    image = DenseImage(np.array([[0, 0, 9, 9.0]]), ["x"], [1.0], np.array([[0, 0, 9, 9.0]]), ["x"])
    result = dense_map([image], lambda said, refs: [0.25])
    assert result["ap"][0.7, 0.2] == 1 and result["ap"][0.7, 0.25] == 0


def test_average_precision_counts_a_recall_that_is_just_reached():
    right = np.array([True] * 7)
    assert average_precision(right, 10) == pytest.approx(71 / 101)


def test_an_image_may_have_no_detection_but_not_all_no_truth():
    empty, box = np.zeros((0, 4)), np.array([[0, 0, 9, 9.0]])
    nothing, missed = DenseImage(box, ["a"], [0.5], empty, []), DenseImage(empty, [], [], box, ["a"])
    assert dense_map([nothing, missed], same_words)["map"] == 0
    with pytest.raises(ValueError, match="no image has a ground-truth box"):
        dense_map([nothing], same_words)
    with pytest.raises(ValueError, match="1 boxes, 0 captions and 1 scores"):
        dense_map([DenseImage(box, [], [0.5], box, ["a"])], same_words)


def test_a_spacy_pipeline_of_a_folder_tags_and_likens(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    ruler = pipeline.add_pipe("attribute_ruler")
    for word, part in (("Star", "NOUN"), ("ring", "NOUN"), ("glows", "VERB")):
        ruler.add([[{"ORTH": word}]], {"POS": part})
    for word, vector in (("Star", [1.0, 0.0]), ("ring", [3.0, 3.0])):
        pipeline.vocab.set_vector(word, np.array(vector, "float32"))
    pipeline.to_disk(tmp_path / "pipeline")
    tagger, similarity = spacy_tools(str(tmp_path / "pipeline"))
    assert tagger("Star glows") == [("Star", "NOUN"), ("glows", "VERB")]
    assert similarity("Star", "ring") == pytest.approx(1 / math.sqrt(2)) and similarity("Star", "none") == 0
    result = content_recall(["a Star"], [["ring"]], tagger, similarity=similarity)
    assert result["corpus"] == pytest.approx(1 / math.sqrt(2), abs=1e-6)
