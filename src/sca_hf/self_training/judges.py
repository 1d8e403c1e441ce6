"""The judges of a caption: each gives every region of a picture a number, higher where the caption is likelier right.

| judge | what it says | costs |
|---|---|---|
| `score` | mean log-probability of the caption's tokens | nothing |
| `agreement` | how many words the other views' captions share with it, mean F1 | nothing |
| `listener` | p(region given caption) among the regions of the picture; none of one region | an encoding a picture |
| `necessity` | by how much the mean log-probability falls when the region is erased | an encoding a region |
| `stability` | SAM's stability of the mask | nothing |

A judge of your own is `package.module:function`, called with a picture (PIL, upright RGB) and its regions, each a dict
of `box` (xyxy, pixels), `mask` ((height, width) bool), `caption`, `views` and `score`; it returns a number or None for
each, and is found from the working directory too.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import isfinite
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..files import hash_file
from ..modeling.listener_sca import listener_scores
from ..processing.masks_sca import decode_rle
from .proposing import region_box
from .settings import JUDGES


# Pictures with an erased region that are encoded at once.
_ERASED_AT_ONCE = 8
_WORD = re.compile(r"\w+")
Judge = Callable[[Image.Image, Sequence[Mapping[str, Any]]], Sequence[float | None]]


def build_judges(names: Sequence[str], model: Any, processor: Any, task: str | None) -> dict[str, Judge]:
    """Returns the judges of these names; model and processor are the teacher."""
    teacher = Teacher(model, processor, task)
    own: dict[str, Judge] = {
        "score": lambda picture, regions: [region["score"] for region in regions],
        "agreement": lambda picture, regions: [agreement(region) for region in regions],
        "listener": teacher.listener,
        "necessity": teacher.necessity,
        "stability": lambda picture, regions: [region["stability_score"] for region in regions],
    }
    return {judge_name(name): own[name] if name in own else find_function(name) for name in names}


def judge_name(name: str) -> str:
    """Returns what a judge's column is called."""
    return name.rpartition(":")[2]


def judge_identity(name: str) -> str:
    """Returns what tells a judge from another of its name: of one of your own, its code."""
    if name in JUDGES:
        return name
    return f"{name} {hash_file(str(inspect.getsourcefile(inspect.unwrap(find_function(name)))))[:16]}"


def find_function(name: str) -> Any:
    """Imports `package.module:function`, also from the working directory."""
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"{name!r} is not a judge: expected one of {', '.join(JUDGES)}, or package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the judge {name} cannot be imported: {error}.") from None
    if not callable(found):
        raise ValueError(f"the judge {name} is a {type(found).__name__}, expected a function.")
    return found


def judged(
    picture: Image.Image, records: Sequence[Mapping[str, Any]], judges: Mapping[str, Judge]
) -> list[dict[str, float | None]]:
    """Returns what each judge says of each region of a picture.

    Raises:
        ValueError: A judge says nothing of a region, or something that is not a number.
    """
    regions = [
        {**record, "box": region_box(dict(record)), "mask": decode_rle(record["segmentation"])} for record in records
    ]
    found: list[dict[str, float | None]] = [{} for _ in regions]
    for name, judge in judges.items() if regions else ():
        values = list(judge(picture, regions))
        if len(values) != len(regions):
            raise ValueError(f"the judge {name} gave {len(values)} numbers for {len(regions)} regions.")
        for one, value in zip(found, values, strict=True):
            if value is not None and not isfinite(value):
                raise ValueError(f"the judge {name} gave {value}, expected a finite number or None.")
            one[name] = None if value is None else float(value)
    return found


def agreement(region: Mapping[str, Any]) -> float | None:
    """Returns the mean F1 of the words of a caption and those of the other views; None without another view."""
    others = [view["caption"] for view in region["views"][1:]]
    return sum(word_f1(region["caption"], other) for other in others) / len(others) if others else None


def word_f1(one: str, other: str) -> float:
    """Returns the F1 of the words that two texts share, whatever their order; 1 for two texts without words."""
    first, second = (Counter(caption_words(text)) for text in (one, other))
    return 2 * (first & second).total() / total if (total := first.total() + second.total()) else 1.0


def caption_words(text: str) -> list[str]:
    """Returns the words of a text in small letters."""
    return _WORD.findall(text.lower())


