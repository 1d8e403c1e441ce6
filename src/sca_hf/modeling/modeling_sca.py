"""Segment and Caption Anything: SAM sees, the text feature mixer translates, a causal language model speaks.

Letters for shapes, used throughout the package:

    B images                 N regions in all, padding dropped   Q caption queries      H W pixels
    R regions per image      M mask candidates (3, or 1)         A caption heads        h w the embedding grid
    K mask prompts           T text tokens                       C mixer width (256)    V vocabulary
    P points per region      L prefix vectors                    D language model width

Model-side coordinates are float32 pixels of the resized image (longest side = SAM's `image_size`), boxes xyxy.
"""

import inspect
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, can_return_tuple

from .composing_sca import ScaComposingMixin
from .configuration_sca import ScaConfig
from .detail_sca import ScaDetailEncoder, box_weights, mask_weights
from .generation_sca import (
    caption_generation_config,
    continue_prefixes,
    lm_head_at,
    resolve_generation_config,
    scatter_logits,
)
from .generation_sca import region_chunk_size as default_chunk_size
from .grouping_sca import PromptGroup, RegionPlan, plan_regions
from .loading_sca import ScaLoadingMixin
from .losses_sca import caption_loss, mask_loss
from .mixer_sca import ScaTextFeatureMixer
from .outputs_sca import RegionFeatures, ScaGenerateOutput, ScaOutput
from .segmentation_sca import DecodedRegions, SamSegmenter
from .validation_sca import as_mask_table, check_prompts, check_regional, refuse_unknown


# What the processor returns and neither forward nor generate needs.
_PROCESSOR_KEYS = frozenset({"original_sizes", "reshaped_input_sizes"})
_TRAINING_KEYS = frozenset({"input_ids", "attention_mask", "labels", "mask_labels", "num_items_in_batch"})
# Above this many regions per call, caption scores are computed on request only.
_SCORED_REGIONS = 256
_GENERATE_ARGUMENTS = frozenset(inspect.signature(GenerationMixin.generate).parameters) - {"self", "inputs", "kwargs"}


