"""Inspects a data set of regions before anyone trains on it: what is there, what is wrong, and a sheet of samples."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from PIL import Image

from ..drawing import DrawnRegion, SheetTile, cut_region, draw_sheet
from ..processing.masks_sca import decode_rle
from .loading import leave_undecoded, parse_spec, spec_source
from .notes import NOTES
from .read_report import ReadReport, check_records
from .region import RegionRecordError, record_image


# The length that captions are cut to in training, the end token included.
_CAPTION_TOKENS = 20
# As COCO divides objects, by the sides of a square of their area.
_SMALL, _LARGE = 32, 96
_BATCH = 2000
# Of the sheet of samples: colors, captions of a region, and categories to remember regions of; V3Det has 13 000, a
# sheet some dozens of tiles.
_INK, _CATEGORY, _BAD = (24, 26, 30), (20, 90, 160), (180, 40, 30)
_CAPTIONS = 3
_CATEGORIES = 200
Record = Mapping[str, Any]
_Watch = Callable[[Record], None]


@dataclass
class Distribution:
    """The distribution of a whole number; `counts` has how often each value occurred."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: int) -> None:
        """Counts a value."""
        self.counts[value] += 1

    def quantile(self, fraction: float) -> int:
        """The smallest value that this fraction of all values does not exceed; 0 where there is none."""
        left = fraction * self.counts.total()
        for value in sorted(self.counts):
            left -= self.counts[value]
            if left <= 0:
                return value
        return 0

    @property
    def mean(self) -> float:
        total = self.counts.total()
        return sum(value * count for value, count in self.counts.items()) / total if total else 0.0

    def over(self, limit: int) -> int:
        """How many values exceed a limit."""
        return sum(count for value, count in self.counts.items() if value > limit)

    def summary(self) -> dict[str, float]:
        """Minimum, median, mean and maximum."""
        return {
            "min": self.quantile(0),
            "median": self.quantile(0.5),
            "mean": round(self.mean, 2),
            "max": self.quantile(1),
        }


