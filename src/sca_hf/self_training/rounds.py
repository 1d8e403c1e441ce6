"""All three stages, round after round, until a held-out set says that it helps no more."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..anything.sources import ImageItem
from ..captioning import load
from ..files import differences, read_json, staged, to_json, write_whole
from ..model_names import resolve_model
from ..modeling.base_models_sca import hash_folder
from ..run_identity import all_versions, data_identity, model_identity, versions
from ..training.arguments import ScaTrainingArguments
from ..training.recipe.build import build_model
from ..training.recipe.run import MODEL, build_datasets, run_recipe
from ..training.recipe.schema import ModelSection, Recipe
from ..training.trainer import ScaTrainer
from .judging import Judged, JudgeRun, judge
from .learning import check_task, learn
from .proposing import ProposeRun, propose
from .settings import SelectionSettings


logger = logging.getLogger(__name__)

ROUNDS = "rounds.json"
# The first of these that the evaluation has is what rounds are compared by.
_METRICS = ("eval_naming_accuracy", "eval_cider_d", "eval_loss")


@dataclass
class RoundSettings:
    """What decides the rounds.

    Attributes:
        rounds: How many there are at most.
        share: See [`learn`].
        from_teacher: Whether a round starts from its teacher, not from the recipe's model.
        ema: How much of a teacher is in the next one, 0 to 1: the mean of its weights and those of the model that
            learned from it. 0: the next teacher is that model.
        metric: A key of the evaluation, such as `eval_cider_d`; None: accuracy of names, CIDEr-D or loss, the first
            that the evaluation has.
        selection: What is kept.
        proposing: Further fields of [`ProposeRun`].
        judging: Further fields of [`JudgeRun`].
        tiles: How many regions each contact sheet shows.
    """

    rounds: int = 3
    share: float = 0.5
    from_teacher: bool = False
    ema: float = 0.0
    metric: str | None = None
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    proposing: Mapping[str, Any] = field(default_factory=dict)
    judging: Mapping[str, Any] = field(default_factory=dict)
    tiles: int = 48

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected a number from 0 to below 1.")


@dataclass
class Round:
    """One round, or (number 0) what it all begins with.

    Attributes:
        number: The round.
        model: The folder or repository of its model.
        score: What the held-out set says of the model.
        regions: How many regions were proposed.
        kept: How many of them were learned from.
        teacher: What identifies who made the labels.
    """

    number: int
    model: str
    score: float
    regions: int = 0
    kept: int = 0
    teacher: str | None = None


@dataclass
class RoundsResult:
    """What the rounds came to.

    Attributes:
        rounds: All of them, the first without labels of a model.
        best: The one of the best score.
        metric: What they were compared by.
        model: The folder of the best model.
    """

    rounds: list[Round]
    best: Round
    metric: str
    model: Path | None

    def __str__(self) -> str:
        lines = [f"round  {self.metric}  labels"]
        for one in self.rounds:
            mark = "  best" if one is self.best else ""
            lines.append(f"{one.number:5}  {one.score:{len(self.metric)}.4f}  {one.kept or 'true ones alone'}{mark}")
        lines.append(f"model: {self.model or self.best.model}")
        if self.best.number == 0:
            lines.append("no round was better than the model that they began with")
        return "\n".join(lines)


def run_rounds(
    recipe: Recipe,
    items: list[ImageItem],
    teacher: str | None = None,
    settings: RoundSettings | None = None,
    progress: bool = True,
) -> RoundsResult:
    """Proposes, judges and learns until the held-out score stops rising; the same call resumes where it was stopped.

    `recipe.output` gets a folder for each round (`proposals`, `judged`, `learned`), `rounds.json` and `model`, the
    best of all. In one process; the stages one by one may be shared.

    Args:
        recipe: The training of each round; it needs a held-out set.
        items: The unlabeled pictures.
        teacher: The folder or repository of the first teacher. None: a model is trained by the recipe first, on the
            true labels alone.
        settings: What decides the rounds; None: the defaults.
        progress: Whether bars are shown.

    Raises:
        ValueError: There is no held-out set, or it has no such metric.
    """
    settings = settings or RoundSettings()
    if not recipe.data.eval and recipe.data.holdout is None:
        raise ValueError("rounds are compared on a held-out set: add data.eval or data.holdout to the recipe.")
    check_task(recipe, settings.proposing.get("settings", {}).get("task"), recipe.output)
    output = Path(recipe.output)
    metrics, model = _begin(recipe, teacher, progress)
    metric = settings.metric or next((name for name in _METRICS if name in metrics), _METRICS[-1])
    rounds = [Round(0, model, _score(metrics, metric))]
    best, taught_by = rounds[0], model
    while len(rounds) <= settings.rounds:
        number = len(rounds)
        folder = output / f"round-{number}"
        made = _labels(folder, taught_by, items, settings, progress)
        own = replace(recipe, output=str(folder / "learned"))
        start = taught_by if settings.from_teacher else None
        learned = learn(own, [made.manifest], settings.share, start, progress)
        score = _score(learned.metrics["eval"], metric)
        student = str(learned.model)
        rounds.append(Round(number, student, score, made.regions, made.kept, model_identity(taught_by)))
        about = {"metric": metric, "rounds": [vars(one) for one in rounds], "versions": all_versions()}
        write_whole(output / ROUNDS, to_json(about))
        if not _is_better(score, best.score, metric):
            break
        best = rounds[-1]
        taught_by = _averaged(folder / "teacher", taught_by, student, settings.ema) if settings.ema else student
    return RoundsResult(rounds, best, metric, _keep_best(best, output / MODEL))


def _begin(recipe: Recipe, teacher: str | None, progress: bool) -> tuple[dict[str, Any], str]:
    """Returns what the held-out set says of the first teacher, and where that is."""
    output = Path(recipe.output)
    own = replace(recipe, output=str(output / "round-0"))
    if teacher is None:
        first = run_recipe(own, progress)
        return first.metrics["eval"], str(first.model)
    file = output / "round-0" / "teacher.json"
    args = ScaTrainingArguments(output_dir=own.output, **recipe.training)
    args.disable_tqdm = args.disable_tqdm or not progress
    _, evaluation = build_datasets(recipe.data)
    sets = evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
    about = {
        "teacher": model_identity(teacher),
        "versions": versions(),
        "training": recipe.training,
        "data": {name: data_identity(records) for name, records in sets.items()},
    }
    if file.is_file():
        former = read_json(file, dict, "Remove it, and the teacher is evaluated again.")
        if not differences(former.get("run"), json.loads(json.dumps(about))):
            return former["eval"], teacher
    model, processor, _ = build_model(ModelSection(**{"from": teacher}), args)
    metrics = ScaTrainer(model, args, eval_dataset=evaluation, processing_class=processor).evaluate()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, to_json({"run": about, "eval": metrics}))
    return metrics, teacher


def _labels(folder: Path, teacher: str, items: list[ImageItem], settings: RoundSettings, progress: bool) -> Judged:
    proposals, judged = folder / "proposals", folder / "judged"
    proposing = ProposeRun(str(proposals), teacher, **settings.proposing)
    found = propose(proposing, items, progress=progress)
    if found is None or not found.regions:
        failed = next(iter(found.failed.values()), "no region was found") if found else "no region was found"
        raise ValueError(f"{proposals}: there is nothing to judge: {failed}")
    if found.failed:
        logger.warning("%d of %d pictures failed, see %s", len(found.failed), len(items), proposals / "failed.json")
    judging = JudgeRun(str(judged), teacher, proposals=str(proposals), **settings.judging)
    made = judge(judging, settings.selection, tiles=settings.tiles, progress=progress)
    assert made is not None  # of a single process
    return made


def _score(metrics: Mapping[str, Any], name: str) -> float:
    if name not in metrics:
        known = ", ".join(key for key in metrics if key.startswith("eval_"))
        raise ValueError(f"the evaluation has no {name}, expected one of {known}.")
    return float(metrics[name])


def _is_better(score: float, best: float, metric: str) -> bool:
    return score < best if metric.endswith("loss") else score > best


def _averaged(target: Path, teacher: str, student: str, ema: float) -> str:
    """Saves the mean of the weights of a teacher and its student, and returns its folder."""
    (model, processor), (other, _) = load(student, "cpu"), load(teacher, "cpu")
    theirs = dict(other.named_parameters())
    if {name: one.shape for name, one in theirs.items()} != {name: p.shape for name, p in model.named_parameters()}:
        raise ValueError(
            f"{teacher} and {student} have weights of other names or shapes: no mean of them, set ema to 0."
        )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.lerp_(theirs[name].to(weight.dtype), ema)
    with staged(target) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return str(target)


def _keep_best(best: Round, target: Path) -> Path | None:
    """Copies the best model to its final place; None where it is the teacher that was given."""
    source = Path(resolve_model(best.model))
    if best.number == 0 and not source.is_relative_to(target.parent):
        return None
    if not target.is_dir() or hash_folder(target, ()) != hash_folder(source, ()):
        with staged(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    return target
