"""SAM, taken apart: its encoder once per image, then for each region its mask decoder and, if asked for, mask heads.

The weights and modules are the library's own (`SamModel` and others); only the order of the calls is ours, so that the
mixer can read the decoder's tokens and that the heads run only when masks are asked for. [`SamSegmenter`] is the
interface of all families, see segmenters_sca.py. Letters for shapes as in modeling_sca.py.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from .generation_sca import region_chunk_size as default_chunk_size
from .grouping_sca import PromptGroup, RegionPlan
from .mixer_sca import ImageProjection, embedding_rows, fold_positions, run_two_way, without_autocast


@dataclass
class ImageEncoding:
    """Encoded images, to be prompted as often as wanted: `model.generate(**encoding.as_inputs(), input_boxes=...)`.

    Attributes:
        image_embeddings: (B, C, h, w).
        intermediate_embeddings: what the encoder gives for masks or for the mixer, then the pixels (B, 3, H, W) for a
            second look and the features (B, W, h, w) of the detail encoder, if the model has them. Of SAM-HQ early
            features (B, h, w, vision width) of each global attention layer; of SAM 2 and its relatives (B, C / 8, 4h,
            4w) and (B, C / 4, 2h, 2w). None where there are neither.
    """

    image_embeddings: torch.Tensor
    intermediate_embeddings: list[torch.Tensor] | None = None

    @classmethod
    def cat(cls, parts: Sequence["ImageEncoding"]) -> "ImageEncoding":
        """Join encodings of one model into those of one batch, in this order."""
        embeddings = torch.cat([part.image_embeddings for part in parts])
        if parts[0].intermediate_embeddings is None:
            return cls(embeddings)
        layers = zip(*(part.intermediate_embeddings or () for part in parts), strict=True)
        return cls(embeddings, [torch.cat(layer) for layer in layers])

    def to(self, device: torch.device) -> "ImageEncoding":
        """The same encoding on a device."""
        early = self.intermediate_embeddings
        return ImageEncoding(
            self.image_embeddings.to(device), None if early is None else [part.to(device) for part in early]
        )

    def as_inputs(self) -> dict[str, Any]:
        """What `forward` and `generate` take in place of `pixel_values`."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class DecodedRegions:
    """What SAM's two-way transformer leaves behind for n regions.

    Attributes:
        tokens: (n, t, C); the decoder's own tokens in the order of `token_names`, then those of the prompt.
        image_tokens: (n, hw, C), updated by the region.
        image_input: (n, hw, C), the image tokens that went in; None: those that the regions of an image share.
        image_index: (n,) image of each region.
        prompt_tokens: (n, p, C), those of the prompt as they went in; p is 0 for a mask alone that has none.
    """

    tokens: torch.Tensor
    image_tokens: torch.Tensor
    image_input: torch.Tensor | None
    image_index: torch.Tensor
    prompt_tokens: torch.Tensor


# Of one chunk of regions: mask logits (n, M, 4h, 4w) and IoU scores (n, M) for each `multimask_output` asked for.
Masks = dict[bool, tuple[torch.Tensor, torch.Tensor]]


