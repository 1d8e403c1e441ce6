"""Captioning the regions of image files: what `sca-hf caption` does, without the command line."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from .drawing import DrawnRegion, draw_regions
from .model_names import check_repository
from .modeling.modeling_sca import ScaForConditionalGeneration
from .processing.images_sca import as_image
from .processing.masks_sca import encode_rle
from .processing.processing_sca import ScaProcessor
from .processing.region_prompts_sca import RegionPrompt, processor_arguments


# Confidences below this are guesses.
UNSURE = 0.5


@dataclass
class CaptionedRegion:
    """One region of one image and what the model says of it; coordinates in pixels of the original image.

    Attributes:
        image: name of the image as it was given.
        number: of the region, from 1, as in table and overlay.
        prompt: where the model was told to look.
        caption: a text, or one per caption head or language.
        score: mean log-probability of the caption's tokens.
        mask: (height, width) bool.
        iou: the model's own estimate of the mask's IoU.
        confidence: how sure it may be that the model was trained on the like, in [0, 1]; None where it has none.
        box: xyxy around the mask, None where it is empty.
        object_score: logit of an object being there, of segmenters that tell.
        agreement: how surely a listener finds the region by its caption among those of the image, where asked for.
        languages: of the captions, where several were asked for.
    """

    image: str
    number: int
    prompt: RegionPrompt
    caption: str | list[str]
    score: float | list[float] | None
    mask: np.ndarray
    iou: float
    box: list[float] | None
    confidence: float | None = None
    object_score: float | None = None
    agreement: float | list[float] | None = None
    languages: list[str] | None = None

    @property
    def text(self) -> str:
        """The caption in one line, without control characters."""
        text = one_line(self.caption if isinstance(self.caption, str) else " | ".join(self.caption))
        return with_doubt(text, self.confidence)

    def to_json(self) -> dict[str, Any]:
        """The record that `--json` writes: the mask as COCO RLE, and the keys that came with the prompt."""
        record = {
            "image": self.image,
            "region": self.number,
            "caption": self.caption,
            "score": self.score,
            "confidence": self.confidence,
            "iou": self.iou,
            "box": self.box,
            "prompt": self.prompt.to_json(),
            "mask": encode_rle(self.mask),
        }
        more = {"object_score": self.object_score, "agreement": self.agreement, "languages": self.languages}
        record |= {name: value for name, value in more.items() if value is not None}
        return self.prompt.with_extra(record)


def with_doubt(text: str, confidence: float | None) -> str:
    """Returns a caption, marked where the model cannot know what it is: it was trained on nothing of the kind."""
    return text if confidence is None or confidence >= UNSURE else f"{text} (unsure)"


def one_line(text: str) -> str:
    """Returns a text in one line, without characters that control a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def load(
    model: str | None = None,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[ScaForConditionalGeneration, ScaProcessor]:
    """Loads a model and its processor.

    Args:
        model: `sca-photo`, `sca-tiny`, a folder or a repository id; None takes `sca-photo`.
        device: None takes CUDA where it is present.
        dtype: precision of the weights, for instance "bfloat16"; None: as saved.
        revision: branch, tag or commit of a repository.
    """
    name = check_repository(model, revision)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    where: dict[str, Any] = {} if revision is None else {"revision": revision}
    precision: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    loaded = ScaForConditionalGeneration.from_pretrained(name, **where, **precision)
    processor = ScaProcessor.from_pretrained(name, **where)
    loaded.check_processor(processor)
    return loaded.to(chosen).eval(), processor


# What an image can do to us: not be there, not be a picture, be too large for the device.
IMAGE_ERRORS = (OSError, ValueError, TypeError, torch.OutOfMemoryError, MemoryError)


def image_error(error: BaseException) -> str:
    """Returns what is wrong with an image in one line, without its number in a call that nobody made."""
    text = " ".join(str(error).split())
    return re.sub(r"^image 0( \(.*?\))?(: |, | )", "", text) or type(error).__name__


def caption_images(
    model: ScaForConditionalGeneration,
    processor: ScaProcessor,
    images: Sequence[str] | Mapping[str, Any],
    prompts: Sequence[Sequence[RegionPrompt]],
    task: str | None = None,
    batch_size: int = 8,
    failed: Callable[[str, BaseException], None] | None = None,
    length: str | int | None = None,
    language: str | None = None,
    **generation: Any,
) -> Iterator[tuple[Image.Image, list[CaptionedRegion]]]:
    """Yields each image, upright and RGB, with its captioned regions.

    Args:
        images: paths or URLs; or, by the names that the records have, anything that the processor takes as an image.
        prompts: the regions of each image; none: the whole image is one.
        task: a task of the model; None takes its default.
        batch_size: images at a time.
        failed: called with the name of an image that cannot be captioned, and the error, which is raised without it.
        length: of the captions, as the processor takes it; None is the model's usual one.
        language: of the captions, a tag of BCP 47; several, as in `en,de`, give each region a caption in each.
        generation: arguments of `generate`, for instance `num_beams`.
    """
    asked: dict[str, Any] = {"task": task, "length": length, "language": language}
    processor(original_sizes=[(8, 8)], **asked)  # an unknown task is a fault of no image
    named = list(images.items() if isinstance(images, Mapping) else zip(images, images, strict=True))
    if len(named) != len(prompts):
        raise ValueError(f"{len(named)} images but {len(prompts)} lists of prompts; give one list per image.")
    for start in range(0, len(named), batch_size):
        batch = []
        for (name, image), regions in zip(named[start:], prompts[start : start + batch_size], strict=False):
            try:
                batch.append(_Asked(name, *_read_image(image, regions)))
            except IMAGE_ERRORS as error:
                if failed is None:
                    raise
                failed(name, error)
        yield from _caption_batch(model, processor, batch, asked, failed, generation)


@dataclass
class _Asked:
    """An image with its regions, each checked against it."""

    name: str
    picture: Image.Image
    regions: list[RegionPrompt]


def _read_image(image: Any, regions: Sequence[RegionPrompt]) -> tuple[Image.Image, list[RegionPrompt]]:
    if isinstance(image, BaseException):
        raise image
    picture = as_image(image)
    # An image without prompts gets the box that the processor would give it.
    whole = RegionPrompt(box=[0.0, 0.0, float(picture.width), float(picture.height)])
    return picture, [region.on_image((picture.height, picture.width)) for region in regions or [whole]]


def _caption_batch(
    model: ScaForConditionalGeneration,
    processor: ScaProcessor,
    batch: list[_Asked],
    wanted: dict[str, Any],
    failed: Callable[[str, BaseException], None] | None,
    generation: dict[str, Any],
) -> Iterator[tuple[Image.Image, list[CaptionedRegion]]]:
    """Captions images in one call; where that fails, one by one, so that a single one is to blame."""
    if not batch:
        return
    prompts = processor_arguments([asked.regions for asked in batch])
    try:
        inputs = processor([asked.picture for asked in batch], **wanted, **prompts).to(model.device, model.dtype)
        outputs = model.generate(**inputs, output_caption_scores=True, **generation)
        results = processor.post_process_regions(outputs, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    except IMAGE_ERRORS as error:
        if failed is None:
            raise
        if len(batch) == 1:
            failed(batch[0].name, error)
            return
        results = None
    if results is None:
        for asked in batch:
            yield from _caption_batch(model, processor, [asked], wanted, failed, generation)
        return
    languages = tags.split(",") if (tags := wanted["language"]) and "," in tags else None
    for asked, records in zip(batch, results, strict=True):
        pairs = enumerate(zip(asked.regions, records, strict=True), 1)
        yield (
            asked.picture,
            [
                CaptionedRegion(asked.name, number, prompt, **record, languages=languages)
                for number, (prompt, record) in pairs
            ],
        )


def draw_captions(picture: Image.Image, regions: Sequence[CaptionedRegion]) -> Image.Image:
    """Draws masks, prompts and captions over an image; see [`draw_regions`]."""
    drawn = [
        DrawnRegion(region.text, region.mask, region.prompt.box, region.prompt.points, region.prompt.labels)
        for region in regions
    ]
    return draw_regions(picture, drawn)
