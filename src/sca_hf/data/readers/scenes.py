"""Reads the synthetic data set `scenes`, which is drawn rather than stored."""

from __future__ import annotations

from collections.abc import Iterator

from ..scenes import SPLIT_STARTS, scenes
from .sources import Record, choice


def read_scenes(split: str = "train", count: int = 1000, start: int = 0, task: str = "caption") -> Iterator[Record]:
    """Yields the records of so many scenes; those without an object that can be described have no regions.

    Args:
        split: train, validation or test.
        count: how many scenes.
        start: the number of the first.
        task: "caption" for their free captions, "recognition" for texture, color and shape.
    """
    choice(split, "split", list(SPLIT_STARTS))
    for scene in scenes(split, count, start):
        yield {**scene.to_record(), "task": task}
