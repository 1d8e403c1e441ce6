"""Publish a model's folder: checked, loaded back as others will, described by a card, uploaded whole or not at all.

What is uploaded lies in a staging folder first (weights are hard links, no copies) and is loaded from there in a fresh
process without this package. The Hub shows it by one commit, so that a cut upload leaves what was there before, and a
repeated one sends only what is missing. The card follows in a second commit, because it names the first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from safetensors import SafetensorError, safe_open

from ..files import in_one_line
from ..model_names import resolve_model
from ..modeling.configuration_sca import ScaConfig
from ..modeling.modeling_sca import ScaForConditionalGeneration
from ..modeling.validation_sca import check_settings_files, check_shard_index
from ..processing.processing_sca import ScaProcessor
from .card import CARD, card_text, is_draft
from .private import INCLUDABLE, NAMES, clean_paths, find_secret, is_asked_for, is_inert, secret_of, without_paths
from .probe import describe_probe


_REQUIREMENTS = "transformers>=5.17,<6\npillow>=10.1\n"
# An interrupted upload resumes file by file.
_SHARDS = "5GB"
_COMMIT = re.compile(r"[0-9a-f]{40}")
HANDLER = "handler.py"


class PublishError(ValueError):
    """Something about a folder that must be fixed before it is published."""


@dataclass
class FolderFacts:
    """What was found in a folder.

    Attributes:
        files: names, relative, of all that is to be published.
        left_out: names of what is not, with the reason.
        cleaned: names of files in which folders of this machine were shortened.
        config: as loaded by our class.
        base_models: where SAM and the language model came from, where that is known; as in the configuration.
    """

    folder: Path
    config: ScaConfig
    files: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    cleaned: list[str] = field(default_factory=list)
    base_models: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "mixer" if self.config.base_model_repos else "whole"


@dataclass
class Published:
    """Where a model is now.

    Attributes:
        repo_id: repository of the model.
        commit: commit with all that loads it; what the card pins.
        captions: what the model said of the probe image.
        left_out: files of the folder that were not published -> why.
        cleaned: files in which folders of this machine were shortened.
    """

    repo_id: str
    commit: str
    captions: list[str]
    left_out: dict[str, str] = field(default_factory=dict)
    cleaned: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"left out {in_one_line(name)}: {why}" for name, why in self.left_out.items()]
        lines += [f"left out {len(lines)} files; --include NAME publishes one"] if lines else []
        lines += [f"shortened the paths in {', '.join(self.cleaned)}"] if self.cleaned else []
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
    include: Sequence[str] = (),
) -> Published:
    """Publish a saved model.

    Args:
        folder: folder of the model, its processor and its code, or `sca-photo`; not changed.
        repo_id: repository, created where it does not exist.
        kind: `"whole"` or `"mixer"`; None keeps the folder's own. A mixer-only folder can be published whole.
        private: make a new repository private.
        template: Markdown of the card, see [`card_text`]; None takes the folder's README.md, else our own.
        evaluations: files of `sca-hf evaluate --json`, for the card.
        api: client; None makes one for the environment's endpoint and token.
        say: called with a sentence at each stage.
        include: names or patterns of further files of the folder, which must be documents, pictures or tables.

    Raises:
        PublishError: nothing was uploaded; the message says what to fix.
    """
    api = api or HfApi()
    folder = Path(resolve_model(folder))
    with staged_model(folder, kind, include) as facts:
        licences = check_base_repositories(facts, api, private)
        say(f"loading {facts.kind} folder {folder} in a fresh process, without this package ...")
        captions = check_loads_alone(facts.folder)

        def describe(commit: str) -> str:
            own = None if template else own_card(folder)
            text = card_text(
                facts.folder,
                repo_id,
                commit,
                template=own or template,
                fill=own is None,
                evaluations=evaluations,
                base_models=facts.base_models,
                licences=licences,
                recipe=recipe_text(folder),
            )
            return without_paths(text)

        # Now, so that what is wrong with a card comes out before anything is uploaded.
        draft = describe("0" * 40)
        ModelCard(draft).validate()
        refuse_secrets({f"the card of {folder}": find_secret(draft)})
        say(f"uploading to {repo_id} ...")
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = upload(api, repo_id, facts.folder, say=say)
        card = CommitOperationAdd(CARD, describe(commit).encode())
        commit_files(api, repo_id, [card], [], f"Describe {commit[:12]}")
    return Published(repo_id, commit, captions, facts.left_out, facts.cleaned)


@contextmanager
def staged_model(folder: Path, kind: str | None = None, include: Sequence[str] = ()) -> Iterator[FolderFacts]:
    """A folder of exactly what is to be published, the card aside: checked, cleaned, and of the kind asked for."""
    found = check_folder(folder, include)
    beside = folder.resolve().parent
    place = beside if os.access(beside, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=place) as temporary:
        staging = Path(temporary) / folder.resolve().name
        staging.mkdir()
        other = kind not in (None, found.kind)
        if other:
            _save_as(kind, found, staging)
        for name in found.files:
            if not other or is_asked_for(name, include):
                _link(folder / name, staging / name)
        (staging / CARD).unlink(missing_ok=True)
        (staging / HANDLER).write_bytes(handler_code())
        needs = staging / "requirements.txt"
        if needs.is_file() and needs.read_text(encoding="utf-8") != _REQUIREMENTS:
            found.left_out[needs.name] = "replaced by what the code needs"
        needs.write_text(_REQUIREMENTS, encoding="utf-8")
        texts = [path for path in sorted(staging.rglob("*")) if path.is_file() and path.suffix != ".py"]
        cleaned = [path.relative_to(staging).as_posix() for path in texts if clean_paths(path)]
        refuse_secrets({str(folder / path.relative_to(staging)): secret_of(path) for path in texts})
        facts = check_folder(staging, include)
        facts.left_out, facts.base_models, facts.cleaned = found.left_out, found.base_models, cleaned
        yield facts


def refuse_secrets(found: Mapping[str, str | None]) -> None:
    """Raise if a file, by its name, has what looks like a secret; the message names each file."""
    if lines := [f"{name}: {kind}" for name, kind in found.items() if kind]:
        raise PublishError(
            "nothing was published, for what looks like a secret or a trace of this machine. Remove it; a key that "
            "others may have seen should also be withdrawn.\n" + "\n".join(lines)
        )


def _save_as(kind: str | None, found: FolderFacts, staging: Path) -> None:
    if kind == "mixer":
        raise PublishError(
            f"{found.folder} is whole and does not name the source of its SAM and language model: save it with "
            "model.save_pretrained(..., include_base_models=False) where it was built or trained from repositories."
        )
    model = ScaForConditionalGeneration.from_pretrained(found.folder)
    model.save_pretrained(staging, include_base_models=True, max_shard_size=_SHARDS)
    ScaProcessor.from_pretrained(found.folder).save_pretrained(staging)


def _link(source: Path, target: Path) -> None:
    """Links weights, and copies what is small and may be written again here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".safetensors":
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def own_card(folder: Path) -> Path | None:
    """Return the folder's README.md, unless training wrote it as a draft to complete."""
    readme = folder / CARD
    return readme if readme.is_file() and not is_draft(readme) else None


