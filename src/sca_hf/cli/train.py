"""`sca-hf train`: a model from a recipe."""

import argparse
from typing import Any

from ..recipes import recipe_names, recipe_path
from .parsing import add_quiet, command, notice, print_skipped, quiet, wrapped


_TRAIN_HELP = """\
train a model from a recipe; resume a stopped run

A recipe is a YAML file with four sections, or the name of one that comes with sca-hf (at the end):
  model      from: a folder, a repository id or sca-photo; or sam: and language_model: with a new mixer;
             swap_language_model:, swap_image_encoder:, image_size: change it first
  data       train: and eval: data specs ({format: voc, root: my-boxes}), or holdout: a fraction of the training images
  training   max_steps:, learning_rate:, preset:, prompt_probabilities:, ... (fields of ScaTrainingArguments)
  output     the folder for checkpoints, the finished model (OUTPUT/model) and its scores (OUTPUT/metrics.json)

Any key can be set as --section.key=value, typed as in YAML; a number in a key is an index into a list. Relative
paths, also those in the recipe, start at the working directory. The same command resumes a stopped run exactly, from
its last complete checkpoint; a finished run is left as it is.
A stopped run prints its step and exits with 75 (a callback), 130 (Ctrl+C) or 143 (SIGTERM). SIGTERM stops it at once,
or with training.enable_jit_checkpoint after the current step and a checkpoint. Early stopping finishes the run.
"""
_TRAIN_EXAMPLE = """\
examples:
  sca-hf train finetune_voc --data.train.root=my-boxes --output=runs/my-boxes
  sca-hf train finetune_voc --training.max_steps=200 --training.learning_rate=1e-4 --dry-run
  torchrun --nproc-per-node 8 -m sca_hf train finetune_visual_genome
"""


def add(commands: Any) -> None:
    """Declares the command."""
    shipped = "Recipes that come with sca-hf; NAME --dry-run > my.yaml writes one out:\n" + wrapped(recipe_names())
    text = f"{_TRAIN_HELP}\n{shipped}"
    declared = command(commands, "train", run, text, _TRAIN_EXAMPLE)
    declared.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a recipe that comes with sca-hf")
    declared.add_argument("--dry-run", action="store_true", help="print the recipe with all changes and exit")
    add_quiet(declared)
    declared.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    path = recipe_path(options.recipe)
    notice(options, f"reading {path}")
    from ..training.recipe.schema import load_recipe

    recipe = load_recipe(path, options.overrides)
    if options.dry_run:
        print(recipe.to_yaml(), end="")
        return
    from transformers.utils import logging

    from ..training.recipe.run import run_recipe
    from ..training.stopping import raise_terminated, sigterm_calls

    logging.disable_progress_bar()  # of loading and saving; that of training stays
    if options.quiet:
        quiet()
    with sigterm_calls(raise_terminated):
        result = run_recipe(recipe, progress=not options.quiet)
    if result.is_main_process:
        print(result)
        print_skipped()
