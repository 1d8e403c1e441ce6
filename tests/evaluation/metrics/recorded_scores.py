"""Recorded scores and tokens of the reference tools; see the provenance inside the files."""

import json
from pathlib import Path


FOLDER = Path(__file__).parents[2] / "fixtures"


def recorded():
    """The items and scores of caption_metrics.json."""
    values = json.loads((FOLDER / "caption_metrics.json").read_text("utf-8"))
    return values["items"], values["scores"]


def given_tokens(items):
    """The reference tokenizer's tokens of candidates and references."""
    candidates = [item["ptb_candidate"].split() for item in items]
    return candidates, [[text.split() for text in item["ptb_references"]] for item in items]


def coco_items(shared):
    """A thousand captions of COCO with their references; skips where they are not at hand."""
    return json.loads(shared("fixtures/coco_fakecap/items.json").read_text("utf-8"))["items"]