class SamSegmenter:
    """SAM's decoder for the regions of one call; what the images share is computed once, here.

    Another family overrides what differs: `token_names`, `encode`, `_prompt_tokens`, `_add_finer`, `masks`,
    `object_scores`.
    """

    # Embeddings of the decoder in the order of its tokens; each before `iou_token` is one token.
    token_names: ClassVar[tuple[str, ...]] = ("iou_token", "mask_tokens")

    @staticmethod
    def encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEncoding:
        """Encode (B, 3, H, W) pixels in the encoder's precision."""
        return ImageEncoding(sam.vision_encoder(pixel_values)[0])

    def __init__(self, sam: nn.Module, encoding: ImageEncoding, input_masks: torch.Tensor | None = None) -> None:
        """
        Args:
            sam: the library's model.
            encoding: of the B images, by `encode`.
            input_masks: (K, 4h, 4w) mask prompts as logits, or None.
        """
        image_embeddings = encoding.image_embeddings
        self.maps = encoding.intermediate_embeddings or []
        self.decoder, self.prompt_encoder = sam.mask_decoder, sam.prompt_encoder
        self.attn_implementation = sam.config._attn_implementation
        self.dtype = self.decoder.iou_token.weight.dtype
        self.grid = tuple(image_embeddings.shape[-2:])
        self.input_dtype = image_embeddings.dtype
        self.images = image_embeddings.to(self.dtype)
        with without_autocast(image_embeddings.device):
            positions = sam.get_image_wide_positional_embeddings()  # (1, C, h, w)
        self.positions = positions[0].flatten(1).t()  # (hw, C)
        self.folded: list[ImageProjection] = fold_positions(self.decoder.transformer, self.positions)

        no_mask = embedding_rows(self.prompt_encoder.no_mask_embed).reshape(1, -1, 1, 1)
        # Regions without a mask prompt share their image: its tokens are laid out once.
        self.shared_tokens = _as_tokens(self.images + no_mask)  # (B, hw, C)
        self.mask_embeds = None
        if input_masks is not None:
            self.mask_embeds = self.prompt_encoder.mask_embed(input_masks.unsqueeze(1).to(self.dtype))  # (K, C, h, w)
        self.output_tokens = torch.cat([embedding_rows(getattr(self.decoder, name)) for name in self.token_names])
        self.iou_index = self.token_names.index("iou_token")

    def segment_regions(
        self,
        plan: RegionPlan,
        multimask_outputs: Collection[bool] = (True,),
        region_chunk_size: int | None = None,
        readers: Sequence[Callable[[PromptGroup, DecodedRegions, Masks], dict[str, torch.Tensor]]] = (),
    ) -> tuple[Masks, dict[str, torch.Tensor]]:
        """Decode all regions of a call, chunk by chunk.

        Args:
            plan: the regions.
            multimask_outputs: which masks are wanted: True for the three candidates, False for the single one.
            region_chunk_size: regions that run at once; None fits the device. Changes no result.
            readers: what else is wanted of each chunk, from its prompts, what the decoder left behind and its masks.

        Returns:
            For each of `multimask_outputs` mask logits (N, M, 4h, 4w) and IoU scores (N, M); and what the `readers`
            returned for the N regions, with `object_scores` (N,) where the decoder tells them and masks are wanted.
        """
        size = region_chunk_size or default_chunk_size(
            len(self.positions), self.images.shape[1], self.input_dtype, self.images.device
        )
        masks: dict[bool, list[tuple[torch.Tensor, torch.Tensor]]] = {wanted: [] for wanted in multimask_outputs}
        others: dict[str, list[torch.Tensor]] = {}
        for group in plan.groups:
            for chunk in group.chunks(size):
                regions = self.decode(chunk)
                found = {wanted: self.masks(regions, wanted) for wanted in masks}
                for wanted, both in found.items():
                    masks[wanted].append(both)
                told = {"object_scores": self.object_scores(regions) if found else None}
                for one in (told, *(read(chunk, regions, found) for read in readers)):
                    for name, values in one.items():
                        if values is not None:
                            others.setdefault(name, []).append(values)
        joined = {
            wanted: (plan.ordered([logits for logits, _ in parts]), plan.ordered([scores for _, scores in parts]))
            for wanted, parts in masks.items()
        }
        return joined, {name: plan.ordered(parts) for name, parts in others.items()}

    def decode(self, group: PromptGroup) -> DecodedRegions:
        """Run the two-way transformer for the regions of `group`."""
        tokens = self.output_tokens.expand(len(group), -1, -1)
        prompts = self._prompt_tokens(group)
        if prompts is not None:
            tokens = torch.cat([tokens, prompts.to(self.dtype)], dim=1)  # (n, t, C)
        own_input = projected = None
        if group.mask_index is None or self.mask_embeds is None:
            image_input = per_region(self.shared_tokens, group.image_index)
            projected = per_region(self.shared_projection, group.image_index)
        else:
            image_input = own_input = _as_tokens(self.images[group.image_index] + self.mask_embeds[group.mask_index])
        prompt_tokens = tokens[:, len(self.output_tokens) :]
        tokens, image_tokens = run_two_way(
            self.decoder.transformer, self.folded, tokens, image_input, projected, self.attn_implementation
        )
        return DecodedRegions(tokens, image_tokens, own_input, group.image_index, prompt_tokens)

    @cached_property
    def shared_projection(self) -> torch.Tensor:
        """The first layer's projection of `shared_tokens`, (B, hw, 3 * inner)."""
        return self.folded[0](self.shared_tokens)

    def _prompt_tokens(self, group: PromptGroup) -> torch.Tensor | None:
        """Points and boxes as SAM's prompt encoder embeds them, (n, tokens, C); None for a mask alone."""
        if group.points is None and group.boxes is None:
            return None
        points = labels = boxes = None
        if group.points is not None:
            points = group.points.unsqueeze(0)
            labels = torch.ones_like(points[..., 0], dtype=torch.int) if group.labels is None else group.labels[None]
        if group.boxes is not None:
            boxes = group.boxes.unsqueeze(0)
        with without_autocast(self.images.device):
            tokens, _ = self.prompt_encoder(
                input_points=points, input_labels=labels, input_boxes=boxes, input_masks=None
            )  # (1, n, tokens, C)
        return tokens[0]

    def masks(self, regions: DecodedRegions, multimask_output: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask logits (n, M, 4h, 4w) and IoU scores (n, M); M is 3 with `multimask_output`, else 1."""
        count = self.decoder.num_multimask_outputs + 1
        return self._masks(regions, range(1, count) if multimask_output else range(1))

    def object_scores(self, regions: DecodedRegions) -> torch.Tensor | None:
        """Logits (n,) of there being an object at all, of decoders that tell."""
        return None

    def image_input(self, regions: DecodedRegions) -> torch.Tensor:
        """The image tokens (n, hw, C) that went into the decoder."""
        own = regions.image_input
        return per_region(self.shared_tokens, regions.image_index) if own is None else own

    def mask_tokens(self, regions: DecodedRegions) -> torch.Tensor:
        """The decoder's tokens of its three masks, (n, 3, C)."""
        first = self.iou_index + 2
        return regions.tokens[:, first : first + self.decoder.num_multimask_outputs]

    def _masks(self, regions: DecodedRegions, wanted: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks and scores of some of the decoder's heads."""
        hyper, scores = self._heads(regions, wanted)
        pixels = self._upscale(regions.image_tokens, regions.image_index)
        return self._as_image(hyper @ pixels.transpose(1, 2)), scores

    def _heads(self, regions: DecodedRegions, wanted: range) -> tuple[torch.Tensor, torch.Tensor]:
        """What weighs the pixels of each mask, (n, M, C / 8), and IoU scores (n, M)."""
        decoder, tokens, first = self.decoder, regions.tokens, self.iou_index + 1
        scores = decoder.iou_prediction_head(tokens[:, self.iou_index])[:, wanted.start : wanted.stop]
        hyper = torch.stack([decoder.output_hypernetworks_mlps[i](tokens[:, first + i]) for i in wanted], dim=1)
        return hyper, scores

    def _upscale(self, image_tokens: torch.Tensor, image_index: torch.Tensor | None) -> torch.Tensor:
        """Image tokens (n, hw, C) to pixels (n, 16 hw, C / 8), those of a cell side by side."""
        decoder = self.decoder
        norm = decoder.upscale_layer_norm
        pixels = self._add_finer(_split_cells(image_tokens, decoder.upscale_conv1), 0, image_index)
        # The library's own norm expects channels first; here they are last.
        pixels = F.layer_norm(pixels, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        pixels = _split_cells(decoder.activation(pixels), decoder.upscale_conv2)
        return decoder.activation(self._add_finer(pixels, 1, image_index))

    def _add_finer(self, pixels: torch.Tensor, stage: int, image_index: torch.Tensor | None) -> torch.Tensor:
        """Add an image's finer features to the pixels of a stage, in families that have such."""
        return pixels

    def _as_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, channels, 16 hw), pixels of a cell side by side, to (n, channels, 4h, 4w)."""
        height, width = self.grid
        # Row and column of the cell, of the quarter in it, of the pixel in that.
        pixels = pixels.unflatten(2, (height, width, 2, 2, 2, 2)).permute(0, 1, 2, 4, 6, 3, 5, 7)
        return pixels.reshape(*pixels.shape[:2], 4 * height, 4 * width)


class SamHQSegmenter(SamSegmenter):
    """SAM-HQ: masks are made from the image that goes in, and from early features of the encoder if they are there."""

    token_names = ("iou_token", "mask_tokens", "hq_token")

    @staticmethod
    def encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEncoding:
        output = sam.vision_encoder(pixel_values)
        return ImageEncoding(output[0], list(output[1]))

    @cached_property
    def hq_features(self) -> torch.Tensor:
        """Early and late features of the images, (B, C / 8, 4h, 4w)."""
        return _hq_features(self.decoder, self.images, self.maps[0] if self.maps else None)

    def _masks(self, regions: DecodedRegions, wanted: range) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the high-quality mask to masks sorted by score, as `SamHQModel` does by default."""
        decoder = self.decoder
        hyper, scores = self._heads(regions, wanted)
        if regions.image_input is None:
            pixels, refined = (per_region(x, regions.image_index) for x in self.shared_hq_pixels)
        else:
            pixels, refined = self._hq_pixels(regions.image_input, self.hq_features[regions.image_index])
        scores, order = scores.sort(dim=1, descending=True)
        hyper = hyper.gather(1, order[..., None].expand_as(hyper))
        hyper_hq = decoder.hq_mask_mlp(regions.tokens[:, decoder.num_multimask_outputs + 2]).unsqueeze(1)
        masks = self._as_image(hyper @ pixels.transpose(1, 2))
        return masks + (hyper_hq @ refined).unflatten(2, masks.shape[2:]), scores

    @cached_property
    def shared_hq_pixels(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels of the images that go in, which regions without a mask prompt share."""
        return self._hq_pixels(self.shared_tokens, self.hq_features)

    def _hq_pixels(self, image_input: torch.Tensor, hq_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (n, 16 hw, C / 8) for SAM's masks, and refined ones (n, C / 8, 4h * 4w) for the high-quality mask."""
        decoder = self.decoder
        # The library's SAM-HQ reads the image with its two spatial axes swapped.
        swapped = image_input.unflatten(1, self.grid).transpose(1, 2).flatten(1, 2)
        pixels = self._upscale(swapped, None)
        refined = decoder.mask_conv1(self._as_image(pixels.transpose(1, 2)))
        refined = decoder.mask_conv2(decoder.activation(decoder.mask_norm(refined)))
        return pixels, (refined + hq_features).flatten(2)


def _hq_features(decoder: nn.Module, images: torch.Tensor, early: torch.Tensor | None) -> torch.Tensor:
    features = decoder.encoder_conv2(decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(images))))
    if early is None:
        return features
    early = decoder.compress_vit_conv1(early.permute(0, 3, 1, 2).to(images.dtype))
    return features + decoder.compress_vit_conv2(decoder.activation(decoder.compress_vit_norm(early)))


def _as_tokens(images: torch.Tensor) -> torch.Tensor:
    """(n, C, h, w) to (n, hw, C), contiguous."""
    return images.flatten(2).transpose(1, 2).contiguous()


def per_region(per_image: torch.Tensor, image_index: torch.Tensor) -> torch.Tensor:
    """Rows of `per_image` for each region; a single image is not copied."""
    if per_image.shape[0] == 1:
        return per_image.expand(len(image_index), -1, -1)
    return per_image[image_index]


def best_masks(masks: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Of mask logits (n, M, 4h, 4w) those (n, 4h, 4w) of the highest score (n, M)."""
    return masks.gather(1, scores.argmax(1)[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]


def _split_cells(cells: torch.Tensor, conv: nn.ConvTranspose2d) -> torch.Tensor:
    """Split each of (n, cells, C) into four by a transposed convolution of kernel and stride 2: (n, 4 * cells, C').

    Its kernels do not overlap, so it is one matrix product; the library's masks take twice the time on a CPU.
    """
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 * C', C)
    return F.linear(cells, weight, conv.bias.repeat(4)).unflatten(2, (4, -1)).flatten(1, 2)


__all__ = [
    "DecodedRegions",
    "ImageEncoding",
    "Masks",
    "SamHQSegmenter",
    "SamSegmenter",
    "best_masks",
    "per_region",
]
