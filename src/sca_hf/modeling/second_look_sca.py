"""A second look: each region's mask drawn again, by a U-Net on a crop of the picture around it.

SAM's decoder draws masks on a grid of a quarter of its patches, which is coarse for a small segmenter and for small
things. Not in the paper, opt-in: `config.second_look_size`. The net is that of U2-Net (arXiv 2005.09007) in its small
form, so that its published weights can be the start; the prompt comes as further channels. Letters for shapes as in
modeling_sca.py, and S for the side of a crop.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .grouping_sca import PromptGroup
from .losses_sca import outer_places
from .placement_sca import execution_device
from .segmentation_sca import DecodedRegions, Masks, best_masks


# Of U2-Net's small form: width of its stages and inside of them.
_WIDTH, _INNER = 64, 16
# Beside the colors: box, points, first mask.
_PROMPTS = 3
# Pixels of crops that run at once where no gradients are kept, which takes half a GiB.
_CHUNK_PIXELS = 16 * 112**2
# A point in a crop is a bump of this standard deviation, in pixels of the crop.
_BUMP = 3.0
# Crops are at most twice as long as high, and the other way round; and not smaller than this, pixels of the frame.
_ASPECT, _SMALLEST = 2.0, 8.0


class Block(nn.Module):
    """A small U-Net of its own with a residual: by pooling, or where the map is small by dilated convolutions."""

    def __init__(self, before: int, after: int, depth: int, pooled: bool = True) -> None:
        super().__init__()
        self.pooled = pooled
        rates = [1 if pooled else 2**level for level in range(depth - 1)]
        self.enter = _conv(before, after)
        self.down = nn.ModuleList(
            _conv(after if level == 0 else _INNER, _INNER, rate) for level, rate in enumerate(rates)
        )
        self.bottom = _conv(_INNER, _INNER, 2 if pooled else 2 * rates[-1])
        self.up = nn.ModuleList(
            _conv(2 * _INNER, after if level == 0 else _INNER, rate)
            for level, rate in reversed(list(enumerate(rates)))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outer = inner = F.relu(self.enter(features))
        kept: list[torch.Tensor] = []
        for conv in self.down:
            inner = F.relu(conv(_pool(inner) if kept and self.pooled else inner))
            kept.append(inner)
        inner = F.relu(self.bottom(inner))
        for conv in self.up:
            beside = kept.pop()
            inner = F.relu(conv(torch.cat([_to_size_of(inner, beside), beside], dim=1)))
        return inner + outer


class PromptedUNet(nn.Module):
    """U2-Net, small: crops with prompts (n, channels, S, S) to logits of the mask, the finest first."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        kinds = [(7, True), (6, True), (5, True), (4, True), (4, False)]
        self.down = nn.ModuleList(
            Block(channels if level == 0 else _WIDTH, _WIDTH, *kind) for level, kind in enumerate([*kinds, (4, False)])
        )
        self.up = nn.ModuleList(Block(2 * _WIDTH, _WIDTH, *kind) for kind in reversed(kinds))
        self.side = nn.ModuleList(_conv(_WIDTH, 1) for _ in self.down)
        self.fuse = nn.Conv2d(len(self.side), 1, 1)

    def forward(self, crops: torch.Tensor) -> list[torch.Tensor]:
        """(n, channels, S, S) to the fused logits (n, 1, S, S), then those of each stage."""
        features = crops
        kept: list[torch.Tensor] = []
        for block in self.down:
            features = block(_pool(features) if kept else features)
            kept.append(features)
        found = [kept.pop()]
        for block in self.up:
            beside = kept.pop()
            found.append(block(torch.cat([_to_size_of(found[-1], beside), beside], dim=1)))
        sides = [_to_size_of(conv(x), crops) for conv, x in zip(self.side, reversed(found), strict=True)]
        return [self.fuse(torch.cat(sides, dim=1)), *sides]


def _conv(before: int, after: int, rate: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=rate, dilation=rate)


