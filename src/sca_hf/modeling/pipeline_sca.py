"""The "region-captioning" pipeline: images and prompts in, one record per region out."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.utils import logging


TASK = "region-captioning"

logger = logging.get_logger(__name__)
_PROMPTS = ("input_points", "input_labels", "input_boxes", "input_masks", "task", "length", "language")
_SHOWN = _PROMPTS[:4]
_ARRAYS = (np.ndarray, torch.Tensor)
# One image of a stream: its number, what it is, and its own of the call's prompts.
_Item = tuple[int, Any, dict[str, Any]]
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
    checkpoint that holds a processor; with this package imported, or a model loaded, also by `pipeline(
    "region-captioning", model=model, processor=processor)`.
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
                f"{self.model.name_or_path or 'the model'} has no processor: save one there with "
                "ScaProcessor.save_pretrained, or pass processor=."
            )
        self.model.check_processor(self.processor)

    def __call__(
        self, images: Any, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        """Describe regions.

        Args:
            images: one image in any form that [`ScaProcessor`] takes; or `{"image": ..., "input_boxes": ...}`, an
                image with prompts of its own, by the names below. Or several of these: a list or tuple, an array of 4
                axes, a column of a data set, a data set (`KeyDataset(rows, "image")`), a generator or another
                iterable.
            batch_size: images per call of the model, where there are several.
            num_workers: processes that read and prepare images, as of a `DataLoader`; 1 at most for what can only be
                iterated.
            kwargs: `input_boxes`, `input_points`, `input_labels`, `input_masks` in pixels of the original image, for
                several images one entry per image, in any mixture and number, as [`ScaProcessor`] takes them; none of
                them means the whole image. `task`, `length`, `language`. `timeout` of URLs in seconds.
                Anything else goes to `generate`: `num_beams`, `output_masks`, ...

        Returns:
            For one image a list of records, one per region; where its list of prompts is empty, so is that of its
            records. For several images a list of such lists; for a data set, a generator or another iterable an
            iterator of them, which reads one batch at a time. A record has `caption`, `score`, `mask` (bool, size of
            the original image), `iou` and `box`.
        """
        if isinstance(images, _ARRAYS) and (images.ndim == 4 or str(images.dtype) == "object"):
            images = list(images)
        if _is_one(images):
            return super().__call__(images, **kwargs)
        per_image = {name: kwargs.pop(name) for name in _PROMPTS if _is_per_image(kwargs.get(name))}
        for name, value in per_image.items():
            if not hasattr(images, "__len__"):
                raise ValueError(
                    f"{name} cannot be told apart for a {type(images).__name__} of images: let it give "
                    f'each image with its own prompts, {{"image": ..., "{name}": ...}}.'
                )
            if len(value) != len(images):
                raise ValueError(f"{name} must have one entry for each of {len(images)} images, got {len(value)}.")
        indexed = isinstance(images, (Sequence, Dataset)) or hasattr(images, "__getitems__")
        items = (_Rows if indexed and not isinstance(images, IterableDataset) else _Stream)(images, per_image)
        size = batch_size or self._batch_size or _DEFAULT_BATCH_SIZE
        records = super().__call__(items, batch_size=size, num_workers=num_workers, **kwargs)
        return list(records) if isinstance(images, Sequence) else records

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write model and processor as one repository (the library would leave the processor out)."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {name: kwargs.pop(name) for name in (*_PROMPTS, "timeout") if name in kwargs}
        postprocess = {name: kwargs.pop(name) for name in _POST_PROCESSING if name in kwargs}
        # The same argument as a dictionary, as other pipelines take it.
        generate = {**(kwargs.pop("generate_kwargs", None) or {}), **kwargs}
        return preprocess, generate, postprocess

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[list[dict[str, Any]]]:
        """Yield the records of each image, batch by batch."""
        if num_workers > 1 and isinstance(inputs, IterableDataset):
            logger.warning("num_workers is set to 1: several processes would each read the whole iterable.")
            num_workers = 1
        prepare = partial(self._prepare, **preprocess_params)
        # A generator of its own: the loader draws a seed, which must not change what is sampled.
        draws = torch.Generator()
        loader = DataLoader(inputs, batch_size, num_workers=num_workers, collate_fn=prepare, generator=draws)
        for inputs, given in loader:
            yield from self._describe(inputs, given, forward_params, postprocess_params)

    def run_single(
        self,
        inputs: Any,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the records of one image."""
        prepared = self.preprocess(inputs, **preprocess_params)
        return self._describe(prepared, [prepared is not None], forward_params, postprocess_params)[0]

    def preprocess(self, inputs: Any, **prompts: Any) -> Any:
        """Load one image and lay out its prompts; None where it is given lists of prompts that are empty."""
        image, own = _read_item(inputs)
        prompts |= own
        given = [prompts[name] for name in _SHOWN if prompts.get(name) is not None]
        if given and all(map(_is_empty, given)):
            return None
        batch = self.processor(images=image, return_tensors="pt", **prompts)
        if len(batch["original_sizes"]) != 1:
            raise ValueError(
                f"got {len(batch['original_sizes'])} images instead of one; pass them as separate entries."
            )
        return batch

    def _prepare(self, items: Sequence[_Item], **shared: Any) -> tuple[Any, list[bool]]:
        """Join the images of a batch; the list says which of them have regions."""
        prepared = []
        for index, item, prompts in items:
            try:
                own = _read_item(item)[1]
                drawn = (prompts.keys() & set(_SHOWN)) - set(own)
                if drawn and not own and all(prompts[name] is None for name in drawn):
                    # As for the processor: of several images one without any prompt has no region.
                    prompts = {**prompts, **dict.fromkeys(drawn, ())}
                if twice := sorted(name for name in prompts if name in own):
                    raise ValueError(f"both it and the call have {', '.join(twice)}; remove one of them.")
                prepared.append(self.preprocess(item, **{**shared, **prompts}))
            except (OSError, TypeError, ValueError) as error:
                kind = next(k for k in (FileNotFoundError, OSError, TypeError, ValueError) if isinstance(error, k))
                raise kind(f"item {index}: {error}") from error
        known = [batch for batch in prepared if batch is not None]
        return type(known[0]).cat(known) if known else None, [batch is not None for batch in prepared]

    def _describe(
        self, inputs: Any, given: list[bool], forward: dict[str, Any], postprocess: dict[str, Any]
    ) -> list[list[dict[str, Any]]]:
        """Records of each image of a batch, none for an image without regions."""
        records = iter([] if inputs is None else self.postprocess(self.forward(inputs, **forward), **postprocess))
        return [next(records) if has_regions else [] for has_regions in given]

    def _forward(self, model_inputs: Any, **generate: Any) -> dict[str, Any]:
        sizes = {name: model_inputs[name] for name in ("original_sizes", "reshaped_input_sizes")}
        outputs = self.model.generate(**model_inputs, **{**generate, "return_dict_in_generate": True})
        return {"outputs": outputs, **sizes}

    def postprocess(self, model_outputs: dict[str, Any], **options: Any) -> list[list[dict[str, Any]]]:
        """Records of every image."""
        return self.processor.post_process_regions(**model_outputs, **options)


