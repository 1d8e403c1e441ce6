"""Our own model as a captioner, and SAM alone: masks of prompted regions, for captioners that have none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ...captioning import load
from ...model_names import BUNDLED_MODEL, check_repository, resolve_model
from ...modeling.base_models_sca import SAM, load_part
from ...modeling.families_sca import image_frame
from ...modeling.grouping_sca import RegionInputs
from ...modeling.modeling_sca import ScaForConditionalGeneration
from ...modeling.segmentation_sca import ImageEncoding
from ...modeling.segmenters_sca import encode_images, segmenter_class
from ...parallel import images_at_once
from ...processing.images_sca import build_image_processor
from ...processing.languages_sca import language_tag
from ...processing.mask_generation_sca import mask_records, upscale_masks
from ...processing.processing_sca import ScaProcessor
from ...processing.prompts_sca import build_prompts, resized_size
from ...processing.region_prompts_sca import RegionPrompt, processor_arguments
from ...run_identity import model_identity
from .interface import ImageQuery, RegionPrediction, point_in_mask


class ScaCaptioner:
    """[`ScaForConditionalGeneration`]; an image is encoded once, also where a point is drawn in a mask found first."""

    segments = True

    def __init__(
        self,
        model: ScaForConditionalGeneration,
        processor: ScaProcessor,
        generation: Mapping[str, Any] | None = None,
        name: str = "sca",
        source: str = "",
        length: str | int | None = None,
        language: str | None = None,
    ) -> None:
        self.length, self.language = length, None if language is None else language_tag(language)
        self.model, self.processor, self.name, self.source = model.eval(), processor, name, source
        self.generation = dict(generation or {})

    @classmethod
    def load(
        cls,
        model: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        generation: Mapping[str, Any] | None = None,
        revision: str | None = None,
        length: str | int | None = None,
        language: str | None = None,
    ) -> ScaCaptioner:
        """Loads a folder or repository, at a revision; `sca-tiny` and None take the bundled model."""
        loaded, processor = load(model, str(device), dtype, revision)
        name = BUNDLED_MODEL if model is None else str(model)
        source = model_identity(check_repository(model), revision)
        return cls(loaded, processor, generation, name, source, length, language)

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        asked = {"length": self.length, "language": self.language}
        asked = {name: value for name, value in asked.items() if value is not None}
        return {"kind": "sca", "model": self.source, "dtype": dtype, "generation": self.generation, **asked}

    @torch.inference_mode()
    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region."""
        prompts = [[region.prompt for region in asked.regions] for asked in images]
        inputs = self._inputs(images, prompts, pixels=True)
        pixels = inputs.pop("pixel_values").split(images_at_once(self.model))
        encoded = ImageEncoding.cat([self.model.encode_images(part) for part in pixels]).as_inputs()
        if any(region.resample_point is not None for asked in images for region in asked.regions):
            found = self.processor.post_process_regions(
                self.model(**inputs, **encoded),
                inputs["original_sizes"],
                inputs["reshaped_input_sizes"],
                inputs["region_mask"],
            )
            prompts = resampled_prompts(images, [[record["mask"] for record in regions] for regions in found])
            inputs = self._inputs(images, prompts, pixels=False)
        outputs = self.model.generate(**inputs, **encoded, output_caption_scores=True, **self.generation)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        records = self.processor.post_process_regions(outputs, *sizes, all_masks=True) if with_masks else None
        captions = self.processor.batch_decode(outputs)
        agreements = None if outputs.agreements is None else outputs.agreements.tolist()
        ious, count = outputs.iou_scores, None
        if outputs.second_masks is not None:
            # The mask that was drawn again is the answer, and stands first.
            ious, count = outputs.second_iou_scores[..., None], 1
        return [
            [
                RegionPrediction(
                    candidates=_as_list(caption),
                    scores=_as_list(outputs.caption_scores[i, k].tolist()),
                    iou_scores=ious[i, k].tolist(),
                    masks=None if records is None else records[i][k]["mask"][:count],
                    agreements=None if agreements is None else _as_list(agreements[i][k]),
                )
                for k, caption in enumerate(regions)
            ]
            for i, regions in enumerate(captions)
        ]

    def _inputs(self, images: Sequence[ImageQuery], prompts: Any, pixels: bool) -> dict[str, Any]:
        shown: dict[str, Any] = (
            {"images": [asked.image for asked in images]}
            if pixels
            else {"original_sizes": [(asked.image.height, asked.image.width) for asked in images]}
        )
        wanted: dict[str, Any] = {
            "task": [asked.task for asked in images],
            "length": self.length,
            "language": [asked.language or self.language for asked in images],
        }
        inputs = self.processor(**shown, **processor_arguments(prompts), **wanted)
        return dict(inputs.to(self.model.device, self.model.dtype))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@dataclass
