"""Everything in an image, and one thing by words: what the processor does together with a model."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from .anything_sca import caption_anything
from .anything_settings_sca import AnythingSettings
from .batch_sca import ScaBatch
from .captions_sca import encode_captions


class ScaFindMixin:
    """What anything mode and finding by words need of [`ScaProcessor`]."""

    anything_settings: dict[str, Any]

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


__all__ = ["ScaFindMixin"]
