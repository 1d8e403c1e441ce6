"""The tokenizer against recorded tokens of the Java one, and what it must do with white space."""

import json

import pytest
from recorded_scores import FOLDER, coco_items, recorded

from sca_hf.evaluation.metrics.tokenizer import normalize_spaces, ptb_tokenize


def shares_equal(pairs):
    return sum(ptb_tokenize(text) == tokens.split() for text, tokens in pairs) / len(pairs)


def pairs_of(items):
    pairs = [(item["candidate"], item["ptb_candidate"]) for item in items]
    return pairs + [pair for item in items for pair in zip(item["references"], item["ptb_references"], strict=True)]


@pytest.mark.parametrize("item", json.loads((FOLDER / "ptb_tokens.json").read_text("utf-8"))["items"])
def test_recorded_tokens(item):
    assert ptb_tokenize(item["text"]) == item["tokens"].split()


def test_tokens_of_whole_captions(shared):
    assert shares_equal(pairs_of(recorded()[0])) == 1
    assert shares_equal(pairs_of(coco_items(shared))) >= 0.998


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("sitting in the sun.", "sitting in the sun"),
        ("on elm rd.", "on elm rd."),
        ("he said no. no. 5 it is", "he said no no. 5 it is"),
        ("AT&T, b&w", "at&t b & w"),
        ("7'2\" tall, 80's hair, the '90s", "7 2 tall 80 's hair the '90s"),
        ("they're I'd've y'all", "they 're i 'd 've y' all"),
        ("10:30am, 24/7, 555-1234, 50-50", "10:30 am 24/7 555-1234 50-50"),
        ("1 1/2 cups, ½ cup", "1\xa01/2 cups 1/2 cup"),
        ("-5 degrees, 2+2", "-5 degrees 2 +2"),
        ("a ❤️ b 😀", "a ❤ b"),
        ("stop!!! a...b .. ---", "stop !!! a. b"),
        ("&amp; c++ :) #tag", "& c++ :-rrb- #tag"),
    ],
)
def test_tokens_that_the_java_program_gives_too(text, tokens):
    assert ptb_tokenize(text) == tokens.split(" ")


@pytest.mark.parametrize("space", ["\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029", "\u00a0", "\r\n", "\t \n"])
def test_any_white_space_is_a_space(space):
    assert ptb_tokenize(f"{space}a red{space}star{space}") == ["a", "red", "star"]
    assert normalize_spaces(f" a{space}b ") == "a b"


def test_nothing_to_say_is_no_token():
    assert [ptb_tokenize(text) for text in ("", " ", "...", '"."')] == [[]] * 4
