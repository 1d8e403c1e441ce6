"""What the head of every model card of this package says, in the words that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData


PIPELINE_TAG = "image-text-to-text"
TAGS = ("sca-hf", "segment-and-caption-anything", "region-captioning", "segment-anything")
# A card with this key is one that training wrote, for its author to complete; `sca-hf publish` writes its own instead.
DRAFT = "draft"


def card_head(name: str | None = None, results: Sequence[EvalResult] = (), **fields: Any) -> str:
    """Return the head of a card between its `---` lines.

    Args:
        name: name of the model in the index of scores.
        results: scores for that index; none leaves a `model-index` among the fields as it is.
        fields: further keys; `tags` are joined by those of every model of this package.
    """
    own = {"library_name": "transformers", "pipeline_tag": PIPELINE_TAG, **fields}
    own["tags"] = list(dict.fromkeys([*own.get("tags", []), *TAGS]))
    if results:
        # The library makes the index of these, and would not overwrite a template's.
        own.pop("model-index", None)
        own |= {"eval_results": list(results), "model_name": name}
    return f"---\n{ModelCardData(**own).to_yaml().strip()}\n---\n"


def index_of_scores(name: str, results: Sequence[EvalResult]) -> str:
    """Return the `model-index` of a card, between `---` lines, to be put into a head."""
    return f"---\n{ModelCardData(model_name=name, eval_results=list(results)).to_yaml().strip()}\n---\n"


def score_results(
    scores: Mapping[str, float],
    dataset: str,
    dataset_type: str,
    regions: int | None = None,
    task_name: str = "region captioning",
    metric_args: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[EvalResult]:
    """Return the scores on one data set as the Hub's index has them.

    Args:
        scores: value of each metric by its name.
        dataset: name of the data set, for people.
        dataset_type: name of the data set, for programs.
        regions: number of regions that were scored.
        task_name: what the model was asked for.
        metric_args: how the metrics were computed.
        more: further fields of `EvalResult`.
    """
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name=task_name,
            dataset_type=slug(dataset_type),
            dataset_name=dataset if regions is None else f"{dataset}, {regions:,} regions",
            dataset_args=None if regions is None else {"regions": regions},
            metric_type=slug(name),
            metric_name=name,
            metric_value=value,
            metric_args=None if metric_args is None else dict(metric_args),
            **more,
        )
        for name, value in scores.items()
    ]


def markdown_rows(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the cells are texts, which show as they are."""
    shown = [list(map(markdown_text, row)) for row in [titles, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [shown[0], ["---"] * len(titles), *shown[1:]])


def markdown_text(text: str) -> str:
    """Return a text, of whoever it is, that Markdown shows as it is, in one line and without controls."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return re.sub(r"([\\`*_\[\]|<>~])", r"\\\1", plain).replace("&", "&amp;")


def markdown_code(text: str, language: str | None = None) -> str:
    """Return a text as code of Markdown, on its line or, with a language, in a block, which it cannot end itself."""
    fence = "`" * max(1 if language is None else 3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    if language is not None:
        return f"{fence}{language}\n{text}\n{fence}"
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"


def slug(name: str) -> str:
    """Return a name in lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
