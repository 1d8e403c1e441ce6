"""The third stage of self-training: a model learns from the labels that were kept, beside the true ones."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import hash_file, json_line, to_json, write_new, write_whole
from ..training.recipe.run import RunResult, run_recipe
from ..training.recipe.schema import DataSection, ModelSection, Recipe
from .manifest import label_records, provenance


# In the recipe's output.
LABELS, PROVENANCE = "labels", "self_training.json"
_NAME = "self-trained"


def learn(
    recipe: Recipe,
    manifests: Sequence[str | Path],
    share: float = 0.5,
    start: str | None = None,
    progress: bool = True,
) -> RunResult:
    """Trains by a recipe on its own data and on the labels of manifests, as these stand now.

    Resumes as [`run_recipe`] does, on one machine or under torchrun. The recipe's output also gets `labels`, what was
    learned from, and `self_training.json`: the manifests with their sums, who made them, and how.

    Args:
        recipe: What to do; its `data` are the true labels, and the held-out set.
        manifests: Parquet files of [`judge`].
        share: The share of the images trained on that have a model's labels; the others have true ones.
        start: The folder or repository of the model to start from, as the teacher; None: the recipe's.
        progress: Whether bars are shown.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a fraction between 0 and 1.")
    output = Path(recipe.output)
    specs, counts = [], []
    for manifest in manifests:
        records = label_records(manifest)
        for record in records:
            check_task(recipe, record["task"], str(manifest))
        specs.append(_written(records, output / LABELS))
        counts.append({"pictures": len(records), "labels": sum(len(record["regions"]) for record in records)})
    data = recipe.data.model_dump() | {"pseudo": specs, "pseudo_share": share}
    model = recipe.model if start is None else _from(start, recipe.model)
    result = run_recipe(replace(recipe, data=DataSection(**data), model=model), progress)
    if result.is_main_process:
        sources = [
            {"manifest": str(path), "sha256": hash_file(path), **count, "made": provenance(Path(path))}
            for path, count in zip(manifests, counts, strict=True)
        ]
        write_whole(output / PROVENANCE, to_json({"share": share, "start": start, "labels": sources}))
    return result


def check_task(recipe: Recipe, task: str | None, where: str) -> None:
    """Raises where labels of a task, at `where`, cannot be learned from: the detail encoder is trained on names."""
    if recipe.training.get("detail_steps") and task != "recognition":
        raise ValueError(
            f"{where}: training.detail_steps needs names, but the labels are captions: propose with --task "
            "recognition, or set --training.detail_steps=0."
        )


def _from(start: str, section: ModelSection) -> ModelSection:
    """Returns the section of a model that begins with another: what the recipe exchanges, that one has already."""
    kept = ("dtype", "attn_implementation", "label_smoothing", "scope")
    return ModelSection(**{"from": start, **{name: getattr(section, name) for name in kept}})


def _written(records: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Writes labels as a data set, under a name of their own content, and returns its spec."""
    text = "".join(json_line(record) + "\n" for record in records)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not write_new(path, text) and path.read_text(encoding="utf-8") != text:
        write_whole(path, text)  # it was damaged since
    images = os.path.commonpath([os.path.dirname(record["image"]) for record in records])
    return {"format": "jsonl", "path": str(path), "images": images, "as": _NAME}