class ScaForConditionalGeneration(ScaLoadingMixin, ScaComposingMixin, PreTrainedModel, GenerationMixin):
    """A mask and a caption for every prompted region (arXiv 2312.00869)."""

    config_class = ScaConfig
    config: ScaConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    # Random Fourier features lose positions in half precision: at 1024 px bfloat16 moves a box by 4 px.
    _keep_in_fp32_modules_strict = ["shared_image_embedding", "shared_embedding"]

    def __init__(self, config: ScaConfig, build_base_models: bool = True) -> None:
        """
        Args:
            build_base_models: False leaves `sam` and `language_model` out, for `attach_base_models`.
        """
        super().__init__(config)
        # The Trainer would take this class name for a causal language model's, whose first label predicts nothing.
        self.loss_type = None
        self.sam: PreTrainedModel | None = None
        self.language_model: PreTrainedModel | None = None
        if build_base_models:
            self.sam = AutoModel.from_config(config.sam_config)
            self.language_model = AutoModelForCausalLM.from_config(config.text_config)
            self.generation_config = caption_generation_config(self.language_model)
        self.mixer = ScaTextFeatureMixer._from_config(config.mixer_config)
        self.detail_encoder = ScaDetailEncoder(config) if config.detail_widths else None
        self.post_init()
        self._freeze_base_models()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if self.detail_encoder is None or not self.detail_encoder.init_weights(module):
            super()._init_weights(module)

    def attach_base_models(self, sam: PreTrainedModel, language_model: PreTrainedModel) -> None:
        """Make `sam` and `language_model`, which are not copied, parts of a model built without them."""
        self.sam, self.language_model = sam, language_model
        self.config.sam_config, self.config.text_config = sam.config, language_model.config
        self.all_tied_weights_keys = self.get_expanded_tied_weights_keys(all_submodels=True)
        for part in (sam, language_model):
            self._no_split_modules |= set(part._no_split_modules or ())
        self._freeze_base_models()

    def _freeze_base_models(self) -> None:
        if self.config.freeze_base_models:
            for part in (self.sam, self.language_model):
                if part is not None:
                    part.requires_grad_(False)

    def train(self, mode: bool = True) -> "ScaForConditionalGeneration":
        """Set training mode; frozen parts stay in evaluation mode, without dropout: frozen means frozen."""
        super().train(mode)
        for part in (self.sam, self.language_model):
            if mode and part is not None and not any(p.requires_grad for p in part.parameters()):
                part.eval()
        if mode and self.language_model is not None and not self.language_model.training:
            # Gradients pass through the frozen language model, so its layers are worth checkpointing.
            for layer in self.language_model.modules():
                if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                    _checkpoint_without_dropout(layer)
        return self

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        """The language model's token embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's token embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return self.language_model.get_decoder()

    def get_image_embeddings(
        self, pixel_values: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode images once, to prompt them many times through `image_embeddings=`.

        Args:
            pixel_values: (B, 3, H, W), normalized pixels of the resized and padded images.

        Returns:
            (B, C, h, w). For SAM-HQ, whose masks need early features too, and for a model with a detail encoder a
            pair of this and `intermediate_embeddings`.
        """
        encoder = self.sam.vision_encoder
        weight = encoder.patch_embed.projection.weight
        side = self.config.sam_config.vision_config.image_size
        if tuple(pixel_values.shape[1:]) != (weight.shape[1], side, side):
            raise ValueError(
                f"pixel_values must be (B, {weight.shape[1]}, {side}, {side}), got {tuple(pixel_values.shape)}."
            )
        output = encoder(pixel_values.to(weight.dtype))
        is_hq = self.config.sam_config.model_type == "sam_hq"
        intermediate = list(output[1]) if is_hq else []
        if self.detail_encoder is not None:
            intermediate.append(self.detail_encoder(pixel_values))
        return (output[0], intermediate) if intermediate else output[0]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeddings: torch.Tensor | None = None,
        intermediate_embeddings: list[torch.Tensor] | None = None,
        input_points: torch.Tensor | None = None,
        input_labels: torch.Tensor | None = None,
        input_boxes: torch.Tensor | None = None,
        input_masks: torch.Tensor | None = None,
        mask_index: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        prompt_layout: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        multimask_output: bool = True,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        mask_labels: torch.Tensor | None = None,
        output_masks: bool | None = None,
        region_chunk_size: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ScaOutput:
        """Masks for prompted regions; with text also the mixer, the language model and the training loss.

        Args:
            pixel_values: (B, 3, H, W) normalized pixels of the resized and padded images.
            image_embeddings: (B, C, h, w) from `get_image_embeddings`, in place of `pixel_values`.
            intermediate_embeddings: from `get_image_embeddings`, beside `image_embeddings`, where that returns them.
            input_points: (B, R, P, 2) x, y in pixels of the resized image.
            input_labels: (B, R, P): 1 in the region, 0 outside, -1 not a point, -10 padding. None: all 1.
            input_boxes: (B, R, 4) xyxy in pixels of the resized image.
            input_masks: (K, 4h, 4w) mask prompts as logits, or (B, 1, 4h, 4w) for one per image.
            mask_index: (B, R) rows of `input_masks`, -1 for none.
            region_mask: (B, R) False for padded regions.
            prompt_layout: (B, R) from the processor: `num_points << 2 | has_mask << 1 | has_box`, 0 for padding. None
                takes all prompt tensors for all regions, exactly as SAM does.
            task_ids: (B, R) rows of `config.mixer_config.tasks`. None: all `"caption"`.
            multimask_output: three candidate masks per region, else one. Does not influence captions.
            input_ids: (B, R, T) captions.
            attention_mask: (B, R, T) 1 on the caption, 0 on padding.
            labels: (B, R, T) the ids again with -100 on padding, not shifted.
            mask_labels: (B, R, 4h, 4w) true masks in the frame of `pred_masks`, in [0, 1]; NaN throughout for regions
                whose mask is not known. In training mode the three masks and the single one learn from them, whichever
                `multimask_output` asks for.
            output_masks: compute masks and IoU; None does so without text, or with `mask_labels`.
            region_chunk_size: regions that run at once; None fits the device. Changes no result.
            num_items_in_batch: what the summed caption loss is divided by, and with it each region's mask loss times
                its number of labels; None for the labels of this call.
            output_hidden_states: with text, also return those of the language model; None asks the configuration.
            output_attentions: the same for its attention weights.
        """
        refuse_unknown(kwargs, _PROCESSOR_KEYS, "forward")
        if labels is not None and input_ids is None:
            raise ValueError("labels need input_ids: the language model reads the caption to predict its next token.")
        if input_ids is not None and not input_ids.shape[-1]:
            raise ValueError(f"input_ids {tuple(input_ids.shape)} hold no token.")
        if mask_labels is not None and output_masks is False:
            raise ValueError("mask_labels need masks to compare with: leave out output_masks=False.")
        if output_masks is None:
            output_masks = input_ids is None or mask_labels is not None
        features = self._region_features(
            pixel_values=pixel_values,
            image_embeddings=image_embeddings,
            intermediate_embeddings=intermediate_embeddings,
            input_points=input_points,
            input_labels=input_labels,
            input_boxes=input_boxes,
            input_masks=input_masks,
            mask_index=mask_index,
            region_mask=region_mask,
            prompt_layout=prompt_layout,
            task_ids=task_ids,
            multimask_output=multimask_output,
            region_chunk_size=region_chunk_size,
            want_masks=output_masks,
            want_other_masks=self.training and mask_labels is not None and self.config.mask_loss_weight > 0,
            want_queries=input_ids is not None,
        )
        plan = features.plan
        results: dict[str, Any] = {"image_embeddings": features.image_embeddings}
        if output_masks:
            results |= {"pred_masks": plan.padded(features.pred_masks), "iou_scores": plan.padded(features.iou_scores)}
        if input_ids is not None:
            check_regional(plan.shape, input_ids=input_ids, attention_mask=attention_mask, labels=labels)
            prefix = self._prefix(features, task_ids)
            targets = None if labels is None else plan.real(labels).unsqueeze(1).expand(-1, prefix.shape[1], -1)
            positions = None
            if targets is not None and self.training:
                positions = (targets.flatten() != -100).nonzero()[:, 0]
            with lm_head_at(self.language_model, positions):
                spoken = self._language_model_forward(
                    prefix, plan.real(input_ids), attention_mask, plan, output_hidden_states, output_attentions
                )
            logits = spoken.logits  # (N * A, T, V), or (positions, V)
            if targets is not None:
                chosen = targets.flatten() if positions is None else targets.flatten()[positions]
                results["loss"] = self._caption_loss(logits, chosen, num_items_in_batch)
            if positions is not None:
                logits = scatter_logits(logits, positions, targets.numel())
            logits = logits.reshape(*prefix.shape[:2], input_ids.shape[-1], -1)  # (N, A, T, V)
            results |= {"logits": plan.padded(logits.squeeze(1)), "prefix_embeds": plan.padded(prefix)}
            results["query_embeds"] = plan.padded(features.queries)
            results |= {name: spoken.get(name) for name in ("hidden_states", "attentions")}
        if mask_labels is not None and self.config.mask_loss_weight > 0:
            check_regional(plan.shape, pred_masks=results["pred_masks"][:, :, 0], mask_labels=mask_labels)
            loss = self._mask_loss(features, mask_labels, labels, num_items_in_batch)
            results["loss"] = results.get("loss", 0) + self.config.mask_loss_weight * loss
        return ScaOutput(**results)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        image_embeddings: torch.Tensor | None = None,
        intermediate_embeddings: list[torch.Tensor] | None = None,
        input_points: torch.Tensor | None = None,
        input_labels: torch.Tensor | None = None,
        input_boxes: torch.Tensor | None = None,
        input_masks: torch.Tensor | None = None,
        mask_index: torch.Tensor | None = None,
        region_mask: torch.Tensor | None = None,
        prompt_layout: torch.Tensor | None = None,
        task_ids: torch.Tensor | None = None,
        multimask_output: bool = True,
        output_masks: bool = True,
        output_caption_scores: bool | None = None,
        region_chunk_size: int | None = None,
        language_model_batch_size: int | None = None,
        **kwargs: Any,
    ) -> ScaGenerateOutput | torch.LongTensor:
        """Caption every prompted region; takes what the processor returns.

        Args:
            pixel_values: prompts and all tensors as in `forward`; training keys are ignored.
            generation_config: overrides the model's own; single values can be given as keywords (`num_beams=3`).
            output_masks: also return `pred_masks` and `iou_scores`.
            output_caption_scores: also return `caption_scores`. None: for calls of up to 256 regions.
            region_chunk_size: regions that run through SAM's decoder and the mixer at once; None fits the device.
            language_model_batch_size: regions that the language model continues at once; None fits the memory.
            kwargs: of the library's `generate`. `max_new_tokens` is 20 unless set otherwise.

        Returns:
            [`ScaGenerateOutput`], or the ids alone with `return_dict_in_generate=False`.
        """
        config, extra = resolve_generation_config(self.generation_config, generation_config, kwargs)
        refuse_unknown(extra, _PROCESSOR_KEYS | _TRAINING_KEYS | _GENERATE_ARGUMENTS, "generate")
        extra = {name: value for name, value in extra.items() if name in _GENERATE_ARGUMENTS}
        return_dict = config.return_dict_in_generate
        features = self._region_features(
            pixel_values=pixel_values,
            image_embeddings=image_embeddings,
            intermediate_embeddings=intermediate_embeddings,
            input_points=input_points,
            input_labels=input_labels,
            input_boxes=input_boxes,
            input_masks=input_masks,
            mask_index=mask_index,
            region_mask=region_mask,
            prompt_layout=prompt_layout,
            task_ids=task_ids,
            multimask_output=multimask_output,
            region_chunk_size=region_chunk_size,
            want_masks=output_masks and return_dict,
            want_queries=True,
        )
        plan = features.plan
        if output_caption_scores is None:
            output_caption_scores = len(plan) <= _SCORED_REGIONS
        prefixes = self._prefix(features, task_ids)  # (N, A, L, D)
        with_scores = output_caption_scores and return_dict
        sequences, scores = continue_prefixes(
            self.language_model, prefixes, config, with_scores, language_model_batch_size, extra
        )  # (N, n, T), (N, n)
        sequences = plan.padded(sequences.squeeze(1), fill=config.pad_token_id or 0)
        if not return_dict:
            return sequences
        real = torch.ones(len(plan), dtype=torch.bool, device=sequences.device)
        results = {"region_mask": plan.padded(real, fill=False)}
        if with_scores:
            results["caption_scores"] = plan.padded(scores.squeeze(1))
        if output_masks:
            results |= {"pred_masks": plan.padded(features.pred_masks), "iou_scores": plan.padded(features.iou_scores)}
        return ScaGenerateOutput(sequences=sequences, **results)

    def _region_features(
        self,
        pixel_values: torch.Tensor | None,
        image_embeddings: torch.Tensor | None,
        intermediate_embeddings: list[torch.Tensor] | None,
        input_masks: torch.Tensor | None,
        task_ids: torch.Tensor | None,
        multimask_output: bool,
        region_chunk_size: int | None,
        want_masks: bool,
        want_queries: bool,
        want_other_masks: bool = False,
        **prompts: torch.Tensor | None,
    ) -> RegionFeatures:
        """Encode the images once, then run SAM's decoder and the mixer for all regions, chunk by chunk."""
        images, early, details = self._encode(
            pixel_values, image_embeddings, intermediate_embeddings, want_masks, want_queries
        )
        check_prompts(len(images), prompts)
        input_masks, prompts["mask_index"] = as_mask_table(input_masks, prompts, images)
        plan = plan_regions(
            len(images),
            images.device,
            **prompts,
            task_ids=task_ids,
            num_masks=0 if input_masks is None else len(input_masks),
            num_tasks=len(self.config.mixer_config.tasks),
        )
        if not len(plan):
            raise ValueError("There is no region: every region of every image is padding.")
        segmenter = SamSegmenter(self.sam, images, input_masks, early)
        folded = self.mixer.fold_positions(segmenter.positions) if want_queries else None
        size = region_chunk_size or default_chunk_size(
            len(segmenter.positions), images.shape[1], images.dtype, images.device
        )
        outputs = (multimask_output, not multimask_output)[: want_masks + want_other_masks]
        queries: list[torch.Tensor] = []
        masks: dict[bool, list[torch.Tensor]] = {wanted: [] for wanted in outputs}
        scores: dict[bool, list[torch.Tensor]] = {wanted: [] for wanted in outputs}
        for group in plan.groups:
            for chunk in group.chunks(size):
                regions = segmenter.decode(chunk)
                found = {wanted: segmenter.masks(regions, wanted) for wanted in outputs}
                for wanted, (chunk_masks, chunk_scores) in found.items():
                    masks[wanted].append(chunk_masks)
                    scores[wanted].append(chunk_scores)
                if want_queries:
                    mixed = self.mixer(regions.tokens, regions.image_tokens, folded)
                    if details is not None:
                        weights = self._detail_weights(segmenter, chunk, regions, found.get(True))
                        described = self.detail_encoder.describe(details, chunk.image_index, weights)
                        mixed = mixed + described[:, None, None].to(mixed.dtype)
                    queries.append(mixed)
        return RegionFeatures(
            plan=plan,
            image_embeddings=images,
            queries=plan.ordered(queries) if want_queries else None,
            pred_masks=plan.ordered(masks[multimask_output]) if want_masks else None,
            iou_scores=plan.ordered(scores[multimask_output]) if want_masks else None,
            other_masks=plan.ordered(masks[not multimask_output]) if want_other_masks else None,
            other_scores=plan.ordered(scores[not multimask_output]) if want_other_masks else None,
        )

    def _encode(
        self,
        pixel_values: torch.Tensor | None,
        image_embeddings: torch.Tensor | None,
        intermediate_embeddings: list[torch.Tensor] | None,
        want_masks: bool,
        want_queries: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Image embeddings (B, C, h, w), SAM-HQ's earliest features (B, h, w, width) and the detail encoder's."""
        if (pixel_values is None) == (image_embeddings is None):
            raise ValueError("Give either pixel_values or image_embeddings, and not both.")
        is_hq = self.config.sam_config.model_type == "sam_hq"
        if pixel_values is not None:
            encoded = self.get_image_embeddings(pixel_values)
            image_embeddings, intermediate_embeddings = encoded if isinstance(encoded, tuple) else (encoded, None)
        elif is_hq and want_masks and not intermediate_embeddings:
            raise ValueError(
                "SAM-HQ needs the intermediate_embeddings that get_image_embeddings returned for its masks; pass them "
                "beside image_embeddings, or output_masks=False."
            )
        elif self.detail_encoder is not None and want_queries and not intermediate_embeddings:
            raise ValueError(
                "a model with a detail encoder needs the intermediate_embeddings that get_image_embeddings returned; "
                "pass them beside image_embeddings."
            )
        vision = self.config.sam_config.vision_config
        form = (vision.output_channels, *(vision.image_size // vision.patch_size,) * 2)
        if tuple(image_embeddings.shape[1:]) != form:
            raise ValueError(
                f"image_embeddings must be (B, {', '.join(map(str, form))}), got {tuple(image_embeddings.shape)}."
            )
        early = intermediate_embeddings[0] if intermediate_embeddings and is_hq else None
        details = intermediate_embeddings[-1] if intermediate_embeddings and self.detail_encoder is not None else None
        return image_embeddings, early, details

    def _detail_weights(
        self,
        segmenter: SamSegmenter,
        chunk: PromptGroup,
        regions: DecodedRegions,
        found: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """Where each region is, (n, h, w): in its box, if that is its prompt, or else in the best of SAM's masks."""
        if chunk.boxes is not None:
            vision = self.config.sam_config.vision_config
            return box_weights(chunk.boxes, vision.image_size, vision.image_size // vision.patch_size)
        return mask_weights(*(found or segmenter.masks(regions, True)))

    def _prefix(self, features: RegionFeatures, task_ids: torch.Tensor | None) -> torch.Tensor:
        """Language model prefix of every region, (N, A, L, D)."""
        if task_ids is not None:
            return self.mixer.prefix(features.queries, features.plan.real(task_ids))
        if "caption" not in self.config.mixer_config.tasks:
            raise ValueError(f"task_ids are needed: no task of {self.config.mixer_config.tasks} is called 'caption'.")
        row = self.config.mixer_config.tasks.index("caption")
        ids = torch.full((len(features.queries),), row, device=features.queries.device)
        return self.mixer.prefix(features.queries, ids)

    def _mask_loss(
        self,
        features: RegionFeatures,
        mask_labels: torch.Tensor,
        labels: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
    ) -> torch.Tensor:
        """The loss of the masks that were asked for; in training also that of the others."""
        plan, shares = features.plan, None
        if labels is not None:
            # Tokens weigh regions as they weigh captions: only their number is known over all parts of a step.
            tokens = (plan.real(labels) != -100).sum(dim=1)
            shares = tokens / (tokens.sum().clamp(min=1) if num_items is None else num_items)
        known = plan.real(mask_labels)
        loss = mask_loss(features.pred_masks, features.iou_scores, known, shares)
        if features.other_masks is not None:
            # Whoever trains three masks will also be asked for one, and the encoder changes under both.
            loss = loss + mask_loss(features.other_masks, features.other_scores, known, shares)
        return loss

    def _caption_loss(
        self, logits: torch.Tensor, targets: torch.Tensor, num_items: torch.Tensor | int | None
    ) -> torch.Tensor:
        """Loss of `logits` (..., V) for `targets` of as many rows; every caption head learns the same caption."""
        items = None if num_items is None else num_items * self.config.mixer_config.num_caption_heads
        return caption_loss(logits.flatten(0, -2), targets, self.config.label_smoothing, items)

    def _language_model_forward(
        self,
        prefix: torch.Tensor,
        ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        plan: RegionPlan,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
    ) -> ModelOutput:
        """The language model's output with logits (N * A, T, V) that predict each of `ids` (N, T).

        The last vector of `prefix` (N, A, L, D) predicts the first.
        """
        heads, length = prefix.shape[1], ids.shape[1]
        embeds = self.get_input_embeddings()(ids[:, :-1]).unsqueeze(1).expand(-1, heads, -1, -1)
        # A frozen language model may be held in half precision beside a float32 mixer.
        embeds = torch.cat([prefix.to(embeds.dtype), embeds], dim=2).flatten(0, 1)  # (N*A, L + T - 1, D)
        mask = None
        if attention_mask is not None:
            mask = plan.real(attention_mask)[:, :-1].repeat_interleave(heads, dim=0)
            mask = torch.cat([mask.new_ones(len(mask), prefix.shape[2]), mask], dim=1)
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        wanted = {name: getattr(self.config, name) if value is None else value for name, value in wanted.items()}
        # The Trainer's loss argument must not reach a language model that would divide by it as well.
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            logits_to_keep=length,
            use_cache=False,
            return_dict=True,
            **{name: value for name, value in wanted.items() if value},
        )


def _checkpoint_without_dropout(layer: nn.Module) -> None:
    # A checkpointed layer looks at its own flag; what is inside it stays in evaluation mode.
    layer.training = True
    # OPT's layers apply dropout themselves, under the same flag.
    if isinstance(getattr(layer, "dropout", None), float):
        layer.dropout = 0.0


__all__ = ["ScaForConditionalGeneration", "ScaGenerateOutput", "ScaOutput"]
