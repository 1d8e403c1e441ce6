"""Trains a model by a recipe, resumes a run that was stopped, and saves the finished model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

from transformers import PrinterCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ...evaluation.naming import NAMES_NOTE
from ...files import differences, read_json, refuse_inputs, replacing, staged, to_json, write_whole
from ...hub.card import CARD, draft_card
from ...hub.info import check_saved_model
from ...modeling.base_models_sca import hash_folder
from ...processing.captions_sca import learned
from ...run_identity import all_versions, model_identity, versions
from ...yaml_files import read_yaml
from ..arguments import ScaTrainingArguments
from ..checkpoint.fingerprint import settling_arguments, training_data
from ..checkpoint.integrity import CheckpointError, clear_leftovers, last_checkpoint, lock_run
from ..collator import RegionCollator
from ..confidence import ConfidenceFit, fit_confidence
from ..detail_pretraining import DETAILS
from ..evaluation import IndexedRecords, asks_for_names
from ..stopping import StoppedError, early_stopping_of
from ..trainer import ScaTrainer
from .build import build_model
from .schema import DataSection, Recipe


logger = logging.get_logger(__name__)

MODEL, METRICS, RECIPE, RUN = "model", "metrics.json", "recipe.yaml", "run.json"


@dataclass
class RunResult:
    """What a run left behind.

    Attributes:
        model: The folder of the finished model and its processor.
        metrics: The content of `metrics.json`.
        found_finished: Whether the run had ended before, so that nothing was done.
        is_main_process: Whether this process is the one that writes.
    """

    model: Path
    metrics: dict[str, Any] = field(default_factory=dict)
    found_finished: bool = False
    is_main_process: bool = True

    def __str__(self) -> str:
        lines = [f"model: {self.model}"]
        if self.found_finished:
            lines[0] += f" (already finished; remove {self.model.parent} or choose another output to train again)"
        if early := self.metrics.get("stopped_early"):
            lines.append(early)
        if new := self.metrics.get("trained_from_scratch"):
            lines.append(f"new or changed, trained only by this recipe: {', '.join(new)}")
        lines += [f"{name}: {value:.4f}" for name, value in plain_scores(self.metrics).items()]
        return "\n".join([*lines, *([self.metrics["note"]] if "note" in self.metrics else [])])


def run_recipe(recipe: Recipe, progress: bool = True, trainer_class: type[ScaTrainer] | None = None) -> RunResult:
    """Trains to the end, from the last whole checkpoint in the recipe's output if there is one.

    Writes `model/` (with its processor and a card), `metrics.json` and `recipe.yaml` into `recipe.output`, and
    `run.json`, which says what decides all that. Where `model/` is there already the run is finished and nothing is
    done. Runs under torchrun and accelerate too.

    Args:
        recipe: What to do.
        progress: Whether bars and losses are shown meanwhile.
        trainer_class: What trains; None for [`ScaTrainer`].

    Raises:
        LockedError: Another process trains in the output.
        CheckpointError: What is in the output is of another run; the message names what differs.
        StoppedError: A callback, or SIGTERM with `enable_jit_checkpoint`, ended training before its last step. Then
            nothing of a finished run is written, and the same recipe resumes. Early stopping is a finish.
    """
    output = Path(recipe.output)
    args = ScaTrainingArguments(output_dir=str(output), **recipe.training)
    args.disable_tqdm = args.disable_tqdm or not progress
    refuse_inputs([output, output / MODEL], [recipe.model.sources, recipe.data.train, recipe.data.eval], inside=False)
    with lock_run(output) if args.process_index == 0 else nullcontext():
        return _run_alone(recipe, args, progress, trainer_class)


def _run_alone(
    recipe: Recipe, args: ScaTrainingArguments, progress: bool, trainer_class: type[ScaTrainer] | None
) -> RunResult:
    output = Path(args.output_dir)
    with args.main_process_first(desc="reading the data"):
        train, evaluation = build_datasets(recipe.data)
    identity = _identity(recipe, args, train, evaluation) if args.process_index == 0 else {}
    if (output / MODEL).is_dir():
        return _finished(output, args, identity)
    set_seed(args.seed)
    model, processor, new = build_model(recipe.model, args)
    kind = trainer_class or ScaTrainer
    trainer = kind(model, args, train_dataset=train, eval_dataset=evaluation, processing_class=processor)
    if not progress:
        trainer.remove_callback(PrinterCallback)  # which the library puts in the place of a bar
    with args.main_process_first(desc="looking for a checkpoint"):
        if args.should_save:
            output.mkdir(parents=True, exist_ok=True)
            clear_leftovers(output)
        resume = last_checkpoint(output) is not None
        if args.process_index == 0:
            _claim(output, args, identity, resume)
            if not resume:
                _write_recipe(output, recipe)
    try:
        metrics = _train_and_save(trainer, recipe, resume, new, identity)
    except KeyboardInterrupt as interruption:
        interruption.args = (_where_stopped(trainer),)
        raise
    return RunResult(output / MODEL, metrics, is_main_process=trainer.is_world_process_zero())


def _train_and_save(
    trainer: ScaTrainer, recipe: Recipe, resume: bool, new: list[str], identity: dict[str, Any]
) -> dict[str, Any]:
    """Trains, evaluates and writes what a finished run leaves; returns its `metrics.json`."""
    done = trainer.train(resume_from_checkpoint=resume or None)
    if trainer.stopped:
        raise StoppedError(_where_stopped(trainer), by_signal=trainer.stop_request.requested)
    metrics: dict[str, Any] = {"train": done.metrics, **_early_finish(trainer)}
    if trainer.eval_dataset is not None:
        metrics["eval"] = _last_scores(trainer) or trainer.evaluate()
        if trainer.args.eval_generate and trainer.evaluates_names:
            metrics["note"] = NAMES_NOTE
    metrics |= {"trained_from_scratch": new, "versions": all_versions()}
    if recipe.data.outside:
        metrics["confidence"] = fit_recipe_confidence(trainer, recipe.data).to_json()
    config = trainer.accelerator.unwrap_model(trainer.model).config
    config.scope = _scope(trainer, recipe, config.scope or {})
    _save(trainer, recipe, metrics, identity)
    return metrics


def fit_recipe_confidence(trainer: ScaTrainer, section: DataSection) -> ConfidenceFit:
    """Gives the finished model its confidence; every process does the same."""
    from ...data.loading import load_spec
    from ...data.mixing import mix_regions

    outside = [load_spec(section.reader_spec(spec)) for spec in section.outside]
    mixed = outside[0] if len(outside) == 1 else mix_regions(outside, by_size=True, seed=0)
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    fit = fit_confidence(model, cast(RegionCollator, trainer.data_collator), trainer.train_dataset, mixed)
    logger.info(str(fit))
    return fit


def _scope(trainer: ScaTrainer, recipe: Recipe, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the finished model knows, by its data and its scope `before`; what the recipe says takes precedence."""
    section = recipe.data
    sets = ", ".join(dict.fromkeys(section.name_of(spec) for spec in (*section.train, *section.pseudo)))
    told: dict[str, Any] = {"trained_on": sets}
    if before.get("trained_on"):
        told["trained_on"] = f"{sets}; before that: {before['trained_on']}"
    told |= {key: before[key] for key in ("languages", "licenses", "narrow") if key in before}
    tasks = trainer.accelerator.unwrap_model(trainer.model).config.mixer_config.tasks
    if spoken := learned(tasks, "language"):
        told["languages"] = list(dict.fromkeys([*before.get("languages", []), *spoken]))
    records = trainer.train_dataset.dataset
    if hasattr(records, "__len__") and asks_for_names(IndexedRecords(records), trainer.args.task):
        rows = records.select_columns(["regions"]) if hasattr(records, "select_columns") else records
        # A short caption may be a name too, where the data name no category.
        names = sorted({one.get("category") or one["captions"][0] for row in rows for one in row["regions"]})
        told |= {"knows": shorten(f"{len(names)} names: {', '.join(names)}", 900, placeholder=" ..."), "narrow": True}
        told["limits"] = "It uses one of these names for anything else too."
    return {**told, "trained_on": shorten(told["trained_on"], 900, placeholder=" ..."), **recipe.model.scope}