@dataclass
class DataReport:
    """What `check_data` found.

    Attributes:
        read: images and regions kept, skipped, left out; and why.
        tasks: images by task.
        regions_per_image, captions_per_region: Their distributions.
        caption_words, caption_tokens: lengths of the captions; tokens, with the end token, if a tokenizer was given.
        different_captions: how many there are, white space and case aside.
        lengths, languages: captions by what is said of them; empty where nothing is.
        categories: regions by category.
        widths, heights: sides of the boxes in whole pixels.
        sizes: regions that are small, medium, large by COCO's measure (32 x 32, 96 x 96 pixels).
        masks, points: regions that have them.
        duplicate_images, duplicate_regions: ids that came before, of images in the set and of regions in their image.
        unreadable: what is wrong with pictures that cannot be decoded, or are not of their record's size; None where
            they were not opened.
    """

    read: ReadReport = field(default_factory=ReadReport)
    tasks: Counter[str] = field(default_factory=Counter)
    regions_per_image: Distribution = field(default_factory=Distribution)
    captions_per_region: Distribution = field(default_factory=Distribution)
    caption_words: Distribution = field(default_factory=Distribution)
    caption_tokens: Distribution | None = None
    different_captions: int = 0
    lengths: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    widths: Distribution = field(default_factory=Distribution)
    heights: Distribution = field(default_factory=Distribution)
    sizes: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    points: int = 0
    duplicate_images: list[str] = field(default_factory=list)
    duplicate_regions: list[str] = field(default_factory=list)
    unreadable: list[str] | None = None

    @property
    def bad(self) -> int:
        """Images and regions that cannot be trained on."""
        read = self.read
        return read.skipped_records + read.skipped_regions + read.damaged_regions + len(self.unreadable or ())

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain values, ready for JSON."""
        values = {
            key: value.summary() if isinstance(value, Distribution) else value
            for key, value in vars(self).items()
            if key != "read"
        }
        values["read"] = {**vars(self.read), "warnings": self.read.warnings()}
        values["categories"] = dict(self.categories.most_common())
        values["captions_over_limit"] = self.caption_tokens.over(_CAPTION_TOKENS) if self.caption_tokens else None
        return {**values, "bad": self.bad}


def check_data(
    data: str | os.PathLike[str] | Mapping[str, Any] | Iterable[Record],
    tokenizer: Any | None = None,
    images: bool = False,
    max_samples: int | None = None,
    watch: _Watch | None = None,
) -> DataReport:
    """Reads a whole data set and reports on it; bad records are counted and skipped.

    Args:
        data: a spec as for `load_spec`, or as `parse_spec` reads it; or a data set of region records, or any iterable
            of them.
        tokenizer: A tokenizer of transformers, to count the tokens of captions.
        images: Whether to open and decode every picture as well.
        max_samples: How many good images to read, from the start.
        watch: A function to call with every good record.
    """
    report = DataReport(
        caption_tokens=Distribution() if tokenizer is not None else None, unreadable=[] if images else None
    )
    counter = _Counter(report, tokenizer)
    for record in islice(good_records(data, report.read), max_samples):
        if report.unreadable is not None:
            try:
                record_image(record)
            except RegionRecordError as error:
                report.unreadable.append(str(error))
                continue
        counter.count(record)
        if watch is not None:
            watch(record)
    counter.finish()
    return report


def good_records(data: Any, read: ReadReport) -> Iterator[Record]:
    """Yields the good records, and counts the others."""
    if isinstance(data, str | os.PathLike):
        data = parse_spec(data)
    if isinstance(data, Mapping):
        source = spec_source(data, on_error="skip")
        read.source = source.name
        yield from source.records(read)
        return
    for record in check_records(leave_undecoded(data), "records", "skip", read):
        yield {**vars(record), "regions": [vars(region) for region in record.regions]}


class _Counter:
    """Fills a report."""

    def __init__(self, report: DataReport, tokenizer: Any | None) -> None:
        self.report, self.tokenizer = report, tokenizer
        self.images: set[str] = set()
        self.captions: set[str] = set()
        self.waiting: list[str] = []

    def count(self, record: Record) -> None:
        report = self.report
        if record["image_id"] in self.images:
            report.duplicate_images.append(record["image_id"])
        self.images.add(record["image_id"])
        report.tasks[record["task"]] += 1
        report.regions_per_image.add(len(record["regions"]))
        ids = Counter(region["region_id"] for region in record["regions"])
        report.duplicate_regions += [f"{record['image_id']}: {key}" for key, count in ids.items() if count > 1]
        for region in record["regions"]:
            self._count_region(region)
        if len(self.waiting) >= _BATCH:
            self.finish()

    def _count_region(self, region: Mapping[str, Any]) -> None:
        report = self.report
        x0, y0, x1, y1 = region["box"]
        report.widths.add(round(x1 - x0))
        report.heights.add(round(y1 - y0))
        side = ((x1 - x0) * (y1 - y0)) ** 0.5
        report.sizes["small" if side < _SMALL else "medium" if side < _LARGE else "large"] += 1
        report.masks += region["mask"] is not None
        report.points += region["points"] is not None
        if region["category"] is not None:
            report.categories[region["category"]] += 1
        report.captions_per_region.add(len(region["captions"]))
        for caption in region["captions"]:
            report.caption_words.add(len(caption.split()))
            self.captions.add(" ".join(caption.lower().split()))
        for name in NOTES:
            getattr(report, name).update("none" if said is None else said for said in region.get(name) or ())
        self.waiting += region["captions"]

    def finish(self) -> None:
        """Counts the tokens of the captions that wait, many at a time, since tokenizers are fast only in batches."""
        self.report.different_captions = len(self.captions)
        if self.report.caption_tokens is not None and self.tokenizer is not None and self.waiting:
            texts = [text.strip() for text in self.waiting]
            for ids in self.tokenizer(texts, add_special_tokens=False)["input_ids"]:
                self.report.caption_tokens.add(len(ids) + 1)
        self.waiting = []


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def format_report(report: DataReport, max_rows: int = 20) -> str:
    """Writes a report as a table; at most `max_rows` categories, messages and ids of each kind."""
    read = report.read
    regions = report.widths.counts.total()
    captions = report.caption_words.counts.total()
    tasks = ", ".join(f"{count} for the task {task}" for task, count in report.tasks.most_common())
    rows = [
        ("images", tasks or "0"),
        ("regions", f"{regions}   {_range(report.regions_per_image)} per image"),
        (
            "captions",
            f"{captions}   {_range(report.captions_per_region)} per region, {report.different_captions} distinct",
        ),
        ("words", f"{_range(report.caption_words)} per caption"),
    ]
    rows += [(name, _listed(found)) for name in NOTES if (found := getattr(report, name))]
    if report.caption_tokens is not None:
        over = report.caption_tokens.over(_CAPTION_TOKENS)
        text = f"{_range(report.caption_tokens)} per caption, EOS included; {over} captions are longer than"
        rows.append(("tokens", f"{text} {_CAPTION_TOKENS} and will be truncated"))
    sizes = ", ".join(f"{name} {_share(report.sizes[name], regions)}" for name in ("small", "medium", "large"))
    rows += [
        ("boxes", f"width {_range(report.widths)}, height {_range(report.heights)} pixels; {sizes}"),
        ("masks", f"{report.masks}"),
        ("points", f"{report.points}"),
        ("categories", f"{len(report.categories)}"),
    ]
    lines = [read.source, *(f"  {name:<12}{text}" for name, text in rows)]
    lines += [
        f"    {count:>8} {_share(count, regions):>5}  {name}"
        for name, count in report.categories.most_common(max_rows)
    ]
    lines += _more(len(report.categories), max_rows)
    if read.clipped_regions:
        lines.append(f"  cut         {read.clipped_regions} boxes at the edge of their image")
    lines += [f"  left out    {count} {what}" for what, count in sorted(read.left_out.items())]
    lines += [f"  WARNING     {text}" for text in read.warnings()]
    lines += [f"  note        {text}" for text in read.notes]
    for name, ids in (("images", report.duplicate_images), ("regions of one image", report.duplicate_regions)):
        if ids:
            lines.append(f"  twice       {len(ids)} {name} have a duplicate id: {', '.join(ids[:5])}")
            lines[-1] += ", ..." if len(ids) > 5 else ""
    opened = "pictures not decoded" if report.unreadable is None else f"{len(report.unreadable)} unreadable pictures"
    masks = f", {read.damaged_regions} masks" if read.damaged_regions else ""
    lines.append(f"  bad         {read.skipped_records} images, {read.skipped_regions} regions{masks}, {opened}")
    messages = [*(report.unreadable or ()), *read.messages]
    lines += [f"    {message}" for message in messages[:max_rows]]
    return "\n".join(lines + _more(report.bad, min(max_rows, len(messages))))


def _range(values: Distribution) -> str:
    low, median, high = (values.quantile(fraction) for fraction in (0, 0.5, 1))
    return f"{low}" if low == high else f"{low} to {high} (median {median})"


def _share(count: int, total: int) -> str:
    return f"{count / total:.0%}" if total else "0%"


def _more(count: int, shown: int) -> list[str]:
    return [f"    ... and {count - shown} more"] if count > shown else []


class RegionSample:
    """Regions drawn at random from a data set that is seen once, some of every category; the same for the same seed.

    Give `add` to `check_data` as `watch`.
    """

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.random = count, random.Random(seed)
        self.seen: dict[str | None, int] = {}
        self.kept: dict[str | None, list[tuple[Mapping[str, Any], int]]] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Considers the regions of a record: each region of a category is kept with the same probability."""
        for index, region in enumerate(record["regions"]):
            key = region["category"]
            if key not in self.kept and len(self.kept) >= _CATEGORIES:
                continue
            kept = self.kept.setdefault(key, [])
            seen = self.seen[key] = self.seen.get(key, 0) + 1
            if len(kept) < self.count:
                kept.append((record, index))
            elif (place := self.random.randrange(seen)) < self.count:
                kept[place] = (record, index)

    def chosen(self) -> list[tuple[Mapping[str, Any], int]]:
        """Returns pairs of a record and the index of a region: categories take turns."""
        order = sorted(self.kept, key=lambda key: (-self.seen[key], str(key)))
        shuffled = {key: self.random.sample(self.kept[key], len(self.kept[key])) for key in order}
        turns = [(turn, key) for turn in range(self.count) for key in order if turn < len(shuffled[key])]
        shown = turns[: self.count]
        return [shuffled[key][turn] for key in order for turn, name in shown if name == key]


