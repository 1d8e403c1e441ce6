"""The text feature mixer: caption queries read a region's SAM tokens and image and become a text prefix."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from .configuration_sca import ScaMixerConfig
from .two_way_sca import ImageProjection, ScaTwoWayTransformer, fold_positions, run_two_way


class ScaTextFeatureMixer(PreTrainedModel):
    """Query-based text feature mixer (arXiv 2312.00869, section 3.2), the only part of SCA that is trained.

    Its input is what SAM's mask decoder leaves behind for a region: all output tokens and the updated image tokens.
    """

    config_class = ScaMixerConfig
    config: ScaMixerConfig
    base_model_prefix = "mixer"
    main_input_name = "sam_tokens"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # No `_no_split_modules`: FSDP shards those on their own, and all layers' weights are read at once, to be folded.

    def __init__(self, config: ScaMixerConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.caption_tokens = nn.Embedding(config.num_caption_heads * config.num_caption_tokens, width)
        self.transformer = ScaTwoWayTransformer(config)
        self.language_project = nn.Linear(width, config.text_hidden_size)
        self.task_tokens = nn.Embedding(len(config.tasks) * config.num_task_tokens, config.text_hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def fold_positions(self, positions: torch.Tensor) -> list[ImageProjection]:
        """Prepare the image-side projections for one call; see [`fold_positions`]. `positions` is (hw, C)."""
        return fold_positions(self.transformer, positions)

    def forward(
        self, sam_tokens: torch.Tensor, image_tokens: torch.Tensor, folded: list[ImageProjection]
    ) -> torch.Tensor:
        """Mix n regions.

        Args:
            sam_tokens: (n, t, C), all output tokens of SAM's mask decoder.
            image_tokens: (n, hw, C), the image tokens that the decoder updated for the region.
            folded: from `self.fold_positions`.

        Returns:
            (n, A, Q, C): the caption queries of each head.
        """
        config = self.config
        queries = self.caption_tokens.weight.expand(len(sam_tokens), -1, -1)
        tokens = torch.cat([queries, sam_tokens.to(queries.dtype)], dim=1)  # (n, A*Q + t, C)
        tokens, _ = run_two_way(
            self.transformer, folded, tokens, image_tokens, attn_implementation=config._attn_implementation
        )
        return tokens[:, : queries.shape[1]].unflatten(1, (config.num_caption_heads, config.num_caption_tokens))

    def prefix(self, queries: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
        """Language model input embeddings that stand in front of the caption.

        Args:
            queries: (n, A, Q, C), from `forward`.
            task_ids: (n,) rows of `config.tasks`.

        Returns:
            (n, A, P, D): task tokens, then projected queries.
        """
        tasks = self.task_tokens.weight.unflatten(0, (len(self.config.tasks), self.config.num_task_tokens))
        tasks = tasks[task_ids].unsqueeze(1).expand(-1, queries.shape[1], -1, -1)  # (n, A, num_task_tokens, D)
        return torch.cat([tasks, self.language_project(queries)], dim=2)


__all__ = ["ScaTextFeatureMixer"]
