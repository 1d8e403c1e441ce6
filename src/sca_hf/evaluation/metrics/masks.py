"""How well predicted masks fit, and how well a model knows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .results import MetricResult, Sums, mean_result, ratio


@dataclass(frozen=True)
class MaskOverlaps:
    """Pixels of the candidates of N regions against their true masks; M candidates each, ragged.

    intersection, union: N arrays (M,) of pixels on the original image's grid.
    iou_scores: N arrays (M,), predicted; None where no region has them. A region with one candidate needs none.
    """

    intersection: Sequence[np.ndarray]
    union: Sequence[np.ndarray]
    iou_scores: Sequence[np.ndarray] | None = None

    @classmethod
    def of(
        cls,
        candidates: Sequence[Sequence[np.ndarray]],
        references: Sequence[np.ndarray],
        iou_scores: Sequence[Sequence[float]] | None = None,
    ) -> MaskOverlaps:
        """Counts pixels.

        Args:
            candidates: N lists of one or more (height, width) bool masks: logits above 0, on the original's grid.
            references: N true masks.
            iou_scores: N lists, one predicted IoU per candidate.
        """
        if not len(candidates) or len(candidates) != len(references):
            raise ValueError(f"there are {len(candidates)} lists of masks and {len(references)} true masks")
        counts = [_pixels(index, c, r) for index, (c, r) in enumerate(zip(candidates, references, strict=True))]
        scores = None if iou_scores is None else [np.asarray(s, float) for s in iou_scores]
        return cls([i for i, _ in counts], [u for _, u in counts], scores)

    def __post_init__(self) -> None:
        if self.iou_scores is None:
            wrong = next((k for k, counts in enumerate(self.union) if len(counts) != 1), None)
            if wrong is not None:
                raise ValueError(f"region {wrong} has {len(self.union[wrong])} masks and no iou_scores to choose by")
            return
        for k, (counts, scores) in enumerate(zip(self.union, self.iou_scores, strict=True)):
            if len(counts) != len(scores):
                raise ValueError(f"region {k} has {len(counts)} masks and {len(scores)} iou_scores")

    def ious(self) -> list[np.ndarray]:
        """N arrays (M,); 1 where both masks are empty."""
        return [np.where(u > 0, i / np.maximum(u, 1), 1.0) for i, u in zip(self.intersection, self.union, strict=True)]

    def chosen(self) -> list[int]:
        """Of each region the candidate with the best predicted IoU, the first of equals."""
        if self.iou_scores is None:
            return [0] * len(self.union)
        return [int(scores.argmax()) for scores in self.iou_scores]


def mask_miou(overlaps: MaskOverlaps) -> MetricResult:
    """Mean IoU over regions of the candidate with the best predicted IoU."""
    return mean_result([ious[k] for ious, k in zip(overlaps.ious(), overlaps.chosen(), strict=True)])


def mask_miou_oracle(overlaps: MaskOverlaps) -> MetricResult:
    """Mean IoU over regions of the candidate that fits best: what choosing without a mistake would give."""
    return mean_result([ious.max() for ious in overlaps.ious()])


def mask_ciou(overlaps: MaskOverlaps) -> MetricResult:
    """Summed intersections over summed unions, candidates chosen as for the mIoU; per item the plain IoU."""
    return {"corpus": mask_ciou_sums(overlaps).corpus(), "per_item": mask_miou(overlaps)["per_item"]}


def mask_ciou_sums(overlaps: MaskOverlaps) -> Sums:
    """The same as sums; not a number where all masks are empty."""
    counts = zip(overlaps.intersection, overlaps.union, overlaps.chosen(), strict=True)
    return Sums(np.array([(i[k], u[k]) for i, u, k in counts], float), ratio)


def iou_error(overlaps: MaskOverlaps) -> MetricResult:
    """Mean over regions of how far the best predicted IoU is from the IoU that its mask reaches."""
    if overlaps.iou_scores is None:
        raise ValueError("the error of predicted IoU needs iou_scores")
    chosen = zip(overlaps.ious(), overlaps.iou_scores, overlaps.chosen(), strict=True)
    return mean_result([abs(ious[k] - scores[k]) for ious, scores, k in chosen])


def _pixels(index: int, candidates: Sequence[np.ndarray], reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not len(candidates):
        raise ValueError(f"region {index} has no mask")
    for mask in candidates:
        if mask.shape != reference.shape:
            raise ValueError(f"region {index}: a mask is of shape {mask.shape}, its true mask of {reference.shape}")
    stack, reference = np.asarray(candidates, bool), np.asarray(reference, bool)
    return (stack & reference).sum((1, 2)), (stack | reference).sum((1, 2))
