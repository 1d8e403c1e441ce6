"""Captions of clips: frames and prompts in; out come objects with a mask per frame and one caption each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import PreTrainedModel

from .captions_sca import asked_task, best_caption
from .images_sca import as_image
from .mask_generation_sca import mask_boxes
from .masks_sca import encode_rle, read_mask
from .region_prompts_sca import RegionPrompt, parse_region, processor_arguments


class Clip:
    """The frames of a clip, read one at a time.

    Args:
        frames: a sequence of images in any form that a call of the processor takes, a lazy one included; or an
            iterator, which is read forward only.
    """

    def __init__(self, frames: Any) -> None:
        self.is_stream = not (hasattr(frames, "__len__") and hasattr(frames, "__getitem__"))
        self._frames = iter(frames) if self.is_stream else frames
        self.count = None if self.is_stream else len(frames)
        if self.count == 0:
            raise ValueError("the clip has no frames.")
        self._next = 0
        self._last: tuple[int, Any] = (-1, None)
        self.size = self[0].height, self[0].width

    def __getitem__(self, frame: int) -> Image.Image:
        """Read a frame; LookupError after the last one of a stream."""
        if self._last[0] != frame:
            self._last = frame, self._read(frame)
        return self._last[1]

    def _read(self, frame: int) -> Image.Image:
        if self.is_stream:
            while self._next <= frame:
                try:
                    image = next(self._frames)
                except StopIteration:
                    self.count = self._next
                    raise LookupError(f"the clip ends before frame {frame}.") from None
                self._next += 1
        else:
            image = self._frames[frame]
        picture = as_image(image)
        if frame and (picture.height, picture.width) != self.size:
            raise ValueError(
                f"frame {frame} is {picture.width} x {picture.height} pixels, but frame 0 is {self.size[1]} x "
                f"{self.size[0]} (width x height): the frames of a clip have one size."
            )
        return picture


@dataclass
class _Object:
    """An object on its way through a clip: what is known of it so far."""

    masks: dict[int, dict[str, Any]] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    queries: torch.Tensor | None = None  # (A, Q, C), the sum weighted by visible area
    area: float = 0.0

    def see(self, queries: torch.Tensor, area: float) -> None:
        """Add what a frame shows, by the area that is visible there: better than any single frame."""
        weighted = queries.float() * area
        self.queries = weighted if self.queries is None else self.queries + weighted
        self.area += area


class ScaVideoProcessorMixin:
    """Clips, for [`ScaProcessor`]."""

    def caption_video(
        self,
        model: PreTrainedModel,
        frames: Any,
        regions: Sequence[Any] | None = None,
        masklets: Sequence[Any] | None = None,
        task: str = "caption",
        progress: Callable[[int, int | None], None] | None = None,
        length: str | int | None = None,
        language: str | None = None,
        **generation: Any,
    ) -> list[dict[str, Any]]:
        """Caption objects of a clip: one caption each, from its queries of all frames averaged by visible area.

        With `regions` the model's segmenter must be a tracker (`sam2_video`, `sam3_tracker_video`, `edgetam_video`),
        which follows each object forward from its prompt, and backward unless `frames` is an iterator. With `masklets`
        any model will do. Frames are read one at a time and not kept.

        Args:
            model: a [`ScaForConditionalGeneration`].
            frames: a sequence or an iterator of images of one size, in any form that a call takes.
            regions: per object a prompt as in `region_arguments` (`box`, `points` and `labels`, or `mask`), and with
                `frame` the number of the frame that it is on, by default 0.
            masklets: per object its masks, in place of `regions`: a list with one entry per frame, None where the
                object is not seen, or a dict by frame number. Masks in any form of a call, of the frames' size.
            task: one of the model's tasks, by its name or by name and `length` or `language` as in a call.
            progress: called with the number of frames done and of all, None where that is not known.
            generation: arguments of `generate`.

        Returns:
            Per object `caption` (str), `score` (float, mean log-probability), `confidence` (float or None), `masks`
            (per frame COCO RLE of the original size, or None where the object is not seen), `object_scores` (per frame
            the tracker's logit of the object being seen; None with masklets).
        """
        if (regions is None) == (masklets is None):
            raise ValueError("pass either regions, which a tracker follows, or masklets, masks for every frame.")
        task = asked_task(task, self.tasks, length, language)  # type: ignore[attr-defined]
        clip = Clip(frames)
        if masklets is None:
            objects = self._follow(model, clip, list(regions or ()), progress)
        else:
            objects = self._read_masklets(model, clip, masklets, task, progress)
        if unseen := [str(number) for number, one in enumerate(objects) if one.queries is None or one.area <= 0]:
            raise ValueError(f"object {unseen[0]} is seen in no frame of the clip: there is nothing to caption.")
        queries = [one.queries / one.area for one in objects]  # type: ignore[operator]
        said = model.caption_queries(torch.stack(queries), task, **generation)
        texts = self.batch_decode(said["sequences"])  # type: ignore[attr-defined]
        confidences, scores = said.get("confidences"), said["caption_scores"].tolist()
        numbers, records = range(int(clip.count or 0)), []
        for number, one in enumerate(objects):
            said_of = dict(zip(("caption", "score"), best_caption(texts[number], scores[number]), strict=True))
            records.append(
                {
                    **said_of,
                    "confidence": None if confidences is None else float(confidences[number]),
                    "masks": [one.masks.get(frame) for frame in numbers],
                    "object_scores": [one.scores.get(frame) for frame in numbers],
                }
            )
        return records

    def _follow(self, model: Any, clip: Clip, regions: list[Any], progress: Any) -> list[_Object]:
        """Follow prompted objects by the model's tracker."""
        processor: Any = self
        prompts = _read_prompts(regions, clip)
        side, device = model.config.image_frame.side, model.device

        def pixels(frame: int) -> torch.Tensor:
            values = processor.image_processor(clip[frame], return_tensors="pt")["pixel_values"][0]
            return values.to(device, model.dtype)

        tracker = model.object_tracker(pixels, clip.count)
        for prompt, frame in prompts:
            given = processor(original_sizes=[clip.size], **processor_arguments([[prompt]])).to(device)
            mask = None
            if prompt.mask is not None:
                whole = torch.from_numpy(prompt.mask.astype(np.float32))[None, None].to(device)
                mask = (F.interpolate(whole, (side, side), mode="bilinear", antialias=True)[0, 0] >= 0.5).float()
            tracker.add(
                frame,
                given["input_points"][0, 0] if prompt.points else None,
                given["input_labels"][0, 0] if prompt.points else None,
                given["input_boxes"][0, 0] if prompt.box is not None else None,
                mask,
            )
        objects = [_Object() for _ in prompts]
        for done, (frame, found) in enumerate(tracker.follow(backward=not clip.is_stream), 1):
            for number, seen in found.items():
                one, area = objects[number], float((seen.masks > 0).sum())
                one.scores[frame] = seen.object_score
                # The prompted frame counts whatever the tracker says of it, so that there is always one.
                if area or frame == prompts[number][1]:
                    one.see(seen.queries, max(area, 1.0))
                if area:
                    whole = processor.post_process_masks(seen.masks[None, None, None], [clip.size], [(side, side)])
                    one.masks[frame] = encode_rle(whole[0][0, 0].cpu().numpy())
            if progress is not None:
                progress(done, clip.count)
        for number, (_, frame) in enumerate(prompts):
            if clip.count is not None and frame >= clip.count:
                raise ValueError(f"regions[{number}].frame is {frame}, but the clip has {clip.count} frames.")
        return objects

    def _read_masklets(
        self, model: Any, clip: Clip, masklets: Sequence[Any], task: str, progress: Any
    ) -> list[_Object]:
        """Describe objects whose masks are given, frame by frame."""
        processor: Any = self
        objects = [_Object() for _ in masklets]
        for number, one in enumerate(masklets):
            last = max(one, default=0) if isinstance(one, Mapping) else 0
            if clip.count is not None and last >= clip.count:
                raise ValueError(
                    f"masklets[{number}] has a mask of frame {last}, but the clip has {clip.count} frames, 0 to "
                    f"{clip.count - 1}."
                )
        for frame in _numbers(clip):
            image, masks = clip[frame], [_mask_at(one, frame, k, clip) for k, one in enumerate(masklets)]
            shown = {number: mask for number, mask in enumerate(masks) if mask is not None and mask.any()}
            if shown:
                boxes = mask_boxes(torch.from_numpy(np.stack([*shown.values()]))).tolist()
                inputs = processor(image, input_boxes=[boxes], task=task).to(model.device, model.dtype)
                sizes = ("original_sizes", "reshaped_input_sizes")
                queries = model.region_queries(**{key: value for key, value in inputs.items() if key not in sizes})
                for (number, mask), one in zip(shown.items(), queries, strict=True):
                    objects[number].see(one, float(mask.sum()))
                    objects[number].masks[frame] = encode_rle(mask)
            if progress is not None:
                progress(frame + 1, clip.count)
        return objects


def _numbers(clip: Clip) -> Iterator[int]:
    """The numbers of a clip's frames, as far as there are frames."""
    frame = 0
    while clip.count is None or frame < clip.count:
        try:
            clip[frame]
        except LookupError:
            return
        yield frame
        frame += 1


def _read_prompts(regions: list[Any], clip: Clip) -> list[tuple[RegionPrompt, int]]:
    """The prompt of each object, and the number of the frame that it is on."""
    if not regions:
        raise ValueError("regions is empty; give at least one object.")
    prompts = []
    for number, value in enumerate(regions):
        place = f"regions[{number}]"
        prompt = value if isinstance(value, RegionPrompt) else parse_region(value, place)
        frame = prompt.extra.get("frame", 0)
        if not isinstance(frame, int) or isinstance(frame, bool) or frame < 0:
            raise ValueError(f"{place}.frame is {frame!r}, expected the number of a frame, from 0.")
        if clip.count is not None and frame >= clip.count:
            raise ValueError(f"{place}.frame is {frame}, but the clip has {clip.count} frames, 0 to {clip.count - 1}.")
        prompts.append((prompt.on_image(clip.size), frame))
    return prompts


def _mask_at(masklet: Any, frame: int, number: int, clip: Clip) -> np.ndarray | None:
    """An object's mask (height, width) in a frame, or None where it is not seen."""
    if isinstance(masklet, Mapping):
        mask = masklet.get(frame)
    else:
        if clip.count is not None and len(masklet) != clip.count:
            raise ValueError(f"masklets[{number}] has {len(masklet)} entries, but the clip has {clip.count} frames.")
        mask = masklet[frame] if frame < len(masklet) else None
    if mask is None:
        return None
    where = f"masklets[{number}], frame {frame}"
    array = read_mask(mask, where)
    if array.shape != clip.size:
        raise ValueError(
            f"{where}: the mask is {array.shape[1]} x {array.shape[0]} pixels (width x height), the clip "
            f"{clip.size[1]} x {clip.size[0]}."
        )
    return array


__all__ = ["Clip", "ScaVideoProcessorMixin"]