class SegmentedRegion:
    """masks: (M, height, width) bool. iou_scores: the M IoUs that SAM expects; none where a mask was given."""

    masks: np.ndarray
    iou_scores: list[float]

    @property
    def best(self) -> np.ndarray:
        """The mask (height, width) of best expected IoU."""
        return self.masks[int(np.argmax(self.iou_scores)) if self.iou_scores else 0]


class Segmenter:
    """A segmenter of transformers, prompted by points, boxes and masks in pixels of the original image."""

    def __init__(self, sam: Any, source: str = "", regions_at_once: int | None = None) -> None:
        self.sam, self.source = sam.eval(), source
        self._frame = image_frame(sam.config)
        self._processor = build_image_processor(self._frame)
        self._regions_at_once = regions_at_once

    @classmethod
    def load(cls, source: str, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Segmenter:
        """Loads the SAM of a folder or repository, of a SAM or of a whole SCA, or that of `sca-tiny`."""
        source = resolve_model(source)
        sam, _ = load_part(ScaForConditionalGeneration, SAM, source, {} if dtype is None else {"dtype": dtype})
        return cls(sam.to(device), model_identity(source))

    @torch.inference_mode()
    def segment(self, images: Sequence[ImageQuery]) -> list[list[SegmentedRegion]]:
        """Returns the masks of every region, at the pixel drawn from its first mask where that is asked for."""
        pictures = [asked.image for asked in images]
        features = self._processor(pictures, return_tensors="pt")
        encoding = encode_images(self.sam, features["pixel_values"].to(self.sam.device))
        prompts = [[region.prompt for region in asked.regions] for asked in images]
        found = self._decode(images, prompts, encoding)
        if all(region.resample_point is None for asked in images for region in asked.regions):
            return found
        best = [[region.best for region in regions] for regions in found]
        return self._decode(images, resampled_prompts(images, best), encoding)

    def _decode(
        self, images: Sequence[ImageQuery], prompts: list[list[RegionPrompt]], encoding: ImageEncoding
    ) -> list[list[SegmentedRegion]]:
        sizes = [(asked.image.height, asked.image.width) for asked in images]
        frame = self._frame
        resized = [resized_size(size, frame.side, frame.resize == "stretch") for size in sizes]
        given = processor_arguments(prompts)
        names = ("input_points", "input_labels", "input_boxes", "input_masks")
        built = build_prompts(sizes, resized, frame.side, frame.mask_side, *(given.get(name) for name in names))
        embeddings = encoding.image_embeddings
        inputs = RegionInputs(**{name: torch.as_tensor(value).to(embeddings.device) for name, value in built.items()})
        plan, input_masks = inputs.plan(embeddings)
        segmenter = segmenter_class(self.sam)(self.sam, encoding, input_masks)
        found, _ = segmenter.segment_regions(plan, region_chunk_size=self._regions_at_once)
        masks, ious = (plan.padded(values) for values in found[True])
        return [
            [
                SegmentedRegion(row["mask"], row["iou"])
                for row in self._records(masks[i], ious[i], i, sizes, resized, len(rows))
            ]
            for i, rows in enumerate(prompts)
        ]

    def _records(
        self, masks: torch.Tensor, ious: torch.Tensor, image: int, sizes: list[Any], resized: list[Any], count: int
    ) -> list[dict[str, Any]]:
        size, inner = sizes[image], resized[image]
        upscale = partial(upscale_masks, self._processor, sizes=[size], resized=[inner])
        found = {"pred_masks": masks[:count].float(), "iou_scores": ious[:count]}
        return mask_records(found, upscale, size, inner, self._frame.side, all_masks=True, mask_threshold=0.0)


def resampled_prompts(images: Sequence[ImageQuery], best: Sequence[Sequence[np.ndarray]]) -> list[list[RegionPrompt]]:
    """Returns each region's prompt, a random pixel of its best mask in its place where that is asked for.

    best: per image and region the mask (height, width) of best expected IoU.
    """
    return [
        [
            region.prompt
            if region.resample_point is None
            else RegionPrompt(points=[point_in_mask(mask, region.box, region.resample_point)], labels=[1])
            for region, mask in zip(asked.regions, masks, strict=True)
        ]
        for asked, masks in zip(images, best, strict=True)
    ]
