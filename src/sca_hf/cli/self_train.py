"""`sca-hf self-train`: labels of pictures that nobody has labeled, by a teacher, and a model that learns from them."""

import argparse
import os
from pathlib import Path
from typing import Any

from ..files import refuse_inputs
from ..recipes import recipe_path
from ..self_training.settings import CLASSES, JUDGES, VIEWS
from .anything import add_settings, boxes_for, read_settings
from .parsing import (
    Failures,
    add_loading,
    add_quiet,
    begin_loading,
    command,
    look,
    natural,
    notice,
    positive,
    print_skipped,
    process_device,
    quiet,
    resumable,
)


_TEXT = "learn from pictures that nobody has labeled"
_HELP = f"""\
{_TEXT}

A teacher captions the regions of unlabeled pictures in several views (propose), judges say which captions to trust
(judge), and a model learns from these beside true ones (learn). Each stage resumes where it was stopped, and can be
used alone; run does all of them, round after round, until a held-out set rises no more. See docs/self-training.md.
"""
_EXAMPLE = """\
examples:
  sca-hf self-train propose photos --model runs/first/model --output proposals
  sca-hf self-train judge proposals --model runs/first/model --output judged
  sca-hf self-train learn recipe.yaml --manifest judged/manifest.parquet --output runs/taught
  sca-hf self-train run recipe.yaml photos --output runs/rounds
"""
_PROPOSE_HELP = f"""\
caption regions of unlabeled pictures in several views

SOURCE is what `sca-hf anything` takes: folders, patterns, addresses, data specs (coco:annotations=..., of which only
the pictures count, and with --boxes data the boxes). The teacher captions each region by its box, and again in other
views; where it then says something else, it does not know:
  point, mask  shown by a point in the middle of its mask, or by the mask
  beams        by a search with --num-beams beams
  flip         in the mirrored picture; sides in the caption are turned back (where that is not safe, it says nothing)
  smaller      in a picture that is three quarters of the size

--output is a folder, which in the end contains
  records.jsonl  one line per picture: its regions, as `sca-hf anything` has them, with `views`
  coco.json, failed.json, journal/
  pictures/      the pictures: links to the files, or copies where the disk has no links

The same command resumes a stopped run. Processes share it under torchrun; the result does not depend on their number.
Views: {", ".join(VIEWS)}.
"""
_PROPOSE_EXAMPLE = """\
examples:
  sca-hf self-train propose photos --model runs/my-boxes/model --output proposals
  sca-hf self-train propose photos --boxes detections.json --min-score 0.4 --output proposals
  torchrun --nproc-per-node 8 -m sca_hf self-train propose photos --output proposals
"""
_JUDGE_HELP = f"""\
judge proposals, and choose what to learn from

PROPOSALS is the folder of `sca-hf self-train propose`. The judges, each a number per region, higher is better:
  score      mean log-probability of the caption
  agreement  how many words the captions of the other views share with it
  listener   how surely the caption tells the region from the others of the picture
  necessity  how much less likely the caption is when the region is erased (one encoding per region)
  stability  of the mask, as SAM has it
  package.module:function  a function of your own, which gets a picture and its regions (docs/self-training.md)

Each class keeps the best --coverage of its regions, by the geometric mean of the judges' ranks within the class.
Classes: {", ".join(CLASSES)}; `word` is the rarest word of a caption that occurs in --min-class captions.

--output is a folder, which in the end contains
  manifest.parquet  one row per region: caption, judges, class, kept, and the reason
  manifest.json     teacher, settings, versions, and how much of each class is kept
  kept.png, refused.png  some regions of both
  journal/          progress so far: the same command resumes a stopped run

What is learned from are the rows with `kept`: edit the file as you like. An edited file is not overwritten.
"""
_JUDGE_EXAMPLE = """\
examples:
  sca-hf self-train judge proposals --model runs/my-boxes/model --output judged
  sca-hf self-train judge proposals --output judged --coverage 0.3 --threshold agreement=0.6 --explain
  sca-hf self-train judge proposals --output judged --judges score agreement my_judges:looks_sharp
"""
_LEARN_HELP = """\
learn from the labels of manifests, beside true ones

RECIPE is one of `sca-hf train`: its data are the true labels. A share of the pictures of each step are drawn from the
rows of the manifests with `kept`, as they stand now: rows may be removed, captions corrected. Pictures that the recipe
evaluates on are left out. Any key of the recipe can be set as --section.key=value.

--output, or the recipe's, also gets labels/, what was learned from, and self_training.json: manifests, teacher and
settings. The same command resumes a stopped run exactly.
"""
_LEARN_EXAMPLE = """\
examples:
  sca-hf self-train learn recipe.yaml --manifest judged/manifest.parquet --output runs/taught
  sca-hf self-train learn recipe.yaml --manifest judged/manifest.parquet --start runs/my-boxes/model --share 0.3
"""
_RUN_HELP = """\
propose, judge and learn, round after round

Each round's teacher is the model of the round before, the first one --model, or a model that the recipe trains on the
true labels alone. A round starts from the recipe's model, or with --from-teacher from its teacher. Rounds end when the
held-out set of the recipe (data.eval or data.holdout) says that the last was not better than the best.

--output, or the recipe's, gets round-1/proposals, judged and learned, round-2/..., rounds.json and model/, the best of
all. The same command resumes a stopped run. It runs in one process; the stages one by one may be shared.
"""
_RUN_EXAMPLE = """\
examples:
  sca-hf self-train run recipe.yaml photos --output runs/taught
  sca-hf self-train run recipe.yaml photos --model runs/my-boxes/model --boxes detections.json --rounds 2
"""


