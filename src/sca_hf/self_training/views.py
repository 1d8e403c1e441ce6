"""What a teacher says of a region when it is shown in several ways; where it disagrees, it does not know.

Coordinates are pixels of the original, upright picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.prompts import PromptSource, draw_prompt
from ..data.region import region_mask
from ..data.sides import mirrored_text
from ..processing.anything_sca import Encoded, encode_image
from ..processing.captions_sca import best_caption, task_parts
from ..processing.region_prompts_sca import RegionPrompt, processor_arguments


_PROMPTS = {"box": "box", "beams": "box", "point": "mask_center_point", "mask": "mask"}
# Sides of the picture in the view `smaller`.
_SMALLER = 0.75


class ViewCaptioner:
    """Captions the regions of a picture in several views.

    Args:
        model, processor: The teacher.
        views: Of `VIEWS`, without the first.
        num_beams: How many beams the view `beams` searches with.
        task: A task of the model, of a length or in a language too (`caption:de:short`); None takes its default.
    """

    def __init__(self, model: Any, processor: Any, views: Sequence[str], num_beams: int, task: str | None) -> None:
        self.model, self.processor, self.views, self.task = model, processor, views, task
        self.num_beams = num_beams
        language = None if task is None else task_parts(task)[1]
        if language is not None and language.split("-")[0] != "en":
            self.views = [view for view in views if view != "flip"]  # no rule knows the sides of other languages

    def captions(
        self, picture: Image.Image, regions: Sequence[dict[str, Any]], encoded: Encoded
    ) -> list[list[dict[str, Any]]]:
        """Returns for each region what each view says: `view`, `caption`, `score`; not all views show all regions.

        Args:
            regions: Each with a `box` (xyxy) and a `mask` (COCO RLE, which may be empty).
            encoded: The picture's encoding.
        """
        said: list[list[dict[str, Any]]] = [[] for _ in regions]
        for view in self.views:
            shown = self._shown(view, picture, regions)
            if not shown:
                continue
            where = (
                encoded if view in _PROMPTS else encode_image(self.model, self.processor, self._seen(view, picture))
            )
            beams = {"num_beams": self.num_beams} if view == "beams" else {}
            for index, (caption, score) in zip(
                shown, self._say(where, picture.size, list(shown.values()), **beams), strict=True
            ):
                text = mirrored_text(caption) if view == "flip" else caption
                if text is not None:  # a side that the rule cannot turn back says nothing
                    said[index].append({"view": view, "caption": text, "score": score})
        return said

    def _seen(self, view: str, picture: Image.Image) -> Image.Image:
        if view == "flip":
            return ImageOps.mirror(picture)
        mean = tuple(int(value) for value in np.asarray(picture).reshape(-1, 3).mean(0).round())
        seen = Image.new("RGB", picture.size, mean)
        part = picture.resize([max(1, round(side * _SMALLER)) for side in picture.size], Image.Resampling.BILINEAR)
        seen.paste(part, _corner(picture.size))
        return seen

    def _shown(self, view: str, picture: Image.Image, regions: Sequence[dict[str, Any]]) -> dict[int, RegionPrompt]:
        """Returns the prompts of the regions that the view shows, by their place."""
        shown = {}
        for index, region in enumerate(regions):
            if view in ("flip", "smaller"):
                shown[index] = RegionPrompt(box=_moved(view, region["box"], picture.size))
                continue
            kind, where = _PROMPTS[view], f"region {index}"
            if kind != "box":
                mask = region_mask(region, picture.size, where)
                if mask is None or not mask.any():
                    continue
            drawn = draw_prompt(kind, PromptSource(region, picture.size, where), np.random.default_rng(0), strict=True)
            points, labels = drawn.get("input_points", []), drawn.get("input_labels", [])
            shown[index] = RegionPrompt(drawn.get("input_boxes"), points, labels, drawn.get("input_masks"))
        return shown

    @torch.no_grad()
    def _say(
        self, encoded: Encoded, size: tuple[int, int], prompts: list[RegionPrompt], **generation: Any
    ) -> list[tuple[str, float]]:
        encoding, resized = encoded
        height_width = [size[::-1]]
        inputs = self.processor(original_sizes=height_width, task=self.task, **processor_arguments([prompts]))
        outputs = self.model.generate(
            **inputs.to(self.model.device),
            **encoding.as_inputs(),
            output_masks=False,
            output_caption_scores=True,
            **generation,
        )
        records = self.processor.post_process_regions(outputs, height_width, [resized])[0]
        return [best_caption(record["caption"], record["score"]) for record in records]


def _corner(size: tuple[int, int]) -> tuple[int, int]:
    """Where the smaller picture lies in the view: in its middle."""
    return tuple((side - max(1, round(side * _SMALLER))) // 2 for side in size)  # type: ignore[return-value]


def _moved(view: str, box: Sequence[float], size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = box
    if view == "flip":
        return [size[0] - x1, y0, size[0] - x0, y1]
    factors = [max(1, round(side * _SMALLER)) / side for side in size] * 2
    return [value * factor + shift for value, factor, shift in zip(box, factors, _corner(size) * 2, strict=True)]
