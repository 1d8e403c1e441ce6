"""`sca-hf scene`: a picture of the synthetic data set."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files import save_picture
from .parsing import check_picture_name, command, look, prepare, write_json


_SCENE_EXAMPLE = """\
example:
  sca-hf scene scene.png --seed 20000010 --regions scene.json
  sca-hf caption scene.png --regions scene.json --overlay captions.png
"""


def add(commands: Any) -> None:
    """Declares the command."""
    text = "render a picture of the synthetic data set `scenes`, which the bundled model knows"
    declared = command(commands, "scene", run, text, _SCENE_EXAMPLE)
    declared.add_argument("output", metavar="OUT.png", help="picture to write")
    declared.add_argument("--seed", type=int, default=20_000_000, help="20000000 and up: the unseen test scenes")
    declared.add_argument(
        "--regions", metavar="OUT.json", help="write the prompts of its objects, for caption --regions"
    )


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from ..data.scenes import render_scene

    if options.seed < 0:
        raise ValueError(f"--seed is {options.seed}, expected 0 or more.")
    scene = render_scene(options.seed)
    output = Path(options.output)
    check_picture_name(output)
    prepare([output, options.regions], [])
    save_picture(scene.to_pil(), output)
    look(output)
    print(f"picture: {output}", file=sys.stderr if options.regions == "-" else sys.stdout)
    if options.regions:
        # Boxes and points by turns, so that both are seen at work.
        prompts = [
            {"points": [list(thing.point)]} if index % 2 else {"box": list(thing.box)}
            for index, thing in enumerate(scene.objects)
        ]
        truth = [
            {**prompt, "category": thing.category, "captions": list(thing.captions)}
            for prompt, thing in zip(prompts, scene.objects, strict=True)
        ]
        write_json(truth, options.regions)
        look(options.regions)
        if options.regions != "-":
            print(f"regions: {options.regions}")