def _pool(features: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(features, 2, ceil_mode=True)


def _to_size_of(features: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    if features.shape[2:] == other.shape[2:]:
        return features
    return F.interpolate(features, other.shape[2:], mode="bilinear")


class Pyramid:
    """Images at every scale, made once, to cut crops out of them without aliasing.

    Args:
        images: (B, channels, side, side).
        smallest: side in pixels at which halving ends.
    """

    def __init__(self, images: torch.Tensor, smallest: int = 32) -> None:
        levels = [images.float()]
        while levels[-1].shape[-1] % 2 == 0 and levels[-1].shape[-1] > smallest:
            levels.append(F.avg_pool2d(levels[-1], 2))
        sides = [level.shape[-1] for level in levels]
        # Pixels of all levels, (B, K, channels).
        self.rows = torch.cat([level.flatten(2) for level in levels], 2).transpose(1, 2).contiguous()
        self.sides = torch.tensor(sides, device=images.device)
        self.starts = torch.cat([self.sides.new_zeros(1), self.sides.square().cumsum(0)[:-1]])

    def crops(self, index: torch.Tensor, windows: torch.Tensor, size: int, outside: float = 0.0) -> torch.Tensor:
        """Cut out windows, each brought to a square.

        Args:
            index: (n,) image of each.
            windows: (n, 4) xyxy in fractions of the image; parts may lie outside of it.
            size: S.
            outside: value of what lies outside.

        Returns:
            (n, channels, S, S) float32.
        """
        lengths = windows[:, 2:] - windows[:, :2]
        finest = lengths.amin(1) * self.sides[0] / size  # pixels of the image to one of the crop
        level = finest.clamp(min=1).log2().floor().long().clamp(max=len(self.sides) - 1)
        side = self.sides[level][:, None]
        steps = (torch.arange(size, device=windows.device) + 0.5) / size
        x, y = ((windows[:, axis, None] + lengths[:, axis, None] * steps) * side - 0.5 for axis in (0, 1))  # (n, S)
        found = windows.new_full((len(windows), size, size, self.rows.shape[2]), outside)
        first = (index * self.rows.shape[1] + self.starts[level])[:, None, None]
        pixels = self.rows.flatten(0, 1)
        for down in (0, 1):
            row = y.floor().long() + down
            for right in (0, 1):
                column = x.floor().long() + right
                weight = (1 - (y - row).abs())[:, :, None] * (1 - (x - column).abs())[:, None, :]
                inside = ((row >= 0) & (row < side))[:, :, None] & ((column >= 0) & (column < side))[:, None, :]
                place = row.clamp(min=0).minimum(side - 1)[:, :, None] * side[..., None]
                place = first + place + column.clamp(min=0).minimum(side - 1)[:, None, :]
                found += (weight * inside)[..., None] * (pixels[place] - outside)
        return found.permute(0, 3, 1, 2)


class ScaSecondLook(nn.Module):
    """Draws masks of regions again from crops of the pixels, the prompts and the segmenter's own masks.

    Each region is drawn by itself; captions do not depend on it.

    Args:
        config: a [`ScaConfig`] with `second_look_size`, S, and `second_look_context`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.size, self.context = config.second_look_size, config.second_look_context
        self.net = PromptedUNet(config.image_frame.channels + _PROMPTS)

    @staticmethod
    def init_weights(module: nn.Module) -> bool:
        """Begin a convolution at random; False for other modules."""
        if not isinstance(module, nn.Conv2d):
            return False
        init.kaiming_normal_(module.weight, nonlinearity="relu")
        init.zeros_(module.bias)
        return True

    def reader(
        self, pixel_values: Sequence[torch.Tensor], side: int, stages: bool
    ) -> Callable[[PromptGroup, DecodedRegions, Masks], dict[str, torch.Tensor]]:
        """Return what looks at each chunk of regions again.

        Args:
            pixel_values: one map, (B, 3, H, W), normalized pixels of the square that prompts are in.
            side: of that square.
            stages: also return the coarser masks, to learn from.
        """
        if not pixel_values or pixel_values[0].shape[-1] != side:
            raise ValueError(
                "a second look needs the intermediate_embeddings from get_image_embeddings; pass them with "
                "image_embeddings, or pass second_look=False."
            )
        pixels = Pyramid(pixel_values[0].to(execution_device(self)))

        def read(chunk: PromptGroup, regions: DecodedRegions, masks: Masks) -> dict[str, torch.Tensor]:
            return self(pixels, chunk, *next(iter(masks.values())), side, stages)

        return read

    def forward(
        self,
        pixels: Pyramid,
        group: PromptGroup,
        masks: torch.Tensor,
        scores: torch.Tensor,
        side: int,
        stages: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Draw the masks of n regions.

        Args:
            pixels: of the images.
            group: prompts of the regions.
            masks: the segmenter's logits (n, M, 4h, 4w).
            scores: IoU (n, M) that it expects of them.
            side: of the frame of `group`, in pixels.
            stages: also return the coarser masks, to learn from.

        Returns:
            `second_logits` (n, 1, S, S), with `stages` (n, 7, S, S); `second_windows` (n, 4), the crops, xyxy in
            fractions of the frame; with `stages`, `second_in_box` (n, 1, S, S) bool, the boxes in the crops.
        """
        with torch.no_grad():
            best = best_masks(masks, scores)
            boxes = mask_extents(best > 0) if group.boxes is None else group.boxes / side
            windows = windows_around(boxes, self.context, _SMALLEST / side)
            size, dtype = self.size, self.net.fuse.weight.dtype
            first = Pyramid(best.float().sigmoid()[:, None], best.shape[1])
            rows = torch.arange(len(best), device=best.device)
            drawn = _draw_boxes(boxes, windows, size)
            crops = torch.cat(
                [
                    pixels.crops(group.image_index, windows, size),
                    drawn * (0.5 if group.boxes is None else 1.0),
                    _draw_points(group.points, group.labels, windows * side, size),
                    2 * first.crops(rows, windows, size) - 1,
                ],
                dim=1,
            ).to(dtype)
            # The order of channels in which convolutions of a CPU are faster.
            crops = crops.contiguous(memory_format=torch.channels_last)
        if stages:
            logits = torch.cat(self.net(crops), dim=1)
            return {"second_logits": logits, "second_windows": windows, "second_in_box": drawn > -1}
        at_once = max(1, _CHUNK_PIXELS // size**2)
        logits = torch.cat([self.net(part)[0] for part in crops.split(at_once)])
        return {"second_logits": logits, "second_windows": windows}


def windows_around(boxes: torch.Tensor, context: float, smallest: float) -> torch.Tensor:
    """What is looked at around boxes (n, 4), xyxy in fractions of the frame: `context` times as wide and high."""
    center, lengths = (boxes[:, 2:] + boxes[:, :2]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=smallest) * context
    half = lengths.maximum(lengths.flip(1) / _ASPECT) / 2
    return torch.cat([center - half, center + half], dim=1)


def mask_extents(masks: torch.Tensor) -> torch.Tensor:
    """Boxes (n, 4) of masks (n, 4h, 4w), xyxy in fractions of the frame; an empty one stands for all of it."""
    ends = []
    for along in (masks.any(1), masks.any(2)):  # (n, 4w), (n, 4h)
        low, high = outer_places(along)
        empty = high <= low
        ends.append((low.masked_fill(empty, 0), high.masked_fill(empty, along.shape[1])))
    (left, right), (top, bottom) = ends
    return torch.stack([left, top, right, bottom], 1) / masks.shape[-1]


def expected_iou(logits: torch.Tensor) -> torch.Tensor:
    """IoU (n,) that masks of logits (n, S, S) have with the truth, if their probabilities are right."""
    probability = logits.float().sigmoid().flatten(1)
    inside = probability > 0.5
    union = inside.sum(1) + (probability * ~inside).sum(1)
    return (probability * inside).sum(1) / union.clamp(min=1)


def _draw_boxes(boxes: torch.Tensor, windows: torch.Tensor, size: int) -> torch.Tensor:
    """Maps (n, 1, S, S): 1 in the box, -1 outside, between where it covers a part of a pixel."""
    lengths = windows[:, 2:] - windows[:, :2]
    low, high = ((ends - windows[:, :2]) / lengths * size for ends in (boxes[:, :2], boxes[:, 2:]))  # (n, 2) pixels
    edges = torch.arange(size, device=boxes.device)
    covered = (high[..., None].minimum(edges + 1) - low[..., None].maximum(edges)).clamp(min=0)  # (n, 2, S)
    return 2 * (covered[:, 1, :, None] * covered[:, 0, None, :])[:, None] - 1


def _draw_points(
    points: torch.Tensor | None, labels: torch.Tensor | None, windows: torch.Tensor, size: int
) -> torch.Tensor:
    """Maps (n, 1, S, S) with a bump where points are, downward for those outside the region."""
    if points is None:
        return windows.new_zeros(len(windows), 1, size, size)
    lengths = windows[:, None, 2:] - windows[:, None, :2]
    places = (points - windows[:, None, :2]) / lengths * size - 0.5  # (n, P, 2)
    signs = torch.ones_like(places[..., 0]) if labels is None else (labels == 1).float() - (labels == 0).float()
    steps = torch.arange(size, device=points.device)
    bumps = (-0.5 * ((places[..., None] - steps) / _BUMP).square()).exp()  # (n, P, 2, S)
    return torch.einsum("np,npy,npx->nyx", signs, bumps[:, :, 1], bumps[:, :, 0])[:, None].clamp(-1, 1)


__all__ = ["Pyramid", "ScaSecondLook", "expected_iou", "mask_extents", "windows_around"]
