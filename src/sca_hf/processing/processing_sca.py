"""Processor of Segment and Caption Anything: images, prompts of regions and captions in; records of regions out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack

from .batch_sca import CheckedLoading, ScaBatch, column_arguments
from .captions_sca import (
    as_id_array,
    asked_tasks,
    check_caption_settings,
    check_vocabulary,
    chosen_task,
    decode_nested,
    decode_rows,
    encode_captions,
    id_rows,
    region_captions,
    region_tasks,
    split_output,
    tasks_in_languages,
    vocabulary_digest,
)
from .find_sca import FIND_THRESHOLD, ScaFindMixin
from .images_sca import (
    URL_SECONDS,
    as_images,
    build_image_processor,
    check_image_processor,
    check_size,
    check_sizes,
    square_side,
    stretches,
)
from .mask_generation_sca import (
    MASK_OUTPUTS,
    build_point_grid,
    choose_candidates,
    mask_records,
    real_regions,
    to_list,
    upscale_masks,
)
from .prompts_sca import build_prompts, resized_size
from .region_prompts_sca import processor_arguments, read_regions
from .video_captions_sca import ScaVideoProcessorMixin


# Of what `save_pretrained` writes. A change that older code would misread raises it.
FORMAT_VERSION = 1


class ScaProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """Keyword arguments of [`ScaProcessor`]: the image processor's, and `max_length` and `padding` of captions."""

    _defaults = {"common_kwargs": {"return_tensors": "pt"}}


