"""A picture of what the model says: regions of the evaluation set with their predicted and true captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.region import record_image
from ..drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from .evaluation import Prediction


_INK, _RIGHT, _WRONG = (40, 40, 40), (20, 120, 50), (180, 40, 30)


def save_sample_sheet(
    folder: Path, prefix: str, step: int, records: Any, predictions: Sequence[Prediction], count: int
) -> Path:
    """Writes a PNG with `count` regions, of as many images as possible; the same ones in every evaluation.

    Args:
        folder: gets `step-N.png`, or `NAME-step-N.png` for a set that is not the only one.
        prefix: of the metrics: "eval", "eval_NAME" or "test".
        step: of training.
        records: the evaluation set.
        predictions: what was said of it.
        count: of regions.
    """
    name = "" if prefix == "eval" else f"{prefix.removeprefix('eval_')}-"
    path = folder / f"{name}step-{step}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet([_tile(records[p.record], p) for p in choose_samples(predictions, count)]).save(path)
    return path


def choose_samples(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Regions spread over the evaluation set: one of each chosen image, then a second one, and so on."""
    by_record: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        by_record.setdefault(prediction.record, []).append(prediction)
    records = list(by_record.values())
    step = max(1, len(records) // count)
    records = records[::step]
    # Not the first region of each: data sets often list the same class first.
    turned = [said[k % len(said) :] + said[: k % len(said)] for k, said in enumerate(records)]
    rounds = (said[turn] for turn in range(max(map(len, turned))) for said in turned if turn < len(said))
    return [prediction for prediction, _ in zip(rounds, range(count), strict=False)]


def _tile(record: Any, prediction: Prediction) -> SheetTile:
    """One region and what is around it, with what was said of it and what is true."""
    region = DrawnRegion(box=record["regions"][prediction.region]["box"])
    right = prediction.caption.strip().lower() in [text.strip().lower() for text in prediction.references]
    said = f"says: {prediction.caption or '(nothing)'}", _RIGHT if right else _WRONG
    return SheetTile(
        cut_region(record_image(record), region), [said, (f"true: {' / '.join(prediction.references)}", _INK)]
    )
