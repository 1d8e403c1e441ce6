"""What can be asked of self-training, by name; a file of its own, so that a command line can list it without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


# How a region is shown; the first is how it is captioned, the others are what it is compared with.
VIEWS = ("box", "point", "mask", "beams", "flip", "smaller")
# See `judges.py`.
JUDGES = ("score", "agreement", "listener", "necessity", "stability")
# See [`SelectionSettings`].
CLASSES = ("word", "caption", "none")


@dataclass(frozen=True)
class SelectionSettings:
    """What is kept.

    Attributes:
        coverage: The share of each class that is kept, 0 to 1.
        class_by: What a class is: the rarest `word` of a caption among those that occur in `min_class` captions at
            least (captions without one are a class together), the whole `caption`, or `none`: all are one.
        min_class: See `class_by`.
        max_class: How many labels of a class are kept at most; None: any number.
        max_per_picture: How many labels of a picture are kept at most.
        thresholds: The smallest value of a judge by its name; a region of which the judge says nothing passes.
        weights: What a judge counts in the mean of the ranks, by its name; 1 where nothing is said, 0 not at all.
    """

    coverage: float = 0.5
    class_by: str = "word"
    min_class: int = 10
    max_class: int | None = None
    max_per_picture: int = 4
    thresholds: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.coverage <= 1:
            raise ValueError(f"coverage is {self.coverage}, expected more than 0 and at most 1.")
        if self.class_by not in CLASSES:
            raise ValueError(f"class_by is {self.class_by!r}, expected one of {', '.join(CLASSES)}.")
        for name in ("min_class", "max_class", "max_per_picture"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1.")
        if any(weight < 0 or not math.isfinite(weight) for weight in self.weights.values()):
            raise ValueError(f"weights are {dict(self.weights)}, expected numbers from 0 on.")

    def check_judges(self, judges: Sequence[str]) -> None:
        """Raises where a threshold or a weight is of a judge that was not asked."""
        for name, values in (("thresholds", self.thresholds), ("weights", self.weights)):
            if unknown := sorted(set(values) - set(judges)):
                raise ValueError(f"{name} names {unknown[0]}, but the judges are {', '.join(judges)}.")