def add(commands: Any) -> None:
    """Declares the command."""
    group = commands.add_parser(
        "self-train",
        help=_TEXT,
        description=_HELP,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = group.add_subparsers(title="commands", dest="stage", required=True, metavar="COMMAND")
    _add_propose(inner)
    _add_judge(inner)
    _add_learn(inner)
    _add_run(inner)


def _add_propose(inner: Any) -> None:
    declared = command(inner, "propose", run_propose, _PROPOSE_HELP, _PROPOSE_EXAMPLE)
    declared.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, image, pattern or data spec")
    declared.add_argument("--output", required=True, metavar="FOLDER", help="output folder")
    add_teacher(declared)
    add_proposing(declared)
    declared.add_argument("--retry", action="store_true", help="retry pictures that failed before")
    add_settings(declared, without=("caption_prompt", "unique_captions"))


def add_teacher(declared: Any) -> None:
    """Declares the options that choose the teacher."""
    declared.add_argument("--model", help="the teacher: folder, repository id or sca-photo (default)")
    add_loading(declared)


def add_proposing(declared: Any) -> None:
    """Declares the options of the first stage, beside its sources."""
    declared.add_argument(
        "--boxes", metavar="FILE.json", help="regions: boxes of a detector; `data`: those of the data set"
    )
    declared.add_argument("--min-score", type=float, metavar="X", help="drop boxes with lower scores")
    declared.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS), help="(default: all)")
    declared.add_argument("--num-beams", type=positive, default=3, metavar="N", help="beams of `beams` (%(default)s)")


def _add_judge(inner: Any) -> None:
    declared = command(inner, "judge", run_judge, _JUDGE_HELP, _JUDGE_EXAMPLE)
    declared.add_argument("proposals", metavar="PROPOSALS", help="folder of the first stage")
    declared.add_argument("--output", required=True, metavar="FOLDER", help="output folder")
    add_teacher(declared)
    add_judging(declared)
    declared.add_argument(
        "--explain",
        nargs="*",
        metavar="PICTURE",
        help="print why each region was kept or refused; of these pictures, PICTURE:REGION or label ids only",
    )


