"""What a report holds: scores of several systems on the same regions, broken down, and regions to look at.

Pictures of regions are data URIs, so that a page needs no other file.
"""

from __future__ import annotations

import base64
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from PIL import Image

from ...data.inspection import good_records
from ...data.read_report import ReadReport
from ...data.region import RegionRecordError, record_image
from ...drawing import DrawnRegion, cut_region
from ...processing.masks_sca import decode_rle
from ..naming import NAME_METRICS, true_name
from ..predictions import PredictionError, PredictionRecord
from ..scoring import Bootstrap, Difference, ScoredFile, compare_files, matching_order


# Areas in pixels of the original image, as COCO has them.
_SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, math.inf))


@dataclass(frozen=True)
class System:
    """One column of a report: a name of its own, a scored file, and where the first system's regions are in it."""

    name: str
    scored: ScoredFile
    order: list[int]

    def record(self, region: int) -> PredictionRecord:
        return self.scored.records[self.order[region]]

    def score(self, metric: str, region: int) -> float:
        return self.scored.evaluation.scores[metric].per_item[self.order[region]]

    def part(self, metric: str, regions: Sequence[int]) -> float:
        """The corpus value of some regions; CIDEr-D's document frequencies stay those of the whole."""
        sums = self.scored.evaluation.scores[metric].sums
        return float(sums.finish(sums.values[[self.order[k] for k in regions]].sum(0)))


@dataclass(frozen=True)
class Part:
    """Some of the regions, by a name."""

    name: str
    regions: list[int]


@dataclass
class Example:
    """A region to look at.

    said: each system's caption with its score by the metric that examples are chosen by.
    picture: a data URI, or None with the reason in `missing`.
    """

    region: int
    record: PredictionRecord
    said: list[tuple[str, str, float]]
    picture: str | None = None
    missing: str = ""


@dataclass
class ReportContents:
    """All of a report.

    metric: what parts are scored by and examples are chosen by.
    differences: of each further system from the first, by name and metric.
    breakdowns: titles with parts of the regions.
    examples: titles with regions.
    """

    title: str
    systems: list[System]
    metric: str
    differences: dict[str, dict[str, Difference]]
    breakdowns: dict[str, list[Part]]
    examples: dict[str, list[Example]]
    data: str | None = None
    command: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> list[str]:
        """The metrics that all systems have, in the first one's order."""
        return common_metrics(system.scored for system in self.systems)

    @property
    def regions(self) -> int:
        return len(self.systems[0].scored.records)


def build_contents(
    files: Sequence[ScoredFile],
    bootstrap: Bootstrap,
    examples: int = 8,
    categories: int = 20,
    seed: int = 0,
    title: str = "Region captions",
) -> ReportContents:
    """Puts a report together, without its pictures.

    Args:
        files: Files scored with the same metrics, of the same regions with the same references. The first one's scores
            choose the worst and the best regions.
        bootstrap: How differences between systems are tested.
        examples: The number of regions of each kind: worst, best, random.
        categories: The number of categories in the breakdown, the most frequent ones.
        seed: The seed of the random regions.
        title: The title of the page.
    """
    systems = [
        System(name, file, matching_order(files[0], file)) for name, file in zip(_names(files), files, strict=True)
    ]
    first = systems[0]
    metric = common_metrics(files)[0]
    differences = {}
    if bootstrap.resamples:
        differences = {s.name: compare_files(first.scored, s.scored, bootstrap) for s in systems[1:]}
    breakdowns = {}
    records = first.scored.records
    of_names = first.scored.evaluation.of_names
    named = [true_name(record) if of_names else record.category for record in records]
    for name, parts in (("size", _by_size(records)), ("category", _by_category(named, categories))):
        if len(parts) > 1:
            breakdowns[name] = parts
    chosen = _choose(first, metric, examples, seed)
    shown = {kind: [_example(systems, metric, k) for k in regions] for kind, regions in chosen.items()}
    notes = [note] if (note := first.scored.evaluation.notes.get("names")) else []
    return ReportContents(title, systems, metric, differences, breakdowns, shown, notes=notes)


def common_metrics(files: Iterable[ScoredFile]) -> list[str]:
    """Returns the metrics that all files were scored with, in the first one's order."""
    first, *others = (list(file.evaluation.scores) for file in files)
    return [name for name in first if all(name in scores for scores in others)]


def _names(files: Sequence[ScoredFile]) -> list[str]:
    """A different name for each: its system's, else its file's, else its path."""
    kinds: tuple[Callable[[ScoredFile], str], ...] = (lambda f: f.system, lambda f: f.path.stem, lambda f: str(f.path))
    for kind in kinds:
        names = [kind(file) for file in files]
        if len(set(names)) == len(names):
            return names
    raise PredictionError(f"a file was given twice: {', '.join(str(file.path) for file in files)}.")


