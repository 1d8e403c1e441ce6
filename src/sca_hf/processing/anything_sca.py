"""Caption anything: masks of a whole image from a grid of points or from given boxes, and a caption of each.

An image is encoded once, all prompts get their masks in batches from that encoding, and only what is left after
filtering and non-maximum suppression is captioned, for several images in one call. Every step is a public one of
processor and model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from .anything_settings_sca import AnythingSettings
from .captions_sca import best_caption
from .images_sca import as_image
from .mask_generation_sca import (
    box_nms,
    build_point_grid,
    cut_padding,
    generate_crop_boxes,
    mask_boxes,
    nms,
    remove_small_regions,
    stability_scores,
)
from .masks_sca import encode_rle


# What `forward` takes per region, or per region and point.
_REGIONAL = ("input_points", "input_labels", "input_boxes", "mask_index", "region_mask", "prompt_layout", "task_ids")
# Pixels of upscaled masks held at once.
_MASK_PIXELS = 1 << 26
# A mask that ends this near to the edge of a crop is cut off by it; pixels of the original image.
_EDGE = 20
Progress = Callable[[str, int, int], None]
# The model's `ImageEncoding` of one image, and (height, width) of the model's input.
Encoded = tuple[Any, tuple[int, int]]


@dataclass
class _View:
    """The image, or a crop of it, with its encoding and the masks found in it.

    Attributes:
        crop: xyxy, pixels of the original image.
        encoding: the model's `ImageEncoding` of it.
        resized: height, width of the model's input before padding.
        prompts: points (x, y) or boxes (x, y, x, y), pixels of the view.
        found: tensors of S rows, one per mask: `boxes` (xyxy, pixels of the original image), `masks` (low-resolution
            logits), `iou_scores`, `stability_scores`, `region_index` (of `prompts`).
    """

    crop: tuple[int, int, int, int]
    encoding: Any
    resized: tuple[int, int]
    prompts: list[list[float]] = field(default_factory=list)
    found: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the original."""
        return self.crop[3] - self.crop[1], self.crop[2] - self.crop[0]

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all masks but these."""
        self.found = {name: value[rows.to(value.device)] for name, value in self.found.items()}


@dataclass
class _Mask:
    """A mask that is left: its record, and where it came from."""

    record: dict[str, Any]
    view: _View
    row: int
    changed: bool


@dataclass
class _Picture:
    """An image, its views, and the masks that are left of it.

    Attributes:
        size: height and width in pixels.
        min_area: pixels of the smallest hole or speck to keep.
        nms_thresh: box IoU above which the better of two masks is kept; None: the image's boxes were given, and all
            are kept, in their order.
    """

    size: tuple[int, int]
    views: list[_View] = field(default_factory=list)
    masks: list[_Mask] = field(default_factory=list)
    min_area: int = 0
    nms_thresh: float | None = None

    def nms_again(self) -> None:
        """Drop what cleaning left empty, and what has become alike: scaling loses specks, and cleaning loses more.

        Masks that cleaning did not change go first.
        """
        if self.nms_thresh is None:
            return
        found = [one for one in self.masks if one.record["area"]]
        boxes = torch.tensor([one.record["bbox"] for one in found]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([one.record["predicted_iou"] - 1000.0 * one.changed for one in found])
        self.masks = [found[index] for index in sorted(box_nms(boxes, scores, self.nms_thresh).tolist())]

    def records(self, settings: AnythingSettings) -> list[dict[str, Any]]:
        """Return what `caption_anything` does."""
        records = [one.record for one in self.masks]
        if self.nms_thresh is not None:
            records.sort(key=lambda record: -record["predicted_iou"])
        return _unique(records) if settings.unique_captions else records


def encode_image(model: PreTrainedModel, processor: ProcessorMixin, image: Any) -> Encoded:
    """Return the `ImageEncoding` of an image, and (height, width) of the model's input before padding.

    Args:
        image: one image, in any form of [`as_images`].
    """
    inputs = processor(as_image(image)).to(model.device, model.dtype)
    with torch.no_grad():
        encoding = model.encode_images(inputs["pixel_values"])
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    return encoding, (height, width)


@torch.no_grad()
def caption_anything(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: Any,
    settings: AnythingSettings | None = None,
    boxes: Any = None,
    encoded: Encoded | None = None,
    progress: Progress | None = None,
    **generation: Any,
) -> list[dict[str, Any]]:
    """Find and caption everything in one image.

    Args:
        model: a [`ScaForConditionalGeneration`].
        processor: its [`ScaProcessor`].
        image: one image, in any form of [`as_images`].
        settings: thresholds and the like; None takes the defaults.
        boxes: (N, 4) xyxy, pixels of the original: caption these, all of them, in place of what a grid finds. Of the
            settings only `points_per_batch`, `mask_threshold`, `stability_score_offset`, `unique_captions`, `task`,
            `length` and `language` count.
        encoded: the image's encoding, if it is known, from [`encode_image`].
        progress: called with a step's name, what of it is done, and of how much (0: not known).
        generation: arguments of `generate`, for instance `num_beams`.

    Returns:
        Records, best estimated IoU first (boxes: in their order): `segmentation` (COCO RLE), `area` (pixels), `bbox`
        (x, y, width, height), `predicted_iou`, `stability_score`, `point_coords` ([[x, y]]; of boxes instead
        `box_prompt`, xyxy), `crop_box` (x, y, width, height), `caption`, `score` (mean log-probability of the
        caption's tokens), with `output_agreements=True` `agreement` (how surely a listener finds the region by its
        caption among those of the image, or of the crop that it was found in), and `confidence` where the model has a
        [`ScaConfidenceHead`]. All in pixels of the original, upright image.
    """
    encodings = None if encoded is None else [encoded]
    pictures = None if boxes is None else [boxes]
    return caption_each(model, processor, [image], settings, pictures, encodings, progress, **generation)[0]


@torch.no_grad()
def caption_each(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    images: Sequence[Any],
    settings: AnythingSettings | None = None,
    boxes: Sequence[Any] | None = None,
    encoded: Sequence[Encoded | None] | None = None,
    progress: Progress | None = None,
    **generation: Any,
) -> list[list[dict[str, Any]]]:
    """Find and caption everything in each of several images; the language model is called once for all of them.

    Args:
        images: several of what [`caption_anything`] takes one of.
        boxes: those of each image.
        encoded: the encoding of each image.

    Returns:
        The records of each image, as [`caption_anything`] returns them.
    """
    settings = settings or AnythingSettings()
    report = progress or (lambda step, done, total: None)
    boxes = boxes or [None] * len(images)
    encoded = encoded or [None] * len(images)
    found = [
        _find(model, processor, as_image(image), settings, given, known, report)
        for image, given, known in zip(images, boxes, encoded, strict=True)
    ]
    report("captions", 0, sum(len(one.masks) for one in found))
    _caption(model, processor, found, settings, generation)
    return [one.records(settings) for one in found]


def _find(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: Any,
    settings: AnythingSettings,
    boxes: Any,
    encoded: Encoded | None,
    report: Progress,
) -> "_Picture":
    """Find the masks of one image that are to be captioned."""
    picture = _Picture((image.height, image.width))
    if boxes is not None and not len(boxes):
        return picture
    views = picture.views = list(_views(model, processor, image, settings, boxes, encoded, report))
    if len(views) > 1:
        _suppress_between(views, settings.crop_nms_thresh)
    if boxes is None:
        picture.min_area = settings.min_mask_region_area
        picture.nms_thresh = max(settings.box_nms_thresh, settings.crop_nms_thresh if len(views) > 1 else 0.0)
    picture.masks = [one for view in views for one in _masks(processor, view, picture, settings)]
    picture.nms_again()
    return picture


def _views(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    image: Any,
    settings: AnythingSettings,
    boxes: Any,
    encoded: Encoded | None,
    report: Progress,
) -> Iterator[_View]:
    """Yield the image, and its crops, with the masks that were found in each."""
    size = (image.height, image.width)
    layers = generate_crop_boxes(size, settings.crop_n_layers if boxes is None else 0, settings.crop_overlap_ratio)
    total, done = sum(map(len, layers)), 0
    for layer, crops in enumerate(layers):
        for crop in crops:
            report("encoding", done, total)
            known, part = (encoded, image) if layer == 0 else (None, image.crop(crop))
            view = _View(crop, *(known or encode_image(model, processor, part)))
            if boxes is not None:
                view.prompts = [[float(value) for value in box] for box in boxes]
                _segment_boxes(model, processor, view, settings, report)
            else:
                side = max(1, settings.points_per_side // settings.crop_n_points_downscale_factor**layer)
                view.prompts = build_point_grid(view.size, side).tolist()
                _segment_points(model, processor, view, settings, report, size)
            done += 1
            yield view


def _segment_points(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    view: _View,
    settings: AnythingSettings,
    report: Progress,
    size: tuple[int, int],
) -> None:
    """Find the masks of a view by its grid; what the edge of a crop cuts off is left to its neighbors."""
    fraction = view.size[0] * view.size[1] / (size[0] * size[1])
    prompts = [[point] for point in view.prompts]
    inputs = processor(original_sizes=[view.size], input_points=[prompts], **settings.asked)
    parts = []
    for start, outputs in _batches(model, view, inputs, settings, report):
        chosen = processor.select_regions(outputs, [view.size], [view.resized], **settings.thresholds(fraction))[0]
        del chosen["candidate_index"]
        parts.append({**chosen, "region_index": chosen["region_index"] + start})
    view.found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    boxes = view.found["boxes"]
    crop, whole = boxes.new_tensor(view.crop), boxes.new_tensor([0, 0, size[1], size[0]])
    boxes = view.found["boxes"] = boxes + crop[:2].repeat(2)
    cut = ((boxes - crop).abs() <= _EDGE) & ((boxes - whole).abs() > _EDGE)
    view.keep(torch.nonzero(~cut.any(1)).flatten())
    masks = view.found["masks"] > settings.mask_threshold
    thresholds = (settings.box_nms_thresh, settings.mask_nms_thresh)
    view.keep(nms(view.found["boxes"], masks, view.found["iou_scores"], *thresholds))


def _segment_boxes(
    model: PreTrainedModel, processor: ProcessorMixin, view: _View, settings: AnythingSettings, report: Progress
) -> None:
    """Take the best mask of each box."""
    inputs = processor(original_sizes=[view.size], input_boxes=[view.prompts], **settings.asked)
    frame = model.config.image_frame.side
    parts = []
    for start, outputs in _batches(model, view, inputs, settings, report):
        ious, masks = outputs.iou_scores[0].float(), outputs.pred_masks[0]
        best = ious.argmax(1, keepdim=True)
        masks = masks.take_along_dim(best[..., None, None], 1)[:, 0].float()
        inside = cut_padding(masks, view.resized, frame)
        stability = stability_scores(inside, settings.mask_threshold, settings.stability_score_offset)
        index = torch.arange(start, start + len(masks), device=masks.device)
        ious = ious.gather(1, best)[:, 0]
        parts.append({"masks": masks, "iou_scores": ious, "stability_scores": stability, "region_index": index})
    view.found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _batches(
    model: PreTrainedModel, view: _View, inputs: Any, settings: AnythingSettings, report: Progress
) -> Iterator[tuple[int, Any]]:
    """Yield the masks of a view's prompts batch by batch, with the number of the first prompt of each."""
    inputs, count = inputs.to(model.device), len(view.prompts)
    for start in range(0, count, settings.points_per_batch):
        report("masks", start, count)
        part = slice(start, start + settings.points_per_batch)
        prompts = {name: inputs[name][:, part] for name in _REGIONAL if name in inputs}
        yield start, model(**view.encoding.as_inputs(), **prompts)