class ScaProcessor(ScaVideoProcessorMixin, ScaFindMixin, CheckedLoading, ProcessorMixin):
    """Prepares images and prompts for [`ScaForConditionalGeneration`] and turns its output into regions with captions.

    Coordinates that go in and come out are pixels of the original image, boxes xyxy; see `prompts_sca.py`.

    Args:
        image_processor: the library's SAM image processor, of either backend.
        tokenizer: the language model's.
        tasks: names of the model's tasks, in the order of their ids.
        max_caption_length: tokens a caption is cut to, its EOS included.
        caption_add_bos: captions to learn begin with the tokenizer's BOS.
        mask_size: side of the model's low-resolution masks, four times its grid of image embeddings; by default what
            the image processor makes of segmentation maps.
        format_version: of the settings, as stored; what newer code wrote is refused.
        anything_settings: fields of [`AnythingSettings`] that suit the model better than SAM's own defaults.
        find_threshold: log-probability of a text below which [`~ScaProcessor.find`] finds nothing.
        vocabulary_sha256: of the tokenizer's vocabulary, as stored; another one says other words and is refused.
    """

    valid_processor_kwargs = ScaProcessorKwargs
    _auto_class: str | None = None

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        tasks: Sequence[str] = ("recognition", "caption"),
        max_caption_length: int = 20,
        caption_add_bos: bool = False,
        mask_size: int | None = None,
        anything_settings: dict[str, Any] | None = None,
        find_threshold: float = FIND_THRESHOLD,
        chat_template: str | None = None,
        format_version: int = FORMAT_VERSION,
        vocabulary_sha256: str | None = None,
    ) -> None:
        if format_version != FORMAT_VERSION:
            raise ValueError(
                f"the processor's settings have format {format_version}, but this code supports {FORMAT_VERSION}: "
                "update sca-hf (pip install -U sca-hf), or load with trust_remote_code=True, which takes the code "
                "from the repository."
            )
        if image_processor is None or tokenizer is None:
            raise ValueError("ScaProcessor needs an image_processor and a tokenizer.")
        check_caption_settings(tasks, max_caption_length)
        self.tasks = list(tasks)
        self.max_caption_length = max_caption_length
        self.caption_add_bos = caption_add_bos
        self.format_version = format_version
        self.mask_size = square_side(mask_size or image_processor.mask_size, "mask_size")
        check_image_processor(image_processor)
        check_vocabulary(tokenizer, vocabulary_sha256)
        self.anything_settings = dict(anything_settings or {})
        self.find_threshold = find_threshold
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @classmethod
    def from_config(
        cls,
        config: Any,
        tokenizer: Any,
        image_processor: Any = None,
        anything_settings: dict[str, Any] | None = None,
        find_threshold: float = FIND_THRESHOLD,
    ) -> "ScaProcessor":
        """Build the processor that fits a model: sizes, tasks and caption settings of its [`ScaConfig`].

        Args:
            config: the model's configuration.
            tokenizer: the language model's.
            image_processor: the library's, for the model's image size; made here where None.
            anything_settings: what suits the model's SAM better than SAM's own defaults.
            find_threshold: what suits the captions that the model says.
        """
        frame = config.image_frame
        return cls(
            build_image_processor(frame, image_processor),
            tokenizer,
            tasks=config.mixer_config.tasks,
            max_caption_length=config.max_caption_length,
            caption_add_bos=config.caption_add_bos,
            mask_size=frame.mask_side,
            anything_settings=anything_settings,
            find_threshold=find_threshold,
        )

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        captions: Any = None,
        task: Any = None,
        length: Any = None,
        original_sizes: Any = None,
        timeout: float | None = URL_SECONDS,
        language: Any = None,
        **kwargs: Unpack[ScaProcessorKwargs],
    ) -> ScaBatch:
        """Prepare a batch: images, the prompts of their regions, and the captions to learn.

        Kinds of prompts may differ from region to region: each kind has one entry per region, None where the region
        has none of it. For a single image the outer level may be left out. Pixels are those of the upright image, its
        EXIF orientation applied; both edges are legal, so that a box may end at x2 = width.

        Args:
            images: one image or a list, see [`as_images`]. Or columns of a data set, `image` and further arguments by
                their names, as `dataset.with_transform(processor)` hands them over.
            text: an empty text or the name of a task, for each image; the library's pipelines pass it.
            input_points: [image][region][point][x, y], pixels of the original image.
            input_labels: [image][region][point], 1 inside, 0 outside the region; 1 where None.
            input_boxes: [image][region][x1, y1, x2, y2], pixels of the original image.
            input_masks: [image][region] of masks of the original image, see [`mask_logits`].
                With no prompt of any kind, each image gets one box around the whole of it. An empty list for one of
                several images is an image without regions.
            captions: [image][region] of strings to learn; None for a region without.
            task: a name, one per image, or one per region; `"caption"` (else the last of `tasks`) by default.
            length: `"short"`, `"sentence"`, `"detailed"` or a number of words, nested as `task`; None: the usual one.
            original_sizes: per image (height, width), in place of `images`: prompts alone, for cached embeddings.
            timeout: seconds that the server of a URL may be silent; None waits forever.
            language: of captions, a tag such as `"de"`, nested as `task`, or several for all, as in `"en,de"`.
            kwargs: of the image processor; `return_tensors` (by default `"pt"`); `max_length`, `padding` of captions.

        Returns:
            `pixel_values` (B, 3, H, W), `original_sizes` and `reshaped_input_sizes` (B, 2), `task_ids` (B, R) or, in L
            languages, (B, R, L), prompts; with captions `input_ids`, `attention_mask`, `labels` (B, R, T).
        """
        if isinstance(images, Mapping) and not images.keys() <= {"bytes", "path"}:
            given = dict(text=text, input_points=input_points, input_labels=input_labels, input_boxes=input_boxes)
            given |= dict(input_masks=input_masks, captions=captions, task=task, length=length, language=language)
            return self._of_columns(images, given, original_sizes=original_sizes, timeout=timeout, **kwargs)
        options = self._options(kwargs)
        tensors = options["images_kwargs"].pop("return_tensors", "pt")
        data, sizes, resized, frame_size = self._images(images, original_sizes, timeout, options["images_kwargs"])
        prompts = build_prompts(
            sizes, resized, frame_size, self.mask_size, input_points, input_labels, input_boxes, input_masks
        )
        shape, counts = prompts["region_mask"].shape, prompts["region_mask"].sum(1).tolist()
        data |= prompts
        data["task_ids"] = self._task_ids(text, task, length, language, counts, shape)
        if captions is not None or text is not None:
            data |= self._captions(captions, counts, shape, options["text_kwargs"])
        return ScaBatch(data, tensor_type=tensors)

    def _of_columns(self, columns: Any, given: dict[str, Any], **kwargs: Any) -> Any:
        """Return the batch of the columns of a data set, as columns where these are lists."""
        arguments = column_arguments(columns, given)
        batch = self(**arguments, **kwargs)
        return batch.as_columns() if isinstance(arguments["images"], list) else batch

    def _task_ids(
        self, text: Any, task: Any, length: Any, language: Any, counts: list[int], shape: tuple[int, int]
    ) -> np.ndarray:
        """Return the task of each region, (B, R) or (B, R, L) int64; a length or a language is a task of its own."""
        ids = region_tasks(chosen_task(text, task, self.tasks, len(counts)), self.tasks, counts, shape)
        several = isinstance(language, str) and "," in language
        if length is not None or (language is not None and not several):
            ids = asked_tasks(ids, self.tasks, counts, length, None if several else language)
        return tasks_in_languages(ids, self.tasks, counts, language.split(",")) if several else ids

    def region_arguments(self, regions: Any, size: tuple[int, int]) -> dict[str, Any]:
        """Turn the regions of one image, as JSON objects, into arguments of a call; see `region_prompts_sca.py`.

        Args:
            regions: a list of objects with `box`, `points`, `labels`, `mask`.
            size: (height, width) of the original image.
        """
        return processor_arguments([read_regions(regions, size)])

    def _options(self, kwargs: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Sort keyword arguments by where they belong; unknown ones are an error, not the library's warning."""
        groups = self.valid_processor_kwargs.__annotations__
        known = {"common_kwargs", *groups, "max_length", "padding", "return_tensors"}
        known |= set(groups["images_kwargs"].__annotations__)
        known |= set(getattr(self.image_processor.valid_kwargs, "__annotations__", {}))
        if unknown := sorted(set(kwargs) - known):
            raise TypeError(f"ScaProcessor got unknown keyword argument(s): {', '.join(unknown)}.")
        if odd := sorted(set(kwargs.get("text_kwargs", {})) - {"max_length", "padding", "return_tensors"}):
            raise TypeError(f"text_kwargs of ScaProcessor are max_length and padding, got {', '.join(odd)}.")
        return self._merge_kwargs(self.valid_processor_kwargs, tokenizer_init_kwargs={}, **kwargs)

    def _images(
        self, images: Any, original_sizes: Any, timeout: float | None, options: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[int, int]], list[tuple[int, int]], int]:
        """Return the tensors of the images, their sizes, their resized sizes, and the side of the padded square."""
        if (images is None) == (original_sizes is None):
            raise ValueError("pass either images or, for prompts of cached embeddings, original_sizes.")
        size = options.get("size") or self.image_processor.size
        side, stretch = square_side(size), stretches(size)
        if images is None:
            sizes = check_sizes(original_sizes)
        else:
            images = as_images(images, options.pop("input_data_format", None), timeout)
            sizes = [(image.height, image.width) for image in images]
        resized = [size if min(size) < 1 else resized_size(size, side, stretch) for size in sizes]
        for index, size in enumerate(sizes):
            check_size(size, resized[index], index)
        data = {"original_sizes": np.array(sizes), "reshaped_input_sizes": np.array(resized)}
        if images is None:
            return data, sizes, resized, side
        features = self.image_processor(images, return_tensors="pt", **options)
        # Where resizing is switched off or changed for this call, the image processor knows better.
        if "reshaped_input_sizes" in features:
            resized = [(int(height), int(width)) for height, width in features["reshaped_input_sizes"]]
            data["reshaped_input_sizes"] = np.array(resized)
        return {"pixel_values": features["pixel_values"], **data}, sizes, resized, features["pixel_values"].shape[-1]

    def _captions(
        self, captions: Any, counts: list[int], shape: tuple[int, int], options: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Return ids, mask and labels of captions; without captions, empty ids (a pipeline's `text` asks for them)."""
        max_length = options.get("max_length") or self.max_caption_length
        padding = options.get("padding", True)
        if padding not in (None, True, "longest", "max_length"):
            raise ValueError(f"padding={padding!r}: captions can be padded to the longest, or to max_length.")
        pad_to = max_length if padding == "max_length" else 0
        by_region = region_captions(captions, counts) if captions is not None else [[] for _ in counts]
        encoded = encode_captions(by_region, self.tokenizer, shape, max_length, self.caption_add_bos, pad_to)
        return encoded if captions is not None else {k: encoded[k] for k in ("input_ids", "attention_mask")}

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call with images and text returns."""
        return [
            "pixel_values",
            "original_sizes",
            "reshaped_input_sizes",
            "input_points",
            "input_labels",
            "input_boxes",
            "input_masks",
            "mask_index",
            "region_mask",
            "prompt_layout",
            "task_ids",
            "input_ids",
            "attention_mask",
        ]

    def batch_decode(
        self, sequences: Any, region_mask: Any = None, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[Any]:
        """Decode the ids of regions to texts.

        Args:
            sequences: ids (B, R, T), (B, R, n, T) or (N, T), -100 allowed; or what `generate` returned.
            region_mask: (B, R), True for real regions; by default the output's own, else all are real.
            skip_special_tokens: leave special tokens out, and whatever follows EOS.
            kwargs: of the tokenizer's `batch_decode`.

        Returns:
            Per image a list of texts of its real regions, stripped, nested as the ids are.
        """
        sequences, region_mask = split_output(sequences, region_mask)
        ids = as_id_array(sequences)
        if isinstance(ids, np.ndarray) and not 2 <= ids.ndim <= 4:
            raise ValueError(
                f"expected ids of 2 to 4 axes (B, R, T), got shape {ids.shape}; for one sequence use decode."
            )
        texts = decode_nested(ids, self._decode_rows(skip_special_tokens, kwargs))
        if region_mask is None or (isinstance(ids, np.ndarray) and ids.ndim == 2):
            return texts
        region_mask = to_list(region_mask)
        if [len(row) for row in texts] != [len(row) for row in region_mask]:
            raise ValueError("region_mask and the ids differ in images or regions; pass those of one call.")
        return [[t for t, real in zip(*row, strict=True) if real] for row in zip(texts, region_mask, strict=True)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> Any:
        """Decode one sequence of ids to a text, or several as [`~ScaProcessor.batch_decode`] does."""
        ids = as_id_array(token_ids)
        if isinstance(ids, np.ndarray) and ids.ndim <= 1:
            return self._decode_rows(skip_special_tokens, kwargs)([ids.reshape(-1).tolist()])[0]
        return self.batch_decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def _decode_rows(self, skip_special_tokens: bool, kwargs: dict[str, Any]) -> Any:
        return lambda rows: decode_rows(rows, self.tokenizer, self.caption_add_bos, skip_special_tokens, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Decode ids of any shape, or the output of `generate`, to a flat list of texts; padded regions give `""`."""
        ids = as_id_array(split_output(generated_outputs, None)[0])
        if not isinstance(ids, np.ndarray):
            raise ValueError("the ids are ragged lists; pass one array, or decode them with batch_decode.")
        return self._decode_rows(skip_special_tokens, kwargs)(id_rows(ids))

    def post_process_masks(
        self, masks: Any, original_sizes: Any, reshaped_input_sizes: Any, mask_threshold: float = 0.0, **kwargs: Any
    ) -> list[torch.Tensor]:
        """Cut the padding off low-resolution masks and scale them to the original image, as `SamProcessor` does.

        Args:
            masks: `pred_masks` (B, R, M, 4h, 4w), or a list of (R, M, 4h, 4w).
            original_sizes: (B, 2) height, width of the originals.
            reshaped_input_sizes: (B, 2) height, width of the model's inputs before padding.
            mask_threshold: logit above which a pixel is in the mask.
            kwargs: `binarize`, `pad_size`.

        Returns:
            Per image (R, M, height, width), bool unless `binarize=False`.
        """
        masks = [torch.as_tensor(mask).float() for mask in masks]
        sizes, resized = to_list(original_sizes), to_list(reshaped_input_sizes)
        return upscale_masks(self.image_processor, masks, sizes, resized, mask_threshold, **kwargs)

    def post_process_regions(
        self,
        outputs: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any,
        region_mask: Any = None,
        all_masks: bool = False,
        mask_threshold: float = 0.0,
    ) -> list[list[dict[str, Any]]]:
        """Turn the model's output into one record per real region.

        Args:
            outputs: what `generate` returned, or `forward` (then without captions).
            original_sizes: (B, 2) height, width of the originals, as the processor gave them.
            reshaped_input_sizes: (B, 2), as the processor gave them.
            region_mask: (B, R), True for real regions; by default the output's own, else all are real.
            all_masks: give all masks of a region, a second look's first, not only that or the one of best IoU.
            mask_threshold: logit above which a pixel is in the mask.

        Returns:
            Per image a list of dicts: `caption` (str), `score` (float, mean log-probability), `confidence` (float in
            [0, 1], how sure it may be that the model was trained on the like), `mask` ((height, width) bool array of
            the original's size), `iou` (float, the model's estimate), `box` (four floats xyxy along the mask's pixel
            edges, pixels of the original; None where the mask is empty), of segmenters that tell `object_score` (logit
            of an object being there), and where it was asked for `agreement` (float in [0, 1], how surely a listener
            finds the region by its caption among those of the image). What the output lacks is None. Several captions
            are a list, as are scores; with `all_masks`, `mask` is (M, height, width), `iou` and `box` lists.
        """
        outputs = dict(outputs)
        sizes, resized = to_list(original_sizes), to_list(reshaped_input_sizes)
        real = real_regions(outputs, region_mask, sizes, resized)
        captions = self.batch_decode(outputs["sequences"]) if outputs.get("sequences") is not None else None
        said = {"caption": captions, "score": outputs.get("caption_scores"), "confidence": outputs.get("confidences")}
        more = {"object_score": "object_score_logits", "agreement": "agreements"}
        said |= {name: outputs[key] for name, key in more.items() if outputs.get(key) is not None}
        said = {name: None if values is None else to_list(values) for name, values in said.items()}
        records = []
        for image, regions in enumerate(real):
            picked: list[dict[str, Any]] = [{"mask": None, "iou": None, "box": None}] * len(regions)
            if outputs.get("pred_masks") is not None:
                upscale = partial(
                    self.post_process_masks,
                    original_sizes=[sizes[image]],
                    reshaped_input_sizes=[resized[image]],
                    mask_threshold=mask_threshold,
                )
                found = {name: outputs[name][image][regions] for name in MASK_OUTPUTS if outputs.get(name) is not None}
                side = square_side(self.image_processor.size)
                picked = mask_records(found, upscale, sizes[image], resized[image], side, all_masks, mask_threshold)
            records.append(
                [
                    {name: None if values is None else values[image][region] for name, values in said.items()} | mask
                    for region, mask in zip(regions, picked, strict=True)
                ]
            )
        return records

    def grid_prompts(self, original_sizes: Any, points_per_side: int = 32, **kwargs: Any) -> ScaBatch:
        """Prompt everything: a regular grid of points, each a region of its own, for images already encoded.

        Args:
            original_sizes: (B, 2) height, width of the originals, as the processor gave them.
            points_per_side: points along each side of the image.
            kwargs: of a call, such as `task`.

        Returns:
            Prompts without pixels: points (B, points_per_side ** 2, 1, 2). Put them beside `image_embeddings`, run the
            model's `forward` for masks, and choose among these with [`~ScaProcessor.select_regions`].
        """
        sizes = check_sizes(original_sizes)
        points = [build_point_grid(size, points_per_side)[:, None] for size in sizes]
        return self(original_sizes=sizes, input_points=points, **kwargs)

    def select_regions(
        self, outputs: Any, original_sizes: Any, reshaped_input_sizes: Any, region_mask: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Choose the good masks among all candidates: by IoU, stability, area and non-maximum suppression.

        Works on the low-resolution masks, so a box is exact to one of their cells.

        Args:
            outputs: of `forward` or `generate`, with `pred_masks` and `iou_scores`.
            original_sizes: (B, 2) height, width of the originals, as the processor gave them.
            reshaped_input_sizes: (B, 2), as the processor gave them.
            region_mask: (B, R), True for real regions; by default the output's own, else all are real.
            kwargs: thresholds, see [`select_masks`].

        Returns:
            Per image, best first, S being the number chosen: `boxes` (S, 4) xyxy, pixels of the original; `masks`
            (S, 4h, 4w) low-resolution logits; `iou_scores` and `stability_scores` (S,); `region_index` and
            `candidate_index` (S,), where they stood. `boxes` and `masks` go back into a call as `input_boxes` or
            `input_masks` to caption what is chosen.
        """
        outputs = dict(outputs)
        sizes, resized = to_list(original_sizes), to_list(reshaped_input_sizes)
        real = real_regions(outputs, region_mask, sizes, resized)
        return [
            choose_candidates(masks, ious, regions, size, inner, square_side(self.image_processor.size), **kwargs)
            for masks, ious, regions, size, inner in zip(
                outputs["pred_masks"], outputs["iou_scores"], real, sizes, resized, strict=True
            )
        ]

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the processor together with its code files, so that it loads where this package is not installed."""
        # The library copies code only for registered classes. Registering the class at import would change what its
        # plain to_dict() says, so this instance is registered, and only while it is saved.
        registered = "_auto_class" in vars(self)
        if self._auto_class is None:
            self._auto_class = "AutoProcessor"
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            if not registered:
                self.__dict__.pop("_auto_class", None)
            for part in (self, self.image_processor):
                part.__dict__.pop("auto_map", None)

    def to_dict(self) -> dict[str, Any]:
        """Return the processor's settings and those of its image processor."""
        settings = super().to_dict() | {"vocabulary_sha256": vocabulary_digest(self.tokenizer)}
        # The library also notes our class in the image processor, which is not ours.
        settings.get("image_processor", {}).pop("auto_map", None)
        return settings
