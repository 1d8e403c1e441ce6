"""Answers requests of Hugging Face Inference Endpoints: an image and regions in, records of the regions out.

    {"inputs": {"image": "<base64>", "regions": [{"box": [31, 25, 99, 103]}, {"points": [[80, 61]], "labels": [1]}]},
     "parameters": {"num_beams": 3}}

Regions are in pixels of the upright image, boxes x1, y1, x2, y2; a mask is a COCO RLE. `region_prompts_sca.py` beside
the model has the whole rule. Without regions, or with the bare base64 text for `inputs`, the whole image is one. The
answer has a record for each region: caption, score, box, iou and mask (COCO RLE; `"masks": false` among the parameters
leaves it out), and the keys of your own that came with the region. A request that cannot be answered raises
ValueError, which the endpoint turns into status 400 with the sentence.
"""

import base64
import binascii
import importlib
import io
import math
from typing import Any

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import AutoModel, AutoProcessor


MAX_BYTES = 30_000_000
MAX_PIXELS = 60_000_000
MAX_SIDE = 65_535
MAX_REGIONS = 1_000
# Of the mask prompts of a request together.
MAX_MASK_PIXELS = 1_000_000_000
# Of all regions and beams of a request together.
MAX_TOKENS = 131_072
# Parameters of a request, and the largest number each may be.
LIMITS = {"num_beams": 8, "max_new_tokens": 128, "min_new_tokens": 128, "no_repeat_ngram_size": 16, "top_k": 1_000}
FLOATS = ("temperature", "top_p", "length_penalty", "repetition_penalty")
OTHERS = {"do_sample": bool, "masks": bool, "task": str, "length": str, "language": str}


class EndpointHandler:
    """Made once, with the repository's folder, and called for each request."""

    def __init__(self, path: str = "") -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModel.from_pretrained(path, trust_remote_code=True).to(device).eval()
        self.processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
        # The repository's own code for region prompts and run-length masks lies beside its processor.
        package = type(self.processor).__module__.rpartition(".")[0]
        self.prompts = importlib.import_module(".region_prompts_sca", package)
        self.encode_rle = importlib.import_module(".masks_sca", package).encode_rle

    def __call__(self, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Caption the regions of one image.

        Args:
            data: the request's JSON.

        Returns:
            A record per region, in order.

        Raises:
            ValueError: the request cannot be answered; the text says why.
        """
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError('the request must be {"inputs": {"image": base64, "regions": [...]}}.')
        inputs = data["inputs"] if isinstance(data["inputs"], dict) else {"image": data["inputs"]}
        _refuse_unknown(inputs, {"image", "regions"}, "inputs")
        image = read_image(inputs.get("image"))
        regions = self.read_regions(inputs.get("regions"), (image.height, image.width))
        options = read_parameters(data.get("parameters"))
        with_masks = options.pop("masks", True)
        prompts = self.prompts.processor_arguments([regions])
        tokens = len(regions) * (options.get("num_beams") or 1) * (options.get("max_new_tokens") or 20)
        if tokens > MAX_TOKENS:
            raise ValueError(
                f"regions x num_beams x max_new_tokens are {tokens:,}; at most {MAX_TOKENS:,} are written."
            )
        chosen = {name: options.pop(name, None) for name in ("task", "length", "language")}
        batch = self.processor(image, return_tensors="pt", **chosen, **prompts)
        batch = batch.to(self.model.device, self.model.dtype)
        with torch.inference_mode():
            outputs = self.model.generate(**batch, output_caption_scores=True, return_dict_in_generate=True, **options)
        sizes = batch["original_sizes"], batch["reshaped_input_sizes"]
        records = self.processor.post_process_regions(outputs, *sizes)[0]
        for record in records:
            mask = record.pop("mask")
            if with_masks:
                record["mask"] = self.encode_rle(mask)
        return [region.with_extra(record) for region, record in zip(regions, records, strict=True)]

    def read_regions(self, regions: Any, size: tuple[int, int]) -> list[Any]:
        """Return the prompts of a request; where it has none, the whole image is one.

        Args:
            regions: a list of region objects, or None.
            size: (height, width) of the image.
        """
        regions = [{"box": [0, 0, size[1], size[0]]}] if regions is None else regions
        return self.prompts.read_regions(regions, size, max_regions=MAX_REGIONS, max_mask_pixels=MAX_MASK_PIXELS)


def read_image(text: Any) -> Image.Image:
    """The upright RGB image of a base64 text or data URL."""
    if not isinstance(text, str) or not text:
        raise ValueError("inputs.image must be a base64 text.")
    if len(text) > MAX_BYTES * 4 / 3:
        raise ValueError(f"the image has more than {MAX_BYTES:,} bytes.")
    try:
        content = base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
        picture = Image.open(io.BytesIO(content))
    except (binascii.Error, UnidentifiedImageError) as error:
        raise ValueError(f"inputs.image is not a picture in base64: {error}.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"the image is too large: {error}") from error
    if picture.width * picture.height > MAX_PIXELS or max(picture.size) > MAX_SIDE:
        size = f"{picture.width} x {picture.height}"
        raise ValueError(f"the image has {size} pixels; at most {MAX_PIXELS:,}, and {MAX_SIDE:,} a side, are read.")
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the image is broken: {error}.") from error


def read_parameters(parameters: Any) -> dict[str, Any]:
    """Arguments of `generate`, and `task`, `length`, `language` and `masks`."""
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise ValueError("parameters must be an object.")
    _refuse_unknown(parameters, {*LIMITS, *FLOATS, *OTHERS}, "parameters")
    for name, value in parameters.items():
        where = f"parameters.{name}"
        if name in OTHERS and not isinstance(value, OTHERS[name]):
            raise ValueError(f"{where} must be a {OTHERS[name].__name__}.")
        if name in LIMITS and not (type(value) is int and 0 <= value <= LIMITS[name]):
            raise ValueError(f"{where} must be a whole number of at most {LIMITS[name]}.")
        if name in FLOATS and not (type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e6):
            raise ValueError(f"{where} must be a number, got {str(value)[:60]}.")
    return dict(parameters)


def _refuse_unknown(given: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(given) - known):
        raise ValueError(f"{where} has the unknown fields {unknown}; known are {sorted(known)}.")