def recipe_text(folder: Path) -> str | None:
    """Return the recipe that lies in a model's folder or, as training leaves it, beside it."""
    paths = (folder / "recipe.yaml", folder.resolve().parent / "recipe.yaml")
    return next((path.read_text(encoding="utf-8") for path in paths if path.is_file()), None)


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
                f"{folder} does not load in a fresh process, as others would load it:\n{done.stderr[-2000:]}"
            )
        alone = json.loads(result.read_text(encoding="utf-8"))
    model, processor = ScaForConditionalGeneration.from_pretrained(folder), ScaProcessor.from_pretrained(folder)
    model.check_processor(processor)
    here = describe_probe(model.eval(), processor)
    if not alone["module"].startswith("transformers_modules."):
        raise PublishError(f"the check of {folder} ran the code of {alone['module']}, not of the folder.")
    if alone["ids"] != here["ids"]:
        raise PublishError(
            f"{folder} captions the probe image with {alone['captions']} without this package, instead of "
            f"{here['captions']}: its code is not this package's."
        )
    return [caption for image in here["captions"] for caption in image]


def upload(
    api: HfApi,
    repo_id: str,
    folder: Path,
    repo_type: str = "model",
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Make a repository hold a folder, by one commit; returns the commit that first did.

    Files that the repository has already are not sent again, an interrupted upload's neither. Of its other files only
    documents, pictures and tables stay; what could be loaded or run is deleted by the same commit.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    additions = [CommitOperationAdd(name, str(path)) for name, path in paths.items()]
    there = _tree(api, repo_id, repo_type, "main")
    stale = [name for name in there if name not in paths and not is_inert(PurePosixPath(name))]
    if stale:
        say(f"deleting from {repo_id}, where others would load or run it: {', '.join(map(in_one_line, stale))}")
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
            raise PublishError(f"someone else changed {repo_id} in the meantime; nothing was overwritten.") from error
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
        raise PublishError(f"{repo_id} is missing {', '.join(absent)} after the upload; run the command again.")
    return found


def _tree(api: HfApi, repo_id: str, repo_type: str, revision: str) -> dict[str, Any]:
    entries = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=repo_type)
    return {entry.path: entry.blob_id for entry in entries if isinstance(entry, RepoFile)}


