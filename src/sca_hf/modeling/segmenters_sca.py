"""The segmenters that regions are prompted with, one class per decoder; families_sca.py has how they take images."""

from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .encoder_sca import ScaEncoderModel
from .families_sca import PLAIN_ENCODER, image_frame
from .grouping_sca import PromptGroup
from .placement_sca import execution_device
from .segmentation_sca import DecodedRegions, ImageEncoding, SamHQSegmenter, SamSegmenter, per_region


class Sam2Segmenter(SamSegmenter):
    """The decoder that SAM 2, SAM 3's tracker and EdgeTAM share: finer features of the image, and an object score.

    Their video models are prompted here as image models are, on single pictures.
    """

    token_names = ("obj_score_token", "iou_token", "mask_tokens")

    @staticmethod
    def encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEncoding:
        # The library's get_image_embeddings does this too, but without gradients.
        maps = list(sam.get_image_features(pixel_values, return_dict=True).fpn_hidden_states)
        maps[-1] = maps[-1] + sam.no_memory_embedding.to(maps[-1].device)
        # SAM 3's image model has a fourth map, which nothing reads.
        maps = [x.permute(1, 2, 0).unflatten(2, tuple(size)) for x, size in zip(maps, sam.backbone_feature_sizes)]  # noqa: B905
        return ImageEncoding(maps[2], maps[:2])

    def _prompt_tokens(self, group: PromptGroup) -> torch.Tensor | None:
        """A mask alone is prompted with a point that is none, and its padding."""
        if group.points is None and group.boxes is None:
            return self.prompt_encoder.not_a_point_embed.weight.expand(len(group), 2, -1)
        return super()._prompt_tokens(group)

    @cached_property
    def finer(self) -> list[torch.Tensor]:
        """The finer maps, (B, 4 hw, C / 4) and (B, 16 hw, C / 8), pixels of a cell side by side."""
        if len(self.maps) < 2:
            raise ValueError(
                "masks of this segmenter need the two intermediate_embeddings that get_image_embeddings returned."
            )
        height, width = self.grid
        fine, coarse = (x.to(self.dtype) for x in self.maps[:2])
        coarse = coarse.unflatten(3, (width, 2)).unflatten(2, (height, 2)).permute(0, 2, 4, 3, 5, 1)
        fine = fine.unflatten(3, (width, 2, 2)).unflatten(2, (height, 2, 2)).permute(0, 2, 5, 3, 6, 4, 7, 1)
        return [x.flatten(1, -2) for x in (coarse, fine)]

    def _add_finer(self, pixels: torch.Tensor, stage: int, image_index: torch.Tensor | None) -> torch.Tensor:
        assert image_index is not None
        return pixels + per_region(self.finer[stage], image_index)

    def masks(self, regions: DecodedRegions, multimask_output: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """As of SAM; a single mask that is not stable gives way to the best of the three, but in training."""
        decoder = self.decoder
        if multimask_output or decoder.training or not decoder.dynamic_multimask_via_stability:
            return super().masks(regions, multimask_output)
        masks, scores = self._masks(regions, range(decoder.num_multimask_outputs + 1))
        masks, scores = decoder._dynamic_multimask_via_stability(masks[:, None], scores[:, None])
        return masks[:, 0], scores[:, 0]

    def object_scores(self, regions: DecodedRegions) -> torch.Tensor | None:
        """Logits (n,) of there being an object at all."""
        return self.decoder.pred_obj_score_head(regions.tokens[:, 0])[:, 0]


class PlainSegmenter(SamSegmenter):
    """Any image encoder; its class scores, where it has some, are a map beside the embeddings."""

    @staticmethod
    def encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEncoding:
        embeddings, *scores = sam.vision_encoder(pixel_values)
        return ImageEncoding(embeddings, scores or None)


SEGMENTERS: dict[str, type[SamSegmenter]] = {
    "sam": SamSegmenter,
    "sam_hq": SamHQSegmenter,
    PLAIN_ENCODER: PlainSegmenter,
    **dict.fromkeys(
        ("sam2", "sam2_video", "edgetam", "edgetam_video", "sam3_tracker", "sam3_tracker_video"), Sam2Segmenter
    ),
}


def segmenter_class(sam: nn.Module) -> type[SamSegmenter]:
    """The class that prompts a segmenter of the library."""
    return SEGMENTERS[sam.config.model_type]


def build_segmenter(config: PreTrainedConfig) -> PreTrainedModel:
    """A new segmenter of a configuration."""
    if config.model_type == PLAIN_ENCODER:
        # Without the package, the library loads a repository's configuration and its model one after the other, each
        # with all files that it names: the class of this configuration is not the one that AutoModel knows.
        AutoModel.register(type(config), ScaEncoderModel, exist_ok=True)
    return AutoModel.from_config(config)


@torch.no_grad()
def share_positions(sam: Any) -> Any:
    """Let a new segmenter see points where it sees the image: the library draws two matrices for SAM 2."""
    points, image = sam.prompt_encoder.shared_embedding, sam.shared_image_embedding
    points.positional_embedding.copy_(image.positional_embedding)
    return sam


def encode_images(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEncoding:
    """Run a segmenter's image encoder.

    Args:
        sam: the library's model.
        pixel_values: (B, 3, H, W), normalized pixels of images brought to the square.
    """
    frame = image_frame(sam.config)
    if tuple(pixel_values.shape[1:]) != (frame.channels, frame.side, frame.side):
        raise ValueError(
            f"pixel_values must be (B, {frame.channels}, {frame.side}, {frame.side}), got {tuple(pixel_values.shape)}."
        )
    dtype = next(sam.vision_encoder.parameters()).dtype
    return segmenter_class(sam).encode(sam, pixel_values.to(execution_device(sam.vision_encoder), dtype))


__all__ = [
    "SEGMENTERS",
    "Sam2Segmenter",
    "ScaEncoderModel",
    "build_segmenter",
    "encode_images",
    "segmenter_class",
    "share_positions",
]