def add_judging(declared: Any) -> None:
    """Declares the options of the second stage, beside its proposals."""
    declared.add_argument("--judges", nargs="+", default=list(JUDGES), metavar="JUDGE", help="(default: all)")
    declared.add_argument("--coverage", type=float, default=0.5, metavar="X", help="share of a class (%(default)s)")
    declared.add_argument("--class-by", choices=CLASSES, default="word", help="what a class is (%(default)s)")
    declared.add_argument(
        "--min-class", type=positive, default=10, metavar="N", help="captions that make a word a class (%(default)s)"
    )
    declared.add_argument("--max-class", type=positive, metavar="N", help="labels of a class at most")
    declared.add_argument(
        "--max-per-picture", type=positive, default=4, metavar="N", help="labels of a picture at most (%(default)s)"
    )
    for name, text in (("threshold", "smallest value of a judge"), ("weight", "what a judge counts, 1 if not given")):
        declared.add_argument(
            f"--{name}", action="append", default=[], type=_named_number, metavar="JUDGE=X", help=f"{text}; repeatable"
        )
    declared.add_argument("--tiles", type=natural, default=48, metavar="N", help="regions of a sheet (%(default)s)")


def _add_learn(inner: Any) -> None:
    declared = command(inner, "learn", run_learn, _LEARN_HELP, _LEARN_EXAMPLE)
    declared.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe (sca-hf train --help)")
    declared.add_argument(
        "--manifest", nargs="+", required=True, metavar="FILE", help="manifest.parquet of the second stage"
    )
    declared.add_argument("--start", metavar="MODEL", help="the model to start from (default: the recipe's)")
    _add_learning(declared)
    add_quiet(declared)


def _add_learning(declared: Any) -> None:
    declared.add_argument("--output", metavar="FOLDER", help="output folder (default: the recipe's)")
    declared.add_argument(
        "--share", type=float, default=0.5, metavar="X", help="share of pictures with a model's labels (%(default)s)"
    )
    declared.set_defaults(overrides=[])


def _add_run(inner: Any) -> None:
    declared = command(inner, "run", run_all, _RUN_HELP, _RUN_EXAMPLE)
    declared.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe (sca-hf train --help)")
    declared.add_argument("sources", nargs="+", metavar="SOURCE", help="unlabeled pictures, as for propose")
    add_teacher(declared)
    _add_learning(declared)
    declared.add_argument("--rounds", type=positive, default=3, metavar="N", help="at most (%(default)s)")
    declared.add_argument("--from-teacher", action="store_true", help="start each round from its teacher")
    declared.add_argument(
        "--ema", type=float, default=0.0, metavar="X", help="how much of a teacher is in the next one (%(default)s)"
    )
    declared.add_argument("--metric", metavar="NAME", help="what rounds are compared by (default: see the page)")
    add_proposing(declared)
    add_judging(declared)
    add_settings(declared, without=("caption_prompt", "unique_captions"))


