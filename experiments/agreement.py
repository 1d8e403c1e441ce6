"""Training with agreement on pictures of look-alikes: what it changes, beside training without; makes a table.

    python -m experiments.agreement --output runs/agreement --page docs/listener.md

The listener as a term of the loss (`agreement_weight`) against the same steps on the same pictures without it, from
`sca-tiny`, in several seeds. Pictures and measures are those of `look_alikes.py`; training pictures are of the
training side. A seed decides the order of the pictures and which of their regions a step has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sca_hf.captioning import load
from sca_hf.files import json_line, read_json, to_json, write_whole
from sca_hf.training.recipe.run import run_recipe
from sca_hf.training.recipe.schema import Recipe

from .look_alikes import CANDIDATES, look_alikes, measure_captions
from .pages import command_line, show
from .self_training import TRAINING


MARKS = ("<!-- agreement: made by experiments/agreement.py -->", "<!-- end of agreement -->")
KINDS = ("true", "greedy", "rerank 8 beams")
MEASURES = ("listener finds its region", "unique", "attributes right")


def write_pictures(folder: Path, count: int) -> dict[str, str]:
    """Writes pictures of look-alikes with true captions, and returns the spec of the data set."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for index, scene in enumerate(look_alikes("train", count)):
        file = f"{index:04}.png"
        scene.to_pil().save(folder / file)
        regions = [
            {"region_id": f"{index}-{place}", "box": [float(x) for x in obj.box], "captions": list(obj.captions)}
            for place, obj in enumerate(scene.objects)
        ]
        lines.append(json_line({"image": file, "image_id": file, "regions": regions}) + "\n")
    path = folder.with_suffix(".jsonl")
    write_whole(path, lines)
    return {"format": "jsonl", "path": str(path), "images": str(folder)}


def trained(spec: dict[str, str], output: Path, weight: float, steps: int, seed: int) -> str:
    """Returns the model of a run, which is resumed or left as it is where it was made before."""
    more = {"max_steps": steps, "seed": seed, "data_seed": seed, "agreement_weight": weight}
    settings = TRAINING | {"per_device_train_batch_size": 4, "regions_per_image": 8} | more
    recipe = {"model": {"from": "sca-tiny"}, "data": {"train": spec}, "training": settings, "output": str(output)}
    return str(run_recipe(Recipe.from_mapping(recipe), progress=False).model)


def run(output: Path, count: int, test: int, steps: int, weights: Sequence[float], seeds: Sequence[int]) -> str:
    """Runs what is not there yet, and returns the table."""
    spec, pictures = write_pictures(output / "pictures", count), list(look_alikes("test", test))
    candidates = {name: CANDIDATES[name] for name in KINDS[1:]}
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for weight in (None, *weights):
            if weight is None and seed != seeds[0]:
                continue
            file = output / f"{weight}-{seed}.json"
            if not file.is_file():
                folder = output / f"{weight}-{seed}"
                model = "sca-tiny" if weight is None else trained(spec, folder, weight, steps, seed)
                write_whole(file, to_json(measure_captions(*load(model, "cpu"), pictures, candidates)))
            found.setdefault("before" if weight is None else f"{weight:g}", []).append(read_json(file))
    return table(found, f"{count} pictures, {steps} steps, seeds {', '.join(map(str, seeds))}; {test} test pictures.")


def table(found: dict[str, list[dict[str, Any]]], about: str) -> str:
    """Returns the table: means over seeds and, of several, the lowest and the highest."""
    lines = [
        "| weight | captions | the listener finds the region | unique | attributes right |",
        "|---|---|---|---|---|",
    ]
    for weight, runs in found.items():
        for kind in KINDS:
            cells = []
            for measure in MEASURES:
                values = [100 * one[kind][measure] for one in runs]
                extent = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.1f} %{extent}")
            lines.append(f"| {weight} | {kind} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", about])


def main() -> None:
    """Runs the command."""
    parser = command_line(__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--test", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.3, 1.0])
    options = parser.parse_args()
    text = run(options.output, options.pictures, options.test, options.steps, options.weights, options.seeds)
    show(text, options.page, MARKS)


if __name__ == "__main__":
    main()