def check_folder(folder: Path, include: Sequence[str] = ()) -> FolderFacts:
    """Look at every file of a model's folder: what a repository of ours has is taken, all else is left out.

    Args:
        include: names or patterns of further files to take.

    Raises:
        PublishError: with the file and what to do.
    """
    if not (folder / "config.json").is_file():
        raise PublishError(f"{folder} holds no config.json: give the folder of a saved model.")
    check_settings_files(folder)
    facts = FolderFacts(folder, _config(folder))
    facts.base_models = dict(facts.config.base_model_repos or {})
    index = folder / "model.safetensors.index.json"
    own = {*NAMES, *_code_files(), HANDLER, *(check_shard_index(index) if index.is_file() else ())}
    for path in sorted(folder.rglob("*")):
        if path.is_file() or path.is_symlink():
            _take_or_leave(facts, path, own, include)
    for pattern in include:
        if not any(is_asked_for(name, [pattern]) for name in facts.files):
            raise PublishError(f"{folder} has no file {pattern!r} to include.")
    _check_code(facts)
    _check_processor(folder)
    _check_weights(facts)
    return facts


def check_base_repositories(facts: FolderFacts, api: HfApi, private: bool) -> dict[str, Any]:
    """Return the licence of each base model, None where unsaid.

    What a mixer-only folder names others must be able to fetch.

    Raises:
        PublishError: a base model is a folder, is not pinned to a commit, or cannot be found.
    """
    needed = facts.kind == "mixer"
    licences: dict[str, Any] = {}
    for name, source in facts.base_models.items():
        if "path" in source:
            if needed:
                raise PublishError(
                    f"{facts.folder} takes its {name} from {source['path']}, a folder that nobody else has: publish "
                    "with --kind whole, or publish that model first and load it from its repository."
                )
            continue
        where = f"{source['repo_id']} at {source['revision']}"
        if needed and not _COMMIT.fullmatch(source["revision"]):
            raise PublishError(f"{facts.folder} takes its {name} from {where}, which is not a commit and can change.")
        try:
            info = api.model_info(source["repo_id"], revision=source["revision"])
        except HfHubHTTPError as error:
            reason = "no such repository" if isinstance(error, RepositoryNotFoundError) else str(error)
            raise PublishError(
                f"{facts.folder} takes its {name} from {where}, which cannot be found: {reason}."
            ) from error
        if needed and info.private and not private:
            raise PublishError(f"{where} ({name}) is private: others could not load this model. Use --private.")
        licences[name] = getattr(info.card_data, "license", None)
    return licences