def _named_number(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected JUDGE=NUMBER, got {text!r}") from None


def run_propose(options: argparse.Namespace) -> int:
    """Runs the first stage; returns 1 where a picture could not be captioned."""
    from ..anything.sources import find_images
    from ..run_log import torchrun_rank

    settings = read_settings(options)
    _refuse_inside(options.output, options.sources)
    refuse_inputs([options.output], [one for one in (*options.sources, options.boxes, options.model) if one])
    items = find_images(options.sources, output=options.output)
    boxes = boxes_for(options, items)
    begin_loading(options, options.model, before=f"{len(items)} picture{'s' * (len(items) != 1)}, ")
    from ..self_training.proposing import RECORDS, ProposeRun, propose

    run = ProposeRun(
        options.output,
        options.model,
        settings,
        boxes=boxes,
        retry=options.retry,
        device=process_device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        views=tuple(options.views),
        num_beams=options.num_beams,
    )
    failures = Failures(options, len(items), "pictures")
    with resumable(options):
        result = propose(run, items, *torchrun_rank(), progress=not options.quiet)
    if result is None:
        return 0
    for name, error in result.failed.items():
        failures.add(name, error)
    if not options.quiet:
        print(f"{result.images} pictures, {result.regions} regions: {Path(options.output) / RECORDS}")
    return failures.exit_code()


def _refuse_inside(output: str, sources: list[str]) -> None:
    """Raises where the output is in a folder of pictures: what is written there would be taken for some of them."""
    for source in sources:
        if os.path.isdir(source) and Path(output).resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(f"{output} is in {source}, whose pictures are read: choose an output outside of it.")


def run_judge(options: argparse.Namespace) -> None:
    """Runs the second stage."""
    from ..run_log import torchrun_rank

    settings = selection(options)
    settings.check_judges([name.rpartition(":")[2] for name in options.judges])
    begin_loading(options, options.model)
    from ..self_training.judging import JudgeRun, judge
    from ..self_training.manifest import describe, read_manifest

    run = JudgeRun(
        options.output,
        options.model,
        device=process_device(options.device),
        dtype=options.dtype,
        revision=options.revision,
        proposals=options.proposals,
        judges=tuple(options.judges),
    )
    with resumable(options):
        result = judge(run, settings, *torchrun_rank(), options.tiles, progress=not options.quiet)
    if result is None:
        return
    look(result.manifest)
    for row in read_manifest(result.manifest) if options.explain is not None else ():
        asked = {row["image"], f"{row['image']}:{row['region']}", row.get("label_id")}
        if not options.explain or asked & set(options.explain):
            print(describe(row, run.columns))
    print(result)
    if result.kept == 0:
        notice(options, "nothing is kept: lower the thresholds, or look at --explain")


def selection(options: argparse.Namespace) -> Any:
    """Returns the settings of the selection."""
    from ..self_training.settings import SelectionSettings

    names = ("coverage", "class_by", "min_class", "max_class", "max_per_picture")
    values = {name: getattr(options, name) for name in names}
    return SelectionSettings(**values, thresholds=dict(options.threshold), weights=dict(options.weight))


def run_learn(options: argparse.Namespace) -> None:
    """Runs the third stage."""
    recipe = _recipe(options)
    from ..self_training.learning import learn
    from ..training.stopping import raise_terminated, sigterm_calls

    with sigterm_calls(raise_terminated):
        result = learn(recipe, options.manifest, options.share, options.start, progress=not options.quiet)
    if result.is_main_process:
        print(result)
        print_skipped()


def run_all(options: argparse.Namespace) -> None:
    """Runs all stages, round after round."""
    from ..anything.sources import find_images
    from ..run_log import torchrun_rank

    if torchrun_rank()[1] > 1:
        raise ValueError("run works in one process; share propose, judge and learn one by one under torchrun.")
    if options.revision is not None:
        raise ValueError("--revision is for propose and judge; download the model, and pass its folder as --model.")
    settings = read_settings(options)
    chosen = selection(options)
    chosen.check_judges([name.rpartition(":")[2] for name in options.judges])
    recipe = _recipe(options)
    _refuse_inside(recipe.output, options.sources)
    items = find_images(options.sources, output=recipe.output)
    boxes = boxes_for(options, items)
    from ..self_training.rounds import RoundSettings, run_rounds
    from ..training.stopping import raise_terminated, sigterm_calls

    loading = {"device": options.device, "dtype": options.dtype}
    proposing = {"settings": settings, "boxes": boxes, "views": tuple(options.views), "num_beams": options.num_beams}
    rounds = RoundSettings(
        options.rounds,
        options.share,
        options.from_teacher,
        options.ema,
        options.metric,
        chosen,
        {**proposing, **loading},
        {"judges": tuple(options.judges), **loading},
        options.tiles,
    )
    with resumable(options), sigterm_calls(raise_terminated):
        print(run_rounds(recipe, items, options.model, rounds, progress=not options.quiet))
    print_skipped()


def _recipe(options: argparse.Namespace) -> Any:
    """Returns the recipe of the command line, with the output that it names."""
    path = recipe_path(options.recipe)
    notice(options, f"reading {path}")
    from ..training.recipe.schema import load_recipe

    more = [] if options.output is None else [f"--output={options.output}"]
    recipe = load_recipe(path, [*options.overrides, *more])
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading and saving; that of training stays
    if options.quiet:
        quiet()
    return recipe
