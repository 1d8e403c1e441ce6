"""Vision-language models that are given the region in words, or by a drawing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageDraw

from .image_text import ImageTextModel
from .interface import ImageQuery, RegionPrediction, RegionQuery


Show = Literal["coordinates", "drawn_box"]
Coordinates = Literal["normalized", "thousandths", "pixels"]
FLORENCE_TASKS = {"description": "<REGION_TO_DESCRIPTION>", "category": "<REGION_TO_CATEGORY>"}
_LOCATION = re.compile(r"<loc_\d+>")
# As in the paper (arXiv 2306.14824, section 4.1.2): the model continues "It <its box> is".
KOSMOS_TEXT = "<grounding><phrase>It</phrase> is"
QUESTIONS: dict[str, str] = {
    "coordinates": "Describe what is in the box {box} of this image in one short phrase.",
    "drawn_box": "Describe what is in the red box of this image in one short phrase.",
}
_RED = (255, 0, 0)
# The pen of a drawn box, as a fraction of the picture's longer side.
_PEN = 1 / 200


class _Referring:
    """One question about one box of one picture, all regions of a call together; the base of the models here."""

    segments = False

    def __init__(self, model: ImageTextModel, name: str) -> None:
        self.model, self.name = model, name

    def caption_regions(self, images: Sequence[ImageQuery], with_masks: bool = False) -> list[list[RegionPrediction]]:
        """Returns an answer for each region; there are no masks, and only boxes can be shown."""
        pairs = [(asked.image, region) for asked in images for region in asked.regions]
        boxes = [_asked_box(self.name, region) for _, region in pairs]
        said = iter(self.answer([image for image, _ in pairs], boxes))
        return [[RegionPrediction([next(said)]) for _ in asked.regions] for asked in images]

    def answer(self, images: Sequence[Image.Image], boxes: Sequence[Sequence[float]]) -> list[str]:
        """Returns what the model says of a box xyxy of each picture."""
        raise NotImplementedError


class Kosmos2Captioner(_Referring):
    """Kosmos-2, which has words for places: the box becomes two of its 32 x 32 patches.

    text: what the model continues; the box is that of its `<phrase>`.
    """

    def __init__(self, model: ImageTextModel, text: str = KOSMOS_TEXT, name: str = "Kosmos-2") -> None:
        super().__init__(model, name)
        self.text = text

    @classmethod
    def load(cls, model: str, text: str = KOSMOS_TEXT, **loading: Any) -> Kosmos2Captioner:
        """Loads a folder or repository; `loading` as in [`ImageTextModel.load`]."""
        return cls(ImageTextModel.load(model, **loading), text, model)

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        return {"kind": "kosmos2", "text": self.text, **self.model.settings()}

    def answer(self, images: Sequence[Image.Image], boxes: Sequence[Sequence[float]]) -> list[str]:
        """Returns what the model says of a box xyxy of each picture, without the places it names."""
        places = [[_fractions(box, image)] for box, image in zip(boxes, images, strict=True)]
        said = self.model.answer(images, [self.text] * len(images), bboxes=places)
        return [self.model.processor.post_process_generation(text)[0] for text in said]


class Florence2Captioner(_Referring):
    """Florence-2, which has words for places: the box becomes four of its thousandths.

    task: "description" or "category", of the model's own tasks for regions.
    """

    def __init__(self, model: ImageTextModel, task: str = "description", name: str = "Florence-2") -> None:
        super().__init__(model, name)
        if task not in FLORENCE_TASKS:
            raise ValueError(f"task is {task!r}, expected one of {', '.join(FLORENCE_TASKS)}.")
        self.task = task

    @classmethod
    def load(cls, model: str, task: str = "description", **loading: Any) -> Florence2Captioner:
        """Loads a folder or repository; `loading` as in [`ImageTextModel.load`]."""
        return cls(ImageTextModel.load(model, **loading), task, model)

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        return {"kind": "florence2", "task": self.task, **self.model.settings()}

    def answer(self, images: Sequence[Image.Image], boxes: Sequence[Sequence[float]]) -> list[str]:
        """Returns what the model says of a box xyxy of each picture, without the places it names."""
        quantize = self.model.processor.post_processor.quantize
        texts = []
        for image, box in zip(images, boxes, strict=True):
            bins = quantize(torch.tensor([list(box)], dtype=torch.float64), image.size)[0].tolist()
            texts.append(FLORENCE_TASKS[self.task] + "".join(f"<loc_{place}>" for place in bins))
        return [_LOCATION.sub("", text).strip() for text in self.model.answer(images, texts)]


class ChatCaptioner(_Referring):
    """Any model with a chat template, asked in words.

    Args:
        model: the model.
        show: "coordinates" names the box in the question, "drawn_box" draws it into the picture, in red.
        question: replaces ours; `{box}` is replaced by the coordinates.
        coordinates: "normalized", fractions of the sides in two digits; "thousandths" of them; or whole "pixels".
    """

    def __init__(
        self,
        model: ImageTextModel,
        show: Show = "coordinates",
        question: str | None = None,
        coordinates: Coordinates = "normalized",
        name: str = "chat",
    ) -> None:
        super().__init__(model, name)
        for what, value, kind in (("show", show, Show), ("coordinates", coordinates, Coordinates)):
            if value not in get_args(kind):
                raise ValueError(f"{what} is {value!r}, expected one of {', '.join(get_args(kind))}.")
        self.show, self.coordinates = show, coordinates
        self.question = QUESTIONS[show] if question is None else question
        if show == "coordinates" and "{box}" not in self.question:
            raise ValueError(f"the question {self.question!r} does not say where to look: include {{box}} in it.")
        if not model.chats:
            raise ValueError(f"{name} has no chat template, so it cannot be asked a question.")

    @classmethod
    def load(
        cls,
        model: str,
        show: Show = "coordinates",
        question: str | None = None,
        coordinates: Coordinates = "normalized",
        **loading: Any,
    ) -> ChatCaptioner:
        """Loads a folder or repository; `loading` as in [`ImageTextModel.load`]."""
        return cls(ImageTextModel.load(model, **loading), show, question, coordinates, model)

    def settings(self) -> dict[str, Any]:
        """Returns what changes its answers."""
        own = {"kind": "chat", "show": self.show, "question": self.question, "coordinates": self.coordinates}
        return {**own, **self.model.settings()}

    def answer(self, images: Sequence[Image.Image], boxes: Sequence[Sequence[float]]) -> list[str]:
        """Returns what the model says of a box xyxy of each picture."""
        pairs = list(zip(images, boxes, strict=True))
        texts = [self.question.replace("{box}", self.place(box, image)) for image, box in pairs]
        shown = [draw_box(image, box) if self.show == "drawn_box" else image for image, box in pairs]
        return self.model.answer(shown, texts)

    def place(self, box: Sequence[float], image: Image.Image) -> str:
        """Returns a box in words."""
        fractions = _fractions(box, image)
        if self.coordinates == "normalized":
            return "[" + ", ".join(f"{value:.2f}" for value in fractions) + "]"
        numbers = (
            [round(value) for value in box]
            if self.coordinates == "pixels"
            else [round(1000 * value) for value in fractions]
        )
        return str(numbers)


def draw_box(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """Returns a copy with a red outline of a box xyxy, its outer edge the box's own."""
    drawn = image.copy()
    pen = max(1, round(max(image.size) * _PEN))
    left, top, right, bottom = (round(value) for value in box)
    # PIL counts the far edge in.
    corners = [left, top, max(right - 1, left), max(bottom - 1, top)]
    ImageDraw.Draw(drawn).rectangle(corners, outline=_RED, width=pen)
    return drawn


def _fractions(box: Sequence[float], image: Image.Image) -> tuple[float, ...]:
    """Returns a box in fractions of the sides."""
    return tuple(value / side for value, side in zip(box, image.size * 2, strict=True))


def _asked_box(name: str, region: RegionQuery) -> list[float]:
    if region.prompt.box is None or region.prompt.points or region.resample_point is not None:
        raise ValueError(f"{name} takes regions as boxes only; use prompt=box.")
    return region.prompt.box
