"""`sca-hf estimate`: the memory that a recipe or a model takes, before anything is loaded."""

import argparse
from typing import Any

from .parsing import command, positive, quiet


_ESTIMATE_HELP = """\
estimate the GPU memory that training by a recipe takes, or the weights of a model

Of a model: what its weights take in each precision that it can be loaded in. Of a recipe: one training step is run on
tensors without contents, so that neither weights nor a GPU nor the data are needed; parameters, gradients and
optimizer states are counted exactly, activations as one step with the longest captions keeps them. Keys of the recipe
can be set as for sca-hf train.
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
    declared.add_argument("--gpu-memory", type=_size, metavar="SIZE", help="does it fit this? for instance 24GB")
    declared.add_argument("--images", type=positive, metavar="N", help="images for the size of the embedding cache")
    declared.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    quiet()
    from ..recipes import recipe_names, recipe_path

    if options.what not in recipe_names() and not options.what.endswith((".yaml", ".yml")):
        if options.images or options.overrides:
            raise ValueError(f"--images and keys of a recipe are for recipes; {options.what} is taken for a model.")
        from ..hub.info import read_config
        from ..training.recipe.memory_report import report_model

        print(report_model(read_config(options.what), options.gpu_memory))
        return
    from ..training.recipe.memory_report import report_recipe
    from ..training.recipe.schema import load_recipe

    path = recipe_path(options.what)
    recipe = load_recipe(path, options.overrides)
    print(report_recipe(recipe, path.parent, options.gpu_memory, options.images))


def _size(text: str) -> int:
    """Reads a size such as 24GB as bytes; of memory, makers write GB for what is 2**30 bytes."""
    units = {"gib": 2**30, "gb": 2**30, "mib": 2**20, "mb": 2**20}
    lower = text.lower().replace(" ", "")
    unit = next((name for name in units if lower.endswith(name)), None)
    try:
        size = float(lower.removesuffix(unit)) * units[unit] if unit else 0.0
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a size such as 24GB, got {text!r}")
    return int(size)
