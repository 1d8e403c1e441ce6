"""Captions every region of a data set with any captioner: what `sca-hf predict` does, without the command line.

Regions are prompted with coordinates in pixels of the original image, where the authors' ablation drew in the resized
one.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from tqdm import tqdm

from .. import __version__
from ..data.loading import load_spec
from ..data.prompts import PROMPT_KINDS, PromptSource, draw_prompt
from ..data.region import record_image
from ..processing.masks_sca import encode_rle
from ..prompt_arguments import RegionPrompt
from .captioners.interface import Captioner, ImageQuery, RegionPrediction, RegionQuery
from .prediction_run import PredictionRun
from .predictions import PredictionError, PredictionRecord
from .protocols import check_counts, find_protocol


Masks = Literal["none", "best", "all"]


@dataclass(frozen=True)
class PredictSettings:
    """How to predict.

    Attributes:
        prompt: how regions are shown, see [`build_query`]; None: by box, or as the protocol has it.
        protocol: a name of `PROTOCOLS`, whose counts the data must have.
        seed: of random prompts, and of sampling.
        batch_size: images at a time. Results may differ in their last bits from size to size.
        masks: keep the predicted masks, and the true ones: "none", "best" (by expected IoU) or "all".
        system: what records call the captioner; None: its own name.
    """

    prompt: str | None = None
    protocol: str | None = None
    seed: int = 0
    batch_size: int = 8
    masks: Masks = "none"
    system: str | None = None

    def __post_init__(self) -> None:
        if self.protocol is not None and self.prompt not in (None, find_protocol(self.protocol).prompt):
            raise ValueError(
                f"{self.protocol} shows regions by {find_protocol(self.protocol).prompt}, not by {self.prompt}."
            )
        if self.shown_by not in PROMPT_KINDS:
            raise ValueError(f"prompt is {self.prompt!r}, expected one of {', '.join(PROMPT_KINDS)}.")
        if self.masks not in ("none", "best", "all"):
            raise ValueError(f"masks is {self.masks!r}, expected none, best or all.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}, expected at least 1.")

    @property
    def shown_by(self) -> str:
        """The prompt, as said or by default."""
        if self.prompt is not None:
            return self.prompt
        return "box" if self.protocol is None else find_protocol(self.protocol).prompt


def predict(
    captioner: Captioner,
    data: Mapping[str, Any],
    output: str | Path,
    settings: PredictSettings | None = None,
    command: str | None = None,
    progress: bool = True,
) -> Path:
    """Writes one record per region; goes on where a run of the same settings was stopped, to the same records.

    Under torchrun the processes share the batches, and the first one puts the file together in the data's order.

    Args:
        captioner: see [`load_captioner`].
        data: a spec, see [`load_spec`].
        output: .jsonl, .parquet, or .json as the original authors have it.
        settings: how.
        command: what the run file calls the command that began it.
        progress: show a bar.

    Raises:
        PredictionError: the file is of another run.
        ProtocolError: the data are not the protocol's.
    """
    settings = settings or PredictSettings()
    if settings.shown_by == "random_point_in_mask" and not captioner.segments:
        raise ValueError(f"{captioner.name} finds no masks, so no point can be drawn in one; choose another prompt.")
    rows = _rows(data)
    if settings.protocol is not None:
        check_counts(settings.protocol, *_counts(rows))
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    run = PredictionRun(Path(output), _identity(captioner, data, settings), _notes(settings, command), rank, processes)
    if run.complete:
        return run.output
    batches: list[int] = []
    bar = tqdm(total=_length(rows), desc="predict", unit=" images", disable=not progress or rank != 0)
    with bar:
        for number, batch in enumerate(_batches(_unique(rows), settings.batch_size)):
            expected = [row for image in batch for row in _expected(image)]
            batches.append(len(expected))
            if number % processes == rank and not run.skip(expected):
                torch.manual_seed(settings.seed + number)
                run.append(_predicted(captioner, batch, settings))
            bar.update(len(batch))
    run.finish(batches)
    return run.output


def _rows(data: Mapping[str, Any]) -> Any:
    """Opens the data, pictures not decoded: most of them are done when a run goes on."""
    rows = load_spec(data)  # says what to install where `datasets` is missing
    from datasets import Image

    return rows.cast_column("image", Image(decode=False))


def _batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, size)):
        yield batch


def _length(rows: Any) -> int | None:
    return len(rows) if hasattr(rows, "__len__") else None


def _counts(rows: Any) -> tuple[int, int]:
    """Returns how many images have a region, and how many regions there are."""
    counts = [len(row["regions"]) for row in rows.select_columns(["regions"])]
    return sum(count > 0 for count in counts), sum(counts)


def _unique(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields the rows; raises where an id that records are told by comes twice."""
    images: set[str] = set()
    for row in rows:
        ids = [region["region_id"] for region in row["regions"]]
        if row["image_id"] in images:
            raise PredictionError(f"the image id {row['image_id']} comes twice in the data; records are told by it.")
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise PredictionError(
                f"image {row['image_id']} has two regions of the id {twice}; records are told by it."
            )
        images.add(row["image_id"])
        yield row


