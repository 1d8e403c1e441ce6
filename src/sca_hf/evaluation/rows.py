"""The rows of a data set that are predicted: each once, and the captions that count as references in one language."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from ..data.loading import leave_undecoded, load_spec
from ..data.notes import in_language
from .predictions import PredictionError


logger = logging.getLogger(__name__)


def open_rows(data: Mapping[str, Any]) -> Any:
    """Opens the data, pictures not decoded: most of them are done when a run is resumed."""
    return leave_undecoded(load_spec(data))


def batches(rows: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    """Yields lists of that many rows; the last may be shorter."""
    while batch := list(islice(rows, size)):
        yield batch


def count_regions(rows: Any, language: str | None) -> tuple[int, int]:
    """Returns how many images have a region, and how many regions there are, with captions in the language."""
    columns = rows.select_columns(["regions", "task"])
    counts = [len((row if language is None else in_language(row, language))["regions"]) for row in columns]
    return sum(count > 0 for count in counts), sum(counts)


def unique_rows(rows: Iterable[dict[str, Any]], language: str | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows, with captions in one language alone; raises where an id comes twice: it tells records apart."""
    images: set[str] = set()
    for row in rows:
        ids = [region["region_id"] for region in row["regions"]]
        if row["image_id"] in images:
            raise PredictionError(f"the image id {row['image_id']} occurs twice in the data, but must be unique.")
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise PredictionError(
                f"image {row['image_id']} has two regions with the id {twice}, but it must be unique."
            )
        images.add(row["image_id"])
        yield row if language is None else in_language(row, language)


def choose_language(rows: Any, language: str | None) -> str | None:
    """Returns the language by which [`in_language`] is to choose among the captions of a data set; None: all count.

    All count where the data do not say languages: they are taken to be in the one that is asked for. What is left out
    is logged, and so is that captions in several languages are all compared with.

    Args:
        rows: A data set as `load_regions` returns it, stored where captions have languages.
        language: A tag of BCP 47, or None where none is asked for.

    Raises:
        ValueError: No region has a caption in the language.
    """
    if "languages" not in rows.features["regions"].feature:
        return None
    tags: dict[str, None] = {}
    total = kept = 0
    for row in rows.select_columns(["regions", "task"]):
        tags |= dict.fromkeys(tag for region in row["regions"] for tag in region["languages"] or () if tag)
        total += len(row["regions"])
        kept += len(in_language(row, language)["regions"]) if language is not None else 0
    listed = ", ".join(sorted(tags))
    if language is None:
        if len(tags) > 1:
            logger.warning("captions are in %s; each region is compared with all of its own: name a language", listed)
        return None
    if not kept:
        raise ValueError(f"language is {language!r}, but captions of these data are in {listed}.")
    if kept < total:
        logger.warning("%d of %d regions have no caption in %s and are left out", total - kept, total, language)
    return language
