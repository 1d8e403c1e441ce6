"""Objects through a clip: a tracker's own memory for masks, and caption queries averaged over the frames for words.

The tracker is the library's and the model's segmenter (`sam2_video`, `sam3_tracker_video`, `edgetam_video`). What its
decoder leaves behind in a frame feeds the mixer as that of a picture does. Frames are read as they are needed, and of
what is remembered no more is kept than the tracker looks back to. Letters for shapes as in modeling_sca.py.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from .generation_sca import continue_prefixes, resolve_generation_config
from .grouping_sca import RegionInputs


_ENDLESS = 1 << 30


@dataclass
class TrackedFrame:
    """An object in one frame.

    Attributes:
        frame: number of the frame.
        masks: (4h, 4w) mask logits; -1024 where the object is not seen.
        object_score: logit of the object being seen.
        queries: (A, Q, C) caption queries.
    """

    frame: int
    masks: torch.Tensor
    object_score: float
    queries: torch.Tensor


class _Frames(Mapping[int, torch.Tensor]):
    """The frames of a tracker's session, read when it asks for one; only the last one is kept."""

    def __init__(self, read: Callable[[int], torch.Tensor], count: int) -> None:
        self._read, self._count, self._last = read, count, (-1, torch.empty(0))

    def __getitem__(self, frame: int) -> torch.Tensor:
        if self._last[0] != frame:
            self._last = frame, self._read(frame)
        return self._last[1]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._count))

    def __len__(self) -> int:
        return self._count


