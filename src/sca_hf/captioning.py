"""Captioning the regions of image files: what `sca-hf caption` does, without the command line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .drawing import DrawnRegion, draw_regions
from .model_names import check_repository
from .modeling.modeling_sca import ScaForConditionalGeneration
from .processing.images_sca import as_images
from .processing.masks_sca import encode_rle
from .processing.processing_sca import ScaProcessor
from .processing.region_prompts_sca import RegionPrompt, processor_arguments


@dataclass
class CaptionedRegion:
    """One region of one image and what the model says of it; coordinates in pixels of the original image.

    Attributes:
        image: name of the image as it was given.
        number: of the region, from 1, as in table and overlay.
        prompt: where the model was told to look.
        caption: a text, or one per caption head.
        score: mean log-probability of the caption's tokens.
        mask: (height, width) bool.
        iou: the model's own estimate of the mask's IoU.
        box: xyxy around the mask, None where it is empty.
    """

    image: str
    number: int
    prompt: RegionPrompt
    caption: str | list[str]
    score: float | list[float] | None
    mask: np.ndarray
    iou: float
    box: list[float] | None

    @property
    def text(self) -> str:
        """The caption in one line, without control characters."""
        return one_line(self.caption if isinstance(self.caption, str) else " | ".join(self.caption))

    def to_json(self) -> dict[str, Any]:
        """The record that `--json` writes: the mask as COCO RLE, and the keys that came with the prompt."""
        record = {
            "image": self.image,
            "region": self.number,
            "caption": self.caption,
            "score": self.score,
            "iou": self.iou,
            "box": self.box,
            "prompt": self.prompt.to_json(),
            "mask": encode_rle(self.mask),
        }
        return self.prompt.with_extra(record)


def one_line(text: str) -> str:
    """Returns a text in one line, without characters that control a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def load(model: str | None = None, device: str | None = None) -> tuple[ScaForConditionalGeneration, ScaProcessor]:
    """Loads a model and its processor.

    Args:
        model: `sca-tiny`, a folder or a repository id; None takes `sca-tiny`.
        device: None takes CUDA where it is present.
    """
    name = check_repository(model)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = ScaForConditionalGeneration.from_pretrained(name).to(chosen).eval()
    return loaded, ScaProcessor.from_pretrained(name)


def caption_images(
    model: ScaForConditionalGeneration,
    processor: ScaProcessor,
    images: Sequence[str],
    prompts: Sequence[Sequence[RegionPrompt]],
    task: str | None = None,
    batch_size: int = 8,
    **generation: Any,
) -> Iterator[tuple[Image.Image, list[CaptionedRegion]]]:
    """Yields each image, upright and RGB, with its captioned regions.

    Args:
        images: paths or URLs.
        prompts: the regions of each image; none: the whole image is one.
        task: a task of the model; None takes its default.
        batch_size: images at a time.
        generation: arguments of `generate`, for instance `num_beams`.
    """
    for start in range(0, len(images), batch_size):
        names = images[start : start + batch_size]
        pictures = as_images(list(names))
        # An image without prompts gets the box that the processor would give it.
        checked = [
            [
                region.on_image((picture.height, picture.width))
                for region in regions or [RegionPrompt(box=[0.0, 0.0, float(picture.width), float(picture.height)])]
            ]
            for regions, picture in zip(prompts[start : start + batch_size], pictures, strict=True)
        ]
        inputs = processor(pictures, task=task, **processor_arguments(checked)).to(model.device, model.dtype)
        outputs = model.generate(**inputs, output_caption_scores=True, **generation)
        results = processor.post_process_regions(outputs, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        for name, picture, regions, records in zip(names, pictures, checked, results, strict=True):
            yield (
                picture,
                [
                    CaptionedRegion(image=name, number=number, prompt=prompt, **record)
                    for number, (prompt, record) in enumerate(zip(regions, records, strict=True), 1)
                ],
            )


def draw_captions(picture: Image.Image, regions: Sequence[CaptionedRegion]) -> Image.Image:
    """Draws masks, prompts and captions over an image; see [`draw_regions`]."""
    drawn = [
        DrawnRegion(region.text, region.mask, region.prompt.box, region.prompt.points, region.prompt.labels)
        for region in regions
    ]
    return draw_regions(picture, drawn)
