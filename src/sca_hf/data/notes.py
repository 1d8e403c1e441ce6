"""What a data set says of captions beside their text: a length, a language. Few have any, and schemas have to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..processing.languages_sca import find_language


# Fields of a region, each with an entry for each of its captions; in the singular they are of one caption.
NOTES = ("lengths", "languages")


class NotedCaptionsError(ValueError):
    """Captions have lengths or languages, `fields`, that the schema of other data sets lacks."""

    def __init__(self, image_id: str, fields: tuple[str, ...]) -> None:
        self.fields = fields
        said = " and ".join(fields)
        super().__init__(
            f"image {image_id}: captions have {said}, which only a stored data set keeps: remove streaming."
        )


def without_notes(records: Iterable[dict[str, Any]], but: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields records as plain values, and raises at the first whose captions have more of `NOTES` than `but`."""
    for record in records:
        if found := tuple(n for n in NOTES if n not in but and any(region.get(n) for region in record["regions"])):
            raise NotedCaptionsError(record["image_id"], found)
        yield record


def in_language(row: Mapping[str, Any], language: str) -> dict[str, Any]:
    """Returns a record with those captions alone that say that they are in a language; regions without any are gone.

    Args:
        row: A record whose task is "caption"; others are returned as they are.
        language: A tag of BCP 47; a caption in `de` is in `de-AT`, as [`find_language`] has it.
    """
    if row["task"] != "caption":
        return dict(row)
    regions = []
    for region in row["regions"]:
        said = enumerate(region.get("languages") or ())
        kept = [place for place, tag in said if tag and find_language(language, [tag])]
        named = (name for name in ("captions", *NOTES) if region.get(name))
        if kept:
            regions.append({**region, **{name: [region[name][place] for place in kept] for name in named}})
    return {**row, "regions": regions}
