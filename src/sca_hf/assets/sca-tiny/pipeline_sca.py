"""The "region-captioning" pipeline: images and prompts in, one record per region out."""

import os
from collections.abc import Sequence
from typing import Any

from transformers import Pipeline
from transformers.image_utils import load_image


TASK = "region-captioning"

_PROMPTS = ("input_points", "input_labels", "input_boxes", "input_masks", "task")
_POST_PROCESSING = ("mask_threshold", "all_masks")
# Images that are encoded together, where the call does not say.
_DEFAULT_BATCH_SIZE = 4


class RegionCaptioningPipeline(Pipeline):
    """Segments and captions prompted regions of images.

    ```python
    describe = pipeline("region-captioning", model="...", trust_remote_code=True)
    describe("photo.jpg", input_boxes=[[20, 30, 200, 180], [5, 5, 60, 60]], num_beams=3)
    ```

    Built by `pipeline("region-captioning", model=..., trust_remote_code=True)` from a repository or from a training
    checkpoint that holds a processor.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_image_processor = False
    _load_feature_extractor = False
    # Generation settings are the model's own and the call's; the library adds none.
    _pipeline_calls_generate = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.processor is None:
            raise ValueError(
                f"{self.model.name_or_path or 'the model'} has no processor beside it: save one there with "
                "ScaProcessor.save_pretrained, or pass processor=."
            )
        self.model.check_tokenizer(self.processor.tokenizer)

    def __call__(self, images: Any, batch_size: int | None = None, **kwargs: Any) -> list[Any]:
        """Describe regions.

        Args:
            images: one image, or a list or tuple of images: PIL, array, path or URL.
            batch_size: images per call of the model, where there are several.
            kwargs: `input_boxes`, `input_points`, `input_labels`, `input_masks` in pixels of the original image, for
                several images one entry per image, in any mixture and number, as [`ScaProcessor`] takes them; none of
                them means the whole image. `task`. Anything else goes to `generate`: `num_beams`, `output_masks`, ...

        Returns:
            For one image a list of records, one per region, and for several a list of such lists. A record has
            `caption`, `score`, `mask` (bool, size of the original image), `iou` and `box`.
        """
        if not isinstance(images, (list, tuple)):
            return super().__call__({"images": [images]}, **kwargs)[0]
        size = batch_size or self._batch_size or _DEFAULT_BATCH_SIZE
        per_image = {name: value for name, value in kwargs.items() if name in _PROMPTS and _is_per_image(value)}
        for name, value in per_image.items():
            if len(value) != len(images):
                raise ValueError(f"{name} must have one entry for each of {len(images)} images, got {len(value)}.")
        records = []
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            prompts = {name: value[part] for name, value in per_image.items()}
            records += super().__call__({"images": list(images[part])}, **{**kwargs, **prompts})
        return records

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model and processor as one repository (the library would leave the processor out)."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: kwargs.pop(name) for name in _PROMPTS if name in kwargs}
        postprocess = {name: kwargs.pop(name) for name in _POST_PROCESSING if name in kwargs}
        # The same argument as a dictionary, as other pipelines take it.
        generate = {**(kwargs.pop("generate_kwargs", None) or {}), **kwargs}
        return preprocess, generate, postprocess

    def preprocess(self, inputs: dict[str, Any], **prompts: Any) -> Any:
        """Load the images and lay out their prompts."""
        images = [load_image(image) if _is_url(image) else image for image in inputs["images"]]
        return self.processor(images=images, return_tensors="pt", **prompts)

    def _forward(self, model_inputs: Any, **generate: Any) -> dict[str, Any]:
        sizes = {name: model_inputs[name] for name in ("original_sizes", "reshaped_input_sizes")}
        outputs = self.model.generate(**model_inputs, **{**generate, "return_dict_in_generate": True})
        return {"outputs": outputs, **sizes}

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> list[list[dict[str, Any]]]:
        """Records of every image."""
        return self.processor.post_process_regions(**model_outputs, **options)


def _is_per_image(value: Any) -> bool:
    return (
        value is not None and not isinstance(value, str) and (isinstance(value, Sequence) or hasattr(value, "shape"))
    )


def _is_url(image: Any) -> bool:
    return isinstance(image, str) and image.startswith(("http://", "https://"))


__all__ = ["TASK", "RegionCaptioningPipeline"]
