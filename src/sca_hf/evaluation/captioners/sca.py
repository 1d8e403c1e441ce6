"""Our own model as a captioner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...model_names import BUNDLED_MODEL, check_repository
from ...modeling.modeling_sca import ScaForConditionalGeneration
from ...processing.processing_sca import ScaProcessor
from ...prompt_arguments import processor_arguments
from .interface import ImageQuery, RegionPrediction, identity
from .segmenter import repointed


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
    ) -> None:
        self.model, self.processor, self.name, self.source = model.eval(), processor, name, source
        self.generation = dict(generation or {})

    @classmethod
    def load(
        cls,
        model: str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        generation: Mapping[str, Any] | None = None,
    ) -> ScaCaptioner:
        """Loads a folder or repository; `sca-tiny` and None take the bundled model."""
        path = check_repository(model)
        loaded = ScaForConditionalGeneration.from_pretrained(path, **({} if dtype is None else {"dtype": dtype}))
        name = BUNDLED_MODEL if model is None else str(model)
        return cls(loaded.to(device), ScaProcessor.from_pretrained(path), generation, name, identity(path))

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {"kind": "sca", "model": self.source, "dtype": dtype, "generation": self.generation}

    @torch.inference_mode()
    def describe(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region."""
        prompts = [[region.prompt for region in asked.regions] for asked in images]
        inputs = self._inputs(images, prompts, pixels=True)
        if any(region.resample_point is not None for asked in images for region in asked.regions):
            encoded = self._encoded(inputs.pop("pixel_values"))
            found = self.processor.post_process_regions(
                self.model(**inputs, **encoded),
                inputs["original_sizes"],
                inputs["reshaped_input_sizes"],
                inputs["region_mask"],
            )
            prompts = repointed(images, [[_Mask(record["mask"]) for record in regions] for regions in found])
            inputs = self._inputs(images, prompts, pixels=False) | encoded
        outputs = self.model.generate(**inputs, output_caption_scores=True, **self.generation)
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        masks = self.processor.post_process_regions(outputs, *sizes, all_masks=True) if with_masks else None
        captions = self.processor.batch_decode(outputs)
        return [
            [
                RegionPrediction(
                    candidates=_as_list(caption),
                    scores=_as_list(outputs.caption_scores[i, k].tolist()),
                    iou_scores=outputs.iou_scores[i, k].tolist(),
                    masks=None if masks is None else masks[i][k]["mask"],
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
        inputs = self.processor(**shown, **processor_arguments(prompts), task=[asked.task for asked in images])
        return dict(inputs.to(self.model.device, self.model.dtype))

    def _encoded(self, pixel_values: torch.Tensor) -> dict[str, Any]:
        return self.model.encode_images(pixel_values).as_inputs()


@dataclass
class _Mask:
    best: np.ndarray


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
