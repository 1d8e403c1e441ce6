"""A small convolutional branch beside SAM's image encoder, for small models that see few pictures."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_sca import ScaConfig


class ScaDetailEncoder(nn.Module):
    """Convolutions on the pixels, whose output is added to SAM's image embeddings.

    A transformer on patches learns what fine strokes mean from very many pictures; convolutions need few (compare
    "Early convolutions help transformers see better", arXiv 2106.14881). The paper of SCA has no such branch. A new
    one adds nothing: its last layer is zero.

    Its normalisation has the statistics of the pictures that it was taught on before (`sca_hf.training.details`), in
    training mode too: what is said of an image does not depend on those beside it. While `learns_statistics` is set,
    it takes those of the batch and keeps count.
    """

    learns_statistics = False

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        widths, vision = list(config.detail_widths or ()), config.sam_config.vision_config
        self.stem = nn.Conv2d(vision.num_channels, widths[0], 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after) for before, after in pairwise(widths)
        )
        self.projection = nn.Conv2d(widths[-1], vision.output_channels, 1)

    def init_convolution(self, convolution: nn.Conv2d) -> None:
        """Begin anew: at random, but for the last one, which adds nothing."""
        if convolution is self.projection:
            init.zeros_(convolution.weight)
            init.zeros_(convolution.bias)
        else:
            init.kaiming_normal_(convolution.weight, nonlinearity="relu")

    def train(self, mode: bool = True) -> "ScaDetailEncoder":
        """Set training mode, but for normalisation that learns no statistics."""
        super().train(mode)
        if not self.learns_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised pixels to what is added to SAM's embeddings, (B, C, h, w)."""
        return self.projection(self.features(pixel_values))

    def features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised pixels to (B, width of the last stage, h, w)."""
        features = F.relu(self.stem_norm(self.stem(pixel_values.to(self.stem.weight.dtype))))
        for block in self.blocks:
            features = block(features)
        return features


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions that halve the picture, beside one that only projects it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride=2, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(after)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(features)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut_norm(self.shortcut(features)))


__all__ = ["ScaDetailEncoder"]
