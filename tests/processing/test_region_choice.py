import numpy as np
import pytest
import torch

from sca_hf.processing import mask_generation_sca
from sca_hf.processing.mask_generation_sca import (
    box_iou,
    box_nms,
    build_point_grid,
    mask_boxes,
    mask_iou,
    mask_nms,
    select_masks,
    stability_scores,
)


def plain_iou(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union else 0.0


def plain_nms(boxes, scores, threshold):
    order, kept = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    for i in order:
        if all(plain_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def random_boxes(count, seed):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * 20
    return torch.cat([corners.amin(1), corners.amax(1)], 1).round()  # whole pixels: equal and empty boxes happen


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_box_nms_is_the_plain_one(seed, chunk, monkeypatch):
    monkeypatch.setattr(mask_generation_sca, "_CHUNK", chunk)
    boxes, scores = random_boxes(60, seed), torch.rand(60, generator=torch.Generator().manual_seed(seed))
    scores[10:20] = 0.5
    kept = box_nms(boxes, scores, 0.3)
    assert kept.tolist() == plain_nms(boxes.tolist(), scores.tolist(), 0.3) and 1 < len(kept) < 60


def test_box_iou_is_the_plain_one_and_no_boxes_are_fine():
    boxes, others = random_boxes(20, 0), random_boxes(7, 1)
    plain = [[plain_iou(a, b) for b in others.tolist()] for a in boxes.tolist()]
    assert torch.allclose(box_iou(boxes, others), torch.tensor(plain))
    assert box_nms(torch.zeros(0, 4), torch.zeros(0), 0.5).shape == (0,)


def test_mask_nms_looks_at_pixels_where_boxes_would_agree():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0], masks[1] = torch.eye(8).bool(), torch.eye(8).bool().flip(1)
    masks[2] = masks[0]
    masks[2, 0, 1] = True
    scores = torch.tensor([0.9, 0.8, 0.7])
    assert box_nms(mask_boxes(masks), scores, 0.5).tolist() == [0]
    assert mask_nms(masks, scores, 0.5).tolist() == [0, 1]
    assert mask_iou(masks, masks)[0].tolist() == pytest.approx([1, 0, 8 / 9])


def test_mask_boxes_run_along_pixel_edges():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 2, 3] = True
    masks[1] = True
    assert mask_boxes(masks).tolist() == [[3, 2, 4, 3], [0, 0, 7, 5], [0, 0, 0, 0]]


def test_stability_is_the_iou_between_two_thresholds():
    logits = torch.tensor([[[3.0, 0.5], [-0.5, -3.0]], [[-9.0, -9.0], [-9.0, -9.0]]])
    assert stability_scores(logits).tolist() == pytest.approx([1 / 3, 0])


def test_grid_points_are_cell_centres_row_by_row():
    assert build_point_grid((10, 40), 2).tolist() == [[10, 2.5], [30, 2.5], [10, 7.5], [30, 7.5]]
    with pytest.raises(ValueError, match="at least 1"):
        build_point_grid((10, 40), 0)


def blob(x1, y1, x2, y2, inside=9.0):
    logits = torch.full((20, 20), -9.0)
    logits[y1:y2, x1:x2] = inside
    return logits


def test_selection_drops_poor_unstable_small_large_and_doubled_masks():
    logits = torch.stack(
        [
            blob(0, 0, 10, 10),
            blob(0, 0, 10, 9),  # the first one again
            blob(10, 10, 20, 20),
            blob(10, 0, 20, 10),  # poor
            blob(0, 10, 10, 20, inside=0.5),  # unstable
            blob(5, 5, 6, 6),  # small
            blob(0, 0, 20, 20),  # large
            blob(0, 0, 0, 0),  # empty
        ]
    )
    ious = torch.tensor([0.95, 0.93, 0.97, 0.5, 0.99, 0.99, 0.99, 0.99])
    limits = dict(min_area=0.01, max_area=0.9)
    assert select_masks(logits, ious, **limits).tolist() == [2, 0]
    assert select_masks(logits, ious, **limits, box_nms_thresh=1.0).tolist() == [2, 0, 1]
    assert select_masks(logits, ious, min_area=0.01, max_area=1.0).tolist() == [6, 2, 0]
    assert 4 in select_masks(logits, ious, **limits, stability_score_thresh=0.0)
    assert select_masks(logits, ious, pred_iou_thresh=0.999).tolist() == []


def test_selection_leaves_its_inputs_alone():
    logits, ious = torch.stack([blob(0, 0, 10, 10)]), torch.tensor([0.9])
    before = logits.clone()
    select_masks(logits.requires_grad_(), ious.requires_grad_())
    assert torch.equal(logits, before) and np.isclose(ious.item(), 0.9)
