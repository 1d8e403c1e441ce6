"""The table of docs/prediction.md: ways to show a region, a captioner of crops, and controls, on unseen `scenes`.

    python -m experiments.prompt_table --output runs/prompts --page docs/prediction.md

Trains the captioner of crops (experiments/crop_captioner.py), predicts with each system and writes the table into the
page. Given again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import crop_captioner
from sca_hf.data.scene_captions import read_caption
from sca_hf.evaluation.captioners import BlankImages, Captioner, PredictionsFile, load_captioner
from sca_hf.evaluation.metrics.bleu import bleu
from sca_hf.evaluation.metrics.cider import cider_d
from sca_hf.evaluation.metrics.rouge import rouge_l
from sca_hf.evaluation.metrics.tokenizer import ptb_tokenize
from sca_hf.evaluation.predict import PredictSettings, predict
from sca_hf.evaluation.predictions import PredictionRecord, read_predictions
from sca_hf.evaluation.scenes_report import mask_iou
from sca_hf.processing.regions_sca import decode_rle


SEED = 0
PROMPTS = ("box", "center_point", "random_point_in_box", "random_point_in_mask", "point", "mask")
THING = ("colour", "shape", "texture")
MARKS = ("<!-- prompt table: made by experiments/prompt_table.py -->", "<!-- end of prompt table -->")


def systems(folder: Path) -> Iterable[tuple[str, Captioner, str]]:
    """Yields name, captioner and prompt of every row."""
    ours = load_captioner("sca", device="cpu")
    for prompt in PROMPTS:
        yield f"sca-tiny, {prompt.replace('_', ' ')}", ours, prompt
    yield "sca-tiny, box, blank images", BlankImages(ours), "box"
    yield "sca-tiny, box, shuffled regions", PredictionsFile(_file(folder, "sca-tiny, box"), shuffle=SEED), "box"
    yield "sca-tiny on crops", load_captioner("crop", device="cpu", model="sca-tiny", area="box", margin=0.5), "box"
    crops = folder / "crop-captioner"
    crop_captioner.make(crops)
    yield "GIT on crops, trained on them", load_captioner("crop", device="cpu", model=str(crops), area="box"), "box"


def score(records: list[PredictionRecord]) -> dict[str, float | None]:
    """Returns caption metrics, how often the thing and its place are right, and the mean IoU of masks."""
    candidates = [ptb_tokenize(record.caption) for record in records]
    references = [[ptb_tokenize(text) for text in record.references] for record in records]
    read = [(read_caption(record.caption), read_caption(record.references[0])) for record in records]
    things = [all(said[name] == true[name] for name in THING) for said, true in read]
    places = [said["relation"] == true["relation"] for said, true in read if true["relation"] is not None]
    masks = [
        mask_iou(decode_rle(record.mask), decode_rle(record.reference_mask))
        for record in records
        if record.mask is not None and record.reference_mask is not None
    ]
    return {
        "CIDEr-D": cider_d(candidates, references)["corpus"],
        "BLEU@4": bleu(candidates, references)["BLEU@4"]["corpus"],
        "ROUGE-L": rouge_l(candidates, references)["corpus"],
        "thing": float(np.mean(things)),
        "place": float(np.mean(places)),
        "mask IoU": float(np.mean(masks)) if masks else None,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Returns the scores as Markdown."""
    columns = list(next(iter(rows.values())))
    lines = ["| system, prompt | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, scores in rows.items():
        cells = ["-" if value is None else f"{value:.3f}" for value in scores.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_into(page: Path, text: str) -> None:
    """Puts the table between the marks of a page."""
    marked = re.compile(re.escape(MARKS[0]) + ".*?" + re.escape(MARKS[1]), re.DOTALL)
    before = page.read_text(encoding="utf-8")
    if not marked.search(before):
        raise ValueError(f"{page} has no {MARKS[0]} ... {MARKS[1]} to put the table between.")
    page.write_text(marked.sub(lambda _: f"{MARKS[0]}\n{text}\n{MARKS[1]}", before), encoding="utf-8")


def _file(folder: Path, name: str) -> Path:
    return folder / (re.sub(r"\W+", "-", name) + ".jsonl")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and scores")
    parser.add_argument("--page", type=Path, help="a Markdown page to put the table into")
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
    text = f"{title}\n\n{table(rows)}"
    print(text)
    if options.page is not None:
        write_into(options.page, text)


if __name__ == "__main__":
    main()
