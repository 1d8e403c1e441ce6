"""Splits data sets by image, so that no image is both learned from and tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


def hold_out(datasets: Sequence[Dataset], share: float, seed: int = 0) -> tuple[list[Dataset], list[Dataset]]:
    """Splits each data set into what to train on and what to keep out.

    Which images are kept out depends on their `image_id` and the seed alone, not on the order of the records; an image
    that several sets have is on the same side in all of them.

    Args:
        datasets: region records, map-style.
        share: of the images of each set to keep out, between 0 and 1; at least one image goes to each side.

    Returns:
        The training sets and the sets kept out, in the order of `datasets`.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1.")
    identities = [[str(name) for name in dataset["image_id"]] for dataset in datasets]
    kept_out: list[set[str]] = []
    for place, names in enumerate(identities):
        images = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        if len(images) < 2:
            raise ValueError(f"data set {place} has {len(images)} image: there is nothing to split.")
        count = min(max(1, round(share * len(images))), len(images) - 1)
        kept_out.append(set(images[:count]))
    everywhere = set().union(*kept_out)
    train, test = [], []
    for place, (dataset, names) in enumerate(zip(datasets, identities, strict=True)):
        train.append(dataset.select([i for i, name in enumerate(names) if name not in everywhere]))
        test.append(dataset.select([i for i, name in enumerate(names) if name in kept_out[place]]))
        if not len(train[-1]):
            raise ValueError(f"all images of data set {place} are kept out of training for the sake of the others.")
    return train, test
