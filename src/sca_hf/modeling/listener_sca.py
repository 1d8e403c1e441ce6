"""How likely captions are for regions: each caption of an image for each region of it, in one encoding.

A listener who knows the language model hears a caption and asks which region it is of: p(region | caption). Captions
that begin alike are read together, as a tree behind the prefix of a region: what they share is computed once. Shapes
as in modeling_sca.py, and J captions per image.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .generation_sca import language_model_rows
from .grouping_sca import RegionInputs, RegionPlan
from .placement_sca import execution_device
from .validation_sca import refuse_unknown


PAIRS = ("all", "own")
# What the processor returns beside the inputs, and a data set's collator beside captions.
_IGNORED = frozenset({"original_sizes", "reshaped_input_sizes", "mask_labels", "num_items_in_batch"})
# Of the mean log-probability of a caption beside the log-probability of its region, where captions are chosen.
_FLUENCY = 0.3
# Tokens of a tree: attention costs their square, a further tree the prefix once more.
_TREE_TOKENS = 256
# Vectors that a CPU reads at once: with more, activations leave its cache.
_CPU_VECTORS = 1024


@dataclass
class ScaListenerOutput(ModelOutput):
    """Output of [`ScaForConditionalGeneration.score_captions`].

    Attributes:
        log_likelihoods: (B, R, J) float32, log-probability of the whole caption for the region, its end token
            included; with several caption heads (B, R, A, J). Of own pairs (B, R), or (B, R, n), and with several
            heads (B, R, A) or (B, R, A, n). 0 where region or caption are padding.
        num_tokens: (B, J), of own pairs (B, R) or (B, R, n): tokens of each caption, its end token included; 0 for
            padding. The mean log-probability is the quotient of both.
        region_mask: (B, R) True for real regions.
    """

    log_likelihoods: torch.FloatTensor | None = None
    num_tokens: torch.LongTensor | None = None
    region_mask: torch.BoolTensor | None = None


def listener_scores(log_likelihoods: torch.Tensor, region_mask: torch.Tensor) -> torch.Tensor:
    """p(region | caption) among the regions of each image, all equally likely before.

    Args:
        log_likelihoods: (B, R, J), or (B, R, A, J): the head that the caption fits best counts.
        region_mask: (B, R) True for real regions.

    Returns:
        (B, R, J); each caption's sum over the real regions is 1, padded regions have 0.
    """
    if log_likelihoods.ndim == 4:
        log_likelihoods = log_likelihoods.amax(dim=2)
    padded = ~region_mask[..., None]
    # An image without regions has nothing to divide by.
    return (
        log_likelihoods.masked_fill(padded, torch.finfo(log_likelihoods.dtype).min).softmax(1).masked_fill(padded, 0)
    )


def wants_listener(rerank: str | None, output_agreements: bool) -> bool:
    """Whether a call of `generate` needs the listener; raises for another `rerank` than "listener"."""
    if rerank not in (None, "listener"):
        raise ValueError(f"rerank is {rerank!r}, expected 'listener' or None.")
    return rerank is not None or output_agreements


def caption_lengths(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    labels: torch.Tensor | None,
    config: Any,
    add_bos: bool,
) -> torch.Tensor:
    """Tokens of captions (..., T), end token included: by their labels, else their mask, else up to their end token.

    Args:
        input_ids: (..., T).
        attention_mask: (..., T), or None.
        labels: (..., T) -100 on padding, or None.
        config: the model's generation configuration, for the ids of end and padding.
        add_bos: captions begin with a token that may be the end token as well.
    """
    for name, given in (("labels", labels), ("attention_mask", attention_mask)):
        if given is not None and given.shape != input_ids.shape:
            raise ValueError(f"{name} {tuple(given.shape)} and input_ids {tuple(input_ids.shape)} differ in shape.")
    if labels is not None:
        real = labels != -100
    elif attention_mask is not None:
        real = attention_mask != 0
    else:
        ends = torch.tensor(config.eos_token_id if config.eos_token_id is not None else [], device=input_ids.device)
        is_end = torch.isin(input_ids, ends.to(input_ids.dtype)).long()
        if add_bos:
            is_end[..., 0] = 0
        # What was cut short before its end is followed by padding alone.
        pad = -1 if config.pad_token_id is None else config.pad_token_id
        said = ((input_ids >= 0) & (input_ids != pad)) | is_end.bool()
        real = (is_end.cumsum(-1) <= is_end) & (said.flip(-1).cumsum(-1).flip(-1) > 0)
    lengths = real.sum(-1)
    positions = torch.arange(input_ids.shape[-1], device=input_ids.device)
    if not torch.equal(real, positions < lengths[..., None]):
        raise ValueError("captions must be padded on the right: a token follows padding.")
    return lengths


@dataclass
class _Tree:
    """Captions by what they begin with. Node 0 is the end of the prefix; all others stand for a token.

    Attributes:
        tokens: (n,) of the nodes that another follows, which are read.
        depth: (n,) of those, from 0.
        seen: (n, n) which of those each of them follows, itself included.
        edges: (2, E) for each node but the first: where in [0, n] its token is predicted, and the token.
        paths: (captions, T) edges of each caption, E after its end.
        columns: (captions,) where their results belong.
    """

    tokens: torch.Tensor
    depth: torch.Tensor
    seen: torch.Tensor
    edges: torch.Tensor
    paths: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def grown(cls, captions: Sequence[tuple[list[int], int]]) -> "_Tree":
        """The tree of captions, each with its column."""
        nodes: dict[tuple[int, int], int] = {}  # (node before, token) -> node
        paths = []
        for ids, _ in captions:
            path = [0]
            for token in ids:
                path.append(nodes.setdefault((path[-1], token), len(nodes) + 1))
            paths.append(path[1:])
        before = list(nodes)
        read = {node: place for place, node in enumerate(sorted({node for node, _ in before}))}
        seen, depth = torch.eye(len(read), dtype=torch.bool), torch.zeros(len(read), dtype=torch.long)
        for node, place in list(read.items())[1:]:
            parent = read[before[node - 1][0]]
            seen[place] |= seen[parent]
            depth[place] = depth[parent] + 1
        longest = max(map(len, paths))
        return cls(
            torch.tensor([before[node - 1][1] for node in list(read)[1:]], dtype=torch.long),
            depth[1:] - 1,
            seen[1:, 1:],
            torch.tensor([[read[node] for node, _ in before], [token for _, token in before]]),
            torch.tensor([[n - 1 for n in path] + [len(before)] * (longest - len(path)) for path in paths]),
            torch.tensor([column for _, column in captions]),
        )


def _trees(captions: Sequence[tuple[list[int], int]], tokens: int) -> Iterator[_Tree]:
    """Yield trees of about so many tokens for captions with their columns; for 0, one of each caption."""
    part: list[tuple[list[int], int]] = []
    last: list[int] = []
    count = 0
    for ids, column in sorted(captions):
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(last, ids, strict=False)))
        if part and count + len(ids) - common > tokens:
            yield _Tree.grown(part)
            part, count, common = [], 0, 0
        part.append((ids, column))
        last, count = ids, count + len(ids) - common
    if part:
        yield _Tree.grown(part)


def _reads_trees(language_model: PreTrainedModel, length: int) -> bool:
    """Whether a language model attends as a mask of four axes says, up to `length` vectors back, and to no order else.

    Others (recurrent layers, ALiBi, attention that does not reach so far) read caption by caption.
    """
    config = language_model.config
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return (
        "position_ids" in inspect.signature(type(language_model).forward).parameters
        and config._attn_implementation in ("sdpa", "eager")
        and not getattr(config, "alibi", False)
        and not getattr(language_model, "_is_stateful", False)
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}
        and all(window is None or window >= length for window in windows)
    )


def pair_log_likelihoods(
    language_model: PreTrainedModel,
    prefixes: torch.Tensor,
    groups: Sequence[tuple[Sequence[int], Sequence[tuple[list[int], int]]]],
    width: int,
    batch_size: int | None = None,
) -> torch.Tensor:
    """Log-probabilities (N, width) float32 of captions behind prefixes, 0 where none was asked for.

    Gradients reach the prefixes where they are on.

    Args:
        language_model: a causal one.
        prefixes: (N, L, D).
        groups: rows of `prefixes`, and the captions that are scored behind each of them: ids, and the column of the
            result.
        width: columns of the result.
        batch_size: prefixes that the language model reads at once; None fits the memory.
    """
    device, length = execution_device(language_model), prefixes.shape[1]
    # A frozen language model may be held in half precision beside a float32 mixer, and elsewhere.
    prefixes = prefixes.to(device, language_model.get_input_embeddings().weight.dtype)
    longest = max(len(ids) for _, captions in groups for ids, _ in captions)
    branching = _reads_trees(language_model, length + longest)
    items = [
        (len(tree.tokens), row, tree)
        for rows, captions in groups
        for tree in _trees(captions, _TREE_TOKENS if branching else 0)
        for row in rows
    ]
    items.sort(key=lambda item: item[0])  # trees of one size side by side, so that little is padding
    result = torch.zeros(len(prefixes), width + 1, device=device)  # the last column takes what is padding
    while items:
        count = batch_size or _rows_at_once(language_model, length, items[-1][0])
        part, items = items[-count:], items[:-count]
        trees = list({id(tree): tree for _, _, tree in part}.values())
        of_row = {id(tree): place for place, tree in enumerate(trees)}
        rows = torch.tensor([row for _, row, _ in part], device=device)
        picked = torch.tensor([of_row[id(tree)] for _, _, tree in part], device=device)
        found, columns = _read_trees(language_model, prefixes[rows], trees, picked, branching, width)
        result = result.index_put((rows[:, None].expand_as(columns), columns), found)
    return result[:, :width]


def _rows_at_once(language_model: PreTrainedModel, length: int, tokens: int) -> int:
    rows = language_model_rows(language_model, length + tokens, tokens, keep_logits=True)
    if execution_device(language_model).type == "cpu":
        rows = min(rows, max(1, _CPU_VECTORS // (length + tokens)))
    return rows


def _read_trees(
    language_model: PreTrainedModel,
    prefixes: torch.Tensor,
    trees: list[_Tree],
    picked: torch.Tensor,
    branching: bool,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (rows, captions) and their columns, `width` for padding.

    Args:
        prefixes: (rows, L, D).
        trees: to read.
        picked: (rows,) which of the trees each row reads.
        branching: read each as a tree; else it is one caption.
    """
    device, length = prefixes.device, prefixes.shape[1]

    def stacked(name: str, fill: int) -> torch.Tensor:
        parts = [getattr(tree, name) for tree in trees]
        shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
        whole = parts[0].new_full((len(parts), *shape), fill)
        for row, part in zip(whole, parts, strict=True):
            row[tuple(slice(size) for size in part.shape)] = part
        return whole.to(device, non_blocking=True)[picked]

    tokens, edges, paths = stacked("tokens", 0), stacked("edges", 0), stacked("paths", -1)
    embeds = torch.cat([prefixes, language_model.get_input_embeddings()(tokens).to(prefixes)], dim=1)
    more = {}
    if branching:
        positions = torch.arange(length, device=device).expand(len(prefixes), -1)
        more["position_ids"] = torch.cat([positions, length + stacked("depth", 0)], dim=1)
        size = embeds.shape[1]
        seen = torch.ones(len(prefixes), size, size, dtype=torch.bool, device=device).tril()
        seen[:, length:, length:] = stacked("seen", 0)
        seen.diagonal(dim1=1, dim2=2).fill_(True)
        mask = torch.zeros_like(seen, dtype=embeds.dtype).masked_fill(~seen, torch.finfo(embeds.dtype).min)
        more["attention_mask"] = mask[:, None]
    logits = language_model(
        inputs_embeds=embeds, use_cache=False, logits_to_keep=tokens.shape[1] + 1, return_dict=True, **more
    ).logits.float()  # (rows, n + 1, V)
    logits = logits.to(device)
    rows = torch.arange(len(prefixes), device=device)[:, None]
    said = logits[rows, edges[:, 0], edges[:, 1]] - logits.logsumexp(dim=-1).gather(1, edges[:, 0])  # (rows, E)
    ends = torch.tensor([tree.edges.shape[1] for tree in trees]).to(device)[picked]
    outside = (paths < 0) | (paths == ends[:, None, None])
    parts = said.gather(1, paths.masked_fill(outside, 0).flatten(1)).view_as(paths).masked_fill(outside, 0)
    return parts.sum(dim=2), stacked("columns", width)