def _by_size(records: Sequence[PredictionRecord]) -> list[Part]:
    """Parts by the area of the true box."""
    areas = [_area(record) for record in records]
    if any(area is None for area in areas):
        return []
    return [
        Part(f"{name} (< {_side(high)} px)" if high < math.inf else f"{name} (≥ {_side(low)} px)", found)
        for name, low, high in _SIZES
        if (found := [k for k, area in enumerate(areas) if area is not None and low <= area < high])
    ]


def _side(area: float) -> str:
    side = round(math.sqrt(area))
    return f"{side} × {side}"


def _area(record: PredictionRecord) -> float | None:
    if record.box is None:
        return None
    x0, y0, x1, y1 = record.box
    return (x1 - x0) * (y1 - y0)


def _by_category(categories: Sequence[str | None], limit: int) -> list[Part]:
    """Parts by category, the most frequent first; what is left together."""
    found: dict[str, list[int]] = {}
    for k, category in enumerate(categories):
        if category:
            found.setdefault(category, []).append(k)
    ordered = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [Part(name, regions) for name, regions in ordered[:limit]]
    rest = [k for _, regions in ordered[limit:] for k in regions]
    if rest:
        parts.append(Part(f"{len(ordered) - limit} other categories", rest))
    return parts


def _choose(first: System, metric: str, count: int, seed: int) -> dict[str, list[int]]:
    """Worst, best and random regions, each at most once; equals at random.

    A name is right or wrong: the worst are wrong ones, first of the classes of least recall, and the best are right.
    """
    draw = random.Random(seed)
    shuffled = draw.sample(range(len(first.scored.records)), len(first.scored.records))
    count = min(count, len(shuffled) // 3) or min(count, 1)
    by_name = first.scored.evaluation.of_names and metric in NAME_METRICS
    recalls = _class_recalls(first, metric) if by_name else [0.0] * len(shuffled)
    ranked = sorted(shuffled, key=lambda k: (first.score(metric, k), recalls[k]))
    worst, best = ranked[:count], ranked[max(count, len(ranked) - count) :][::-1]
    if by_name:
        worst = [k for k in worst if first.score(metric, k) < 1]
        best = [k for k in best if first.score(metric, k) > 0]
    taken = {*worst, *best}
    others = [k for k in shuffled if k not in taken][:count]
    return {kind: regions for kind, regions in (("worst", worst), ("best", best), ("random", others)) if regions}


def _class_recalls(first: System, metric: str) -> list[float]:
    """Of each region the fraction of its class that is named right."""
    names = [true_name(record) for record in first.scored.records]
    hits: dict[str, list[float]] = {}
    for k, name in enumerate(names):
        hits.setdefault(name, []).append(first.score(metric, k))
    return [sum(hits[name]) / len(hits[name]) for name in names]


def _example(systems: Sequence[System], metric: str, region: int) -> Example:
    said = [(system.name, system.record(region).caption, system.score(metric, region)) for system in systems]
    return Example(region, systems[0].record(region), said)


# Twice what a page shows, for sharp screens.
_SIZE = (560, 420)
_QUALITY = 82


def add_pictures(examples: Iterable[Example], data: str | Mapping[str, Any]) -> None:
    """Draws the examples, reading the data set once, up to the last image that is needed.

    Args:
        examples: get their `picture`; one whose image is not in the data, or cannot be opened, says so in `missing`.
        data: a data spec, see docs/data.md.
    """
    wanted: dict[str, list[Example]] = {}
    for example in examples:
        example.missing = f"image {example.record.image_id} is not in the data"
        if example.record.image_id is not None:
            wanted.setdefault(example.record.image_id, []).append(example)
    # What is wrong with other regions does not matter here.
    for record in good_records(data, ReadReport()):
        for example in wanted.pop(str(record["image_id"]), ()):
            try:
                example.picture = data_uri(draw_example(record_image(record), example.record))
                example.missing = ""
            except RegionRecordError as error:
                example.missing = str(error)
        if not wanted:
            return


def draw_example(image: Image.Image, record: PredictionRecord) -> Image.Image:
    """Draws the region of a record in its surroundings: its true box and, where there is one, the predicted mask."""
    rle = record.mask or record.reference_mask
    mask = None if rle is None else decode_rle(rle, f"the mask of {record.id}", image.size[::-1])
    return cut_region(image, DrawnRegion(mask=mask, box=record.box), _SIZE)


def data_uri(picture: Image.Image) -> str:
    """A picture as a JPEG inside a page."""
    file = BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
