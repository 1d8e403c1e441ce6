"""Left and right in captions of mirrored and turned pictures: swapped where that is safe, dropped elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sca_hf.data.sides import mirrored_text, turned_text


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("a plain blue triangle", "a plain blue triangle"),
        ("man on the right", "man on the left"),
        ("a small striped red circle left of the green box", "a small striped red circle right of the green box"),
        ("Left wing of a bird, facing right.", "Right wing of a bird, facing left."),
        ("DO NOT TURN LEFT", "DO NOT TURN RIGHT"),
        ("no right turn", "no left turn"),
        ("keep right", "keep left"),
        ("left", "right"),
        ("left zebra", "right zebra"),
        ("the dog on the left in front", "the dog on the right in front"),
        ("bottom-left corner", "bottom-right corner"),
        ("a left-centre seat", "a right-centre seat"),
        ("the leftmost of three cups", "the rightmost of three cups"),
        ("her right-hand glove", "her left-hand glove"),
        ("arrows to the left and right", "arrows to the right and left"),
        ("an arrow going clockwise", "an arrow going counterclockwise"),
        ("an upright bright copyright leftover", "an upright bright copyright leftover"),
        ("RBC", "RBC"),
        ("a man watching TV on a couch", "a man watching TV on a couch"),
        ("the woman's t-shirt", "the woman's t-shirt"),
        ("", ""),
    ],
)
def test_sides_are_swapped(text, mirrored):
    assert mirrored_text(text) == mirrored


@pytest.mark.parametrize(
    "text",
    [
        "a bike that is right there",
        "right now",
        "right away",
        "it is all right",
        "pizza left over",
        "left over pizza",
        "a bag left behind",
        "two slices left",
        "zebra left",
        "someone left the door open",
        "what is left of the cake",
        "at the right time",
        "the right way up",
        "two boards at right angles",
        "a left-over pizza",
        "a right-angled triangle",
        "speed limit 30",
        "the letter on the wall",
        "a capital b",
        'a sign that says "no"',
        "a red STOP sign",
        "a clock on the left",
        "it is five o'clock",
        "the word open",
        "voiture à gauche",
        "the starboard engine",
    ],
)
def test_what_cannot_be_swapped_safely_is_dropped(text):
    assert mirrored_text(text) is None


SOME_WORDS = "on the left right Left RIGHT and of a man turn hand leftmost clockwise top-right facing"
WORDS = st.sampled_from(SOME_WORDS.split(" "))


@given(st.lists(WORDS, max_size=8).map(" ".join))
def test_mirrored_twice_a_text_is_itself(text):
    mirrored = mirrored_text(text)
    assert mirrored is None or mirrored_text(mirrored) == text


@pytest.mark.parametrize("text", ["a red ball", "10 of hearts", "an arrow going clockwise", "upset downtown lefty"])
def test_texts_without_a_direction_are_true_of_a_turned_picture(text):
    assert turned_text(text) == text


@pytest.mark.parametrize(
    "text", ["the Top shelf", "a cup under a table", "left wing", "bottom-left corner", "rightmost"]
)
def test_texts_with_a_direction_are_not(text):
    assert turned_text(text) is None
