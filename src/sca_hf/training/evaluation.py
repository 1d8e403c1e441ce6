"""Evaluation by generation: what the model says of every region of the evaluation set, against what it should say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset

from ..data.notes import in_language
from ..data.region import record_image
from ..drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from ..evaluation.metrics import cider_d, exact_match, tokenize
from ..evaluation.metrics import in_language as is_in_language
from ..evaluation.metrics.rouge import words
from ..evaluation.naming import are_names, true_name
from ..files import save_picture
from ..modeling.losses_sca import caption_loss
from ..processing.captions_sca import best_caption


@dataclass
class Prediction:
    """What a model said of one region.

    Attributes:
        record, region: The positions of the image in the evaluation set and of the region in its record.
        task: "recognition" or "caption".
        caption: The text that the model generated.
        score: The caption's mean log-probability per token.
        references: The texts of the region, in the caption's language where it has one; any of them is right.
        category: The region's name, if it has one.
        language: That the caption was asked for in, a tag; None: in none.
    """

    record: int
    region: int
    task: str
    caption: str
    score: float
    references: list[str]
    category: str | None = None
    language: str | None = None


class IndexedRecords(Dataset):
    """Records with their positions, so that what a batch says can be led back to them whatever the process.

    Args:
        records: The records by index, with their truth and their images.
        inputs: The same records as the collator gets them, from a cache of embeddings. None takes `records`.
    """

    def __init__(self, records: Any, inputs: Any = None) -> None:
        self.records, self.inputs = records, records if inputs is None else inputs
        columns = getattr(records, "column_names", None)
        # A row of `datasets` would open its image.
        self.truth = records.remove_columns(["image"]) if columns and "image" in columns else records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.inputs[index]


@dataclass
class IndexedCollator:
    """Collates records of [`IndexedRecords`]; the batch has `record_index` (B,) beside what `collator` makes."""

    collator: Callable[[Sequence[Any]], Mapping[str, Any]]

    def __call__(self, records: Sequence[tuple[int, Any]]) -> dict[str, Any]:
        batch = self.collator([record for _, record in records])
        return {**batch, "record_index": torch.tensor([index for index, _ in records])}


def _references(region: Mapping[str, Any], task: str, language: str | None = None) -> list[str]:
    if language is not None:
        (region,) = in_language({"task": task, "regions": [region]}, language)["regions"] or [region]
    return list(region["captions"]) if task == "caption" else [region.get("category") or ""]


def asks_for_names(dataset: IndexedRecords, task: str | None) -> bool:
    """Whether the references of all regions of an evaluation set are class names, see `evaluation.naming`.

    Args:
        dataset: The evaluation set.
        task: "recognition" or "caption" in place of each record's own, or None.
    """
    rows = (dataset.truth[index] for index in range(len(dataset)))
    return are_names(
        Prediction(-1, -1, asked, "", 0.0, _references(region, asked), region.get("category"))
        for asked, row in ((task or row["task"], row) for row in rows)
        for region in row["regions"]
    )


def with_embeddings(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a batch with its images encoded, so that a loss and captions need not both encode them."""
    if "pixel_values" not in inputs:
        return inputs
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    return rest | model.encode_images(inputs["pixel_values"]).as_inputs()


def first_records(dataset: Any, count: int | None) -> Any:
    """The first records of a data set, by index; a streamed one is read into a list."""
    if not hasattr(dataset, "__len__"):
        if count is None:
            raise ValueError("a streamed eval_dataset has no known length: set max_eval_samples.")
        return list(islice(dataset, count))
    if count is None or count >= len(dataset):
        return dataset
    return dataset.select(range(count)) if hasattr(dataset, "select") else [dataset[k] for k in range(count)]


