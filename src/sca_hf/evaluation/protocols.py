"""Named protocols: what a score must be measured on to be compared under a name.

Two protocols hide behind "captioning on Visual Genome": GRiT's whole test split, and GLaMM's one box per image. A
score gets the name of a protocol only where images, regions and prompts are the protocol's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .predictions import PredictionRecord


# As the authors' published evaluation has it.
PUBLISHED_BEAMS = 3


class ProtocolError(ValueError):
    """Predictions or data that are not those of the protocol they are named by."""


@dataclass(frozen=True)
class Protocol:
    """What makes up a protocol.

    Attributes:
        title: What it is, for readers.
        images: How many images have a region.
        regions: How many regions there are, and of which edition; a set may have several editions.
        prompt: How regions are shown.
        source: Where the counts are from.
        data: A data spec to start from (docs/data.md), with your own folders to put in.
        references: How many references each region has; None: one or more.
        num_beams: The beams of the published numbers.
        language: Of the references, and so of the captions; None: English, and it may be left unsaid.
    """

    title: str
    images: int
    regions: Mapping[int, str]
    source: str
    data: str
    prompt: str = "box"
    references: int | None = None
    num_beams: int = PUBLISHED_BEAMS
    language: str | None = None

    def edition(self, images: int, regions: int) -> str | None:
        """Returns the edition with these counts, None where there is none."""
        return self.regions.get(regions) if images == self.images else None


@dataclass(frozen=True)
class ProtocolCheck:
    """A protocol that holds: under this name a score may be printed."""

    name: str
    title: str
    edition: str
    images: int
    regions: int
    prompt: str

    def __str__(self) -> str:
        edition = f", {self.edition}" if self.edition else ""
        return f"{self.name}{edition}: {self.images:,} images, {self.regions:,} regions, prompted by {self.prompt}"


_NOTES = "the authors' notebooks"
_REFER = "https://github.com/tensorflow/datasets, tensorflow_datasets/datasets/ref_coco/README.md"
# The descriptions of release of Hindi 1.1 and Malayalam 1.0 have these counts of segments, the card of Hausa too;
# Bengali 1.0 has the selection of Hindi 1.1. Each segment of these sets has a picture of its own.
_TRANSLATIONS = {"hindi": "hi", "bengali": "bn", "malayalam": "ml", "hausa": "ha"}
_TRANSLATED = {"dev": 998, "test": 1_595, "challenge": 1_400}
_VG_FULL = Protocol(
    title="Visual Genome, all true boxes of the test split",
    images=5_000,
    regions={232_935: "GRiT's test.json", 238_069: "densecap's test split"},
    source=_NOTES,
    data="grit:annotations=GRIT/test.json,images=VG, or visual_genome:root=VG,split=test,clip=image",
    references=1,
)


def _refer(name: str, split_by: str, split: str, images: int, regions: int) -> Protocol:
    folder = name.lower()
    return Protocol(
        title=f"{name} {split} ({split_by}), descriptions of true boxes",
        images=images,
        regions={regions: ""},
        source=_REFER,
        data=f"refcoco:root=REFER/{folder},split_by={split_by},split={split}",
    )


PROTOCOLS: dict[str, Protocol] = {
    "vg-full": _VG_FULL,
    "vg-5k": Protocol(
        title="Visual Genome, GLaMM's subset: one true box of each test image",
        images=5_000,
        regions={5_000: ""},
        source="GLaMM; see callsys/ControlCap#5",
        data="GLaMM's 5,000 boxes, as jsonl:path=..., or in GRiT's form as grit:annotations=...,images=VG",
        references=1,
    ),
    "refcoco-val": _refer("RefCOCO", "unc", "val", 1_500, 3_811),
    "refcoco-testA": _refer("RefCOCO", "unc", "testA", 750, 1_975),
    "refcoco-testB": _refer("RefCOCO", "unc", "testB", 750, 1_810),
    "refcoco+-val": _refer("RefCOCO+", "unc", "val", 1_500, 3_805),
    "refcoco+-testA": _refer("RefCOCO+", "unc", "testA", 750, 1_975),
    "refcoco+-testB": _refer("RefCOCO+", "unc", "testB", 750, 1_798),
    "refcocog-val": _refer("RefCOCOg", "umd", "val", 1_300, 2_573),
    "refcocog-test": _refer("RefCOCOg", "umd", "test", 2_600, 5_023),
    "refcocog-google-val": _refer("RefCOCOg", "google", "val", 4_650, 5_000),
}
PROTOCOLS |= {
    f"{name}-vg-{split}": Protocol(
        title=f"{name.title()} Visual Genome {split}, descriptions of true boxes",
        images=count,
        regions={count: ""},
        source="http://hdl.handle.net/11234/1-3267, README",
        data=f"multilingual_visual_genome:root=VG-{name.upper()},language={tag},split={split},clip=image",
        references=1,
        language=tag,
    )
    for name, tag in _TRANSLATIONS.items()
    for split, count in _TRANSLATED.items()
}
# The authors' ablation of prompts, on the whole test split.
PROTOCOLS |= {
    f"vg-full-{prompt.replace('_', '-')}": replace(
        _VG_FULL, title=f"{_VG_FULL.title}, shown as {words}", prompt=prompt
    )
    for prompt, words in (
        ("center_point", "their centers"),
        ("random_point_in_box", "a random point in them"),
        ("random_point_in_mask", "a random point in the mask that is found by them"),
    )
}


def find_protocol(name: str) -> Protocol:
    """Returns a protocol by its name."""
    if name not in PROTOCOLS:
        raise ProtocolError(f"there is no protocol {name!r}; known are {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def check_counts(name: str, images: int, regions: int) -> str:
    """Returns the edition of a protocol that has these counts, raises `ProtocolError` where none has."""
    protocol = find_protocol(name)
    edition = protocol.edition(images, regions)
    if edition is None:
        wanted = " or ".join(
            f"{count:,} regions" + (f" ({edition})" if edition else "") for count, edition in protocol.regions.items()
        )
        raise ProtocolError(
            f"{name} has {protocol.images:,} images with {wanted}; this data has {images:,} images with {regions:,} "
            f"regions. A score on it must not use that name. Its data: {protocol.data}."
        )
    return edition


def check_protocol(name: str, records: Iterable[PredictionRecord]) -> ProtocolCheck:
    """Returns what may be printed beside the score of these predictions, if they are those of a protocol.

    Raises:
        ProtocolError: images, regions, prompts or references are not the protocol's. A record that does not say how
            its region was shown is taken on trust.
    """
    protocol = find_protocol(name)
    images: set[str | None] = set()
    regions: set[str | None] = set()
    for number, record in enumerate(records, 1):
        if record.image_id is None:
            raise ProtocolError(f"{name}: record {record.id} does not name its image, so images cannot be counted.")
        if record.prompt not in (None, protocol.prompt):
            raise ProtocolError(f"{name} prompts with {protocol.prompt}; record {record.id} used {record.prompt}.")
        if record.language is not None and record.language != (protocol.language or "en"):
            raise ProtocolError(
                f"{name} has captions in {protocol.language or 'en'}; record {record.id} is in {record.language}."
            )
        if protocol.references not in (None, len(record.references)):
            raise ProtocolError(
                f"{name} has {protocol.references} reference(s) for each region; record {record.id} has "
                f"{len(record.references)}."
            )
        if record.id in regions:
            raise ProtocolError(f"{name}: the id {record.id} occurs twice, the second time as record {number}.")
        images.add(record.image_id)
        regions.add(record.id)
    edition = check_counts(name, len(images), len(regions))
    return ProtocolCheck(name, protocol.title, edition, len(images), len(regions), protocol.prompt)
