"""Segment and Caption Anything put together from the library's own modules, with no thought of speed.

The tests hold the model against it, the benchmark times the model against it. Nothing here knows the model's own
arithmetic: SAM is `SamModel` called as the library calls it, the mixer is SAM's two-way transformer of another depth,
and 8 regions at a time are captioned by a stock `generate`.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel, SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from sca_hf.modeling.mixer_sca import ScaTextFeatureMixer
from sca_hf.modeling.modeling_sca import ScaForConditionalGeneration


CHUNK = 8


@dataclass
class PlainOutput:
    """What is compared: masks (B, R, M, 4h, 4w), IoU (B, R, M), prefixes (B, R, A, L, D) and new ids (B, R, T)."""

    pred_masks: torch.Tensor
    iou_scores: torch.Tensor
    prefix_embeds: torch.Tensor | None = None
    sequences: torch.Tensor | None = None


class PlainSca:
    """The plain model over the parameters of `model`, which are shared, not copied."""

    def __init__(self, model: ScaForConditionalGeneration, attn_implementation: str) -> None:
        self.sam = rebuild(model.sam, attn_implementation)
        self.language_model = rebuild(model.language_model, attn_implementation)
        self.mixer = PlainMixer(model.mixer, attn_implementation)

    def decode(self, **inputs: torch.Tensor) -> tuple[PlainOutput, torch.Tensor, torch.Tensor]:
        """SAM as the library runs it; also the decoder's tokens (B, R, t, C) and image tokens (B * R, 1, hw, C)."""
        seen = []
        hook = self.sam.mask_decoder.transformer.register_forward_hook(
            lambda module, args, output: seen.append(output)
        )
        try:
            output = self.sam(**inputs)
        finally:
            hook.remove()
        return PlainOutput(output.pred_masks, output.iou_scores), *seen[0][:2]

    def prefix(self, tokens: torch.Tensor, image_tokens: torch.Tensor, task: int = 1) -> torch.Tensor:
        """Language model prefixes (B, R, A, L, D) from what `decode` returned."""
        queries = self.mixer(tokens, image_tokens, self.sam.get_image_wide_positional_embeddings())
        return self.mixer.prefix(queries, task)

    @torch.no_grad()
    def generate(self, pixel_values: torch.Tensor, input_boxes: torch.Tensor, max_new_tokens: int) -> PlainOutput:
        """Greedy captions of `max_new_tokens` for `input_boxes` (1, R, 4), with masks, 8 regions at a time."""
        image_embeddings = self.sam.get_image_embeddings(pixel_values)
        parts = []
        for boxes in input_boxes.split(CHUNK, dim=1):
            output, tokens, image_tokens = self.decode(image_embeddings=image_embeddings, input_boxes=boxes)
            output.prefix_embeds = self.prefix(tokens, image_tokens)
            rows = output.prefix_embeds.flatten(0, 2)
            ids = self.language_model.generate(
                inputs_embeds=rows,
                attention_mask=torch.ones(rows.shape[:2], dtype=torch.long, device=rows.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            output.sequences = ids.unflatten(0, output.prefix_embeds.shape[:2])
            parts.append(output)
        return PlainOutput(
            **{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in vars(parts[0])}
        )

    def caption_loss(
        self, images: dict[str, torch.Tensor], boxes: torch.Tensor, labels: torch.Tensor, label_smoothing: float
    ) -> torch.Tensor:
        """Mean cross-entropy of the captions `labels` (1, R, T; -100 on padding) for `boxes` (1, R, 4), all at once.

        `images` holds `pixel_values` or `image_embeddings`.
        """
        _, tokens, image_tokens = self.decode(**images, input_boxes=boxes)
        prefix = self.prefix(tokens, image_tokens).flatten(0, 2)  # (R, L, D)
        labels = labels.flatten(0, 1)  # (R, T)
        words = self.language_model.get_input_embeddings()(labels.clamp(min=0))
        real = torch.cat([labels.new_ones(prefix.shape[:2]), (labels >= 0).long()], dim=1)
        logits = self.language_model(
            inputs_embeds=torch.cat([prefix, words], dim=1), attention_mask=real, use_cache=False
        ).logits
        # Each position predicts the next; the prefix, but for its last vector, predicts nothing.
        targets = torch.cat([labels.new_full(prefix.shape[:2], -100), labels], dim=1)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), label_smoothing=label_smoothing)


class PlainMixer(nn.Module):
    """The mixer as the paper draws it: the library's two-way transformer over `[caption queries ; SAM tokens]`."""

    def __init__(self, mixer: ScaTextFeatureMixer, attn_implementation: str) -> None:
        super().__init__()
        config = mixer.config
        self.config, self.task_tokens, self.language_project = config, mixer.task_tokens, mixer.language_project
        self.caption_tokens = mixer.caption_tokens
        shape = SamMaskDecoderConfig(
            hidden_size=config.hidden_size,
            hidden_act=config.hidden_act,
            mlp_dim=config.mlp_dim,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            attention_downsample_rate=config.attention_downsample_rate,
            layer_norm_eps=config.layer_norm_eps,
        )
        shape._attn_implementation = attn_implementation
        self.transformer = share(SamTwoWayTransformer(shape), mixer.transformer)

    def forward(self, tokens: torch.Tensor, image_tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Caption queries (B, R, A * Q, C).

        Args:
            tokens: (B, R, t, C).
            image_tokens: (B * R, 1, hw, C).
            positions: (1, C, h, w), of the embedding grid.
        """
        images, regions = tokens.shape[:2]
        queries = self.caption_tokens.weight.repeat(images, regions, 1, 1)
        count = images * regions
        updated, _ = self.transformer(
            point_embeddings=torch.cat([queries, tokens], dim=2).flatten(0, 1).unsqueeze(1),
            image_embeddings=image_tokens.squeeze(1).transpose(1, 2).unflatten(2, positions.shape[-2:]),
            image_positional_embeddings=positions.repeat(count, 1, 1, 1),
            attention_similarity=None,
        )
        return updated[:, 0, : queries.shape[2]].unflatten(0, (images, regions))

    def prefix(self, queries: torch.Tensor, task: int) -> torch.Tensor:
        """Task tokens, then projected queries, (B, R, A, L, D)."""
        heads, count = self.config.num_caption_heads, self.config.num_task_tokens
        projected = self.language_project(queries.unflatten(2, (heads, -1)))
        tokens = self.task_tokens.weight[task * count : (task + 1) * count].expand(*projected.shape[:3], -1, -1)
        return torch.cat([tokens, projected], dim=3)


def rebuild(model: PreTrainedModel, attn_implementation: str) -> PreTrainedModel:
    """A model of the same class over the same parameters; SAM's encoder takes its kind of attention only at birth."""
    rebuilt = type(model)._from_config(copy.deepcopy(model.config), attn_implementation=attn_implementation)
    rebuilt.generation_config = getattr(model, "generation_config", None)
    return share(rebuilt, model)


def share(module: nn.Module, source: nn.Module) -> nn.Module:
    """`module` with the parameters of `source` in place of its own."""
    module.to(next(source.parameters()).device)
    # `assign` hands the old parameter's flag on to the new one, which here is the source's own.
    trained = {name for name, parameter in source.named_parameters() if parameter.requires_grad}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    module.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    return module.train(source.training)
