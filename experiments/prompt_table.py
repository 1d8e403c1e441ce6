"""The table of docs/prediction.md: ways to show a region, a captioner of crops, and controls, on unseen `scenes`.

    python -m experiments.prompt_table --output runs/prompts --page docs/prediction.md

Trains the captioner of crops (experiments/crop_captioner.py), predicts with each system and writes the table into the
page. Given again, it resumes where it stopped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import crop_captioner
from experiments.pages import command_line, show
from experiments.pages import write_into as write_into  # as it was called
from sca_hf.data.scenes import read_caption
from sca_hf.evaluation.captioners import BlankImages, Captioner, PredictionsFile, load_captioner
from sca_hf.evaluation.predict import PredictSettings, predict
from sca_hf.evaluation.predictions import PredictionRecord, read_predictions
from sca_hf.evaluation.scoring import score_records


SEED = 0
PROMPTS = ("box", "center_point", "random_point_in_box", "random_point_in_mask", "annotated_points", "mask")
METRICS = ("CIDEr-D", "BLEU@4", "ROUGE-L")
THING = ("color", "shape", "texture")
MARKS = ("<!-- prompt table: made by experiments/prompt_table.py -->", "<!-- end of prompt table -->")


def systems(folder: Path) -> Iterable[tuple[str, Captioner, str]]:
    """Yields name, captioner and prompt of every row."""
    ours = load_captioner("sca", device="cpu")
    for prompt in PROMPTS:
        yield f"sca-tiny, {prompt.replace('_', ' ')}", ours, prompt
    yield "sca-tiny, box, blank images", BlankImages(ours), "box"
    yield "sca-tiny, box, shuffled regions", PredictionsFile(_file(folder, "sca-tiny, box"), shuffle=SEED), "box"
    crops = folder / "crop-captioner"
    crop_captioner.make(crops)
    yield "GIT on crops, trained on them", load_captioner("crop", device="cpu", model=str(crops), area="box"), "box"


def score(records: list[PredictionRecord]) -> dict[str, float | None]:
    """Returns caption metrics, how often the thing and its place are right, and the mean IoU of masks."""
    masked = all(record.mask is not None for record in records)
    scores = score_records(records, [*METRICS, "mask-mIoU"] if masked else METRICS).metrics
    read = [(read_caption(record.caption), read_caption(record.references[0])) for record in records]
    things = [all(said[name] == true[name] for name in THING) for said, true in read]
    places = [said["relation"] == true["relation"] for said, true in read if true["relation"] is not None]
    words = {"thing": float(np.mean(things)), "place": float(np.mean(places))}
    return {**{name: scores[name] for name in METRICS}, **words, "mask-mIoU": scores.get("mask-mIoU")}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the scores as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = ["| system, prompt | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in rows.items():
        cells = ["-" if value is None else f"{value:.3f}" for value in scores.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _file(folder: Path, name: str) -> Path:
    return folder / (re.sub(r"\W+", "-", name) + ".jsonl")


def main() -> None:
    """Runs the command line."""
    parser = command_line(__doc__, seeds=False)
    parser.add_argument("--scenes", type=int, default=200, help="test scenes (%(default)s)")
    options = parser.parse_args()
    data = {"format": "scenes", "split": "test", "count": options.scenes}
    rows, records = {}, []
    for name, captioner, prompt in systems(options.output):
        settings = PredictSettings(prompt=prompt, seed=SEED, masks="best", system=name)
        records = read_predictions(predict(captioner, data, _file(options.output, name), settings))
        rows[name] = score(records)
    images = len({record.image_id for record in records})
    report = {"data": data, "images": images, "regions": len(records), "systems": rows}
    (options.output / "prompt_table.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    title = f"`scenes` test, the first {options.scenes:,} scenes: {images:,} images with {len(records):,} regions."
    show(f"{title}\n\n{table(rows)}", options.page, MARKS)


if __name__ == "__main__":
    main()