def handler_code() -> bytes:
    """What answers Inference Endpoints in every published repository."""
    return (resources.files("sca_hf.hub") / "templates" / HANDLER).read_bytes()


def _code_files() -> dict[str, Path]:
    """The files that travel with a model, by name, as this package has them."""
    folders = [Path(str(resources.files("sca_hf"))).resolve() / name for name in ("modeling", "processing")]
    return {path.name: path for folder in folders for path in folder.glob("*_sca.py")}


def _config(folder: Path) -> ScaConfig:
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise PublishError(f"{folder / 'config.json'} is not JSON: {error}.") from error
    kind = stored.get("model_type") if isinstance(stored, dict) else None
    if kind != ScaConfig.model_type:
        raise PublishError(f"{folder} is a {kind!r} model, not {ScaConfig.model_type!r}.")
    return ScaConfig.from_pretrained(folder)


def _take_or_leave(facts: FolderFacts, path: Path, own: Container[str], include: Sequence[str]) -> None:
    name = path.relative_to(facts.folder).as_posix()
    if name not in own and not is_asked_for(name, include):
        facts.left_out[name] = "not part of a saved model"
    # A checkout of this package has links to its own code beside the bundled weights.
    elif path.is_symlink() and path.resolve() not in _code_files().values():
        raise PublishError(f"{path} is a link to {path.readlink()}: publish copies, not links.")
    elif name not in own and path.suffix not in INCLUDABLE:
        raise PublishError(f"{path} cannot be included: only documents, pictures and tables, nothing to load or run.")
    else:
        facts.files.append(name)


def _check_code(facts: FolderFacts) -> None:
    """The copies must be this package's own: what people run must be what was reviewed and tested."""
    own = {**{name: path.read_bytes() for name, path in _code_files().items()}, HANDLER: handler_code()}
    copies = [name for name in facts.files if name.endswith(".py")]
    for name in copies:
        if name not in own:
            raise PublishError(f"{facts.folder / name} is not code of this package: remove it.")
        if (facts.folder / name).read_bytes() != own[name]:
            raise PublishError(
                f"{facts.folder / name} differs from this package's: it was saved by another version or changed. Load "
                "the model and save it again."
            )
    needed = _imported({"configuration_sca.py", "modeling_sca.py", "pipeline_sca.py", "processing_sca.py"})
    if absent := sorted(needed - set(copies)):
        raise PublishError(
            f"{facts.folder} is missing the code files {', '.join(absent)}: save model and processor with "
            "save_pretrained."
        )


def _imported(names: Iterable[str]) -> set[str]:
    """Those files and all they import, by the same rule as the library's copier."""
    from transformers.dynamic_module_utils import get_relative_imports

    found: set[str] = set()
    files = _code_files()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting += [f"{module}.py" for module in get_relative_imports(str(files[name]))]
    return found


def _check_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")):
        raise PublishError(f"{folder} has no processor: save it there with ScaProcessor.save_pretrained.")


def _check_weights(facts: FolderFacts) -> None:
    """Raises unless the weights can be read, and are numbers."""
    names = [name for name in facts.files if name.endswith(".safetensors")]
    index = facts.folder / "model.safetensors.index.json"
    if index.is_file():
        listed = check_shard_index(index)
        if absent := sorted(set(listed) - set(names)):
            raise PublishError(f"{index} lists {', '.join(absent)}, missing from {facts.folder}.")
    elif "model.safetensors" not in names:
        raise PublishError(f"{facts.folder} holds no model.safetensors.")
    for name in names:
        for key, tensor in _tensors(facts.folder / name):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise PublishError(f"{facts.folder / name}: {key} holds values that are not finite numbers.")


def _tensors(path: Path) -> Iterable[tuple[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise PublishError(f"{path} cannot be read: {error}.") from error