class ObjectTracker:
    """Follows objects through a clip, each on its own: what is said of one does not depend on the others."""

    def __init__(self, model: Any, read: Callable[[int], torch.Tensor], count: int) -> None:
        """
        Args:
            model: a [`ScaForConditionalGeneration`] on a video model.
            read: gives (3, S, S), the normalized pixels of a frame by its number.
            count: frames of the clip.
        """
        sam, mixer = model.sam, model.mixer
        if not hasattr(sam, "memory_encoder"):
            raise ValueError(f"a {sam.config.model_type} model is no tracker: give masks of the objects per frame.")
        if not mixer.config.is_published or model.detail_encoder is not None:
            raise ValueError("captions of a tracked object need a mixer wired as published, without a detail encoder.")
        self.sam, self.mixer, self.count = sam, mixer, count
        self._folded = mixer.fold_positions(sam.get_image_wide_positional_embeddings()[0].flatten(1).t())
        self._frames = _Frames(read, count)
        self._sessions: list[Any] = []
        self._kept = max(sam.config.num_maskmem, sam.config.max_object_pointers_in_encoder) + 1

    def add(
        self,
        frame: int,
        points: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        box: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> None:
        """Prompt one more object.

        Args:
            frame: that the prompt is on.
            points: (P, 2) x, y in pixels of the square.
            labels: (P,) 1 in the object, 0 outside.
            box: (4,) xyxy in pixels of the square.
            mask: (S, S) in [0, 1]; the tracker takes it as it is, and a prompt has nothing beside it.
        """
        if mask is not None and (points is not None or box is not None):
            raise ValueError("a tracked object is prompted with a mask, or with a box and points, not with both.")
        kind = type(self.sam)
        session = getattr(import_module(kind.__module__), kind.__name__.removesuffix("Model") + "InferenceSession")(
            inference_device=self.sam.device, inference_state_device=self.sam.device, dtype=self.sam.dtype
        )
        session.processed_frames = self._frames
        if self._sessions:
            session.cache = self._sessions[0].cache  # an image is encoded once for all objects
        index = session.obj_id_to_idx(0)
        if mask is not None:
            session.add_mask_inputs(index, frame, mask[None, None])
        else:
            corners = [] if box is None else [box.view(2, 2)]
            ends = [] if box is None else [torch.tensor([2, 3], device=box.device)]
            given = [] if points is None else [points]
            if points is not None:
                ends.append(torch.ones(len(points), dtype=torch.long) if labels is None else labels)
            inputs = {
                "point_coords": torch.cat([*corners, *given])[None, None],
                "point_labels": torch.cat([end.to(torch.int32) for end in ends])[None, None],
            }
            session.add_point_inputs(index, frame, inputs)
        session.obj_with_new_inputs.append(0)
        session.first_frame = frame
        self._sessions.append(session)

    def follow(self, backward: bool = True) -> Iterator[tuple[int, dict[int, TrackedFrame]]]:
        """Go forward from the first prompt, then backward from the last; yield each frame and what is in it by object.

        Args:
            backward: also follow objects to the frames before their prompts.
        """
        first = [session.first_frame for session in self._sessions]
        for frame in range(min(first), self.count):
            try:
                self._frames[frame]
            except LookupError:  # the end of a clip of unknown length
                break
            yield frame, self._at(frame, [k for k, start in enumerate(first) if start <= frame], False)
        for frame in range(max(first) - 1, -1, -1) if backward else ():
            yield frame, self._at(frame, [k for k, start in enumerate(first) if start > frame], True)

    @torch.no_grad()
    def _at(self, frame: int, objects: list[int], reverse: bool) -> dict[int, TrackedFrame]:
        found = {}
        left: list[tuple[torch.Tensor, torch.Tensor]] = []
        transformer = self.sam.mask_decoder.transformer
        # The library runs in inference mode; what is kept is copied outside of it.
        handle = transformer.register_forward_hook(lambda *call: left.append((call[-1][0], call[-1][1])))
        try:
            for number in objects:
                session = self._sessions[number]
                left.clear()
                output = self.sam(session, frame_idx=frame, reverse=reverse)
                self._forget(session, frame)
                tokens, image_tokens = (x.reshape(1, *x.shape[-2:]).clone() for x in left[-1])
                found[number] = TrackedFrame(
                    frame,
                    output.pred_masks[0, 0].clone(),
                    float(output.object_score_logits.flatten()[0]),
                    self.mixer(tokens, image_tokens, self._folded)[0],
                )
        finally:
            handle.remove()
        return found

    def _forget(self, session: Any, frame: int) -> None:
        """Drop what no later frame looks back to; on the way backward those are the frames after the prompt."""
        outputs = session.output_dict_per_obj[0]
        for kind in outputs.values():
            for kept in kind.values():
                kept.pop("high_res_masks", None)  # of the size of the clip, and only for the memory of the frame
        past = outputs["non_cond_frame_outputs"]
        near = (frame, session.first_frame)
        for old in [old for old in past if all(abs(old - one) > self._kept for one in near)]:
            del past[old]


class ScaVideoMixin:
    """What clips need of [`ScaForConditionalGeneration`]; the processor's `caption_video` puts it together."""

    def object_tracker(self, read: Callable[[int], torch.Tensor], count: int | None) -> ObjectTracker:
        """Begin to follow objects; arguments as of [`ObjectTracker`], `count` None for a clip without a known end."""
        return ObjectTracker(self, read, _ENDLESS if count is None else count)

    @torch.no_grad()
    def region_queries(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The caption queries (N, A, Q, C) of the N real regions; takes what the processor returns."""
        known = RegionInputs.taken_from(inputs)
        return self._region_features(known, (), True, None, False).queries  # type: ignore[attr-defined]

    @torch.no_grad()
    def caption_queries(self, queries: torch.Tensor, task: str = "caption", **generation: Any) -> dict[str, Any]:
        """Caption regions from their queries alone.

        Args:
            queries: (N, A, Q, C), for instance averages over frames.
            task: one of the model's tasks.
            generation: arguments of `generate`.

        Returns:
            `sequences` (N, n, T) ids, `caption_scores` (N, n), and `confidences` (N,) where there is a head for them.
        """
        model: Any = self
        mixer = model.mixer
        config, extra = resolve_generation_config(model.generation_config, None, generation)
        model.check_new_tokens(config.max_new_tokens)
        if task not in mixer.config.tasks:
            raise ValueError(f"task is {task!r}, expected {' or '.join(map(repr, mixer.config.tasks))}.")
        ids = torch.full((len(queries),), mixer.config.tasks.index(task), device=queries.device)
        prefixes = mixer.prefix(queries.to(mixer.dtype), ids)
        sequences, scores = continue_prefixes(model.language_model, prefixes, config, True, None, extra)
        results = {"sequences": sequences, "caption_scores": scores}
        if model.confidence_head is not None:
            results["confidences"] = model.confidence_head(queries)
        return results


__all__ = ["ObjectTracker", "ScaVideoMixin", "TrackedFrame"]