class ScaListenerMixin:
    """What [`ScaForConditionalGeneration`] hears in captions."""

    @torch.no_grad()
    def score_captions(
        self,
        pixel_values: torch.Tensor | None = None,
        *,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        pairs: str = "all",
        region_chunk_size: int | None = None,
        language_model_batch_size: int | None = None,
        **kwargs: Any,
    ) -> ScaListenerOutput:
        """Log-likelihood of given captions for the regions of their image, which is encoded once.

        Args:
            pixel_values: (B, 3, H, W) normalized pixels of the images, brought to the square.
            input_ids: (B, J, T) right-padded captions of each image, of any number: a processor's, with
                `captions=` (one per region) or of its `caption_inputs` (any number), or `sequences` of `generate`,
                also (B, R, n, T), whose axes R and n become J = R * n.
            attention_mask: of the same shape, 1 on captions. Beside `labels` it is ignored.
            labels: of the same shape, -100 on padding. Without both, a caption ends with its first end token. What is
                padding throughout is not a caption.
            pairs: "all" captions of an image with all of its regions, or the "own" ones of each region.
            region_chunk_size: regions that run through SAM's decoder and the mixer at once; None fits the device.
            language_model_batch_size: pairs that the language model reads at once; None fits the memory.
            kwargs: the other fields of [`RegionInputs`].

        Returns:
            [`ScaListenerOutput`].

        Raises:
            ValueError: captions without tokens, not padded on the right, or of other images or regions.
        """
        model: Any = self
        inputs = RegionInputs.taken_from(kwargs, pixel_values=pixel_values)
        refuse_unknown(kwargs, _IGNORED, "score_captions")
        if pairs not in PAIRS:
            raise ValueError(f"pairs is {pairs!r}, expected {' or '.join(map(repr, PAIRS))}.")
        if input_ids.ndim not in (3, 4) or not input_ids.shape[-1]:
            raise ValueError(f"input_ids must be (B, J, T) or (B, R, n, T) with tokens, got {tuple(input_ids.shape)}.")
        # Which pairs there are is worked out on the host: one transfer.
        input_ids, attention_mask, labels = (
            None if x is None else x.cpu() for x in (input_ids, attention_mask, labels)
        )
        add_bos = model.config.caption_add_bos
        lengths = caption_lengths(input_ids, attention_mask, labels, model.generation_config, add_bos)
        if not lengths.any():
            raise ValueError("there are no captions: all of input_ids is padding.")
        model._check_positions(int(lengths.max()), "input_ids")
        regions = model._region_features(inputs, (), True, region_chunk_size, False)
        plan, axes = regions.plan, 1 if pairs == "all" else 2
        if input_ids.shape[:axes] != plan.shape[:axes]:
            raise ValueError(f"input_ids {tuple(input_ids.shape)} do not fit (B, R) = {plan.shape}.")
        return self._listen(plan, model._prefix(regions), input_ids, lengths, pairs, language_model_batch_size)

    def listener_scores(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """p(region | caption) among the regions of its image, (B, R, J); arguments as of [`score_captions`]."""
        heard = self.score_captions(*args, **{**kwargs, "pairs": "all"})
        return listener_scores(heard.log_likelihoods, heard.region_mask)

    def _listen(
        self,
        plan: RegionPlan,
        prefixes: torch.Tensor,
        input_ids: torch.Tensor,
        lengths: torch.Tensor,
        pairs: str = "all",
        batch_size: int | None = None,
    ) -> ScaListenerOutput:
        """Score captions (B, J, T) or (B, R, n, T), of `lengths`, on the CPU, behind the prefixes (N, A, L, D)."""
        model: Any = self
        num_regions, heads, device = plan.shape[1], prefixes.shape[1], prefixes.device
        place = range(len(plan)) if plan.index is None else plan.index.tolist()  # in B * R, of each of the N
        num_tokens = lengths.flatten(1)  # (B, J)
        width = num_tokens.shape[1]
        said = [
            [(ids[:length], column) for column, (ids, length) in enumerate(zip(*image, strict=True)) if length]
            for image in zip(input_ids.flatten(1, -2).tolist(), num_tokens.tolist(), strict=True)
        ]
        groups: list[tuple[Sequence[int], Sequence[tuple[list[int], int]]]] = []
        if pairs == "own":
            width //= num_regions  # n
            for row, where in enumerate(place):
                image, region = divmod(where, num_regions)
                own = [(ids, column % width) for ids, column in said[image] if column // width == region]
                groups.append((range(row * heads, (row + 1) * heads), own))
        else:
            for image, captions in enumerate(said):
                rows = [row for row, where in enumerate(place) if where // num_regions == image]
                groups.append(([row * heads + head for row in rows for head in range(heads)], captions))
        heard = pair_log_likelihoods(model.language_model, prefixes.flatten(0, 1), groups, width, batch_size)
        heard = heard.to(device).unflatten(0, (-1, heads))  # (N, A, J or n)
        region_mask = plan.padded(torch.ones(len(plan), dtype=torch.bool, device=device), fill=False)
        num_tokens = num_tokens.to(device)
        if pairs == "own":
            num_tokens = lengths.to(device) * region_mask.view(*plan.shape, *[1] * (lengths.ndim - 2))
            heard = heard.squeeze(-1) if lengths.ndim == 2 else heard
        return ScaListenerOutput(plan.padded(heard.squeeze(1)), num_tokens, region_mask)

    def _agree(
        self,
        plan: RegionPlan,
        prefixes: torch.Tensor,
        sequences: torch.Tensor,
        scores: torch.Tensor | None,
        config: Any,
        rerank: str | None,
    ) -> dict[str, torch.Tensor | None]:
        """`sequences` (N, n, T), `caption_scores` (N, n) and `agreements` (N, n); of the best alone with `rerank`.

        Args:
            plan: the regions of the call.
            prefixes: (N, A, L, D).
            sequences: (N, n, T) ids of the captions.
            scores: (N, n), or None.
            config: the call's generation configuration.
            rerank: "listener", or None.
        """
        captions = sequences.shape[1]
        ids = plan.padded(sequences.to(prefixes.device)).cpu()
        lengths = caption_lengths(ids, None, None, config, self.config.caption_add_bos)  # type: ignore[attr-defined]
        real = plan.padded(torch.ones(len(plan), dtype=torch.bool, device=prefixes.device), fill=False).cpu()
        heard = self._listen(plan, prefixes, ids, lengths * real[..., None])
        found = listener_scores(heard.log_likelihoods, heard.region_mask).unflatten(2, (-1, captions))
        own = heard.log_likelihoods.amax(2) if heard.log_likelihoods.ndim == 4 else heard.log_likelihoods
        own = own.unflatten(2, (-1, captions)).diagonal(dim1=1, dim2=2).transpose(1, 2)  # (B, R, n)
        agreements = plan.real(found.diagonal(dim1=1, dim2=2).transpose(1, 2))  # (N, n)
        if rerank is None:
            return {"sequences": sequences, "caption_scores": scores, "agreements": agreements}
        means = plan.real(own / heard.num_tokens.unflatten(1, (-1, captions)).clamp(min=1))
        best = (agreements.clamp(min=1e-30).log() + _FLUENCY * means).argmax(dim=1, keepdim=True)  # (N, 1)
        chosen = sequences.gather(1, best.to(sequences.device)[..., None].expand(-1, -1, sequences.shape[2]))
        scores = None if scores is None else scores.gather(1, best.to(scores.device))
        return {"sequences": chosen, "caption_scores": scores, "agreements": agreements.gather(1, best)}


__all__ = [
    "PAIRS",
    "ScaListenerMixin",
    "ScaListenerOutput",
    "listener_scores",
    "pair_log_likelihoods",
    "wants_listener",
]
