"""A small convolutional look at each region's pixels beside SAM's, for small models that learn from few images."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_sca import ScaConfig
from .placement_sca import execution_device
from .segmentation_sca import best_masks, per_region


class ScaDetailEncoder(nn.Module):
    """Convolutions on the pixels; their mean over a region is added to its caption queries after the mixer.

    A transformer on patches learns what fine strokes mean from very many images; convolutions need few (compare
    "Early convolutions help transformers see better", arXiv 2106.14881). The paper of SCA has no such branch. SAM, and
    with it every mask, stays what it is, and a new branch adds nothing: its last layer is zero.

    Its normalization has the statistics of the images that it was trained on
    (`sca_hf.training.detail_pretraining`), in training mode too: what is said of an image does not depend on those
    beside it. While `learns_statistics` is set, it takes those of the batch and keeps count.
    """

    learns_statistics = False

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        widths, channels = list(config.detail_widths or ()), config.image_frame.channels
        self.stem = nn.Conv2d(channels, widths[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = FrozenBatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(ResidualBlock(before, after) for before, after in pairwise(widths))
        self.projection = nn.Linear(widths[-1], config.mixer_config.hidden_size)

    def init_weights(self, module: nn.Module) -> bool:
        """Begin a convolution at random, or the last layer such that it adds nothing; False for other modules."""
        if module is self.projection:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            return False
        return True

    def train(self, mode: bool = True) -> "ScaDetailEncoder":
        """Set training mode, but for normalization that learns no statistics."""
        super().train(mode)
        if not self.learns_statistics:
            for module in self.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalized pixels to features (B, W, h, w) on the grid of SAM's embeddings."""
        features = F.relu(self.stem_norm(self.stem(pixel_values.to(self.stem.weight.dtype))))
        for block in self.blocks:
            features = block(features)
        return features

    def describe(self, features: torch.Tensor, image_index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What is added to the queries of n regions, (n, C).

        Args:
            features: (B, W, h, w).
            image_index: (n,) image of each region.
            weights: (n, h, w), how much each cell is the region's; they sum to 1.
        """
        return self.projection(region_means(features, image_index, weights).to(execution_device(self.projection)))


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Normalization by fixed statistics, in the precision of its weights.

    FSDP hands out weights in half precision and leaves statistics, which are none, as they are.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            return super().forward(features)
        mean, variance = (values.to(self.weight.dtype) for values in (self.running_mean, self.running_var))
        return F.batch_norm(features, mean, variance, self.weight, self.bias, eps=self.eps)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions that halve the image, beside one that only projects it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm1 = FrozenBatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = FrozenBatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride=2, bias=False)
        self.shortcut_norm = FrozenBatchNorm2d(after)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut_norm(self.shortcut(features)))


def region_means(features: torch.Tensor, image_index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Means (n, W) of features (B, W, h, w) over regions; see [`ScaDetailEncoder.describe`]."""
    cells = per_region(features.flatten(2), image_index)  # (n, W, hw)
    return torch.einsum("nk,nck->nc", weights.flatten(1).to(features.dtype), cells)


def box_weights(boxes: torch.Tensor, side: int, grid: int) -> torch.Tensor:
    """Fractions (..., grid, grid) of boxes (..., 4), xyxy in pixels of a square input, in each cell; they sum to 1.

    A box counts as at least one pixel wide.
    """
    edges = torch.arange(grid + 1, device=boxes.device, dtype=boxes.dtype) * (side / grid)
    low, high = boxes.split(2, dim=-1)  # (..., 2) each
    thin = ((1 - (high - low)) / 2).clamp(min=0)
    low, high = low - thin, high + thin
    covered = (high[..., None].minimum(edges[1:]) - low[..., None].maximum(edges[:-1])).clamp(min=0)
    weights = covered[..., 1, :, None] * covered[..., 0, None, :]
    return weights / weights.sum((-2, -1), keepdim=True).clamp(min=1e-6)


def mask_weights(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Fractions (n, h, w) of the best of mask logits (n, M, 4h, 4w), by scores (n, M), in each cell; they sum to 1."""
    weights = F.avg_pool2d(best_masks(masks, scores)[:, None].detach().sigmoid(), 4)[:, 0]
    return weights / weights.sum((-2, -1), keepdim=True).clamp(min=1e-6)


__all__ = ["ScaDetailEncoder", "box_weights", "mask_weights", "region_means"]