def _where_stopped(trainer: ScaTrainer) -> str:
    """Says how far a run came that did not finish, and from where it resumes."""
    checkpoint = last_checkpoint(trainer.args.output_dir)
    saved = checkpoint.name.rpartition("-")[2] if checkpoint else None
    at = f"at step {trainer.state.global_step} of {trainer.state.max_steps}"
    if not trainer.state.max_steps:
        at = "before the first step of this call"
    start = f"from step {saved}" if saved else "from the start, because no checkpoint was written"
    return f"stopped {at}, the same command resumes {start}. The run is not marked as finished."


def _early_finish(trainer: ScaTrainer) -> dict[str, str]:
    """Says that early stopping ended a run, if it did; before another evaluation, which would count too."""
    stopping = early_stopping_of(trainer.callback_handler.callbacks)
    state, measure = trainer.state, trainer.args.metric_for_best_model
    if stopping is None or state.global_step >= state.max_steps:
        return {}
    times = stopping.early_stopping_patience_counter
    step = f"step {state.global_step} of {state.max_steps}"
    return {"stopped_early": f"finished early at {step}: {measure} did not improve in {times} evaluations."}


def build_datasets(section: DataSection) -> tuple[Any, Any]:
    """Returns what to train on, and what to evaluate on: one set, several by name, or None."""
    from ...data.loading import leave_undecoded, load_spec
    from ...data.mixing import hold_out, mix_regions

    train = [leave_undecoded(load_spec(section.reader_spec(spec))) for spec in section.train]
    named = section.train if section.holdout is not None else section.eval
    if section.holdout is not None:
        train, test = hold_out(train, section.holdout, section.holdout_seed)
    else:
        test = [leave_undecoded(load_spec(section.reader_spec(spec))) for spec in section.eval]
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
    if section.pseudo:
        mixed = _with_pseudo(mixed, test, section)
    if len(test) < 2:
        return mixed, test[0] if test else None
    return mixed, {section.name_of(spec): dataset for spec, dataset in zip(named, test, strict=True)}