def draw_contact_sheet(sample: RegionSample, title: str = "") -> Image.Image:
    """Draws the chosen regions with box, mask and points, with category, captions and origin below."""
    chosen = sample.chosen()
    if not chosen:
        raise ValueError("there are no regions to draw.")
    return draw_sheet([_tile(record, record["regions"][index]) for record, index in chosen], title)


def _tile(record: Mapping[str, Any], region: Mapping[str, Any]) -> SheetTile:
    captions = region["captions"]
    lines = [(text, _INK) for text in captions[:_CAPTIONS]]
    if region["category"] is not None and region["category"] not in captions:
        lines.insert(0, (region["category"], _CATEGORY))
    if len(captions) > _CAPTIONS:
        lines.append((f"and {len(captions) - _CAPTIONS} more", _INK))
    x0, y0, x1, y1 = region["box"]
    note = f"{record['image_id']}: {x1 - x0:.0f} x {y1 - y0:.0f} at {x0:.0f}, {y0:.0f}"
    try:
        image = record_image(record)
    except RegionRecordError as error:
        blank = Image.new("RGB", (record["width"], record["height"]), (60, 62, 68))
        return SheetTile(cut_region(blank, DrawnRegion(box=region["box"])), [(str(error), _BAD), *lines], note)
    drawn = DrawnRegion(
        mask=decode_rle(region["mask"]) if region["mask"] is not None else None,
        box=region["box"],
        points=region["points"] or (),
        labels=region["labels"] or [],
    )
    return SheetTile(cut_region(image, drawn), lines, note)
