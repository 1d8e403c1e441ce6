"""Captioners of regions: ours, the baselines it is compared with, and controls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .controls import BlankImages, PredictionsFile
from .crop_captioner import CropCaptioner
from .interface import Captioner, ImageQuery, RegionPrediction, RegionQuery
from .referring import ChatCaptioner, Florence2Captioner, Kosmos2Captioner
from .sca import ScaCaptioner


CAPTIONERS: dict[str, Callable[..., Captioner]] = {
    "sca": ScaCaptioner.load,
    "crop": CropCaptioner.load,
    "kosmos2": Kosmos2Captioner.load,
    "florence2": Florence2Captioner.load,
    "chat": ChatCaptioner.load,
    "predictions": PredictionsFile,
}
CONTROLS = {"blank": BlankImages}


def load_captioner(
    kind: str,
    device: str | None = None,
    dtype: str | None = None,
    generation: Mapping[str, Any] | None = None,
    **options: Any,
) -> Captioner:
    """Loads a captioner.

    Args:
        kind: One of `CAPTIONERS`.
        device: The device to run on; None takes CUDA where it is present.
        dtype: The type of the weights, as "float16"; None: ours as saved, others in single precision.
        generation: Arguments of `generate`, as `num_beams`.
        options: Options of the captioner, see its `load`.
    """
    if kind not in CAPTIONERS:
        raise ValueError(f"the captioner is {kind!r}, expected one of {', '.join(CAPTIONERS)}.")
    load = CAPTIONERS[kind]
    shared: dict[str, Any] = {}
    if kind != "predictions":
        shared = {
            "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
            "dtype": None if dtype is None else getattr(torch, dtype),
            "generation": generation,
        }
    try:
        inspect.signature(load).bind(**options, **shared)
    except TypeError as error:
        known = inspect.signature(load).parameters.values()
        names = [p.name for p in known if p.name not in shared and p.kind is not inspect.Parameter.VAR_KEYWORD]
        raise ValueError(f"captioner {kind}: {error}; its options are {', '.join(names)}.") from None
    return load(**options, **shared)


__all__ = [
    "CAPTIONERS",
    "CONTROLS",
    "RegionPrediction",
    "ImageQuery",
    "RegionQuery",
    "BlankImages",
    "Captioner",
    "ChatCaptioner",
    "CropCaptioner",
    "Florence2Captioner",
    "Kosmos2Captioner",
    "PredictionsFile",
    "ScaCaptioner",
    "load_captioner",
]
