"""Tiny random segmenters of every family, and what prompts them."""

from functools import partial

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from sca_hf import ScaConfig, ScaForConditionalGeneration
from sca_hf.testing import tiny_sam_config, tiny_text_config
from tests.modeling import tiny_pyramid  # noqa: F401, registers a backbone


SIDE, WIDTH = 64, 128
KINDS = ("sam", "sam_hq", "sam2", "sam2_video", "sam3_tracker", "sam3_tracker_video", "edgetam", "edgetam_video")
VIDEO = tuple(kind for kind in KINDS if kind.endswith("_video"))


def _hiera():
    return dict(
        model_type="sam2_vision_model",
        backbone_config=dict(
            model_type="sam2_hiera_det_model",
            hidden_size=8,
            image_size=[SIDE, SIDE],
            blocks_per_stage=[1, 1, 2, 1],
            embed_dim_per_stage=[8, 16, 32, 64],
            num_attention_heads_per_stage=[1, 1, 2, 2],
            window_size_per_stage=[8, 4, 4, 2],
            global_attention_blocks=[3],
            window_positional_embedding_background_size=[2, 2],
        ),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )


def _vit(sizes):
    return dict(
        model_type="sam3_vision_model",
        backbone_config=dict(
            model_type="sam3_vit_model",
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            pretrain_image_size=56,
            window_size=2,
            global_attn_indexes=[1],
        ),
        backbone_feature_sizes=sizes,
        fpn_hidden_size=WIDTH,
    )


def _edge():
    return dict(
        model_type="edgetam_vision_model",
        backbone_config=dict(model_type="tiny_pyramid"),
        backbone_channel_list=[20, 16, 12, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=WIDTH,
    )


def _memory(width=WIDTH):
    return dict(
        memory_attention_hidden_size=width,
        memory_attention_num_layers=1,
        memory_attention_feed_forward_hidden_size=32,
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=32,
        memory_fuser_num_layers=1,
        num_maskmem=3,
    )


def segmenter_fields(kind: str) -> dict:
    """The configuration of a tiny segmenter, as a dict."""
    if kind in ("sam", "sam_hq"):
        return tiny_sam_config(kind).to_dict()
    side, patch = (56, 14) if kind.startswith("sam3") else (SIDE, 16)
    maps = [[16, 16], [8, 8], [4, 4]]
    vision = {"sam2": _hiera, "sam3": partial(_vit, maps), "edge": _edge}[kind[:4]]()
    fields = dict(
        model_type=kind,
        vision_config=vision,
        prompt_encoder_config=dict(hidden_size=WIDTH, image_size=side, patch_size=patch),
        mask_decoder_config=dict(hidden_size=WIDTH, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32),
    )
    if kind.endswith("_video"):
        fields |= dict(_memory(), image_size=side, memory_attention_rope_feat_sizes=[4, 4])
        if kind.startswith("edge"):
            fields |= dict(
                memory_attention_rope_k_sizes=[4, 4],
                memory_attention_mlp_hidden_size=32,
                perceiver_resampler_hidden_size=64,
                perceiver_resampler_num_latents=16,
                perceiver_resampler_num_latents_2d=16,
                perceiver_resampler_num_layers=1,
                perceiver_resampler_attention_head_dim=64,
                perceiver_resampler_mlp_intermediate_size=32,
            )
    return fields


def tiny_segmenter(kind: str, seed: int = 0) -> PreTrainedModel:
    """A random segmenter whose regions all differ."""
    fields = segmenter_fields(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
        _spread(model)
    return model


@torch.no_grad()
def _spread(model):
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.36 / parameter.shape[-1] ** 0.25)
        elif name.endswith("bias"):
            parameter.normal_(0.0, 0.2)
    if hasattr(model, "no_memory_embedding"):
        model.no_memory_embedding.normal_(0.0, 0.5)
    features = torch.randn(2, model.config.mask_decoder_config.hidden_size // 2) * 0.5
    for module in model.modules():
        if isinstance(getattr(module, "positional_embedding", None), torch.Tensor):
            module.positional_embedding.copy_(features)


def tiny_model_of(kind: str, seed: int = 0, **overrides) -> ScaForConditionalGeneration:
    """A whole model around a tiny segmenter."""
    from sca_hf.testing import _spread as spread

    fields = segmenter_fields(kind)
    mixer = dict(num_hidden_layers=3, num_attention_heads=4, mlp_dim=64) | overrides.pop("mixer_config", {})
    config = ScaConfig(sam_config=fields, text_config=tiny_text_config("gpt2"), mixer_config=mixer, **overrides)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ScaForConditionalGeneration(config).eval()
        spread(model)
        _spread(model.sam)
    return model


def prompts(kind: str, side: int) -> dict[str, torch.Tensor]:
    """The seven kinds of prompts of one region in one image, in pixels of the square."""
    points = torch.tensor([[[[side * 0.4, side * 0.3], [side * 0.7, side * 0.6]]]])
    box = torch.tensor([[[side * 0.2, side * 0.1, side * 0.8, side * 0.9]]])
    grid = 4 * (side // (8 if kind in ("sam", "sam_hq") else 14 if kind.startswith("sam3") else 16))
    mask = torch.randn(1, 1, grid, grid, generator=torch.Generator().manual_seed(3))
    return {
        "point": dict(input_points=points[:, :, :1], input_labels=torch.ones(1, 1, 1, dtype=torch.long)),
        "points": dict(input_points=points, input_labels=torch.ones(1, 1, 2, dtype=torch.long)),
        "negative point": dict(input_points=points, input_labels=torch.tensor([[[1, 0]]])),
        "box": dict(input_boxes=box),
        "box and point": dict(
            input_boxes=box, input_points=points[:, :, :1], input_labels=torch.ones(1, 1, 1, dtype=torch.long)
        ),
        "mask": dict(input_masks=mask),
        "mask and box": dict(input_masks=mask, input_boxes=box),
    }