class _Rows(Dataset[_Item]):
    """What has a length and is read by numbers."""

    def __init__(self, images: Any, prompts: Mapping[str, Any]) -> None:
        self.images, self.prompts = images, prompts

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        return index, self.images[index], {name: value[index] for name, value in self.prompts.items()}


class _Stream(IterableDataset[_Item]):
    """What can only be read in its order."""

    def __init__(self, images: Any, prompts: Mapping[str, Any]) -> None:
        self.images, self.prompts = images, prompts

    def __iter__(self) -> Iterator[_Item]:
        for index, image in enumerate(self.images):
            yield index, image, {name: value[index] for name, value in self.prompts.items()}


def register() -> None:
    """Let `pipeline("region-captioning", model=model, processor=processor)` find this pipeline."""
    if TASK not in PIPELINE_REGISTRY.supported_tasks:
        PIPELINE_REGISTRY.register_pipeline(TASK, RegionCaptioningPipeline, pt_model=AutoModel, type="multimodal")


def _is_one(images: Any) -> bool:
    """Whether the argument of a call is one image, or what is no image at all."""
    one = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, Mapping, *_ARRAYS, Image.Image))
    return one or hasattr(images, "read") or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__"))


def _is_per_image(value: Any) -> bool:
    return (
        value is not None and not isinstance(value, str) and (isinstance(value, Sequence) or hasattr(value, "shape"))
    )


def _is_empty(prompts: Any, levels: int = 2) -> bool:
    """Whether prompts of one image hold no region, with the level of images or without."""
    if not isinstance(prompts, (list, tuple, *_ARRAYS)):
        return False
    return len(prompts) == 0 or (levels > 1 and len(prompts) == 1 and _is_empty(prompts[0], levels - 1))


def _read_item(item: Any) -> tuple[Any, dict[str, Any]]:
    """Return the image of an item and the prompts that it brings."""
    if not isinstance(item, Mapping) or item.keys() <= {"bytes", "path"}:
        return item, {}
    names = [name for name in ("image", "images") if item.get(name) is not None]
    if unknown := sorted(map(repr, item.keys() - {"image", "images", *_PROMPTS})):
        raise ValueError(
            f"a dict of an image and its prompts has the unknown keys {', '.join(unknown)}; known are image, "
            f'{", ".join(_PROMPTS)}. For a data set with other columns use KeyDataset(rows, "image") or '
            "rows.select_columns."
        )
    if len(names) != 1:
        raise ValueError(f"a dict of an image and its prompts needs the key image, this one has {sorted(item)}.")
    return item[names[0]], {name: item[name] for name in _PROMPTS if item.get(name) is not None}


__all__ = ["TASK", "RegionCaptioningPipeline", "register"]