def _expected(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns what is known of a record before anything is predicted."""
    by_caption = row["task"] == "caption"
    return [
        {
            "image_id": row["image_id"],
            "region_id": region["region_id"],
            "box": list(region["box"]),
            "references": list(region["captions"]) if by_caption else [region["category"]],
        }
        for region in row["regions"]
    ]


def _predicted(
    captioner: Captioner, batch: Sequence[dict[str, Any]], settings: PredictSettings
) -> list[PredictionRecord]:
    filled = [row for row in batch if row["regions"]]
    if not filled:
        return []
    asked = [build_query(row, settings.shown_by, settings.seed) for row in filled]
    answers = captioner.describe(asked, with_masks=settings.masks != "none")
    return [
        record
        for row, image, said in zip(filled, asked, answers, strict=True)
        for record in _records(row, image, said, settings, captioner)
    ]


def _records(
    row: Mapping[str, Any],
    image: ImageQuery,
    answers: Sequence[RegionPrediction],
    settings: PredictSettings,
    captioner: Captioner,
) -> Iterator[PredictionRecord]:
    for region, known, answer in zip(row["regions"], _expected(row), answers, strict=True):
        masks = {} if settings.masks == "none" else _masks(answer, region, settings.masks)
        yield PredictionRecord(
            **known,
            **masks,
            candidates=answer.candidates,
            width=image.image.width,
            height=image.image.height,
            prompt=settings.shown_by,
            task=row["task"],
            category=region["category"],
            scores=answer.scores,
            iou_scores=answer.iou_scores,
            system=settings.system or captioner.name,
        )


def _masks(answer: RegionPrediction, region: Mapping[str, Any], kept: Masks) -> dict[str, Any]:
    true = region["mask"]
    found: dict[str, Any] = {"reference_mask": true if true and true.get("counts") else None}
    if answer.masks is not None and answer.best_mask is not None:
        found["mask"] = encode_rle(answer.best_mask)
        if kept == "all":
            found["masks"] = [encode_rle(mask) for mask in answer.masks]
    return found


def _identity(captioner: Captioner, data: Mapping[str, Any], settings: PredictSettings) -> dict[str, Any]:
    """Returns what the records depend on."""
    return {
        "data": dict(data),
        "captioner": captioner.settings(),
        "prompt": settings.shown_by,
        "protocol": settings.protocol,
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "masks": settings.masks,
        "system": settings.system or captioner.name,
    }


def _notes(settings: PredictSettings, command: str | None) -> dict[str, Any]:
    versions = {"sca-hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    versions["python"] = platform.python_version()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return {"protocol": settings.protocol, "command": command, "began": began, "versions": versions}


def build_query(row: Mapping[str, Any], kind: str = "box", seed: int = 0) -> ImageQuery:
    """Opens the picture of a record and prompts each of its regions.

    Args:
        row: A record as `data.region.region_features` has it, the image decoded or not.
        kind: One of `data.prompts.PROMPT_KINDS`; for `random_point_in_mask` the captioner draws the point.
        seed: The seed of what is random; a region's draw depends on nothing but this, the kind and the ids.

    Raises:
        RegionRecordError: The picture cannot be opened or has another size, or a region lacks what the kind shows.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"prompt is {kind!r}, expected one of {', '.join(PROMPT_KINDS)}.")
    image = record_image(row)
    regions = [_region(region, image.size, kind, seed, row["image_id"]) for region in row["regions"]]
    return ImageQuery(image, row["image_id"], regions, row["task"])


def _region(region: Mapping[str, Any], size: tuple[int, int], kind: str, seed: int, image_id: str) -> RegionQuery:
    source = PromptSource(region, size, f"image {image_id}, region {region['region_id']}")
    box = source.box.tolist()
    number = _number(seed, kind, image_id, region["region_id"])
    if kind == "random_point_in_mask":
        return RegionQuery(region["region_id"], box, RegionPrompt(box=box), number)
    drawn = draw_prompt(kind, source, np.random.default_rng(number), strict=True)
    prompt = RegionPrompt(
        box=drawn.get("input_boxes"),
        points=drawn.get("input_points", []),
        labels=drawn.get("input_labels", []),
        mask=drawn.get("input_masks"),
    )
    return RegionQuery(region["region_id"], box, prompt)


def _number(*parts: Any) -> int:
    """Returns a number that differs with every part, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
