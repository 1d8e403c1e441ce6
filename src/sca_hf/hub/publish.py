"""Publish a model's folder: checked, loaded back as others will, described by a card, uploaded whole or not at all.

What is uploaded lies in a staging folder first (weights are hard links, no copies) and is loaded from there in a fresh
process without this package. The Hub shows it by one commit, so that a cut upload leaves what was there before, and a
repeated one sends only what is missing. The card follows in a second commit, because it names the first.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from ..modeling.modeling_sca import ScaForConditionalGeneration
from ..processing.processing_sca import ScaProcessor
from .card import CARD, card_text
from .folder_check import HANDLER, FolderFacts, PublishError, check_base_repositories, check_folder, handler_code
from .probe import describe_probe


# Of what an earlier upload may have left in the repository, what would be loaded beside or in place of ours.
_STALE = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*_sca.py", "*adapter*/*")
_REQUIREMENTS = "transformers>=5.17,<6\npillow>=10.1\n"
# Uploads go on file by file.
_SHARDS = "5GB"


@dataclass
class Published:
    """Where a model is now.

    Attributes:
        repo_id: of the model.
        commit: with all that loads it; what the card pins.
        captions: what it said of the probe image.
        left_out: files of the folder that were not published -> why.
    """

    repo_id: str
    commit: str
    captions: list[str]
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"left out {name}: {why}" for name, why in self.left_out.items()]
        lines.append(f'AutoModel.from_pretrained("{self.repo_id}", trust_remote_code=True, revision="{self.commit}")')
        return "\n".join(lines)


def publish(
    folder: str | os.PathLike[str],
    repo_id: str,
    kind: str | None = None,
    private: bool = False,
    template: Path | None = None,
    evaluations: Sequence[Path] = (),
    api: HfApi | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Published:
    """Publish a saved model.

    Args:
        folder: of the model, its processor and its code; not changed.
        repo_id: made where it does not exist.
        kind: `"whole"` or `"mixer"`; None as it lies there. A mixer-only folder can be published whole.
        private: make a new repository private.
        template: Markdown of the card, see [`card_text`]; None takes the folder's README.md, else our own.
        evaluations: files of `sca-hf evaluate --json`, for the card.
        api: client; None makes one for the environment's endpoint and token.
        say: called with a sentence at each stage.

    Raises:
        PublishError: nothing was uploaded; the message says what to mend.
    """
    api = api or HfApi()
    folder = Path(folder)
    with staged_model(folder, kind) as facts:
        licences = check_base_repositories(facts, api, private)
        say(f"loading {facts.kind} folder {folder} in a fresh process, without this package ...")
        captions = check_loads_alone(facts.folder)

        def describe(commit: str) -> str:
            own = None if template else own_card(folder)
            return card_text(
                facts.folder,
                repo_id,
                commit,
                template=own or template,
                fill=own is None,
                evaluations=evaluations,
                bases=facts.bases,
                licences=licences,
                recipe=find_recipe(folder),
            )

        # Now, so that what is wrong with a card comes out before anything is uploaded.
        ModelCard(describe("0" * 40)).validate()
        say(f"uploading to {repo_id} ...")
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = upload(api, repo_id, facts.folder)
        card = CommitOperationAdd(CARD, describe(commit).encode())
        commit_files(api, repo_id, [card], [], f"Describe {commit[:12]}")
    return Published(repo_id, commit, captions, facts.left_out)


@contextmanager
def staged_model(folder: Path, kind: str | None = None) -> Iterator[FolderFacts]:
    """A folder of exactly what is to be published, the card aside: checked, and of the kind asked for."""
    found = check_folder(folder)
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=folder.resolve().parent) as temporary:
        staging = Path(temporary) / folder.resolve().name
        staging.mkdir()
        if kind not in (None, found.kind):
            _save_as(kind, found, staging)
        else:
            for name in found.files:
                _link(folder / name, staging / name)
        (staging / CARD).unlink(missing_ok=True)
        (staging / HANDLER).write_bytes(handler_code())
        needs = staging / "requirements.txt"
        if needs.is_file() and needs.read_text(encoding="utf-8") != _REQUIREMENTS:
            found.left_out[needs.name] = "replaced by what the code needs"
        needs.write_text(_REQUIREMENTS, encoding="utf-8")
        facts = check_folder(staging)
        facts.left_out, facts.bases = found.left_out, found.bases
        yield facts


def _save_as(kind: str | None, found: FolderFacts, staging: Path) -> None:
    if kind == "mixer":
        raise PublishError(
            f"{found.folder} is whole, and does not say where its SAM and language model came from: save it with "
            "model.save_pretrained(..., include_base_models=False) where it was built or trained from repositories."
        )
    model = ScaForConditionalGeneration.from_pretrained(found.folder)
    model.save_pretrained(staging, include_base_models=True, max_shard_size=_SHARDS)
    ScaProcessor.from_pretrained(found.folder).save_pretrained(staging)


def _link(source: Path, target: Path) -> None:
    """Weights are linked; what is small, and may be written anew here, is copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def own_card(folder: Path) -> Path | None:
    """The folder's README.md, unless training wrote it as a draft to complete."""
    readme = folder / CARD
    if not readme.is_file() or "To complete before publishing" in readme.read_text(encoding="utf-8"):
        return None
    return readme


