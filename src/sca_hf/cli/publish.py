"""`sca-hf publish`: a trained or converted model onto the Hub."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from .parsing import add_quiet, command, notice, quiet, resumable


_PUBLISH_EXAMPLE = """\
examples:
  sca-hf publish runs/my-boxes/model me/sca-my-boxes --private
  sca-hf publish runs/my-boxes/model me/sca-my-boxes --kind whole --evaluation scores.json --space
"""


def add(commands: Any) -> None:
    """Declares the command."""
    text = (
        "publish a saved model on the Hub, after it has loaded in a process without this package\n\n"
        "Nothing is uploaded before the folder passes all checks, and the repository changes in one commit: an "
        "interrupted upload changes nothing, and the same command resumes it."
    )
    declared = command(commands, "publish", run, text, _PUBLISH_EXAMPLE)
    declared.add_argument("folder", metavar="FOLDER", help="folder of the saved model and processor, or sca-photo")
    declared.add_argument("repository", metavar="REPO", help="owner/name; created if it does not exist")
    declared.add_argument(
        "--kind",
        choices=("whole", "mixer"),
        help="whole: every weight; mixer: trained weights, with SAM and the language model by commit (default: as "
        "the folder)",
    )
    declared.add_argument("--private", action="store_true", help="make a new repository private")
    declared.add_argument(
        "--card", type=Path, metavar="FILE", help="card template (default: the folder's README.md, or ours)"
    )
    declared.add_argument(
        "--evaluation",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="scores for the card, written by sca-hf evaluate --json; repeatable",
    )
    declared.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="NAME",
        help="a document, picture or table of the folder to publish too; by default only what a model consists of is, "
        "and the rest is listed; repeatable, may be a pattern",
    )
    declared.add_argument("--space", action="store_true", help="also publish the demo, as the Space REPO")
    add_quiet(declared)


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    notice(options, f"checking {options.folder}")
    quiet()
    import tempfile

    from huggingface_hub import HfApi

    from ..hub.publish import publish
    from ..hub.space import publish_space, write_space

    api = HfApi()
    with resumable(options):
        done = publish(
            options.folder,
            options.repository,
            kind=options.kind,
            private=options.private,
            template=options.card,
            evaluations=options.evaluation,
            api=api,
            say=partial(notice, options),
            include=options.include,
        )
    print(done)
    if options.space:
        with tempfile.TemporaryDirectory() as temporary:
            space = write_space(Path(temporary) / "space", done.repo_id, done.commit)
            print(publish_space(api, space, done.repo_id, options.private))
