"""Model cards: a Markdown template, filled from the model's own files and from evaluation files, by no hand.

A template begins with a head between `---` lines, as the Hub reads it, for what only a person knows: `license`,
`language`, `datasets`, `licenses` of the frozen parts (`sam`, `language_model`). Everything else of the head is filled
in. In its text stand `$name`, `$repo_id`, `$revision`, `$snippet`, `$parts`, `$memory`, `$bases`, `$licences`,
`$scores` and `$training`; another `$field` is an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..modeling.base_models_sca import BASE_MODELS
from ..modeling.configuration_sca import ScaConfig
from .info import RepositoryInfo, describe_repository


CARD = "README.md"
TASK = "image-text-to-text"
_TAGS = ["sca-hf", "segment-and-caption-anything", "region-captioning", "segment-anything"]
_HEAD = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*\n(.*)\Z", re.DOTALL)
# An absolute path, as Linux, a Mac or Windows writes it.
_FOLDERS = re.compile(r"(?<![\w./:~-])(?:[A-Za-z]:)?[/~\\][^\s'\",\]}]*[/\\]([^\s/\\'\",\]}]+)")
_EVALUATION = {"n": int, "protocol": str, "tokenizer": str, "command": str, "versions": Mapping, "metrics": Mapping}
_SNIPPET = """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("$repo_id", trust_remote_code=True, revision="$revision")
processor = AutoProcessor.from_pretrained("$repo_id", trust_remote_code=True, revision="$revision")
inputs = processor("image.png", input_boxes=[[31, 25, 99, 103], [86, 62, 180, 155]])
print(processor.batch_decode(model.generate(**inputs)))
```"""


def card_text(
    folder: Path,
    repo_id: str,
    revision: str,
    template: Path | None = None,
    fill: bool = True,
    evaluations: Sequence[Path] = (),
    bases: Mapping[str, Mapping[str, str]] | None = None,
    licences: Mapping[str, Any] | None = None,
    recipe: Path | None = None,
) -> str:
    """The card of a model.

    Args:
        folder: of the saved model.
        repo_id: where it is or will be.
        revision: commit that holds all that loads it.
        template: Markdown file, see above; None takes our own.
        fill: False keeps the template's text as it is, whatever stands in it; only its head is completed.
        evaluations: files of `sca-hf evaluate --json`.
        bases: where SAM and the language model came from; None takes what the folder's configuration says.
        licences: of those, by `"sam"` and `"language_model"`; None: unsaid.
        recipe: that the model was trained by.

    Raises:
        ValueError: a template or an evaluation file is not as it must be.
    """
    source = template or Path(str(resources.files("sca_hf.hub") / "templates" / "card.md"))
    head, body = _split(source, head_needed=fill)
    results = [read_evaluation(path) for path in evaluations]
    info, config = describe_repository(str(folder)), ScaConfig.from_pretrained(folder)
    bases = (config.base_model_repos or {}) if bases is None else bases
    bases = {part: bases[part] for part in BASE_MODELS if "repo_id" in bases.get(part, {})}
    frozen = {**(licences or {}), **head.get("licenses", {})}
    for licence in (head.get("license"), *frozen.values()):
        if not all(isinstance(one, str | None) for one in (licence if isinstance(licence, list) else [licence])):
            raise ValueError(f"{source}: the licence {licence!r} is neither a name nor a list of names.")
    names = {"name": repo_id.split("/")[-1], "repo_id": repo_id, "revision": revision}
    fields = {
        **names,
        "snippet": Template(_SNIPPET).substitute(names),
        "parts": parts_table(info),
        "memory": memory_table(info),
        "bases": _bases(bases, mixer_only=bool(config.base_model_repos)),
        "licences": _licences(info, head.get("license"), frozen),
        "scores": "\n\n".join(map(_scores, results)) or "Not evaluated.",
        "training": _training(recipe),
    }
    try:
        text = Template(body).substitute(fields) if fill else body
    except (KeyError, ValueError) as error:
        raise ValueError(f"{source} asks for {error}; known are {', '.join(sorted(fields))}.") from None
    data = _data(head, bases, names["name"], frozen, results)
    card = f"---\n{data.to_yaml()}\n---\n{text}"
    ModelCard(card)  # reads the head as the Hub's client does, and raises where it cannot
    return card


def read_evaluation(path: Path) -> dict[str, Any]:
    """An evaluation file, as `sca-hf evaluate --json` writes it: checked, scores as they stand there."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    for name, kind in _EVALUATION.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise ValueError(f"{path} is no evaluation: it needs {', '.join(_EVALUATION)}, and {name!r} is not there.")
    for name, value in content["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{path}: the score {name!r} is {value!r}, not a number.")
    return content


def parts_table(info: RepositoryInfo) -> str:
    """Markdown table of a model's parts with their trainable and frozen parameters."""
    rows = [[p.name, p.description, f"{p.trainable:,}", f"{p.parameters - p.trainable:,}"] for p in info.parts]
    total, trainable = (sum(getattr(part, key) for part in info.parts) for key in ("parameters", "trainable"))
    return markdown_rows(
        ["part", "what", "trainable", "frozen"], [*rows, ["total", "", f"{trainable:,}", f"{total - trainable:,}"]]
    )


def memory_table(info: RepositoryInfo) -> str:
    """Markdown table of what the weights take in memory, by part and precision."""
    rows = [[p.name, *(f"{p.parameters * size / 2**20:,.1f} MiB" for size in (4, 2))] for p in info.parts]
    total = sum(part.parameters for part in info.parts)
    rows.append(["total", *(f"{total * size / 2**20:,.1f} MiB" for size in (4, 2))])
    return markdown_rows(["weights", "float32", "half precision"], rows)


def markdown_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])


def _split(path: Path, head_needed: bool) -> tuple[dict[str, Any], str]:
    """Head and body of a template."""
    import yaml

    text = path.read_text(encoding="utf-8")
    found = _HEAD.match(text)
    if found is None and not head_needed:
        return {}, f"\n{text}"
    if found is None:
        raise ValueError(f"{path} must begin with a head between two lines of ---.")
    try:
        head = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the head of {path} is not YAML: {error}.") from error
    if not isinstance(head, dict) or not isinstance(head.get("licenses", {}), dict):
        raise ValueError(f"the head of {path} must be a mapping, and `licenses` in it one of parts to licences.")
    return head, found[2]


def _data(
    head: Mapping[str, Any],
    bases: Mapping[str, Mapping[str, str]],
    name: str,
    licences: Mapping[str, Any],
    evaluations: Sequence[Mapping[str, Any]],
) -> ModelCardData:
    own = dict(head)
    pins = {source["repo_id"]: source["revision"] for source in bases.values()}
    named = own.pop("base_model", None) or list(pins) or None
    tags = [*own.pop("tags", []), *_TAGS]
    if stated := {part: licence for part, licence in licences.items() if licence}:
        own["licenses"] = stated
    if pins:
        own["base_model_revisions"] = pins
    results = [result for evaluation in evaluations for result in evaluation_results(evaluation)]
    if results:
        # The library makes the index of these, and would not overwrite a template's.
        own.pop("model-index", None)
        own |= {"eval_results": results, "model_name": name}
    defaults = {"library_name": "transformers", "pipeline_tag": TASK}
    return ModelCardData(base_model=named, tags=list(dict.fromkeys(tags)), **{**defaults, **own})


def evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """The scores of an evaluation as the Hub's model index has them."""
    source = evaluation.get("source") or {}
    return [
        EvalResult(
            task_type=TASK,
            task_name="region captioning",
            dataset_type=_slug(evaluation["protocol"]),
            dataset_name=f"{evaluation['protocol']}, {evaluation['n']:,} regions",
            dataset_args={"regions": evaluation["n"]},
            metric_type=_slug(name),
            metric_name=name,
            metric_value=value,
            metric_args={"tokenizer": evaluation["tokenizer"], "command": evaluation["command"]},
            source_name=source.get("name"),
            source_url=source.get("url"),
        )
        for name, value in evaluation["metrics"].items()
    ]


def _scores(evaluation: Mapping[str, Any]) -> str:
    rows = [[name, f"{value:.4g}"] for name, value in evaluation["metrics"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    made = f"Made by `{evaluation['command']}`" + (f" with {versions}." if versions else ".")
    return (
        f"Protocol {evaluation['protocol']}, {evaluation['n']:,} regions, tokenizer {evaluation['tokenizer']}.\n\n"
        f"{markdown_rows(['metric', 'score'], rows)}\n\n{made}"
    )


def _bases(bases: Mapping[str, Mapping[str, str]], mixer_only: bool) -> str:
    rows = [
        f"- {part.replace('_', ' ')}: `{source['repo_id']}` at `{source['revision']}`"
        for part, source in bases.items()
    ]
    if not rows:
        return "Everything is in this repository."
    title = "Everything is in this repository. It was made of:"
    if mixer_only:
        title = "This repository holds what was trained. The rest is fetched, at exactly these revisions:"
    return "\n".join([title, "", *rows])


def _licences(info: RepositoryInfo, own: Any, frozen: Mapping[str, Any]) -> str:
    stated = {"SAM": frozen.get("sam"), "language model": frozen.get("language_model"), "mixer": own}
    rows = []
    for part in info.parts:
        licence = stated.get(part.name) or "not stated by its author"
        # The Hub's head admits several.
        text = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
        rows.append([part.name, "trained" if part.trainable else "frozen", text])
    return markdown_rows(["part", "", "licence"], rows)


def _training(recipe: Path | None) -> str:
    """The recipe; of folders of the machine where it ran, the last name alone."""
    if recipe is None:
        return "Not described."
    text = _FOLDERS.sub(r".../\1", recipe.read_text(encoding="utf-8").strip())
    return f"With sca-hf, by this recipe:\n\n```yaml\n{text}\n```"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
