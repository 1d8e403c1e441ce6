"""Segment and Caption Anything: SAM sees, the text feature mixer translates, a causal language model speaks.

Letters for shapes, used throughout the package:

    B images                 N regions in all, padding dropped   Q caption queries      H W pixels
    R regions per image      M mask candidates (3, or 1)         A caption heads        h w the embedding grid
    K mask prompts           T text tokens                       C mixer width (256)    V vocabulary
    P points per region      L prefix vectors                    D language model width

Model-side coordinates are float32 pixels of the resized image, boxes xyxy.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput, can_return_tuple

from .base_models_sca import keep_precision, one_at_a_time
from .composing_sca import ScaComposingMixin
from .configuration_sca import ScaConfig
from .detail_sca import ScaDetailEncoder
from .families_sca import family_of
from .generation_sca import (
    DEFAULT_NEW_TOKENS,
    GENERATE_ARGUMENTS,
    caption_generation_config,
    check_positions,
    checkpoint_without_dropout,
    continue_prefixes,
    lm_head_at,
    position_limit,
    resolve_generation_config,
    scatter_logits,
)
from .grouping_sca import RegionInputs, RegionPlan
from .listener_sca import ScaListenerMixin, wants_listener
from .loading_sca import ScaLoadingMixin
from .losses_sca import caption_loss
from .mixer_sca import ScaConfidenceHead, ScaTextFeatureMixer
from .outputs_sca import RegionFeatures, ScaGenerateOutput, ScaOutput
from .placement_sca import check_blocks, execution_device, weights_at_hand
from .queries_sca import reads_queries
from .second_look_sca import ScaSecondLook
from .segmentation_sca import ImageEncoding
from .segmenters_sca import build_segmenter, encode_images, segmenter_class, share_positions
from .validation_sca import check_regional, check_training_inputs, limited_modules, refuse_unknown, warn_of_lost_tasks
from .video_sca import ScaVideoMixin


# What the processor returns and neither forward nor generate needs.
_PROCESSOR_KEYS = frozenset({"original_sizes", "reshaped_input_sizes"})
_TRAINING_KEYS = frozenset({"input_ids", "attention_mask", "labels", "mask_labels", "num_items_in_batch"})
# Above this many regions per call, caption scores are computed on request only.
_SCORED_REGIONS = 256


class ScaForConditionalGeneration(
    ScaLoadingMixin, ScaComposingMixin, ScaVideoMixin, ScaListenerMixin, PreTrainedModel, GenerationMixin
):
    """Segment and Caption Anything: a mask and a caption for every prompted region (arXiv 2312.00869).

    `forward` takes, beside images and prompts (the fields of [`RegionInputs`]):

    Args:
        multimask_output: three candidate masks per region, else one. Does not influence captions.
        input_ids: (B, R, T) captions.
        attention_mask: (B, R, T) 1 on the caption, 0 on padding.
        labels: (B, R, T) the ids again with -100 on padding, not shifted.
        mask_labels: (B, R, 4h, 4w) true masks in the frame of `pred_masks`, in [0, 1], or finer ones, of a multiple of
            that size; NaN throughout for regions whose mask is not known. In training mode the three masks and the
            single one learn from them, whichever `multimask_output` asks for; so does a second look that takes
            gradients.
        output_masks: compute masks and IoU; None does so without text, or with `mask_labels`.
        second_look: draw masks again, see [`ScaSecondLook`]; None does so where it learns.
        region_chunk_size: regions that run at once; None fits the device. Changes no result.
        num_items_in_batch: what the summed caption loss is divided by, and with it each region's mask loss times its
            number of labels; None for the labels of this call.
        output_hidden_states: with text, also return those of the language model; None asks the configuration.
        output_attentions: the same for its attention weights.
    """

    config_class = ScaConfig
    config: ScaConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _supports_sdpa = True
    # For loading; `keep_precision` says why, and what holds for casts.
    _keep_in_fp32_modules_strict = ["shared_image_embedding", "shared_embedding"]

    @one_at_a_time
    @limited_modules()
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
            self.sam = keep_precision(share_positions(build_segmenter(config.sam_config)))
            self.language_model = keep_precision(AutoModelForCausalLM.from_config(config.text_config))
            self.generation_config = caption_generation_config(self.language_model)
        elif config.base_model_repos and (base := family_of(config.sam_config).base):
            self.sam = keep_precision(build_segmenter(config.sam_config))
            self.sam.set_submodule(base, nn.Identity())  # the rest is saved with the mixer
        self.mixer = ScaTextFeatureMixer._from_config(config.mixer_config)
        self.detail_encoder = ScaDetailEncoder(config) if config.detail_widths else None
        self.second_look = ScaSecondLook(config) if config.second_look_size else None
        size = config.confidence_size
        self.confidence_head = ScaConfidenceHead(config.mixer_config.hidden_size, size) if size else None
        self.post_init()
        self._freeze_base_models()
        for part in (self.confidence_head, self.second_look):  # captions teach them nothing
            if part is not None:
                part.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not any(part is not None and part.init_weights(module) for part in (self.detail_encoder, self.second_look)):
            super()._init_weights(module)

    def train(self, mode: bool = True) -> "ScaForConditionalGeneration":
        """Set training mode; frozen parts stay in evaluation mode, without dropout: frozen means frozen."""
        super().train(mode)
        for part in (self.sam, self.language_model):
            for module in part.modules() if mode and part is not None else ():
                trained = [weight.requires_grad for weight in module.parameters()]
                if trained and not any(trained):
                    module.eval()
        if mode and self.language_model is not None and not self.language_model.training:
            # Gradients pass through the frozen language model, so its layers are worth checkpointing.
            for layer in self.language_model.modules():
                if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
                    checkpoint_without_dropout(layer)
        return self

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(*args, **kwargs)
        self.train(self.training)

    def encode_images(self, pixel_values: torch.Tensor) -> ImageEncoding:
        """Encode images once, to prompt them many times: `model.generate(**encoding.as_inputs(), input_boxes=...)`.

        Args:
            pixel_values: (B, 3, H, W), normalized pixels of the images, brought to the square.
        """
        encoding = encode_images(self.sam, pixel_values)
        more = [pixel_values] if self.second_look is not None else []
        if self.detail_encoder is not None:
            more.append(self.detail_encoder(pixel_values.to(execution_device(self.detail_encoder))))
        if more:
            encoding.intermediate_embeddings = [*(encoding.intermediate_embeddings or ()), *more]
        return encoding

    def get_image_embeddings(
        self, pixel_values: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, list[torch.Tensor]]:
        """Encode images as [`encode_images`] does, and return tensors as the library's SAM does.

        Args:
            pixel_values: (B, 3, H, W), normalized pixels of the images, brought to the square.

        Returns:
            (B, C, h, w). Where masks need more (SAM-HQ, SAM 2 and its relatives) and for a model with a detail
            encoder or a second look a pair of this and `intermediate_embeddings`.
        """
        encoding = self.encode_images(pixel_values)
        if encoding.intermediate_embeddings is None:
            return encoding.image_embeddings
        return encoding.image_embeddings, encoding.intermediate_embeddings

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
        second_look: bool | None = None,
        region_chunk_size: int | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> ScaOutput:
        """Segment prompted regions; with text also run the mixer and the language model, and return the training loss.

        The class describes the arguments; those of images and prompts are the fields of [`RegionInputs`].
        """
        refuse_unknown(kwargs, _PROCESSOR_KEYS, "forward")
        warn_of_lost_tasks(kwargs, task_ids, self.config.mixer_config.tasks)
        check_training_inputs(input_ids, labels, mask_labels, output_masks)
        inputs = RegionInputs(
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
        )
        if output_masks is None:
            output_masks = input_ids is None or mask_labels is not None
        learn = mask_labels is not None and self.config.mask_loss_weight > 0
        masks = (multimask_output, not multimask_output)[: output_masks + (learn and self.training)]
        regions = self._region_features(inputs, masks, input_ids is not None, region_chunk_size, second_look, learn)
        results = {"image_embeddings": regions.encoding.image_embeddings, **regions.padded_masks(self._side)}
        if input_ids is not None:
            results |= self._read_captions(
                regions, input_ids, attention_mask, labels, num_items_in_batch, output_hidden_states, output_attentions
            )
        if learn:
            loss, losses = regions.mask_loss(mask_labels, labels, num_items_in_batch, self.config)
            results |= {"loss": results.get("loss", 0) + self.config.mask_loss_weight * loss, "mask_losses": losses}
        return ScaOutput(**results)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        multimask_output: bool = True,
        output_masks: bool = True,
        output_caption_scores: bool | None = None,
        rerank: str | None = None,
        output_agreements: bool = False,
        second_look: bool | None = None,
        region_chunk_size: int | None = None,
        language_model_batch_size: int | None = None,
        **kwargs: Any,
    ) -> ScaGenerateOutput | torch.LongTensor:
        """Caption every prompted region; takes what the processor returns.

        Args:
            pixel_values: (B, 3, H, W) normalized pixels of the images, brought to the square.
            generation_config: overrides the model's own; single values can be given as keywords (`num_beams=3`).
            multimask_output: return three candidate masks per region, else one. Does not influence captions.
            output_masks: also return `pred_masks` and `iou_scores`.
            output_caption_scores: also return `caption_scores`. None: for calls of up to 256 regions.
            rerank: "listener" returns of the captions of a region (`num_return_sequences`, of beams or sampling, and
                caption heads) the one that tells it apart from the others of its image.
            output_agreements: also return `agreements`; with `rerank` they are always returned.
            second_look: draw the masks again, see [`ScaSecondLook`]; None does so if the model has one.
            region_chunk_size: regions that run through SAM's decoder and the mixer at once; None fits the device.
            language_model_batch_size: regions that the language model continues at once; None fits the memory.
            kwargs: the other fields of [`RegionInputs`], and arguments of the library's `generate`, its `inputs`
                for `pixel_values`. `max_new_tokens` is 20 unless set otherwise; training keys are ignored. Rows of
                `prefix_allowed_tokens_fn`, logits processors and stopping criteria are the real regions in order
                (their caption heads side by side), and ids are those of the caption alone.

        Returns:
            [`ScaGenerateOutput`], or the ids alone with `return_dict_in_generate=False`.
        """
        pixel_values = kwargs.pop("inputs", None) if pixel_values is None else pixel_values
        inputs = RegionInputs.taken_from(kwargs, pixel_values=pixel_values)
        config, extra = resolve_generation_config(self.generation_config, generation_config, kwargs)
        refuse_unknown(extra, _PROCESSOR_KEYS | _TRAINING_KEYS | GENERATE_ARGUMENTS, "generate")
        listens = wants_listener(rerank, output_agreements)
        self.check_new_tokens(config.max_new_tokens)
        extra = {name: value for name, value in extra.items() if name in GENERATE_ARGUMENTS and value is not None}
        return_dict = config.return_dict_in_generate
        masks = (multimask_output,) if output_masks and return_dict else ()
        look = self.second_look is not None if second_look is None else second_look
        regions = self._region_features(inputs, masks, True, region_chunk_size, look)
        plan = regions.plan
        if output_caption_scores is None:
            output_caption_scores = len(plan) <= _SCORED_REGIONS
        with_scores = output_caption_scores and return_dict
        prefix = self._prefix(regions, several=not listens)
        sequences, scores = continue_prefixes(
            self.language_model, prefix, config, with_scores, language_model_batch_size, extra
        )  # (N, n, T), (N, n)
        said = {"sequences": sequences, "caption_scores": scores}
        if listens:
            said = self._agree(plan, prefix, sequences, scores, config, rerank)
        return self._generate_output(regions, said, config.pad_token_id or 0, return_dict)

    def _generate_output(
        self, regions: RegionFeatures, said: dict[str, torch.Tensor | None], pad: int, return_dict: bool
    ) -> ScaGenerateOutput | torch.LongTensor:
        """What `generate` returns of what was said of the N regions, (N, n, ...)."""
        plan, device = regions.plan, regions.encoding.image_embeddings.device
        sequences = plan.padded(said.pop("sequences").squeeze(1).to(device), fill=pad)
        if not return_dict:
            return sequences
        real = torch.ones(len(plan), dtype=torch.bool, device=sequences.device)
        results = {"region_mask": plan.padded(real, fill=False), **regions.padded_masks(self._side)}
        if self.confidence_head is not None:
            results["confidences"] = plan.padded(self.confidence_head(regions.queries))
        results |= {name: plan.padded(x.squeeze(1).to(device)) for name, x in said.items() if x is not None}
        return ScaGenerateOutput(sequences=sequences, **results)

    def check_new_tokens(self, max_new_tokens: int | None = None) -> None:
        """Raise if the language model lacks the positions for captions so long; None stands for the model's setting.

        Raises:
            ValueError: prefix and caption together take more positions than there are.
        """
        tokens = max_new_tokens or self.generation_config.max_new_tokens or DEFAULT_NEW_TOKENS
        self._check_positions(tokens, "max_new_tokens")

    def longest_caption(self) -> int | None:
        """Tokens that the language model has positions for behind the prefix; None where positions have no end."""
        limit = position_limit(self.language_model)
        return None if limit is None else limit - self.config.mixer_config.prefix_length

    def _check_positions(self, tokens: int, what: str) -> None:
        check_positions(self.language_model, self.config.mixer_config.prefix_length, tokens, what)

    @property
    def _side(self) -> int:
        return self.config.image_frame.side

    def _region_features(
        self,
        inputs: RegionInputs,
        masks: tuple[bool, ...],
        queries: bool,
        region_chunk_size: int | None,
        look: bool | None,
        learn: bool = False,
    ) -> RegionFeatures:
        """Encode the images once, then run SAM's decoder and the mixer for all regions, chunk by chunk.

        Args:
            inputs: images and regions.
            masks: the `multimask_output` of each kind of masks that is wanted.
            queries: also run the mixer.
            region_chunk_size: regions that run at once; None fits the device.
            look: draw masks that are wanted again.
            learn: do so in any case where the second look takes gradients, and keep its coarser masks for a loss.
        """
        if look and self.second_look is None:
            raise ValueError("second_look=True needs a model with second_look_size.")
        learn = learn and self.second_look is not None and self.second_look.net.fuse.weight.requires_grad
        check_blocks(getattr(self, "hf_device_map", {}))
        encoding = self._encode(inputs, masks=bool(masks), queries=queries)
        sam = self.sam
        read = (sam.mask_decoder, sam.prompt_encoder, sam.shared_image_embedding, self.mixer if queries else None)
        with weights_at_hand(*read):
            device = execution_device(sam.mask_decoder)
            encoding, inputs = encoding.to(device), inputs.to(device)
            plan, input_masks = inputs.plan(encoding.image_embeddings, len(self.config.mixer_config.tasks))
            segmenter = segmenter_class(sam)(sam, encoding, input_masks)
            readers = [reads_queries(self, segmenter, encoding)] if queries else []
            if masks and (look or learn):
                maps = encoding.intermediate_embeddings or []
                pixels = maps[-1 if self.detail_encoder is None else -2 :][:1]
                readers.append(self.second_look.reader(pixels, self._side, learn))
            found, others = segmenter.segment_regions(plan, masks, region_chunk_size, readers)
        return RegionFeatures(plan, encoding, found, others, inputs.task_ids)

    def _encode(self, inputs: RegionInputs, masks: bool, queries: bool) -> ImageEncoding:
        """Encode the pixels, or check that the encoding given in their place is all that masks and queries need."""
        if (inputs.pixel_values is None) == (inputs.image_embeddings is None):
            raise ValueError("Pass either pixel_values or image_embeddings, not both.")
        if inputs.pixel_values is not None:
            return self.encode_images(inputs.pixel_values)
        family, frame = family_of(self.config.sam_config), self.config.image_frame
        if masks and family.extra_maps and not inputs.intermediate_embeddings:
            raise ValueError(
                f"{family.title} needs the intermediate_embeddings from get_image_embeddings for its masks; pass them "
                "with image_embeddings, or pass output_masks=False."
            )
        reads = self.detail_encoder is not None or self.mixer.reads_features
        if queries and reads and not inputs.intermediate_embeddings:
            raise ValueError(
                "a model with a detail encoder, or that reads class scores or features of its encoder, needs the "
                "intermediate_embeddings of get_image_embeddings; pass them with image_embeddings."
            )
        form = (frame.width, frame.grid, frame.grid)
        if tuple(inputs.image_embeddings.shape[1:]) != form:
            raise ValueError(
                f"image_embeddings must be (B, {', '.join(map(str, form))}), got "
                f"{tuple(inputs.image_embeddings.shape)}."
            )
        return ImageEncoding(inputs.image_embeddings, inputs.intermediate_embeddings)

    def _prefix(self, regions: RegionFeatures, several: bool = False) -> torch.Tensor:
        """Language model prefix of every region, (N, A, L, D); of each of its tasks where it may have `several`."""
        tasks, queries = self.config.mixer_config.tasks, regions.queries
        if regions.task_ids is not None:
            ids = regions.plan.real(regions.task_ids).to(queries.device)
            if ids.ndim > 1 and not several:
                raise ValueError("captions in several languages are for generate, without a listener.")
        elif "caption" in tasks:
            ids = torch.full((len(queries),), tasks.index("caption"), device=queries.device)
        else:
            raise ValueError(f"task_ids are required: none of the tasks {tasks} is 'caption'.")
        with weights_at_hand(self.mixer):
            return self.mixer.prefix(queries, ids)

    def _read_captions(
        self,
        regions: RegionFeatures,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        labels: torch.Tensor | None,
        num_items: torch.Tensor | int | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
    ) -> dict[str, Any]:
        """Have the language model read each region's prefix and caption; its fields of [`ScaOutput`], and the loss."""
        plan, device = regions.plan, regions.encoding.image_embeddings.device
        captions = (input_ids, attention_mask, labels)
        input_ids, attention_mask, labels = (x if x is None else x.to(device) for x in captions)
        check_regional(plan.shape, input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        self._check_positions(input_ids.shape[-1], "input_ids")
        prefix = self._prefix(regions)
        targets = positions = None
        if labels is not None:
            targets = plan.real(labels).unsqueeze(1).expand(-1, prefix.shape[1], -1).flatten()  # (N * A * T,)
            if self.training:
                # The head need not look where there is nothing to learn.
                positions = (targets != -100).nonzero()[:, 0]
        with lm_head_at(self.language_model, positions):
            output = self._language_model_forward(
                prefix, plan.real(input_ids), attention_mask, plan, output_hidden_states, output_attentions
            )
        logits = output.logits  # (N * A, T, V), or (positions, V)
        results = {name: output.get(name) for name in ("hidden_states", "attentions")}
        if targets is not None:
            chosen = (targets if positions is None else targets[positions]).to(logits.device)
            # Every caption head learns the same caption.
            items = None if num_items is None else num_items * self.config.mixer_config.num_caption_heads
            loss = caption_loss(logits.flatten(0, -2), chosen, self.config.label_smoothing, items)
            results["loss"] = loss.to(device)
        if positions is not None:
            logits = scatter_logits(logits, positions, len(targets))
        logits = logits.reshape(*prefix.shape[:2], input_ids.shape[-1], -1)  # (N, A, T, V)
        wide = {"logits": logits.squeeze(1), "prefix_embeds": prefix, "query_embeds": regions.queries}
        return results | {name: plan.padded(values.to(device)) for name, values in wide.items()}

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
        heads, length, device = prefix.shape[1], ids.shape[1], execution_device(self.language_model)
        embeds = self.get_input_embeddings()(ids[:, :-1].to(device)).unsqueeze(1).expand(-1, heads, -1, -1)
        # A frozen language model may be held in half precision beside a float32 mixer.
        embeds = torch.cat([prefix.to(embeds), embeds], dim=2).flatten(0, 1)  # (N*A, L + T - 1, D)
        mask = None
        if attention_mask is not None:
            mask = plan.real(attention_mask)[:, :-1].repeat_interleave(heads, dim=0).to(embeds.device)
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


__all__ = ["ScaForConditionalGeneration", "ScaGenerateOutput", "ScaOutput"]