class Teacher:
    """What judges ask a model; a picture is encoded once for all of them.

    Args:
        model, processor: The teacher.
        task: A task of the model; None takes its default.
    """

    def __init__(self, model: Any, processor: Any, task: str | None) -> None:
        self.model, self.processor, self.task = model, processor, task
        self._last: tuple[Image.Image, Any] | None = None

    def listener(self, picture: Image.Image, regions: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns p(region given its caption) among all regions; None where there is nothing to tell it from."""
        if len(regions) < 2 or not all(region["caption"].strip() for region in regions):
            return [None] * len(regions)
        heard = self._heard(self._encoded(picture), [picture], [regions], "all")
        return listener_scores(heard.log_likelihoods, heard.region_mask)[0].diagonal().tolist()  # of (1, R, R)

    def necessity(self, picture: Image.Image, regions: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """Returns by how much the caption's mean log-probability falls when the region is erased."""
        found: list[float | None] = [None] * len(regions)
        told = [index for index, region in enumerate(regions) if region["caption"].strip()]
        if not told:
            return found
        whole = self._means(self._encoded(picture), [picture], [[regions[index] for index in told]])[0]
        for start in range(0, len(told), _ERASED_AT_ONCE):
            part = told[start : start + _ERASED_AT_ONCE]
            pictures = [erased(picture, regions[index]) for index in part]
            without = self._means(self._encode(pictures), pictures, [[regions[index]] for index in part])
            for place, (index, (value,)) in enumerate(zip(part, without, strict=True), start):
                found[index] = whole[place] - value
        return found

    @torch.no_grad()
    def _encode(self, pictures: Sequence[Image.Image]) -> Any:
        inputs = self.processor(list(pictures)).to(self.model.device, self.model.dtype)
        return self.model.encode_images(inputs["pixel_values"])

    def _encoded(self, picture: Image.Image) -> Any:
        if self._last is None or self._last[0] is not picture:
            self._last = picture, self._encode([picture])
        return self._last[1]

    def _heard(
        self,
        encoding: Any,
        pictures: Sequence[Image.Image],
        regions: Sequence[Sequence[Mapping[str, Any]]],
        pairs: str,
    ) -> Any:
        inputs = self.processor(
            original_sizes=[picture.size[::-1] for picture in pictures],
            input_boxes=[[region["box"] for region in part] for part in regions],
            captions=[[region["caption"] for region in part] for part in regions],
            task=self.task,
        )
        return self.model.score_captions(**encoding.as_inputs(), **inputs.to(self.model.device), pairs=pairs)

    def _means(
        self, encoding: Any, pictures: Sequence[Image.Image], regions: Sequence[Sequence[Mapping[str, Any]]]
    ) -> list[list[float]]:
        """Returns the mean log-probability of the tokens of each region's own caption."""
        heard = self._heard(encoding, pictures, regions, "own")
        values = heard.log_likelihoods  # (B, R), or (B, R, A) of several caption heads
        if values.ndim == 3:
            values = values.amax(-1)
        means = values / heard.num_tokens.clamp(min=1).to(values.device)
        return [row[: len(part)].tolist() for row, part in zip(means, regions, strict=True)]


def erased(picture: Image.Image, region: Mapping[str, Any]) -> Image.Image:
    """Returns the picture with a region in the mean color of what is around it; without a mask, its whole box."""
    pixels = np.array(picture)
    x0, y0, x1, y1 = region["box"]
    height, width = pixels.shape[:2]
    hidden = region["mask"]
    if not hidden.any():
        hidden = np.zeros((height, width), bool)
        hidden[max(0, int(y0)) : int(np.ceil(y1)), max(0, int(x0)) : int(np.ceil(x1))] = True
    margin_x, margin_y = (x1 - x0) / 4 + 1, (y1 - y0) / 4 + 1
    around = np.zeros_like(hidden)
    around[max(0, int(y0 - margin_y)) : int(y1 + margin_y), max(0, int(x0 - margin_x)) : int(x1 + margin_x)] = True
    around &= ~hidden
    pixels[hidden] = pixels[around if around.any() else ~hidden].mean(0).round() if not hidden.all() else 128
    return Image.fromarray(pixels)
