"""`sca-hf estimate`: the memory that a recipe or a model takes, before anything is loaded."""

import argparse
from typing import Any

from .parsing import add_quiet, add_revision, command, notice, positive, quiet, size


_ESTIMATE_HELP = """\
estimate the GPU memory for training with a recipe, or for the weights of a model

For a model: the memory of its weights in each precision it can be loaded in. For a recipe: one training step runs on
fake tensors, so it needs no weights, GPU or data. Parameters, gradients and optimizer states are counted exactly,
activations as kept by one step with the longest captions. Recipe keys can be set as for sca-hf train.
"""
_ESTIMATE_EXAMPLE = """\
examples:
  sca-hf estimate swap_phi_2 --gpu-memory 24GB
  sca-hf estimate finetune_voc --training.regions_per_image=48 --images 5000
  sca-hf estimate ./my-model --gpu-memory 8GB
"""


def add(commands: Any) -> None:
    """Declares the command."""
    declared = command(commands, "estimate", run, _ESTIMATE_HELP, _ESTIMATE_EXAMPLE)
    declared.add_argument("what", metavar="RECIPE|MODEL", help="a recipe, as for train, or a model")
    declared.add_argument("--gpu-memory", type=size, metavar="SIZE", help="check whether it fits, for instance 24GB")
    declared.add_argument(
        "--images", type=positive, metavar="N", help="number of images, for the size of the embedding cache"
    )
    add_revision(declared)
    add_quiet(declared)
    declared.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    quiet()
    from ..recipes import recipe_names, recipe_path

    if options.what not in recipe_names() and not options.what.endswith((".yaml", ".yml")):
        if options.images or options.overrides:
            raise ValueError(f"--images and recipe keys only apply to recipes; {options.what} was read as a model.")
        notice(options, f"reading {options.what}")
        from ..hub.info import read_config
        from ..training.recipe.memory_report import report_model

        print(report_model(read_config(options.what, options.revision), options.gpu_memory))
        return
    if options.revision is not None:
        raise ValueError("--revision only applies to a model; a recipe names its own.")
    path = recipe_path(options.what)
    notice(options, f"reading {path}")
    from ..training.recipe.memory_report import report_recipe
    from ..training.recipe.schema import load_recipe

    recipe = load_recipe(path, options.overrides)
    print(report_recipe(recipe, path.parent, options.gpu_memory, options.images))
