"""Small pretrained convolutional encoders as the eyes of an `ScaEncoderModel`, alone or side by side.

NanoDet-g (RangiLyu, COCO's 80 classes) names and finds things; EfficientNet-Lite0 (Google, ImageNet's 1,000 classes)
knows textures and kinds. Both are published under Apache-2.0. Batch norms are folded into the convolutions, so that a
picture never depends on those beside it. The weights are converted by `experiments/photographs/towers.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .encoder_configuration_sca import IMAGENET, ScaTowersConfig


@dataclass
class ScaTowersOutput(BaseModelOutput):
    """What towers make of pictures.

    Attributes:
        last_hidden_state: (B, D, h, w), features of all towers on one grid.
        detections: (B, n, 4 + 80), what NanoDet finds around each of its cells, n = HW (1/8² + 1/16² + 1/32²) of its
            input: a box, xyxy in fractions of the picture, not clipped to it, and scores in [0, 1] of COCO's classes;
            overlapping ones are kept.
    """

    detections: torch.Tensor | None = None


# Of NanoDet, for each stride: features of the neck and of the head, and predictions.
StrideOutputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ScaTowersModel(PreTrainedModel):
    """Encoders side by side: their features of strides 8, 16 and 32 on one grid."""

    config_class = ScaTowersConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules: list[str] = []

    def __init__(self, config: ScaTowersConfig) -> None:
        super().__init__(config)
        self.towers = nn.ModuleDict({name: TOWERS[name](config) for name in config.towers})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Begin at random as convolutions do that no normalization follows."""
        if isinstance(module, nn.Conv2d | nn.Linear):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)

    def forward(self, pixel_values: torch.Tensor, output_detections: bool = False) -> ScaTowersOutput:
        """See what is there, and with `output_detections` find things.

        Args:
            pixel_values: (B, 3, H, W) normalized pixels, H and W multiples of 32 `reduction`.
            output_detections: return `detections` too.

        Raises:
            ValueError: no size of this kind, or there is no NanoDet among the towers that could find anything.
        """
        grid = tuple(size // self.config.patch_size for size in pixel_values.shape[2:])
        reduced = self._reduced(pixel_values)
        seen = {name: tower.outputs(self._seen(name, reduced)) for name, tower in self.towers.items()}
        maps = torch.cat([x for name, tower in self.towers.items() for x in tower.maps(seen[name], grid)], 1)
        found = self._tower("nanodet_g").detections(seen["nanodet_g"]) if output_detections else None
        return ScaTowersOutput(last_hidden_state=maps, detections=found)

    def classify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Probabilities (B, 1000) of ImageNet's classes for whole pictures or crops (B, 3, H, W), not reduced.

        Raises:
            ValueError: the configuration has no classifier.
        """
        check_pixels(pixel_values)
        if not self.config.classifier:
            raise ValueError("these towers were saved without a classifier; convert them with classifier=True.")
        tower = self._tower("efficientnet_lite0")
        return tower.classify(self._seen("efficientnet_lite0", pixel_values)).softmax(-1)

    def _reduced(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.config.reduction > 1:
            pixel_values = F.avg_pool2d(pixel_values, self.config.reduction)
        check_pixels(pixel_values)
        return pixel_values

    def _tower(self, name: str) -> Any:
        if name not in self.towers:
            raise ValueError(f"needs the tower {name!r}, but the configuration has {self.config.towers}.")
        return self.towers[name]

    def _seen(self, name: str, pixels: torch.Tensor) -> torch.Tensor:
        """The input in the normalization of a tower; numbers instead of tensors, as a device would wait for these."""
        given = zip(self.config.image_mean, self.config.image_std, *TOWERS[name].colors, strict=True)
        channels = [
            pixels[:, index] * (std / own_std) + (mean - own_mean) / own_std
            for index, (mean, std, own_mean, own_std) in enumerate(given)
        ]
        return torch.stack(channels, 1)


class NanoDet(nn.Module):
    """NanoDet-g: a cross-stage partial backbone, a path aggregation neck without weights of its own, and a head."""

    colors = IMAGENET
    strides = (8, 16, 32)
    classes, bins = 80, 11
    # Root mean squares on photographs, fine first: whoever learns from features wants them of one size.
    neck_scales, head_scale, distance_scale, score_scale = (0.09, 0.17, 0.21), 0.85, 3.0, 0.3

    def __init__(self, config: ScaTowersConfig) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        sizes = ((32, 1, 1), (64, 2, 2), (128, 2, 2), (256, 3, 2))
        self.stages = nn.ModuleList(PartialStage(*size) for size in sizes)
        self.laterals = nn.ModuleList(nn.Conv2d(2 * size, 128, 1) for size, *_ in sizes[1:])
        self.heads = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1) for _ in self.strides)
        self.predictions = nn.ModuleList(nn.Conv2d(128, self.classes + 4 * self.bins, 1) for _ in self.strides)

    def maps(self, outputs: Sequence[StrideOutputs], grid: Sequence[int]) -> list[torch.Tensor]:
        """Maps on the grid: class scores, and of each stride neck, head, box and best score.

        Over a box's middle the mean of these class scores names things as well as NanoDet does, and no score of one
        stride does: in each cell the surest stride counts, as things differ in size.
        """
        maps, scores = [], []
        for (features, heads, predictions), scale in zip(outputs, self.neck_scales, strict=True):
            logits, sides = predictions.split([self.classes, 4 * self.bins], 1)
            # Where there is nothing logits are about -6; what is below -4 is noise.
            scores.append(to_grid((logits + 4).clamp(min=0), grid, largest=True))
            parts = (features / scale, heads / self.head_scale, self.distances(sides) / self.distance_scale)
            maps += [*(to_grid(x, grid) for x in parts), scores[-1].amax(1, keepdim=True)]
        return [torch.stack(scores).amax(0) / self.score_scale, *maps]

    def distances(self, sides: torch.Tensor) -> torch.Tensor:
        """Expected distances (B, 4, h, w) in strides to left, top, right and bottom, of predictions (B, 44, h, w)."""
        steps = torch.arange(self.bins, device=sides.device, dtype=sides.dtype)
        return torch.einsum("bskhw,k->bshw", sides.unflatten(1, (4, self.bins)).softmax(2), steps)

    def outputs(self, pixels: torch.Tensor) -> list[StrideOutputs]:
        """Features of the neck (B, 128, h, w), of the head (B, 128, h, w), and predictions (B, 124, h, w), fine first.

        Predictions are 80 class logits, and logits of 11 distances in strides to each of a box's four sides.
        """
        x, laterals = F.max_pool2d(leaky(self.stem(pixels)), 3, stride=2, padding=1), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index:
                laterals.append(self.laterals[index - 1](x))
        fine, middle, coarse = laterals
        middle = middle + to_grid(coarse, middle.shape[2:])
        fine = fine + to_grid(middle, fine.shape[2:])
        # Bilinear at half the size is the mean of four.
        middle = middle + F.avg_pool2d(fine, 2)
        coarse = coarse + F.avg_pool2d(middle, 2)
        rows = []
        for features, head, prediction in zip((fine, middle, coarse), self.heads, self.predictions, strict=True):
            hidden = leaky(head(features))
            rows.append((features, hidden, prediction(hidden)))
        return rows

    def detections(self, outputs: Sequence[StrideOutputs]) -> torch.Tensor:
        """Of [`ScaTowersOutput`], fine cells first."""
        found = []
        for *_, predictions in outputs:
            logits, sides = predictions.float().split([self.classes, 4 * self.bins], 1)
            # In cells of this stride; after the division in fractions of the picture.
            away = self.distances(sides).flatten(2).transpose(1, 2)
            rows, columns = (torch.arange(size, device=away.device) for size in predictions.shape[2:])
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            center = torch.stack([x, y], -1).flatten(0, 1) + 0.5
            boxes = torch.cat([center - away[..., :2], center + away[..., 2:]], -1)
            size = boxes.new_tensor([len(columns), len(rows)] * 2)
            found.append(torch.cat([boxes / size, logits.flatten(2).transpose(1, 2).sigmoid()], -1))
        return torch.cat(found, 1)


class PartialStage(nn.Module):
    """Residual blocks that widen by concatenation, beside their own input."""

    def __init__(self, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.entry = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)
        self.narrow = nn.ModuleList(nn.Conv2d(channels, half, 3, padding=1) for _ in range(blocks))
        self.middle = nn.ModuleList(nn.Conv2d(half, half, 3, padding=1) for _ in range(blocks))
        self.exit = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = entered = leaky(self.entry(x))
        for narrow, middle in zip(self.narrow, self.middle, strict=True):
            x = leaky(narrow(x))
            x = torch.cat([leaky(middle(x)), x], 1)
        return torch.cat([leaky(self.exit(x)), entered], 1)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: inverted bottlenecks with ReLU6, padded as TensorFlow does."""

    colors = ((0.498, 0.498, 0.498), (0.502, 0.502, 0.502))
    # Blocks of each stage: kernel, stride of the first, width, number.
    stages = (
        (3, 1, 16, 1),
        (3, 2, 24, 2),
        (5, 2, 40, 2),
        (3, 2, 80, 3),
        (5, 1, 112, 3),
        (5, 2, 192, 4),
        (3, 1, 320, 1),
    )
    # Last blocks before the picture is halved again, and the root mean square of their features on photographs.
    read = {4: 7.4, 10: 6.3, 15: 2.8}

    def __init__(self, config: ScaTowersConfig) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, stride=2)
        blocks, before = [], 32
        for index, (kernel, stride, after, count) in enumerate(self.stages):
            for number in range(count):
                blocks.append(Bottleneck(before, after, kernel, stride if number == 0 else 1, 6 if index else 1))
                before = after
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(before, 1280, 1) if config.classifier else None
        self.classifier = nn.Linear(1280, 1000) if config.classifier else None

    def maps(self, outputs: dict[int, torch.Tensor], grid: Sequence[int]) -> list[torch.Tensor]:
        """Maps of 40, 112 and 320 channels on the grid."""
        return [to_grid(x / self.read[index], grid) for index, x in outputs.items()]

    def outputs(self, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
        """Features of strides 8, 16 and 32 by the place of their block."""
        maps, x = {}, F.relu6(self.stem(pixels))
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.read:
                maps[index] = x
        return maps

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) of ImageNet's classes."""
        assert self.head is not None and self.classifier is not None
        x = F.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return self.classifier(F.relu6(self.head(x)).mean((2, 3)))