class EvalAccumulator:
    """What one process has seen of an evaluation: losses and captions of records, each once in the end.

    Several processes get some records twice, to make their batches equally many; those count once.
    """

    def __init__(self, records: Any, task: str | None, label_smoothing: float) -> None:
        self.records, self.task, self.label_smoothing = records, task, label_smoothing
        self.outputs: Any = None
        self._losses: dict[int, tuple[float, int]] = {}
        self._mask_losses: dict[int, tuple[float, int]] = {}
        self._predictions: dict[int, list[Prediction]] = {}

    def add_losses(self, indices: Sequence[int], labels: torch.Tensor, mask_labels: torch.Tensor | None) -> None:
        """Takes the losses of a batch from the model's `outputs`.

        Args:
            indices: B positions in the records.
            labels: (B, R, T).
            mask_labels: (B, R, k 4h, k 4w), or None.
        """
        outputs = self.outputs
        for row, index in enumerate(indices):
            target, logits = labels[row], outputs.logits[row]
            if logits.ndim > target.ndim + 1:  # several caption heads
                target = target.unsqueeze(1).expand(logits.shape[:-1])
            total = caption_loss(logits, target, self.label_smoothing, num_items=1)
            self._losses[index] = float(total), int((target != -100).sum())
            if mask_labels is not None and outputs.mask_losses is not None:
                known = ~mask_labels[row][:, 0, 0].isnan() & (labels[row] != -100).any(dim=-1)
                self._mask_losses[index] = float(outputs.mask_losses[row][known].sum()), int(known.sum())

    def add_captions(
        self,
        indices: Sequence[int],
        captions: Sequence[Sequence[Any]],
        scores: torch.Tensor,
        languages: Sequence[Sequence[str | None]],
    ) -> None:
        """Pairs the captions of a batch with the truth.

        Args:
            captions: The captions of B images, each with a caption per region, or with several.
            scores: (B, R), or (B, R, n) for n captions per region, of which the best counts.
            languages: Of B images, that each region's caption was asked for in, None for none.
        """
        told = zip(captions, scores.tolist(), strict=True)
        best = [[best_caption(*said) for said in zip(*image, strict=False)] for image in told]
        for row, index in enumerate(indices):
            record = self.records[index]
            task = self.task or record["task"]
            self._predictions[index] = [
                Prediction(
                    record=index,
                    region=k,
                    task=task,
                    caption=said[0],
                    score=said[1],
                    references=_references(region, task, language),
                    category=region.get("category"),
                    language=language,
                )
                for k, (region, said, language) in enumerate(
                    zip(record["regions"], best[row], languages[row][: len(best[row])], strict=True)
                )
            ]

    def gather(self, mask_loss_weight: float = 0.0) -> tuple[list[Prediction], dict[str, float]]:
        """Joins what all processes have seen: predictions in the order of the records, and exact mean losses."""
        parts = gather_object([(self._losses, self._mask_losses, self._predictions)])
        losses, mask_losses, predictions = (
            {k: v for part in kind for k, v in part.items()} for kind in zip(*parts, strict=True)
        )
        means = {"caption_loss": _mean(losses), "mask_loss": _mean(mask_losses)}
        known = {name: value for name, value in means.items() if value is not None}
        if known:
            known["loss"] = known.get("caption_loss", 0.0) + mask_loss_weight * known.get("mask_loss", 0.0)
        return [p for _, said in sorted(predictions.items()) for p in said], known


def _mean(sums: Mapping[int, tuple[float, int]]) -> float | None:
    """The mean over tokens or regions, in the order of the records, so that no layout changes its rounding."""
    totals = [sums[index][0] for index in sorted(sums)]
    count = sum(count for _, count in sums.values())
    return sum(totals) / count if count else None


def score_predictions(predictions: Sequence[Prediction]) -> dict[str, float]:
    """CIDEr-D (0 to 10), exact match, and where regions have names, accuracy and macro recall of naming.

    Captions are compared by the tokens of their language; those that were asked for in a language also by themselves,
    `cider_d_de`, and `in_language` is the share of captions in the one that was asked for. Naming is scored where a
    region's category is what the model should say of it, in lower case without punctuation; macro recall is the mean
    over categories. These two lead where all references are class names.
    """
    if not predictions:
        return {}
    candidates = [tokenize(p.caption, p.language) for p in predictions]
    references = [[tokenize(text, p.language) for text in p.references] for p in predictions]
    metrics = {
        "cider_d": cider_d(candidates, references)["corpus"],
        "exact_match": exact_match(candidates, references)["corpus"],
        **_by_language(predictions, candidates, references),
    }
    of_names = are_names(predictions)
    hits: dict[tuple[str, ...], list[bool]] = {}
    for prediction in predictions:
        name = words(true_name(prediction) if of_names else prediction.category or "")
        if name and name in [words(text) for text in prediction.references]:
            hits.setdefault(tuple(name), []).append(words(prediction.caption) == name)
    if not hits:
        return metrics
    naming = {
        "naming_accuracy": sum(map(sum, hits.values())) / sum(map(len, hits.values())),
        "naming_macro_recall": sum(sum(h) / len(h) for h in hits.values()) / len(hits),
    }
    return naming | dict(reversed(metrics.items())) if of_names else metrics | naming