def _suppress_between(views: list[_View], threshold: float) -> None:
    """Of masks that two crops found, keep that of the smaller crop, which saw it larger."""
    counts = [len(view.found["boxes"]) for view in views]
    boxes = torch.cat([view.found["boxes"].cpu() for view in views])
    areas = torch.tensor([float(view.size[0] * view.size[1]) for view in views])
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    kept[box_nms(boxes, -areas.repeat_interleave(torch.tensor(counts)), threshold)] = True
    for view, rows in zip(views, kept.split(counts), strict=True):
        view.keep(torch.nonzero(rows).flatten())


def _masks(processor: ProcessorMixin, view: _View, picture: _Picture, settings: AnythingSettings) -> Iterator[_Mask]:
    """Yield the masks of one view in the pixels of the original, with all of their records but the captions."""
    x, y, right, bottom = view.crop
    masks = view.found["masks"]
    step = max(1, _MASK_PIXELS // max(view.size[0] * view.size[1], 1 << 20))
    for start in range(0, len(masks), step):
        part = [masks[start : start + step, None]]
        upscaled = processor.post_process_masks(part, [view.size], [view.resized], settings.mask_threshold)[0]
        for row, before in enumerate(upscaled[:, 0].cpu().numpy(), start):
            drawn, changed = _drawn(before, view, picture)
            record = {
                **drawn,
                "predicted_iou": float(view.found["iou_scores"][row]),
                "stability_score": float(view.found["stability_scores"][row]),
                **_prompt_field(view, int(view.found["region_index"][row])),
                "crop_box": [x, y, right - x, bottom - y],
            }
            yield _Mask(record, view, row, changed)


def _drawn(before: np.ndarray, view: _View, picture: _Picture) -> tuple[dict[str, Any], bool]:
    """The fields of a view's mask (height, width), cleaned, in pixels of the original; and if cleaning changed it."""
    x, y, right, bottom = view.crop
    after = remove_small_regions(before, picture.min_area) if picture.min_area else before
    mask = np.zeros(picture.size, bool)
    mask[y:bottom, x:right] = after
    left, top, far_x, far_y = mask_boxes(torch.from_numpy(mask)[None])[0].tolist()
    box = [left, top, far_x - left, far_y - top]
    fields = {"segmentation": encode_rle(mask), "area": int(mask.sum()), "bbox": box}
    return fields, not np.array_equal(before, after)


def _prompt_field(view: _View, index: int) -> dict[str, Any]:
    prompt = [value + shift for value, shift in zip(view.prompts[index], view.crop[:2] * 2, strict=False)]
    return {"box_prompt": prompt} if len(prompt) == 4 else {"point_coords": [prompt]}


def _caption(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    pictures: Sequence[_Picture],
    settings: AnythingSettings,
    generation: dict[str, Any],
) -> None:
    """Write the captions into the records, by one call; masks of the same prompt share their caption.

    A model that takes a second look draws the masks again.
    """
    look = model.second_look is not None and generation.get("second_look") is not False
    found = [(picture, one) for picture in pictures for one in picture.masks]
    if not found:
        return
    kind = "given" if "box_prompt" in found[0][1].record else settings.caption_prompt
    used = list({id(one.view): one.view for _, one in found}.values())
    prompted: dict[int, dict[Any, Any]] = {id(view): {} for view in used}  # view -> key of a prompt -> the prompt
    keys = []
    for _, one in found:
        prompt = int(one.view.found["region_index"][one.row])
        key = prompt if kind in ("given", "point") else one.row
        prompted[id(one.view)].setdefault(key, _caption_prompt(one, prompt, kind))
        keys.append((id(one.view), key))
    name = {"given": "input_boxes", "point": "input_points", "box": "input_boxes", "mask": "input_masks"}[kind]
    prompts = {name: [list(regions.values()) for regions in prompted.values()]}
    inputs = processor(original_sizes=[view.size for view in used], **settings.asked, **prompts).to(model.device)
    encodings = used[0].encoding.cat([view.encoding for view in used])
    outputs = model.generate(
        **inputs, **encodings.as_inputs(), output_masks=look, **{"output_caption_scores": True, **generation}
    )
    described = processor.post_process_regions(outputs, [v.size for v in used], [v.resized for v in used])
    places = {
        (index, key): record
        for (index, regions), records in zip(prompted.items(), described, strict=True)
        for key, record in zip(regions, records, strict=True)
    }
    for (picture, one), place in zip(found, keys, strict=True):
        record = places[place]
        one.record["caption"], one.record["score"] = best_caption(record["caption"], record["score"])
        if "agreement" in record:
            one.record["agreement"] = best_caption(record["agreement"], record["score"])[0]
        if record["confidence"] is not None:
            one.record["confidence"] = record["confidence"]
        # Where it sees nothing, what was found first stays.
        if look and record["mask"].any():
            drawn, one.changed = _drawn(record["mask"], one.view, picture)
            one.record |= {**drawn, "predicted_iou": record["iou"]}
    for picture in pictures if look else ():
        picture.nms_again()


def _caption_prompt(one: _Mask, prompt: int, kind: str) -> Any:
    """What prompts the model for a mask's caption, in pixels of its view."""
    view = one.view
    if kind == "given":
        return view.prompts[prompt]
    if kind == "point":
        return [view.prompts[prompt]]
    if kind == "mask":
        return view.found["masks"][one.row].cpu().numpy()
    x, y, width, height = one.record["bbox"]
    return [x - view.crop[0], y - view.crop[1], x + width - view.crop[0], y + height - view.crop[1]]


def _unique(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the best of the records of each caption."""
    best: dict[str, dict[str, Any]] = {}
    for record in records:
        known = best.setdefault(record["caption"], record)
        if record["predicted_iou"] > known["predicted_iou"]:
            best[record["caption"]] = record
    return [record for record in records if best[record["caption"]] is record]


__all__ = ["caption_anything", "caption_each", "encode_image"]
