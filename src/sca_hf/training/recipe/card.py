"""The first draft of a model card: what is known of a run, for its author to complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from ...hub.info import describe_repository
from ...yaml_files import write_yaml
from .schema import Recipe


_CARD = Template("""\
---
$head---

# $name

A [Segment and Caption Anything](https://arxiv.org/abs/2312.00869) model: point, box or mask in; mask and caption out.
Trained with sca-hf. To complete before publishing: what it is for, what it was trained on and under which licences
(those of SAM and of the language model count too), where it fails.

```python
from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH_OR_REPOSITORY", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("PATH_OR_REPOSITORY", trust_remote_code=True)
inputs = processor(Image.open("image.jpg"), input_boxes=[[10, 20, 110, 140]], return_tensors="pt")
print(processor.batch_decode(model.generate(**inputs)))
```

## Parts

```
$parts
```

## Scores

$scores

## Recipe

```yaml
$recipe```
""")


def run_card(folder: Path, recipe: Recipe, metrics: Mapping[str, Any]) -> str:
    """The card of a finished model.

    Args:
        folder: of the saved model.
        metrics: as in `metrics.json`.
    """
    bases = [
        source["repo_id"]
        for source in (describe_bases(folder) or {}).values()
        if "repo_id" in source  # a folder's name says nothing to others
    ]
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-to-text"}
    head["tags"] = ["sca-hf", "segment-and-caption-anything", "region-captioning"]
    if bases:
        head["base_model"] = bases
    scores = plain_scores(metrics)
    rows = ["| score | value |", "| --- | --- |"]
    rows += [f"| {key.removeprefix('eval_').replace('_', ' ')} | {value:.4f} |" for key, value in scores.items()]
    return _CARD.substitute(
        head=write_yaml(head),
        name=Path(recipe.output).name,
        parts=str(describe_repository(str(folder))).split("\n", 1)[1],
        scores="\n".join(["| score | value |", "| --- | --- |", *rows])
        if rows
        else "The recipe has no evaluation set.",
        recipe=recipe.to_yaml(),
    )


def plain_scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What evaluation says of the model, without what it says of speed."""
    speed = ("_runtime", "_per_second")
    scores = {key: value for key, value in metrics.get("eval", {}).items() if key.startswith("eval_")}
    return {key: value for key, value in scores.items() if isinstance(value, float) and not key.endswith(speed)}


def describe_bases(folder: Path) -> dict[str, dict[str, str]] | None:
    """Where a mixer-only repository takes its bases from."""
    from ...modeling.configuration_sca import ScaConfig

    return ScaConfig.from_pretrained(folder).base_model_repos