def _with_pseudo(train: Any, test: list[Any], section: DataSection) -> Any:
    """Mixes labels that a model made into the others, without the pictures that are evaluated on."""
    from ...data.loading import leave_undecoded, load_spec
    from ...data.mixing import mix_regions
    from ...data.sources import content_keys

    stored = hasattr(train, "__len__")
    made = []
    for spec in section.pseudo:
        one = leave_undecoded(load_spec(section.reader_spec(spec)))
        evaluated = [dataset for dataset in test if hasattr(dataset, "__len__")]
        own, *theirs = content_keys([one, *evaluated])
        held_out = {key for keys in theirs for key in keys if key is not None}
        left = [row for row, key in enumerate(own) if key not in held_out]
        if len(left) < len(one):
            text = "%d of %d pictures of %s are evaluated on, and are not trained on"
            logger.warning(text, len(one) - len(left), len(one), section.name_of(spec))
        if not left:
            raise ValueError(f"data.pseudo: all pictures of {section.name_of(spec)} are evaluated on.")
        one = _with_source(one.select(left), section.name_of(spec))
        made.append(one if stored else one.to_iterable_dataset())
    labels = mix_regions(made, by_size=stored, seed=section.mixing.seed) if len(made) > 1 else made[0]
    odds = [1 - section.pseudo_share, section.pseudo_share]
    return mix_regions([train, labels], probabilities=odds, seed=section.mixing.seed, stopping=section.mixing.stopping)


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


def _identity(recipe: Recipe, args: ScaTrainingArguments, train: Any, evaluation: Any) -> dict[str, Any]:
    """Returns what decides a run: of its weights, which a resumed run must share, and of the rest of its result."""
    from ...data.loading import load_spec

    section = recipe.data
    named = recipe.model.sources.items()
    sources = {name.rstrip("_"): model_identity(source, revision) for name, (source, revision) in named}
    if isinstance(evaluation, dict):
        specs = {section.name_of(spec): [spec] for spec in section.eval}
        scored = {name: training_data(one) or _streams(section, specs[name]) for name, one in evaluation.items()}
    else:
        scored = {"eval": training_data(evaluation) or _streams(section, section.eval)}
    plain = {
        name: value for name, value in recipe.model.model_dump(by_alias=True).items() if not name.endswith("revision")
    }
    weights = {"versions": versions(), "model": {**plain, **sources, "scope": None}}
    data = training_data(train) or _streams(section, [*section.train, *section.pseudo], mixed=True)
    weights |= {"data": data, "training": settling_arguments(args)}
    if args.load_best_model_at_end:
        weights["evaluated"] = scored
    outside = [training_data(load_spec(section.reader_spec(spec))) for spec in section.outside]
    names = ("max_steps", "num_train_epochs", "save_form", "eval_generate", "eval_prompt", "max_eval_samples")
    rest = {"evaluated": scored, "scope": recipe.model.scope, "outside": outside}
    rest |= {name: getattr(args, name) for name in names}
    return json.loads(json.dumps({"weights": weights, "rest": rest}, default=str), parse_constant=str)


