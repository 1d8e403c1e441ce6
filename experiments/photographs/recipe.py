"""The recipes of this folder, for other folders and fewer steps than they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sca_hf.training import ScaTrainer, ScaTrainingArguments
from sca_hf.training.recipe.run import build_datasets
from sca_hf.training.recipe.schema import Recipe
from sca_hf.yaml_files import read_yaml


HERE = Path(__file__).parent
# The second has some of the first one's sets, with other weights.
FIRST, WORDS = "first_look.yaml", "words.yaml"
# What the recipes call them -> what stands there instead; the longer first.
_SEED, _OUTPUT, _DATA = "runs/photographs/seed-0", "runs/photographs", "data"
# Few scenes and pictures are enough for few steps.
_QUICK = {"count": 8}


def read_recipe(name: str, output: Path, seed: int, data: Path, steps: int | None = None) -> Recipe:
    """Returns a recipe of this folder.

    Args:
        name: of its file.
        output: folder in place of runs/photographs; what belongs to a seed is in seed-N.
        seed: of training, and of the split.
        data: folder of all sets.
        steps: at most so many, each evaluated and saved; None for all that the recipe names.
    """
    values = read_yaml(HERE / name)
    if name == WORDS:
        weights, values = values["weights"], read_yaml(HERE / FIRST)
        train = [{**spec, "weight": weights[spec["as"]]} for spec in values["data"]["train"] if spec["as"] in weights]
        values["data"]["train"] = train
        augmentation = values["training"]["augmentation"]
        augmentation["by_source"] = {k: v for k, v in augmentation["by_source"].items() if k in weights}
    values = _moved(values, {_SEED: str(output / f"seed-{seed}"), _OUTPUT: str(output), _DATA: str(data)})
    training = values["training"]
    training["seed"] = seed
    training["bf16"] = bool(training.get("bf16")) and fast_bf16()
    if steps is not None:
        often = max(1, steps // 2)
        training |= {"max_steps": min(steps, training["max_steps"]), "eval_steps": often, "save_steps": often}
        training |= {"warmup_steps": min(training["warmup_steps"], often), "max_eval_samples": 2}
        for spec in values["data"]["train"]:
            if spec["format"] == "scenes":
                spec |= _QUICK
    return Recipe.from_mapping(values, name)


def idle_trainer(model: Any, processor: Any, recipe: Recipe) -> ScaTrainer:
    """Returns a trainer for its data, augmented as the recipe says, and its collator; it need not train."""
    train, _ = build_datasets(recipe.data)
    settings = {**recipe.training, "eval_strategy": "no", "load_best_model_at_end": False}
    arguments = ScaTrainingArguments(recipe.output, **settings)
    return ScaTrainer(model, arguments, train_dataset=train, processing_class=processor)


def fast_bf16() -> bool:
    """Whether half precision is faster here: on a GPU that has it, or a CPU that multiplies it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _moved(value: Any, places: dict[str, str]) -> Any:
    """A copy with other folders at the beginning of its texts."""
    if isinstance(value, dict):
        return {key: _moved(part, places) for key, part in value.items()}
    if isinstance(value, list):
        return [_moved(part, places) for part in value]
    if isinstance(value, str):
        for old, new in places.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
    return value