def find_recipe(folder: Path) -> Path | None:
    """The recipe that lies in a model's folder or, as training leaves it, beside it."""
    paths = (folder / "recipe.yaml", folder.resolve().parent / "recipe.yaml")
    return next((path for path in paths if path.is_file()), None)


def check_loads_alone(folder: Path) -> list[str]:
    """Load a folder in a fresh process that cannot import this package; the ids must be those that are found here.

    Returns:
        Captions of the probe image.
    """
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "found.json"
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        # Code is copied there before it runs, which is nothing for the user's own cache.
        environment["HF_MODULES_CACHE"] = str(Path(temporary) / "modules")
        probe = Path(str(resources.files("sca_hf.hub") / "probe.py"))
        command = [sys.executable, "-P", str(probe), str(folder.resolve()), str(result)]
        done = subprocess.run(command, cwd=temporary, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise PublishError(
                f"{folder} does not load in a process of its own, as others would load it:\n{done.stderr[-2000:]}"
            )
        alone = json.loads(result.read_text(encoding="utf-8"))
    model, processor = ScaForConditionalGeneration.from_pretrained(folder), ScaProcessor.from_pretrained(folder)
    model.check_tokenizer(processor.tokenizer)
    here = describe_probe(model.eval(), processor)
    if not alone["module"].startswith("transformers_modules."):
        raise PublishError(f"the check of {folder} ran code of {alone['module']}, not that of the folder.")
    if alone["ids"] != here["ids"]:
        raise PublishError(
            f"{folder} says {alone['captions']} of the probe image where this package is not installed, in place of "
            f"{here['captions']}: its code is not this package's."
        )
    return [caption for image in here["captions"] for caption in image]


def upload(api: HfApi, repo_id: str, folder: Path, repo_type: str = "model") -> str:
    """Make a repository hold a folder, by one commit; returns the commit that first did.

    Files that the repository has already are not sent again, an interrupted upload's neither. Other files of it stay,
    but for weights and code that would be loaded in place of these.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    additions = [CommitOperationAdd(name, str(path)) for name, path in paths.items()]
    there = _tree(api, repo_id, repo_type, "main")
    stale = [name for name in there if name not in paths and any(fnmatch(name, pattern) for pattern in _STALE)]
    title = "Upload model" if repo_type == "model" else "Upload demo"
    commit_files(api, repo_id, additions, stale, title, repo_type)
    return _first_commit_with(api, repo_id, repo_type, paths)


def commit_files(
    api: HfApi,
    repo_id: str,
    additions: Sequence[CommitOperationAdd],
    deletions: Sequence[str],
    title: str,
    repo_type: str = "model",
) -> None:
    """Commit to main; without a change, nothing. Somebody else's commit meanwhile is an error and not overwritten."""
    head = api.repo_info(repo_id, repo_type=repo_type).sha
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions]
    operations += [CommitOperationDelete(name) for name in deletions]
    try:
        api.create_commit(repo_id, operations, commit_message=title, repo_type=repo_type, parent_commit=head)
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 412:
            raise PublishError(f"somebody else has changed {repo_id} meanwhile; nothing was overwritten.") from error
        raise


def _first_commit_with(api: HfApi, repo_id: str, repo_type: str, paths: Mapping[str, Path]) -> str:
    """The oldest of the newest commits that all hold these files as the newest does; later ones changed the card."""
    commits = api.list_repo_commits(repo_id, repo_type=repo_type)
    newest = _tree(api, repo_id, repo_type, commits[0].commit_id)
    found: str = commits[0].commit_id
    wanted = {name: value for name, value in newest.items() if name != CARD}
    for commit in commits[1:]:
        tree = _tree(api, repo_id, repo_type, commit.commit_id)
        if {name: value for name, value in tree.items() if name != CARD} != wanted:
            break
        found = commit.commit_id
    if absent := sorted(set(paths) - set(newest)):
        raise PublishError(f"{repo_id} lacks {', '.join(absent)} after the upload; run the command again.")
    return found


def _tree(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, Any]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}