def _streams(section: DataSection, specs: Iterable[Mapping[str, Any]], mixed: bool = False) -> dict[str, Any]:
    """Identifies streams, of which nothing has been read, by options and files; `mixed` by how they are mixed too."""
    from ...data.loading import spec_source

    sets = {
        f"stream {number}, {section.name_of(spec)}": spec_source(section.reader_spec(spec)).identity()
        for number, spec in enumerate(specs)
    }
    if not mixed:
        return sets
    return {**sets, **section.mixing.model_dump(), "odds": section.probabilities(), "share": section.pseudo_share}


def _claim(output: Path, args: ScaTrainingArguments, identity: dict[str, Any], resume: bool) -> None:
    """Says in `run.json` what the run is; raises where the checkpoints to resume from are of another."""
    file = output / RUN
    if not resume or not file.is_file():
        if file.is_file() and read_json(file).get("weights") != identity["weights"]:
            shutil.rmtree(output / DETAILS, ignore_errors=True)  # what a run that came to nothing has pretrained
        write_whole(file, to_json(identity))
    elif changed := differences(read_json(file).get("weights"), identity["weights"]):
        message = f"The checkpoints in {output} belong to another run: {'; '.join(changed[:5])}."
        if not args.allow_changed_resume:
            raise CheckpointError(
                f"{message} Use the former values, choose another output, or set training.allow_changed_resume to "
                "resume as another run."
            )
        logger.warning("%s Resuming anyway.", message)
        write_whole(file, to_json(identity))


def _finished(output: Path, args: ScaTrainingArguments, identity: dict[str, Any]) -> RunResult:
    """Returns the result of a finished run, if it is this one and whole."""
    model, file = output / MODEL, output / RUN
    known = read_json(file) if file.is_file() else {}
    before, now = ({**run.get("weights", {}), **run.get("rest", {})} for run in (known, identity))
    if not known:
        logger.warning("%s does not record which run it belongs to: it is trusted.", output)
    elif identity and (changed := differences(before, now)):
        raise CheckpointError(
            f"{model} is of another run ({'; '.join(changed[:5])}): choose another output, or remove that folder to "
            "train again."
        )
    try:
        check_saved_model(model)
        if known.get("weights of the model") not in (None, hash_folder(model, ())):
            raise ValueError("its weights are not those that were saved")
    except Exception as error:  # whatever reading a damaged file may raise
        raise ValueError(
            f"{model} is of a run that was finished, but is not whole any more ({error}): remove it, and the same "
            "command trains again from the last checkpoint."
        ) from error
    metrics = read_json(output / METRICS) if (output / METRICS).is_file() else {}
    return RunResult(model, metrics, found_finished=True, is_main_process=args.process_index == 0)


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Returns what evaluation says of the model, without what it says of speed."""
    speed = ("_runtime", "_per_second")
    scores = {key: value for key, value in metrics.get("eval", {}).items() if key.startswith("eval_")}
    return {key: value for key, value in scores.items() if isinstance(value, float) and not key.endswith(speed)}


def _save(trainer: ScaTrainer, recipe: Recipe, metrics: dict[str, Any], identity: dict[str, Any]) -> None:
    """Writes the model's folder in one piece, and scores before it has its name: it is what tells a finished run."""
    output = Path(recipe.output)
    main = trainer.is_world_process_zero()
    if main:
        with replacing(output / TRAINER_STATE_NAME) as draft_state:
            trainer.state.save_to_json(str(draft_state))
        _write_recipe(output, recipe)
    with staged(output / MODEL) if main else nullcontext(output / MODEL) as folder:
        trainer.save_model(str(folder))
        if main:
            # The Trainer's own arguments are a pickle, and name this machine's folders.
            (folder / "training_args.bin").unlink(missing_ok=True)
            draft = draft_card(folder, output.name, plain_scores(metrics), recipe.to_yaml(), metrics.get("note"))
            write_whole(folder / CARD, draft)
            check_saved_model(folder)
            # Last, so that a run which is stopped while it saves has none.
            write_whole(output / METRICS, json.dumps(metrics, indent=2, default=str) + "\n")
            write_whole(output / RUN, to_json({**identity, "weights of the model": hash_folder(folder, ())}))
    trainer.accelerator.wait_for_everyone()


def _write_recipe(output: Path, recipe: Recipe) -> None:
    """Writes the recipe, unless what is there means the same: it may be the very file that was given."""
    path = output / RECIPE
    if not path.is_file() or read_yaml(path) != recipe.to_mapping():
        write_whole(path, recipe.to_yaml())
