"""CIDEr-D, BLEU and ROUGE-L equal what the reference tool gave for the same tokens, per corpus and per pair."""

import pytest
from recorded_scores import coco_items, given_tokens, recorded

from sca_hf.evaluation.metrics import bleu, cider_d, ptb_tokenize, ptb_tokenize_all, rouge_l


TOLERANCES = {"cider_d": 1e-8, "rouge_l": 1e-9, **{f"bleu{k}": 1e-8 for k in range(1, 5)}}


def scores(candidates, references):
    found = {"cider_d": cider_d(candidates, references), "rouge_l": rouge_l(candidates, references)}
    return found | {f"bleu{k}": bleu(candidates, references)[f"BLEU@{k}"] for k in range(1, 5)}


@pytest.mark.parametrize("name", TOLERANCES)
def test_scores_of_given_tokens_equal_the_recorded_ones(name):
    items, expected = recorded()
    found, wanted = scores(*given_tokens(items))[name], expected["ptb"][name]
    assert found["corpus"] == pytest.approx(wanted["corpus"], abs=TOLERANCES[name], rel=0)
    assert found["per_item"] == pytest.approx(wanted["per_item"], abs=TOLERANCES[name], rel=0)


def test_published_scores_of_coco_captions(shared):
    found = scores(*given_tokens(coco_items(shared)))
    published = {"bleu1": 0.579, "bleu2": 0.404, "bleu3": 0.279, "bleu4": 0.191, "rouge_l": 0.396, "cider_d": 0.600}
    assert {name: round(found[name]["corpus"], 3) for name in published} == published


@pytest.mark.parametrize("source", ["recorded", "coco"])
def test_our_own_tokens_score_the_same(source, shared):
    items = recorded()[0] if source == "recorded" else coco_items(shared)
    wanted = scores(*given_tokens(items))
    candidates = [ptb_tokenize(item["candidate"]) for item in items]
    found = scores(candidates, [ptb_tokenize_all(item["references"]) for item in items])
    for name in TOLERANCES:
        margin = 0.002 if name == "cider_d" else 0.0005
        assert found[name]["corpus"] == pytest.approx(wanted[name]["corpus"], abs=margin, rel=0), name
