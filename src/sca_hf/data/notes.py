"""What a data set says of captions beside their text: a length, a language. Few have any, and schemas have to know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


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