def _by_language(
    predictions: Sequence[Prediction], candidates: Sequence[list[str]], references: Sequence[list[list[str]]]
) -> dict[str, float]:
    """The scores of captions that were asked for in a language."""
    metrics: dict[str, float] = {}
    right: list[bool] = []
    for tag in dict.fromkeys(p.language for p in predictions if p.language):
        own = [k for k, prediction in enumerate(predictions) if prediction.language == tag]
        metrics[f"cider_d_{tag}"] = cider_d([candidates[k] for k in own], [references[k] for k in own])["corpus"]
        known = {token for k in own for tokens in references[k] for token in tokens}
        right += [is_in_language(predictions[k].caption, tag, known) for k in own]
    return metrics | ({"in_language": sum(right) / len(right)} if right else {})


_INK, _RIGHT, _WRONG = (40, 40, 40), (20, 120, 50), (180, 40, 30)


def save_sample_sheet(
    folder: Path,
    prefix: str,
    step: int,
    records: Any,
    predictions: Sequence[Prediction],
    count: int,
    scores: Mapping[str, float],
) -> Path:
    """Writes a PNG with `count` regions, of as many images as possible; the same ones in every evaluation.

    Where all references are class names, accuracy and macro recall stand above them, and wrong ones come first.

    Args:
        folder: gets `step-N.png`, or `NAME-step-N.png` for a set that is not the only one.
        prefix: The prefix of the metrics: "eval", "eval_NAME" or "test".
        step: The step of training.
        records: The evaluation set.
        predictions: The captions of it.
        count: The number of regions to show.
        scores: What [`score_predictions`] says of the predictions.
    """
    chosen, title = choose_samples(predictions, count), ""
    if are_names(predictions):
        chosen = sorted(chosen, key=_is_right)
        title = f"accuracy {scores['naming_accuracy']:.3f}, macro recall {scores['naming_macro_recall']:.3f}"
    name = "" if prefix == "eval" else f"{prefix.removeprefix('eval_')}-"
    path = folder / f"{name}step-{step}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(draw_sheet([_tile(records[p.record], p) for p in chosen], title), path)
    return path


def choose_samples(predictions: Sequence[Prediction], count: int) -> list[Prediction]:
    """Regions spread over the evaluation set: one of each chosen image, then a second one, and so on."""
    by_record: dict[int, list[Prediction]] = {}
    for prediction in predictions:
        by_record.setdefault(prediction.record, []).append(prediction)
    records = list(by_record.values())
    step = max(1, len(records) // count)
    records = records[::step]
    # Not the first region of each: data sets often list the same class first.
    turned = [said[k % len(said) :] + said[: k % len(said)] for k, said in enumerate(records)]
    rounds = (said[turn] for turn in range(max(map(len, turned))) for said in turned if turn < len(said))
    return [prediction for prediction, _ in zip(rounds, range(count), strict=False)]


def _is_right(prediction: Prediction) -> bool:
    said = words(prediction.caption)
    return bool(said) and said in [words(text) for text in prediction.references]


def _tile(record: Any, prediction: Prediction) -> SheetTile:
    """One region and what is around it, with what was said of it and what is true."""
    region = DrawnRegion(box=record["regions"][prediction.region]["box"])
    said = f"says: {prediction.caption or '(nothing)'}", _RIGHT if _is_right(prediction) else _WRONG
    return SheetTile(
        cut_region(record_image(record), region), [said, (f"true: {' / '.join(prediction.references)}", _INK)]
    )
