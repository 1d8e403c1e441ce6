"""A picture of what the model says: regions of the evaluation set with their predicted and true captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..data.images import record_image
from ..drawing.overlay import DrawnRegion, draw_regions
from .evaluation import Prediction


_TILE = 420
_TEXT = 15
_MARGIN = 12
_COLUMNS = 4
_PAPER, _INK, _RIGHT, _WRONG = (250, 250, 250), (40, 40, 40), (20, 120, 50), (180, 40, 30)


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
    sheet([_tile(records[p.record], p) for p in choose_samples(predictions, count)]).save(path)
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


def _tile(record: Any, prediction: Prediction) -> Image.Image:
    """One region on its picture, with what was said under it and what is true."""
    region = record["regions"][prediction.region]
    drawn = draw_regions(record_image(record), [DrawnRegion(box=region["box"])], smallest=_TILE, largest=_TILE)
    font = ImageFont.load_default(_TEXT)
    right = prediction.caption.strip().lower() in [text.strip().lower() for text in prediction.references]
    lines = [(line, _RIGHT if right else _WRONG) for line in _wrap(f"says: {prediction.caption or '(nothing)'}")]
    lines += [(line, _INK) for line in _wrap(f"true: {' / '.join(prediction.references)}")]
    tile = Image.new("RGB", (_TILE, drawn.height + len(lines) * (_TEXT + 4) + 2 * _MARGIN), _PAPER)
    tile.paste(drawn, ((_TILE - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(tile)
    for row, (line, colour) in enumerate(lines):
        draw.text((_MARGIN // 2, drawn.height + _MARGIN // 2 + row * (_TEXT + 4)), line, fill=colour, font=font)
    return tile


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, width=_TILE * 2 // _TEXT - 2, max_lines=3, placeholder=" ...")


def sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles in rows, each row as high as its highest tile."""
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    heights = [max(tile.height for tile in row) + _MARGIN for row in rows]
    picture = Image.new("RGB", (max(map(len, rows)) * (_TILE + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), _PAPER)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            picture.paste(tile, (_MARGIN + column * (_TILE + _MARGIN), top))
        top += height
    return picture
