"""Trains a model as a recipe says, goes on where a run stopped, and leaves a finished model behind."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, set_seed
from transformers.utils import logging

from ...files import staged
from ...model_names import resolve_model
from ...modeling.base_models_sca import cast_but_positions
from ...modeling.modeling_sca import ScaForConditionalGeneration
from ...processing.processing_sca import ScaProcessor
from ..arguments import ScaTrainingArguments
from ..checkpoint.whole import clear_leftovers, last_checkpoint
from ..image_encoder import add_detail_encoder, set_image_size
from ..presets import PRESETS
from ..trainer import ScaTrainer
from .card import plain_scores, run_card
from .model_config import as_dtype_name
from .schema import DataSection, ModelSection, Recipe
from .yaml_files import read_yaml


logger = logging.get_logger(__name__)

MODEL, METRICS, RECIPE = "model", "metrics.json", "recipe.yaml"


@dataclass
class RunResult:
    """What a run left behind.

    Attributes:
        model: folder of the finished model and its processor.
        metrics: what `metrics.json` holds.
        found_finished: nothing was done, as the run had ended before.
        is_main_process: whether this process is the one that writes.
    """

    model: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    found_finished: bool = False
    is_main_process: bool = True

    def __str__(self) -> str:
        lines = [f"model: {self.model}"]
        if self.found_finished:
            lines[0] += f" (finished before; remove {self.model.parent} or give another output to train again)"
        if anew := self.metrics.get("trained_anew"):
            lines.append(f"new or changed, and so as good as this recipe made it: {', '.join(anew)}")
        return "\n".join([*lines, *(f"{name}: {value:.4f}" for name, value in plain_scores(self.metrics).items())])


def run_recipe(recipe: Recipe) -> RunResult:
    """Trains to the end, from the last whole checkpoint in the recipe's output if there is one.

    Writes `model/` (with its processor and a card), `metrics.json` and `recipe.yaml` into `recipe.output`. Where
    `model/` is there already the run is finished and nothing is done. Runs under torchrun and accelerate too.
    """
    output = Path(recipe.output)
    args = ScaTrainingArguments(output_dir=str(output), **recipe.training)
    if (output / MODEL).is_dir():
        return _finished(recipe, args)
    set_seed(args.seed)
    model, processor, anew = build_model(recipe.model, args)
    with args.main_process_first(desc="reading the data"):
        train, evaluation = build_datasets(recipe.data)
    trainer = ScaTrainer(model, args, train_dataset=train, eval_dataset=evaluation, processing_class=processor)
    with args.main_process_first(desc="looking for a checkpoint"):
        if args.should_save:
            output.mkdir(parents=True, exist_ok=True)
            clear_leftovers(output)
        resume = last_checkpoint(output) is not None
        if args.should_save and not resume:
            (output / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
    done = trainer.train(resume_from_checkpoint=resume or None)
    metrics: dict[str, Any] = {"train": done.metrics}
    if evaluation is not None:
        metrics["eval"] = _last_scores(trainer) or trainer.evaluate()
    metrics |= {"trained_anew": anew, "versions": _versions()}
    _save(trainer, recipe, metrics)
    return RunResult(output / MODEL, metrics, is_main_process=trainer.is_world_process_zero())


def build_model(section: ModelSection, args: ScaTrainingArguments) -> tuple[Any, ScaProcessor, list[str]]:
    """Returns the model of a recipe, its processor, and the modules that begin anew and must be trained."""
    dtype = getattr(torch, as_dtype_name(section.dtype))
    # A frozen language model is loaded as it will be held: twice the bytes might not fit.
    frozen = args.frozen_dtype if "language_model" not in PRESETS[args.preset].trained else None
    text_dtype = getattr(torch, frozen) if frozen else dtype
    options: dict[str, Any] = {}
    if section.attn_implementation is not None:
        options["attn_implementation"] = section.attn_implementation
    where: dict[str, Any]
    anew: list[str] = []
    if section.from_ is not None:
        source, where = resolve_model(section.from_), {"revision": section.revision or "main"}
        model = ScaForConditionalGeneration.from_pretrained(source, **where, **options)
        processor = ScaProcessor.from_pretrained(source, **where)
        tokenizer, image_processor = processor.tokenizer, processor.image_processor
        anything_settings = processor.anything_settings
        _cast(model, dtype, text_dtype)
    else:
        model = ScaForConditionalGeneration.from_sam_text_pretrained(
            resolve_model(str(section.sam)),
            resolve_model(str(section.language_model)),
            mixer_config=dict(section.mixer),
            sam_revision=section.sam_revision or "main",
            text_revision=section.language_model_revision or "main",
            dtype=dtype,
            text_dtype=text_dtype,
            **options,
        )
        tokenizer = _tokenizer(section.language_model, section.language_model_revision)
        image_processor = anything_settings = None
        anew = ["mixer"]
    if section.swap_language_model is not None:
        where = {"revision": section.swap_language_model_revision or "main"}
        source = resolve_model(section.swap_language_model)
        anew += model.swap_language_model(source, dtype=text_dtype, **where, **options)
        tokenizer = _tokenizer(section.swap_language_model, section.swap_language_model_revision)
    if section.swap_image_encoder is not None:
        where = {"revision": section.swap_image_encoder_revision or "main"}
        anew += model.swap_image_encoder(resolve_model(section.swap_image_encoder), dtype=dtype, **where, **options)
        image_processor = anything_settings = None  # they were for the other one
    if section.image_size is not None:
        anew += set_image_size(model, section.image_size, section.patch_size)
        image_processor = None
    if section.detail_widths is not None:
        anew += add_detail_encoder(model, section.detail_widths)
    for name, value in section.config_fields.items():
        setattr(model.config, name, value)
    if section.max_caption_length is not None:
        model.generation_config.max_new_tokens = section.max_caption_length
    model.check_tokenizer(tokenizer)
    processor = ScaProcessor.from_config(model.config, tokenizer, image_processor, anything_settings)
    return model, processor, list(dict.fromkeys(anew))


def _cast(model: Any, dtype: torch.dtype, text_dtype: torch.dtype) -> None:
    """Gives each part its precision, whatever it was stored in."""
    cast_but_positions(model.sam, dtype)
    model.mixer.to(dtype)
    if model.detail_encoder is not None:
        model.detail_encoder.to(dtype)
    model.language_model.to(text_dtype)


def build_datasets(section: DataSection) -> tuple[Any, Any]:
    """Returns what to train on, and what to evaluate on: one set, several by name, or None."""
    from ...data.loading import load_spec
    from ...data.mixing import hold_out, mix_regions

    train = [load_spec(section.reader_spec(spec)) for spec in section.train]
    named = section.train if section.holdout is not None else section.eval
    if section.holdout is not None:
        train, test = hold_out(train, section.holdout, section.holdout_seed)
    else:
        test = [load_spec(section.reader_spec(spec)) for spec in section.eval]
    mixing = section.mixing
    train = [_with_source(one, section.name_of(spec)) for one, spec in zip(train, section.train, strict=True)]
    mixed = train[0]
    if len(train) > 1 or mixing.max_samples is not None:
        mixed = mix_regions(
            train,
            probabilities=section.probabilities(),
            by_size=mixing.by_size,
            seed=mixing.seed,
            stopping=mixing.stopping,
            max_samples=mixing.max_samples,
        )
    if len(test) < 2:
        return mixed, test[0] if test else None
    return mixed, {section.name_of(spec): dataset for spec, dataset in zip(named, test, strict=True)}


def _with_source(dataset: Any, name: str) -> Any:
    """Has each record say which set it is of, for `augmentation.by_source`."""
    if hasattr(dataset, "add_column") and hasattr(dataset, "__len__"):
        return dataset.add_column("source", [name] * len(dataset))
    return dataset.map(lambda record: {**record, "source": name})


def _last_scores(trainer: ScaTrainer) -> dict[str, float]:
    """Scores of the model as it is, if the last step of training ended with them."""
    if trainer.args.load_best_model_at_end:
        return {}
    last = [entry for entry in trainer.state.log_history if entry.get("step") == trainer.state.global_step]
    return {name: value for entry in last for name, value in entry.items() if name.startswith("eval_")}


def _tokenizer(name: str | None, revision: str | None) -> Any:
    return AutoTokenizer.from_pretrained(resolve_model(str(name)), revision=revision or "main")


def _finished(recipe: Recipe, args: ScaTrainingArguments) -> RunResult:
    """The result that lies there, if this recipe made it."""
    output = Path(recipe.output)
    stored = read_yaml(output / RECIPE) if (output / RECIPE).is_file() else {}
    if changed := _differences(stored, recipe.to_mapping()):
        raise ValueError(
            f"{output / MODEL} was trained by another recipe ({'; '.join(changed[:5])}): give another output, or "
            "remove that folder to train again."
        )
    metrics = json.loads((output / METRICS).read_text(encoding="utf-8")) if (output / METRICS).is_file() else {}
    return RunResult(output / MODEL, metrics, found_finished=True, is_main_process=args.process_index == 0)


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = [*before, *(key for key in now if key not in before)]
        found = [_differences(before.get(key), now.get(key), f"{where}.{key}".lstrip(".")) for key in keys]
        return [line for lines in found for line in lines]
    return [] if before == now else [f"{where} was {before!r} and is {now!r}"]


def _save(trainer: ScaTrainer, recipe: Recipe, metrics: dict[str, Any]) -> None:
    """Writes scores, then the model's folder in one piece: it is what tells a finished run."""
    output = Path(recipe.output)
    main = trainer.is_world_process_zero()
    if main:
        trainer.save_state()
        (output / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        (output / METRICS).write_text(json.dumps(metrics, indent=2, default=str) + "\n", encoding="utf-8")
    with staged(output / MODEL) if main else nullcontext(output / MODEL) as folder:
        trainer.save_model(str(folder))
        if main:
            # The Trainer's own arguments are a pickle, and name this machine's folders.
            (folder / "training_args.bin").unlink(missing_ok=True)
            (folder / "README.md").write_text(run_card(folder, recipe, metrics), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