class Bottleneck(nn.Module):
    """A wide depthwise convolution between two of 1 x 1, added to its input where both have the same shape."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, times: int) -> None:
        super().__init__()
        inner = before * times
        self.expand = nn.Conv2d(before, inner, 1) if times > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, after, 1)
        self.residual = stride == 1 and before == after

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        inner = self.project(F.relu6(self.depthwise(inner)))
        return x + inner if self.residual else inner


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does for even sizes: with stride 2 by one less above and left."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        around = self.kernel_size[0] - self.stride[0]
        low, high = around // 2, around - around // 2
        return super().forward(F.pad(x, (low, high, low, high)))


TOWERS: dict[str, Any] = {"nanodet_g": NanoDet, "efficientnet_lite0": EfficientNetLite0}


def leaky(x: torch.Tensor) -> torch.Tensor:
    """NanoDet's activation."""
    return F.leaky_relu(x, 0.1)


def to_grid(x: torch.Tensor, grid: Sequence[int], largest: bool = False) -> torch.Tensor:
    """A map (B, C, h, w) on another grid: means of finer cells, or their largest, or bilinear between coarser ones."""
    times = x.shape[2] // grid[0]
    if times:
        return x if times == 1 else (F.max_pool2d if largest else F.avg_pool2d)(x, times)
    return F.interpolate(x, size=tuple(grid), mode="bilinear", align_corners=False)


def check_pixels(pixel_values: torch.Tensor) -> None:
    """Refuse pictures whose maps of different strides would not lie on each other."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or any(size % 32 for size in pixel_values.shape[2:]):
        raise ValueError(
            f"pixel_values must be (B, 3, H, W) with H and W multiples of 32, got {tuple(pixel_values.shape)}."
        )


AutoModel.register(ScaTowersConfig, ScaTowersModel, exist_ok=True)


__all__ = ["TOWERS", "ScaTowersModel", "ScaTowersOutput"]
