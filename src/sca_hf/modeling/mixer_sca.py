"""The text feature mixer: caption queries read a region's SAM tokens and image and become a text prefix.

Its two-way transformer is SAM's, written for speed: one implementation runs SAM's own decoder and the mixer. It is
exact to the plain form (Segment Anything, arXiv 2304.02643, appendix A) up to rounding. Three things make it fast:

- the three projections of a layer's image tokens (key and value of token-to-image attention, query of image-to-token
  attention) read the same tokens, so they are one matrix product;
- the positions p are folded out of it, `W (x + p) + b = W x + (W p + b)`: the bracket does not depend on the region;
- while the image is still the same for all regions (layer 0 without mask prompts), it is projected once per image.

Fused and folded forms are made for each call from the live weights, never kept beside them.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_sca import ScaMixerConfig


# How steeply a thing found loses weight where its box is not the region's: this power of their IoU. Measured on COCO,
# 4 to 8 name equally well, 1 and 2 worse.
_FIT = 6
# A sum of scores below which nothing was found.
_NOTHING = 1e-6


# Not called attention: the library takes a file with such a class for one whose attention cannot be chosen.
class ScaProjections(nn.Module):
    """The four projections of one attention; the arithmetic is in this file's functions."""

    def __init__(self, config: ScaMixerConfig, downsample_rate: int) -> None:
        super().__init__()
        inner = config.hidden_size // downsample_rate
        self.num_attention_heads = config.num_attention_heads
        self.q_proj = nn.Linear(config.hidden_size, inner)
        self.k_proj = nn.Linear(config.hidden_size, inner)
        self.v_proj = nn.Linear(config.hidden_size, inner)
        self.out_proj = nn.Linear(inner, config.hidden_size)


class ScaMlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: ScaMixerConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.hidden_size, config.mlp_dim)
        self.lin2 = nn.Linear(config.mlp_dim, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lin2(self.act(self.lin1(tokens)))


class ScaTwoWayLayer(GradientCheckpointingLayer):
    """Tokens attend to themselves and to the image, then the image attends to the tokens. Names as in SAM."""

    def __init__(self, config: ScaMixerConfig, is_first: bool) -> None:
        super().__init__()
        self.skip_first_layer_pe = is_first
        self.self_attn = ScaProjections(config, downsample_rate=1)
        self.cross_attn_token_to_image = ScaProjections(config, config.attention_downsample_rate)
        self.mlp = ScaMlp(config)
        self.cross_attn_image_to_token = ScaProjections(config, config.attention_downsample_rate)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm3 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layer_norm4 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, *inputs: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return two_way_layer(self, *inputs, **options)


class ScaTwoWayTransformer(nn.Module):
    """Parameters of a two-way transformer, named and shaped as in the library's `SamTwoWayTransformer`."""

    def __init__(self, config: ScaMixerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ScaTwoWayLayer(config, is_first=i == 0) for i in range(config.num_hidden_layers))
        self.final_attn_token_to_image = ScaProjections(config, config.attention_downsample_rate)
        # SAM leaves this norm at torch's default epsilon.
        self.layer_norm_final_attn = nn.LayerNorm(config.hidden_size)


@dataclass
class ImageProjection:
    """One matrix for all projections of a layer's image tokens; the bias holds the folded positions."""

    weight: torch.Tensor  # (C, k * inner), ready for x @ weight
    bias: torch.Tensor  # (hw, k * inner)

    def __call__(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Project `image_tokens` (n, hw, C) to (n, hw, k * inner)."""
        n = image_tokens.shape[0]
        return torch.baddbmm(self.bias.expand(n, -1, -1), image_tokens, self.weight.expand(n, -1, -1))


def fold_positions(transformer: nn.Module, positions: torch.Tensor) -> list[ImageProjection]:
    """Fuse the image-side projections of every layer, and of the final attention, with the image positions.

    Args:
        transformer: [`ScaTwoWayTransformer`] or the library's `SamTwoWayTransformer`.
        positions: (hw, C), the positional encoding of the embedding grid.

    Returns:
        One projection per layer to `[key, value, image query]`, and a last one to `[key, value]`. Good for this call
        only: it does not follow the weights.
    """
    folded = []
    with without_autocast(positions.device):
        for layer in transformer.layers:
            read, write = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
            folded.append(_fuse([read.k_proj, read.v_proj, write.q_proj], [True, False, True], positions))
        final = transformer.final_attn_token_to_image
        folded.append(_fuse([final.k_proj, final.v_proj], [True, False], positions))
    return folded


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Within, products are made in the precision of their factors: positions need all of it."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _fuse(projections: list[nn.Linear], positioned: list[bool], positions: torch.Tensor) -> ImageProjection:
    weights, offsets = zip(*map(_weight_and_bias, projections), strict=True)
    # Folding is done in float32: in half precision W p would lose what the addition x + p keeps.
    bias = [
        F.linear(positions.float(), weight.float(), offset.float())
        if add
        else offset.float().expand(len(positions), -1)
        for weight, offset, add in zip(weights, offsets, positioned, strict=True)
    ]
    return ImageProjection(weight=torch.cat(weights).t(), bias=torch.cat(bias, dim=-1).to(weights[0].dtype))


def _weight_and_bias(layer: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (out, in) and bias (out) of a linear layer; where adapters wrap it, its `weight` lacks theirs."""
    if type(layer) is nn.Linear:
        return layer.weight, layer.bias
    units = torch.eye(layer.in_features, dtype=layer.bias.dtype, device=layer.bias.device)
    rows = layer(torch.cat([torch.zeros_like(units[:1]), units]))
    return (rows[1:] - rows[0]).t(), rows[0]


def embedding_rows(embedding: nn.Module) -> torch.Tensor:
    """All rows of an embedding; where adapters wrap it, its `weight` lacks theirs."""
    if type(embedding) is nn.Embedding:
        return embedding.weight
    return embedding(torch.arange(len(embedding.weight), device=embedding.weight.device))


def run_two_way(
    transformer: nn.Module,
    folded: list[ImageProjection],
    tokens: torch.Tensor,
    image_tokens: torch.Tensor,
    projected: torch.Tensor | None = None,
    attn_implementation: str | None = "sdpa",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a two-way transformer over n regions.

    Args:
        transformer: [`ScaTwoWayTransformer`] or the library's `SamTwoWayTransformer`.
        folded: from [`fold_positions`] for the same transformer.
        tokens: (n, t, C), also the positional part of the queries in every layer.
        image_tokens: (n, hw, C).
        projected: `folded[0](image_tokens)`, if it is known already.
        attn_implementation: `"eager"` spells attention out; anything else uses the fused kernel.

    Returns:
        Updated tokens (n, t, C) and image tokens (n, hw, C).
    """
    queries, keys = tokens, image_tokens
    for layer, projection in zip(transformer.layers, folded, strict=False):
        # SAM's own layers come without our forward; ours may be checkpointed, so they are called as modules.
        run = layer if isinstance(layer, ScaTwoWayLayer) else partial(two_way_layer, layer)
        queries, keys = run(
            queries,
            keys,
            tokens,
            projection.weight,
            projection.bias,
            projected,
            attn_implementation=attn_implementation,
        )
        projected = None
    attention = transformer.final_attn_token_to_image
    inner = attention.q_proj.out_features
    key, value = folded[-1](keys).split(inner, dim=-1)
    queries = queries + _attend(attention, attention.q_proj(queries + tokens), key, value, attn_implementation)
    return transformer.layer_norm_final_attn(queries), keys


def two_way_layer(
    layer: nn.Module,
    queries: torch.Tensor,
    keys: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    projected: torch.Tensor | None = None,
    attn_implementation: str | None = "sdpa",
) -> tuple[torch.Tensor, torch.Tensor]:
    """One layer; arguments as in [`run_two_way`], `weight` and `bias` of its [`ImageProjection`]."""
    # Tokens among themselves: the first layer has neither positions nor a residual, as in SAM.
    attention = layer.self_attn
    query = queries if layer.skip_first_layer_pe else queries + tokens
    mixed = _attend(
        attention, attention.q_proj(query), attention.k_proj(query), attention.v_proj(queries), attn_implementation
    )
    queries = layer.layer_norm1(mixed if layer.skip_first_layer_pe else queries + mixed)

    read, write = layer.cross_attn_token_to_image, layer.cross_attn_image_to_token
    if projected is None:
        projected = ImageProjection(weight, bias)(keys)
    inner = read.q_proj.out_features
    key, value, image_query = projected.split([inner, inner, write.q_proj.out_features], dim=-1)

    queries = queries + _attend(read, read.q_proj(queries + tokens), key, value, attn_implementation)
    queries = layer.layer_norm2(queries)
    queries = layer.layer_norm3(queries + layer.mlp(queries))

    update = _attend(write, image_query, write.k_proj(queries + tokens), write.v_proj(queries), attn_implementation)
    # The sum is written into the fresh product: a second (n, hw, C) tensor would cost a pass over memory.
    keys = layer.layer_norm4(update.add_(keys) if update.dtype == keys.dtype else update + keys)
    return queries, keys


def _attend(
    attention: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_implementation: str | None
) -> torch.Tensor:
    """Multi-head attention over projected (n, length, inner) tensors, with the output projection."""
    heads = attention.num_attention_heads
    query, key, value = (
        x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
    )  # (n, heads, length, d)
    if attn_implementation == "eager":
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        mixed = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype) @ value
    elif query.device.type == "cpu" and query.dtype == torch.float32 and query.shape[2] > key.shape[2]:
        # A CPU's fused kernel is slow where many image tokens read a few keys; with the many as the last axis every
        # step runs over contiguous memory: 2.8 instead of 7.0 ms for 4096 tokens, 15 keys and 8 heads of 16.
        scores = key * query.shape[-1] ** -0.5 @ query.transpose(2, 3)
        mixed = (value.transpose(2, 3) @ scores.softmax(dim=2)).transpose(2, 3)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    # SAM 2 and its relatives call it otherwise.
    project = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    return project(mixed.transpose(1, 2).flatten(2))


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
        rows = config.num_caption_heads * config.num_caption_tokens
        self.caption_tokens = nn.Embedding(rows, width) if config.query_type == "learned" else None
        self.transformer = ScaTwoWayTransformer(config) if config.num_hidden_layers else None
        self.class_reader = ClassReader(config.class_channels, width) if config.class_channels else None
        read = width + (config.class_channels > 0)  # the last says which of two readers counts
        self.feature_reader = nn.Linear(config.feature_channels, read) if config.feature_channels else None
        self.language_project = nn.Linear(width, config.text_hidden_size)
        self.task_tokens = nn.Embedding(len(config.tasks) * config.num_task_tokens, config.text_hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self.class_reader is not None and module is self.class_reader.scale:
            init.ones_(module.weight)
        elif module is self.feature_reader:
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def fold_positions(self, positions: torch.Tensor) -> list[ImageProjection]:
        """Prepare the image-side projections for one call; see [`fold_positions`]. `positions` is (hw, C)."""
        return [] if self.transformer is None else fold_positions(self.transformer, positions)

    def forward(
        self,
        sam_tokens: torch.Tensor,
        image_tokens: torch.Tensor,
        folded: list[ImageProjection],
        queries: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix n regions.

        Args:
            sam_tokens: (n, t, C), as published all output tokens of SAM's mask decoder.
            image_tokens: (n, hw, C), as published the image tokens that the decoder updated for the region.
            folded: from `self.fold_positions`.
            queries: (n, A * Q, C), where they are not learned.

        Returns:
            (n, A, Q, C): the caption queries of each head.
        """
        config = self.config
        if self.caption_tokens is not None:
            queries = embedding_rows(self.caption_tokens).expand(len(sam_tokens), -1, -1)
        elif queries is None:
            raise ValueError(f"a mixer of query_type {config.query_type!r} has no queries of its own: pass them.")
        tokens = queries.to(self.language_project.weight.dtype)
        if self.transformer is not None:
            tokens = torch.cat([tokens, sam_tokens.to(tokens.dtype)], dim=1)  # (n, A*Q + t, C)
            tokens, _ = run_two_way(
                self.transformer,
                folded,
                tokens,
                image_tokens.to(tokens.dtype),
                attn_implementation=config._attn_implementation,
            )
        return tokens[:, : queries.shape[1]].unflatten(1, (config.num_caption_heads, config.num_caption_tokens))

    @property
    def reads_features(self) -> bool:
        """Whether it reads features of the image encoder beside the segmenter's tokens."""
        return self.class_reader is not None or self.feature_reader is not None

    def feature_map(self, features: torch.Tensor) -> torch.Tensor:
        """What the `feature_reader` makes of features (B, D, h, w): of images, as there are more regions."""
        assert self.feature_reader is not None
        return self.feature_reader(features.to(self.language_project.weight).movedim(1, -1)).movedim(-1, 1)

    def combine(self, named: torch.Tensor | None, means: torch.Tensor | None) -> torch.Tensor:
        """What is added to the queries of regions, (n, C), of what the `class_reader` says and means of `feature_map`.

        The last channel of the map says which of the two counts, where there are both.
        """
        if named is None or means is None:
            return means if named is None else named
        return means[:, :-1].lerp(named, means[:, -1:].sigmoid())

    def prefix(self, queries: torch.Tensor, task_ids: torch.Tensor) -> torch.Tensor:
        """Language model input embeddings that stand in front of the caption.

        Args:
            queries: (n, A, Q, C), from `forward`.
            task_ids: (n,) rows of `config.tasks`; or (n, L), several tasks for each region.

        Returns:
            (n, A, P, D), or (n, L * A, P, D): task tokens, then projected queries.
        """
        tasks = embedding_rows(self.task_tokens).unflatten(0, (len(self.config.tasks), self.config.num_task_tokens))
        tasks = tasks[task_ids if task_ids.ndim > 1 else task_ids[:, None]]  # (n, L, num_task_tokens, D)
        tasks = tasks[:, :, None].expand(-1, -1, queries.shape[1], -1, -1)
        projected = self.language_project(queries)[:, None].expand(-1, tasks.shape[1], -1, -1, -1)
        return torch.cat([tasks, projected], dim=3).flatten(1, 2)


class ClassReader(nn.Module):
    """What an image encoder finds where a region is, to what is added to the region's queries.

    Of the things found each counts by how well its box is the region's: a cup is not the table that it stands on.
    The sums of their class scores mix a vector for each class. What an encoder already names need not be learned
    again, and few pictures show every class. On COCO it named 69 % of 585 regions that no weight was fitted to;
    means of scores over the middle of their boxes named 60 %.
    """

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Linear(classes, width, bias=False)
        self.scale = nn.Linear(1, 1, bias=False)

    def forward(self, found: torch.Tensor, image_index: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """What is added to the queries of n regions, (n, C).

        Args:
            found: (B, m, 4 + classes), boxes, xyxy in fractions of the image, and class scores.
            image_index: (n,) image of each region.
            boxes: (n, 4) of the regions, as above.
        """
        scores = matched_scores(found.float(), image_index, boxes.float()).to(self.vectors.weight.dtype)
        return self.vectors((scores * self.scale.weight[0, 0]).softmax(-1))


def matched_scores(found: torch.Tensor, image_index: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Logarithms (n, classes) of the scores of what fits each region; of [`ClassReader`]."""
    own = image_index[:, None] == torch.arange(len(found), device=found.device)  # (n, B)
    fit = _box_iou(boxes, found[..., :4].flatten(0, 1)) ** _FIT * own.repeat_interleave(found.shape[1], 1)
    return (fit @ found[..., 4:].flatten(0, 1)).clamp(min=_NOTHING).log()


def _box_iou(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """IoU (n, m) of boxes (n, 4) and (m, 4), xyxy."""
    low = torch.maximum(first[:, None, :2], second[:, :2])
    high = torch.minimum(first[:, None, 2:], second[:, 2:])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    return both / (areas[0][:, None] + areas[1] - both).clamp(min=1e-9)


class ScaConfidenceHead(nn.Module):
    """How sure it may be that a region is of what the model was trained on, read from its caption queries.

    A caption's own probability cannot tell: a language model that learned twenty names says one of them of anything.
    `sca_hf.training.fit_confidence` fits the head, on regions that the model was trained on and regions of pictures
    from elsewhere, so that 0.5 is the boundary. The paper of SCA has no such head.
    """

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, inner_size)
        self.output = nn.Linear(inner_size, 1)

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        """Caption queries (n, A, Q, C) to confidences (n,), float32 in [0, 1]."""
        return self.logits(queries.mean(dim=(1, 2)).to(self.hidden.weight.dtype)).float().sigmoid()

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Mean caption queries (n, C) to logits (n,); negative ones are unsure."""
        return self.output(F.gelu(self.hidden(features)))[:, 0]


__all__ = [
    "ClassReader",
    "ScaConfidenceHead",
    "ScaTwoWayTransformer",
    "without_autocast",
    "embedding_rows",
    "fold_positions",
    "run_two_way",
    "ScaTextFeatureMixer",
]
