"""Scores of boxes and masks: average precision of dense captioning (DenseCap, arXiv 1511.07571), overlap of masks.

The average precision counts boxes and captions at once; the overlaps say how well predicted masks fit, and how well a
model knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from .results import MetricResult, Sums, mean_result, ratio


IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
LANGUAGE_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)
_MERGE_IOU = 0.7
# N captions and N lists of references to N scores; only METEOR 1.5 gives numbers that compare with published ones.
LanguageScorer = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]


@dataclass(frozen=True)
class DenseImage:
    """What was detected in an image, and what is there.

    boxes: (D, 4) found, xyxy pixels; captions: D texts; scores: D confidences.
    true_boxes: (G, 4); true_captions: G texts.
    """

    boxes: np.ndarray
    captions: Sequence[str]
    scores: Sequence[float]
    true_boxes: np.ndarray
    true_captions: Sequence[str]


class DenseResult(TypedDict):
    """mAP over 30 pairs of thresholds, mAP of boxes alone over 5, and the AP of each (IoU, language) threshold."""

    map: float
    detection_map: float
    ap: dict[tuple[float, float], float]


def dense_map(images: Sequence[DenseImage], scorer: LanguageScorer) -> DenseResult:
    """Scores dense captioning, 0 to 1.

    Per image, true boxes that overlap by 0.7 become one (their mean, with all their captions). Each detection belongs
    to the merged box that it overlaps most, and only the most confident of a box can be right: where its IoU reaches a
    threshold and its language score is above another.

    Args:
        images: The images, of which at least one has a true box.
        scorer: Scores captions against references; it is called once.
    """
    matched = [_match(image) for image in images]
    total = sum(count for *_, count in matched)
    if not total:
        raise ValueError("there is nothing to score: no image has a ground-truth box")
    confidence = np.concatenate([np.asarray(image.scores, float) for image in images])
    order = np.argsort(-confidence, kind="stable")
    overlap = np.concatenate([m[0] for m in matched])[order]
    first = np.concatenate([m[1] for m in matched])[order]
    said = [caption for image in images for caption in image.captions]
    groups = [group for m in matched for group in m[2]]
    known = [k for k in range(len(said)) if groups[k]]
    language = np.zeros(len(said))
    if known:
        language[known] = scorer([said[k] for k in known], [groups[k] for k in known])
    language = language[order]
    ap = {
        (iou, minimum): average_precision(first & (overlap >= iou) & (language > minimum), total)
        for iou in IOU_THRESHOLDS
        for minimum in LANGUAGE_THRESHOLDS
    }
    boxes = [average_precision(first & (overlap >= iou), total) for iou in IOU_THRESHOLDS]
    return {"map": float(np.mean(list(ap.values()))), "detection_map": float(np.mean(boxes)), "ap": ap}


def average_precision(right: np.ndarray, total: int) -> float:
    """Mean over the recalls 0, 0.01 .. 1 of the best precision at that recall or above.

    Args:
        right: (D,) bool, detections by descending confidence.
        total: how many there are to find.
    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # beyond the last recall there is none
    # In whole numbers, so that a recall of 0.7 is not less than 0.7.
    return float(best[np.searchsorted(100 * hits, np.arange(101) * total)].mean())


def merge_boxes(boxes: np.ndarray) -> list[list[int]]:
    """Groups boxes that overlap: repeatedly the one with most neighbors, together with these; the first of equals."""
    near = box_ious(boxes, boxes) >= _MERGE_IOU
    left, groups = np.ones(len(boxes), bool), []
    while left.any():
        counts = (near & left).sum(1) * left
        group = near[int(counts.argmax())] & left
        groups.append(np.flatnonzero(group).tolist())
        left &= ~group
    return groups


def box_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, 4) and (B, 4) xyxy to (A, B); the far pixels belong to the boxes, as in the original."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low + 1, 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2] + 1).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def _match(image: DenseImage) -> tuple[np.ndarray, np.ndarray, list[list[str]], int]:
    """Returns each detection's IoU, whether it is the first of its box, the captions there; and how many boxes."""
    truth = np.asarray(image.true_boxes, float).reshape(-1, 4)
    found = np.asarray(image.boxes, float).reshape(-1, 4)
    counts = (len(found), len(image.captions), len(image.scores))
    if len(set(counts)) > 1 or len(truth) != len(image.true_captions):
        raise ValueError(
            f"an image has {counts[0]} boxes, {counts[1]} captions and {counts[2]} scores; "
            f"{len(truth)} true boxes and {len(image.true_captions)} true captions"
        )
    groups = merge_boxes(truth)
    overlap, first = np.zeros(len(found)), np.zeros(len(found), bool)
    captions: list[list[str]] = [[] for _ in found]
    if not groups:
        return overlap, first, captions, 0
    ious = box_ious(found, np.stack([truth[group].mean(0) for group in groups]))
    taken: set[int] = set()
    for k in np.argsort(-np.asarray(image.scores, float), kind="stable"):
        best = int(ious[k].argmax())
        overlap[k] = ious[k, best]
        # What overlaps nothing belongs to no box, and takes none from others.
        if overlap[k] > 0:
            first[k] = best not in taken
            taken.add(best)
            captions[k] = [image.true_captions[index] for index in groups[best]]
    return overlap, first, captions, len(groups)


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
        """Returns each region's candidate with the best predicted IoU, the first of equals."""
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
