"""Model cards: a Markdown template, filled from the model's own files and from evaluation files, nothing by hand.

A template begins with a head between `---` lines, as the Hub reads it, for what only a person knows: `license`,
`language`, `datasets`, `licenses` of the frozen parts (`sam`, `language_model`). Everything else of the head is filled
in. In its text stand `$name`, `$repo_id`, `$revision`, `$intro`, `$snippet`, `$parts`, `$memory`, `$base_models`,
`$licences`, `$scores` and `$training`; another `$field` is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from ..card_metadata import DRAFT, card_head, markdown_code, markdown_rows, markdown_text, score_results
from ..evaluation.naming import leading
from ..files import read_json
from ..modeling.base_models_sca import BASE_MODELS
from ..modeling.configuration_sca import ScaConfig
from ..yaml_files import parse_yaml
from .info import RepositoryInfo, describe_repository, scope_lines
from .private import without_paths


CARD = "README.md"
_HEAD = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*\n(.*)\Z", re.DOTALL)
_EVALUATION = {
    **{"n": int, "protocol": str | None, "tokenizer": str, "command": str},
    **{"versions": Mapping, "metrics": Mapping},
}
_SNIPPET = """\
```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("$repo_id", trust_remote_code=True$pin)
processor = AutoProcessor.from_pretrained("$repo_id", trust_remote_code=True$pin)
inputs = processor("image.png", input_boxes=[[31, 25, 99, 103], [86, 62, 180, 155]])
print(processor.batch_decode(model.generate(**inputs)))
```"""
_PINNED = "\n\n`revision` pins the files that were checked when this card was written, the code among them."
_INTRO = """\
A [Segment and Caption Anything](https://arxiv.org/abs/2312.00869) model: a point, a box or a mask in, a mask and a
caption out."""
_DRAFT_NOTE = """\
This card is a draft, as training wrote it. To complete: what the model is for, what it was trained on and under which
licences (those of SAM and of the language model count too), where it fails. Then remove `draft: true` from the head:
as long as it stands there, `sca-hf publish` writes a card of its own."""


def card_text(
    folder: Path,
    repo_id: str,
    revision: str | None,
    template: Path | None = None,
    fill: bool = True,
    evaluations: Sequence[Path] = (),
    base_models: Mapping[str, Mapping[str, str]] | None = None,
    licences: Mapping[str, Any] | None = None,
    recipe: str | None = None,
) -> str:
    """Return the card of a published model.

    Args:
        folder: folder of the saved model.
        repo_id: repository where it is or will be.
        revision: commit that holds all that loads it; None pins nothing.
        template: Markdown file, see above; None takes our own.
        fill: False keeps the template's text as it is, whatever stands in it; only its head is completed.
        evaluations: files of `sca-hf evaluate --json`.
        base_models: where SAM and the language model came from; None takes what the folder's configuration says.
        licences: licences of those, by `"sam"` and `"language_model"`; None: unsaid.
        recipe: text of the recipe that the model was trained by.

    Raises:
        ValueError: a template or an evaluation file is not as it must be.
    """
    found = [read_evaluation(path) for path in evaluations]
    card = _Card(folder, repo_id, revision, base_models, licences)
    scores = "\n\n".join(map(_scores, found)) or "Not evaluated."
    results = [result for evaluation in found for result in evaluation_results(evaluation)]
    return card.render(template, fill, {"scores": scores, "training": _training(recipe)}, results)


def draft_card(folder: Path, name: str, scores: Mapping[str, float], recipe: str, note: str | None = None) -> str:
    """Return the card that training leaves beside a model: what is known of the run, for its author to complete.

    Args:
        folder: folder of the saved model.
        name: name of the model.
        scores: scores of the last evaluation by their names; empty where the recipe has no evaluation set.
        recipe: text of the recipe.
        note: sentence on how to read the scores.
    """
    rows = [[key.removeprefix("eval_").replace("_", " "), f"{value:.4f}"] for key, value in scores.items()]
    fields = {
        "name": name,
        "intro": f"{_INTRO}\n\n{_DRAFT_NOTE}",
        "scores": _scores_table("score", "value", rows, note) if rows else "The recipe has no evaluation set.",
        "training": _training(recipe),
    }
    return _Card(folder, "PATH_OR_REPOSITORY", None, None, None).render(None, True, fields, [], **{DRAFT: True})


def is_draft(readme: Path) -> bool:
    """Whether a card says in its head that training wrote it as a draft."""
    return split_card(readme, head_needed=False)[0].get(DRAFT) is True


@dataclass(frozen=True)
class _Card:
    """What is known of a model before anybody says anything of it."""

    folder: Path
    repo_id: str
    revision: str | None
    base_models: Mapping[str, Mapping[str, str]] | None
    licences: Mapping[str, Any] | None

    def render(
        self,
        template: Path | None,
        fill: bool,
        more: Mapping[str, str],
        results: Sequence[EvalResult],
        **head_fields: Any,
    ) -> str:
        """Return the filled template; `more` are fields of its text, and `head_fields` keys of its head."""
        source = template or Path(str(resources.files("sca_hf.hub") / "templates" / "card.md"))
        head, body = split_card(source, head_needed=fill)
        frozen = {**(self.licences or {}), **head.get("licenses", {})}
        for licence in (head.get("license"), *frozen.values()):
            if not all(isinstance(one, str | None) for one in (licence if isinstance(licence, list) else [licence])):
                raise ValueError(f"{source}: the licence {licence!r} is neither a name nor a list of names.")
        config = ScaConfig.from_pretrained(self.folder)
        if template is None and (spoken := (config.scope or {}).get("languages")):
            # The Hub knows languages, not their scripts and regions.
            head["language"] = list(dict.fromkeys(tag.split("-")[0] for tag in spoken))
        named = (config.base_model_repos or {}) if self.base_models is None else self.base_models
        named = {part: named[part] for part in BASE_MODELS if "repo_id" in named.get(part, {})}
        name = self.repo_id.split("/")[-1]
        if fill:
            fields = self._fields(head.get("license"), frozen, named, bool(config.base_model_repos))
            body = fill_template(source, body, {"name": name, **fields, **more})
        card = card_head(name, results, **_head_fields({**head, **head_fields}, named, frozen)) + body
        ModelCard(card)  # reads the head as the Hub's client does, and raises where it cannot
        return card

    def _fields(
        self, licence: Any, frozen: Mapping[str, Any], named: Mapping[str, Mapping[str, str]], mixer_only: bool
    ) -> dict[str, str]:
        info = describe_repository(str(self.folder))
        pin = "" if self.revision is None else f', revision="{self.revision}"'
        return {
            "repo_id": self.repo_id,
            "revision": self.revision or "main",
            "intro": _INTRO,
            "snippet": Template(_SNIPPET).substitute(repo_id=self.repo_id, pin=pin) + (_PINNED if pin else ""),
            "scope": _scope(info.scope),
            "parts": parts_table(info),
            "memory": memory_table(info),
            "base_models": _base_models(named, mixer_only),
            "licences": _licences(info, licence, frozen),
        }


def fill_template(source: Path, text: str, fields: Mapping[str, str]) -> str:
    """Return the text of a template with its `$fields` filled in; one that is not known is an error."""
    try:
        return Template(text).substitute(fields)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{source} uses {error}; known fields are {', '.join(sorted(fields))}.") from None


def read_evaluation(path: Path) -> dict[str, Any]:
    """An evaluation file, as `sca-hf evaluate --json` writes it: checked, scores as they stand there."""
    content = read_json(path)
    for name, kind in _EVALUATION.items():
        if not isinstance(content, dict) or name not in content or not isinstance(content[name], kind):
            raise ValueError(f"{path} is not an evaluation: it needs {', '.join(_EVALUATION)}; {name!r} is not there.")
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


def split_card(path: Path, head_needed: bool = True) -> tuple[dict[str, Any], str]:
    """Return head and text of a card or template."""
    text = path.read_text(encoding="utf-8")
    found = _HEAD.match(text)
    if found is None and not head_needed:
        return {}, f"\n{text}"
    if found is None:
        raise ValueError(f"{path} must begin with metadata between two lines of ---.")
    try:
        head = parse_yaml(found[1]) or {}
    except ValueError as error:
        raise ValueError(f"the metadata of {path} is not YAML: {error}.") from None
    if not isinstance(head, dict) or not isinstance(head.get("licenses", {}), dict):
        raise ValueError(
            f"the metadata of {path} must be a mapping, and its `licenses` a mapping of parts to licences."
        )
    return head, found[2]


def _head_fields(
    head: Mapping[str, Any], named: Mapping[str, Mapping[str, str]], licences: Mapping[str, Any]
) -> dict[str, Any]:
    """The head of a template, completed by what the model says of its base models."""
    fields = dict(head)
    pins = {source["repo_id"]: source["revision"] for source in named.values()}
    fields["base_model"] = fields.get("base_model") or list(pins) or None
    if stated := {part: licence for part, licence in licences.items() if licence}:
        fields["licenses"] = stated
    if pins:
        fields["base_model_revisions"] = pins
    return fields


def evaluation_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    """Return the scores of an evaluation as the Hub's model index has them."""
    source = evaluation.get("source") or {}
    return score_results(
        _ordered(evaluation),
        measured_on(evaluation),
        measured_on(evaluation),
        evaluation["n"],
        metric_args={"tokenizer": evaluation["tokenizer"], "command": evaluation["command"]},
        source_name=source.get("name"),
        source_url=source.get("url"),
    )


def measured_on(evaluation: Mapping[str, Any]) -> str:
    """Return the protocol of an evaluation or, without one, the data's own name, without the folders it lies in."""
    if evaluation["protocol"] is not None:
        return str(evaluation["protocol"])
    data = ((evaluation.get("run") or {}).get("settings") or {}).get("data") or {}
    place = data.get("root") or data.get("annotations") or data.get("path") or data.get("format") or "unnamed data"
    return PurePath(str(place)).name


def _scores(evaluation: Mapping[str, Any]) -> str:
    kind = "Data" if evaluation["protocol"] is None else "Protocol"
    rows = [[name, f"{value:.4g}"] for name, value in _ordered(evaluation).items()]
    table = _scores_table("metric", "score", rows, _names_note(evaluation))
    versions = ", ".join(f"{name} {version}" for name, version in evaluation["versions"].items())
    made = f"Made by {markdown_code(evaluation['command'])}" + (
        f" with {markdown_text(versions)}." if versions else "."
    )
    data, tokenizer = markdown_text(measured_on(evaluation)), markdown_text(str(evaluation["tokenizer"]))
    return f"{kind} {data}, {evaluation['n']:,} regions, tokenizer {tokenizer}.\n\n{table}\n\n{made}"


def _names_note(evaluation: Mapping[str, Any]) -> str | None:
    return (evaluation.get("notes") or {}).get("names")


def _ordered(evaluation: Mapping[str, Any]) -> Mapping[str, float]:
    return leading(evaluation["metrics"]) if _names_note(evaluation) else evaluation["metrics"]


def _scores_table(name: str, value: str, rows: Sequence[Sequence[str]], note: str | None) -> str:
    """A table, and below it how to read it."""
    table = markdown_rows([name, value], rows)
    return f"{table}\n\n{markdown_text(note)}" if note else table


def _base_models(named: Mapping[str, Mapping[str, str]], mixer_only: bool) -> str:
    rows = [
        f"- {part.replace('_', ' ')}: `{source['repo_id']}` at `{source['revision']}`"
        for part, source in named.items()
    ]
    if not rows:
        return "Everything is in this repository."
    title = "Everything is in this repository. It was built from:"
    if mixer_only:
        title = "This repository has the trained weights. The rest is downloaded, at exactly these revisions:"
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


def _scope(scope: Mapping[str, Any]) -> str:
    lines = [f"- {markdown_text(line[:1].upper() + line[1:])}" for line in scope_lines(scope)]
    return "\n".join(lines) or "Its configuration has no `scope`: what it was trained on is not recorded."


def _training(recipe: str | None) -> str:
    """The recipe; of folders of the machine where it ran, the last name alone."""
    if recipe is None:
        return "Not described."
    shown = without_paths(recipe.strip(), whole=True)
    return f"With sca-hf, from this recipe:\n\n{markdown_code(shown, 'yaml')}"
