"""The mask loss: a mean over regions, which leaves regions without a true mask alone."""

import pytest
import torch

from sca_hf.modeling.losses_sca import mask_losses, mean_over_regions


NAN = float("nan")


def mask_loss(masks, ious, labels, kind="sam"):
    return mean_over_regions(mask_losses(masks, ious, labels, kind), ~labels[:, 0, 0].isnan(), None)


@pytest.fixture
def predictions():
    draw = torch.Generator().manual_seed(0)
    masks = torch.randn(4, 3, 8, 8, generator=draw, requires_grad=True)
    ious = torch.rand(4, 3, generator=draw, requires_grad=True)
    return masks, ious, (torch.rand(4, 8, 8, generator=draw) > 0.5).float()


def test_it_is_the_mean_over_regions_whose_mask_is_known(predictions):
    masks, ious, labels = predictions
    whole = mask_loss(masks, ious, labels)
    torch.testing.assert_close(
        whole, sum(mask_loss(masks[k : k + 1], ious[k : k + 1], labels[k : k + 1]) for k in range(4)) / 4
    )
    labels[1] = labels[3] = NAN
    torch.testing.assert_close(mask_loss(masks, ious, labels), mask_loss(masks[::2], ious[::2], labels[::2]))


def test_a_region_without_a_mask_is_not_trained(predictions):
    masks, ious, labels = predictions
    labels[1] = NAN
    mask_loss(masks, ious, labels).backward()
    for gradient in (masks.grad, ious.grad):
        moved = gradient.flatten(1).abs().sum(1) > 0
        assert gradient.isfinite().all() and moved.tolist() == [True, False, True, True]


def test_no_mask_at_all_is_no_loss(predictions):
    masks, ious, labels = predictions
    loss = mask_loss(masks, ious, torch.full_like(labels, NAN))
    loss.backward()
    assert loss == 0 and not masks.grad.any()
