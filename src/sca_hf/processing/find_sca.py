"""Everything in an image, and one thing by words: what the processor does together with a model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from .anything_sca import caption_anything, encode_image
from .anything_settings_sca import AnythingSettings
from .batch_sca import ScaBatch
from .captions_sca import IGNORED, encode_captions
from .images_sca import as_image
from .masks_sca import decode_rle


# Log-probability of a text below which nothing in the image is meant, see `find`; right for sca-tiny.
FIND_THRESHOLD = -11.0

# Tokens of a text: it is read as a whole, or refused where the language model lacks the positions.
_LONGEST = 4096


class ScaFindMixin:
    """What anything mode and finding by words need of [`ScaProcessor`]."""

    anything_settings: dict[str, Any]
    find_threshold: float

    def caption_anything(
        self, model: PreTrainedModel, image: Any, settings: Any = None, boxes: Any = None, **options: Any
    ) -> list[dict[str, Any]]:
        """Find and caption everything in one image, see [`caption_anything`].

        Args:
            model: a [`ScaForConditionalGeneration`].
            image: one image, in any form that a call takes.
            settings: an [`AnythingSettings`], or fields of it that are to differ from `anything_settings`.
            boxes: (N, 4) xyxy, pixels of the original, in place of the grid.
            options: `encoded`, `progress`, and arguments of `generate`, for instance `num_beams`.

        Returns:
            One record per region: `segmentation`, `area`, `bbox`, `predicted_iou`, `stability_score`, `point_coords`,
            `crop_box`, `caption`, `score`.
        """
        processor: Any = self
        if not isinstance(settings, AnythingSettings):
            settings = self.anything_settings_for(settings)
        return caption_anything(model, processor, image, settings, boxes, **options)

    def anything_settings_for(self, changes: dict[str, Any] | None = None) -> AnythingSettings:
        """Return the settings of [`~ScaProcessor.caption_anything`] that suit the model, with some changed."""
        return AnythingSettings(**{**self.anything_settings, **(changes or {})})

    @torch.no_grad()
    def find(
        self,
        model: PreTrainedModel,
        image: Any,
        text: str,
        settings: Any = None,
        boxes: Any = None,
        threshold: float | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """Find what a text is of: the regions of [`~ScaProcessor.caption_anything`], those that it fits best first.

        A region fits as well as the text is likely to begin its caption, so words and their order should be those that
        the model was trained to say. The image is encoded once.

        Args:
            model: a [`ScaForConditionalGeneration`].
            image: one image, in any form that a call takes.
            text: for instance `"the striped red circle"`.
            settings: an [`AnythingSettings`], or fields of it that are to differ from `anything_settings`.
            boxes: (N, 4) xyxy, pixels of the original: look among these, in place of what a grid finds.
            threshold: leave out regions whose `match` is below; None takes the processor's `find_threshold`, -11 where
                a model has none of its own. `-math.inf` leaves out none.
            options: of `caption_anything`.

        Returns:
            Its records with `match` (log-probability of the text) and `agreement` (that this region is meant among all
            that there are); an empty list: nothing in the image is meant.

        Raises:
            ValueError: a text without words.
        """
        processor: Any = self
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text is {text!r}: say what to find.")
        image = as_image(image)
        if not isinstance(settings, AnythingSettings):
            settings = self.anything_settings_for(settings)
        encoding, resized = options.pop("encoded", None) or encode_image(model, processor, image)
        records = self.caption_anything(model, image, settings, boxes, encoded=(encoding, resized), **options)
        if not records:
            return []
        size = [(image.height, image.width)]
        inputs = processor(original_sizes=size, task=settings.task, **_prompts(records, settings.caption_prompt))
        said = self.caption_inputs([[text]], max_length=_LONGEST)
        # The end is left open: a caption may go on to say more of the region.
        said["labels"][..., -1] = IGNORED
        heard = model.score_captions(**encoding.as_inputs(), **inputs.to(model.device), **said)
        match = heard.log_likelihoods.flatten(2).amax(2)[0].float()  # (R,)
        lowest = self.find_threshold if threshold is None else threshold
        ranked = zip(match.tolist(), match.softmax(0).tolist(), records, strict=True)
        found = [{**record, "match": fit, "agreement": sure} for fit, sure, record in ranked if fit >= lowest]
        return sorted(found, key=lambda record: -record["match"])

    def caption_inputs(self, captions: Sequence[Any], max_length: int | None = None) -> ScaBatch:
        """Tokenize captions for the model's `score_captions`, of any number per image.

        Args:
            captions: [image][caption] of texts; for one image, [caption]. An image may have none.
            max_length: tokens a caption is cut to, its end token included; None takes the processor's own.

        Returns:
            `input_ids`, `attention_mask` and `labels` (B, J, T), J being the most captions of an image.
        """
        processor: Any = self
        texts = [captions] if isinstance(captions, str) else list(captions)
        images = (
            [list(image) for image in texts] if all(isinstance(image, (list, tuple)) for image in texts) else [texts]
        )
        odd = [text for image in images for text in image if not isinstance(text, str) or not text.strip()]
        if odd or not any(images):
            raise ValueError(f"captions must be texts, [image][caption], got {odd[0] if odd else captions!r}.")
        shape = (len(images), max(map(len, images)))
        length = max_length or processor.max_caption_length
        encoded = encode_captions(images, processor.tokenizer, shape, length, processor.caption_add_bos)
        return ScaBatch(encoded, tensor_type="pt")


def _prompts(records: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """What shows the regions of records to the model, as the caption of each was prompted."""
    if "box_prompt" in records[0]:
        return {"input_boxes": [[record["box_prompt"] for record in records]]}
    if kind == "point":
        return {"input_points": [[record["point_coords"] for record in records]]}
    if kind == "mask":
        return {"input_masks": [[decode_rle(record["segmentation"]) for record in records]]}
    corners = [record["bbox"] for record in records]
    return {"input_boxes": [[[x, y, x + width, y + height] for x, y, width, height in corners]]}


__all__ = ["FIND_THRESHOLD", "ScaFindMixin"]
