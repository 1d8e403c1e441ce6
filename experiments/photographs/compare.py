"""The paper's comparison of image encoders, on photographs: what eyes, a second look, drawings and data are worth.

    python -m experiments.photographs.compare --road runs/photographs --output runs/compare --seeds 0 1 2 \
        --page docs/photographs.md

Every row trains by first_look.yaml from a model of its own, for as many steps, and is scored on the side `choice`; a
second look is trained on top by boxes.yaml. --road is an output of `python -m experiments.photographs` that has
come to `language` for every seed. A row that is done is read from its file, one that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from sca_hf.captioning import load
from sca_hf.files import read_json, to_json, write_whole
from sca_hf.modeling.encoder_configuration_sca import ScaTowersConfig
from sca_hf.modeling.towers_sca import ScaTowersModel
from sca_hf.training import ScaTrainer
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.recipe.schema import Recipe

from ..prompt_table import write_into
from . import data, tables, towers
from .__main__ import TOWERS, Road, run
from .measure import Measurement, read_pictures
from .recipe import read_recipe
from .start import save, start_model
from .swapped_names import SwappedNamesTrainer


MARKS = ("<!-- encoders: made by experiments/photographs/compare.py -->", "<!-- end of encoders -->")
# Name of a row -> its eyes, what of them learns, which share of the photographs, with scenes, with a second look.
_PLAIN: dict[str, Any] = {"towers": ["nanodet_g", "efficientnet_lite0"], "finetuned": False, "share": 1.0}
_PLAIN |= {"scenes": True, "second": False, "random": False}
_ENCODER_RATE = 1.0e-4
_COLUMNS = ("IoU, box", "IoU, point", "word", "word, medium + large", "CPU hours")


def rows() -> dict[str, dict[str, Any]]:
    """Returns every row of the table: what it has that the first one has not."""
    differing: dict[str, dict[str, Any]] = {
        "NanoDet-g + Lite0": {},
        "random, of both kinds": {"random": True, "finetuned": True},
        "ViT of scenes": {"towers": [], "finetuned": True},
        "Lite0": {"towers": ["efficientnet_lite0"]},
        "Lite0, finetuned": {"towers": ["efficientnet_lite0"], "finetuned": True},
        "NanoDet-g": {"towers": ["nanodet_g"]},
        "NanoDet-g, finetuned": {"towers": ["nanodet_g"], "finetuned": True},
        "both, finetuned": {"finetuned": True},
        "both, with a second look": {"second": True},
        "both, without drawings": {"scenes": False},
        "both, half of the photographs": {"share": 0.5},
        "both, a quarter of the photographs": {"share": 0.25},
    }
    return {name: {**_PLAIN, **more} for name, more in differing.items()}


def start(row: dict[str, Any], folder: Path, road: Road) -> Path:
    """Saves the model that a row starts from."""
    language = road.own / "language" / "text"
    if not row["towers"]:  # sca-tiny's own eyes, which have seen drawings alone
        model, processor = load("sca-tiny")
        model.confidence_head = model.config.confidence_size = None
        model.swap_language_model(str(language))
        processor.tokenizer = type(processor.tokenizer).from_pretrained(language)
        return save(folder, model, processor)
    eyes = folder.parent / "towers"
    if not eyes.is_dir():
        torch.manual_seed(road.seed)
        model = ScaTowersModel(ScaTowersConfig(**TOWERS, towers=row["towers"]))
        if not row["random"]:
            known = ScaTowersModel.from_pretrained(road.output / "towers", dtype=torch.float32)
            for name in row["towers"]:
                model.towers[name].load_state_dict(known.towers[name].state_dict())
        towers.save_towers(model, eyes)
    return start_model(eyes, folder, road.seed, language)


def row_recipe(name: str, row: dict[str, Any], folder: Path, road: Road) -> Recipe:
    """Returns a recipe of this folder for a row: other eyes, other data, another place."""
    values = read_recipe(name, road.output, road.seed, road.folder, road.steps).to_mapping()
    second = name == "boxes.yaml"
    values["model"]["from"] = str(folder / "first" / "model" if second else folder / "start")
    values["output"] = str(folder / ("second" if second else "first"))
    values["training"] |= {"save_form": "whole"}
    if not second:
        rates = {"sam.vision_encoder.neck": 2.0e-3} if row["towers"] else {}
        part = "sam.vision_encoder.encoder" if row["towers"] else "sam.vision_encoder"
        rates[part] = _ENCODER_RATE if row["finetuned"] else 0.0
        values["training"]["module_learning_rates"] = rates
    kept = [spec for spec in values["data"]["train"] if row["scenes"] or spec["format"] != "scenes"]
    if row["share"] < 1:
        kept = [_fewer(spec, row["share"], folder, road) for spec in kept]
    values["data"]["train"] = kept
    return Recipe.from_mapping(values, f"{name} of {folder}")


def _fewer(spec: dict[str, Any], share: float, folder: Path, road: Road) -> dict[str, Any]:
    """A set with a share of its pictures, chosen by their names: of true and of weak names the same ones."""
    source = Path(str(spec.get("annotations", "")))
    if not any(source.name.startswith(name) for name in data.SETS):
        return spec
    content = read_json(source, dict)
    order = sorted(content["images"], key=lambda row: hashlib.sha256(str(row["file_name"]).encode()).digest())
    kept = {row["id"] for row in order[: max(1, round(share * len(order)))]}
    part = {**content, "images": [row for row in content["images"] if row["id"] in kept]}
    part["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    file = folder / "fewer" / source.name
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, to_json(part, None))
    return {**spec, "annotations": str(file)}


def measure(row: dict[str, Any], folder: Path, road: Road) -> dict[str, Any]:
    """Trains a row, if that is not done yet, and scores it on the side `choice`."""
    done, setting = folder / "scores.json", {"row": row, "steps": road.steps, "seed": road.seed}
    if done.is_file():
        known = read_json(done, dict)
        if known["setting"] != setting:
            raise SystemExit(f"{done} is of another setting ({known['setting']}): name another --output.")
        return known
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.process_time()
    if not (folder / "start").is_dir():
        start(row, folder / "start", road)
    reads = row["towers"][:1] == ["nanodet_g"] and not row["random"]
    trainer = SwappedNamesTrainer if reads else ScaTrainer
    model = run_recipe(row_recipe("first_look.yaml", row, folder, road), trainer_class=trainer).model
    if row["second"]:
        model = run_recipe(row_recipe("boxes.yaml", row, folder, road)).model
    spent = time.process_time() - begun
    records = read_pictures(road.folder, road.seed, "choice")
    scored = Measurement(str(model), folder / "measured", {}, anything=False)
    scored.run(records if road.steps is None else records[:2], folder.name)
    found = [*scored.done.values()]
    result = {"setting": setting, "cpu_seconds": spent, "scores": _scores(found, spent)}
    write_whole(done, to_json(result))
    return result


def _scores(found: Sequence[Any], spent: float) -> list[float | None]:
    regions = tables.regions_of(found)
    words = tables.word_row(regions, "box")
    masks = [tables.mask_row(regions, kind)[0] for kind in ("box", "point")]
    return [*masks, *words[:2], spent / 3600]


def table(results: dict[str, Sequence[dict[str, Any]]]) -> str:
    """Returns means and standard deviations over seeds, as Markdown."""
    lines = [f"| | {' | '.join(_COLUMNS)} |", "| --- |" + " ---: |" * len(_COLUMNS)]
    for name, of_seeds in results.items():
        cells = []
        for column in zip(*(one["scores"] for one in of_seeds), strict=True):
            values = [value for value in column if value is not None]
            deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{mean(values):.3f}{deviation}" if values else "-")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--road", type=Path, required=True, help="output of experiments.photographs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--rows", nargs="+", choices=rows(), default=list(rows()), metavar="ROW", help="by their names"
    )
    parser.add_argument("--steps", type=int, help="at most so many in each stage, for a quick try")
    parser.add_argument("--data", type=Path, help="folder of the sets (default: data, else $SCA_SHARED/data)")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    options = parser.parse_args(arguments)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in options.seeds:
        road = Road(options.road, seed, data.data_folder(options.data), options.steps)
        run(road, "language")
        for name in options.rows:
            folder = options.output / re.sub(r"\W+", "-", name) / str(seed)
            results.setdefault(name, []).append(measure(rows()[name], folder, road))
            print(f"seed {seed}, {name}: {results[name][-1]['scores']}", flush=True)
    text = f"Side `choice`, {len(options.seeds)} seeds.\n\n{table(results)}"
    print(text)
    if options.page:
        write_into(options.page, text, MARKS)


if __name__ == "__main__":
    main()
