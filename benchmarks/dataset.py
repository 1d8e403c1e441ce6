"""Captioning many pictures: one by one, as in a loop, against batches by workers that share the model.

The same code runs all of them: one by one is a batch of one picture, and no workers.
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from sca_hf.anything.folder import FolderRun, ImageCaptioner
from sca_hf.anything.sources import ImageItem
from sca_hf.data.scenes import render_scene
from sca_hf.parallel import images_at_once

from .anything import noise_image, processor_of
from .shapes import Size, build_model, random_boxes


# The first scene of the test split, which no bundled model was trained on.
_SCENE = 20_000_000
_BOXES = 48  # in each picture of the large model
# How far scores may differ by what is captioned together.
_ROUNDING = 1e-4
# By how much a worker's peak may grow from the first tenth of many pictures to the end.
_GROWTH = 1.1


@dataclass
class Way:
    """Threads in each operation, pictures that are captioned together (None: as the device has it), and workers."""

    threads: int
    batch_size: int | None
    num_workers: int


@dataclass
class Spent:
    """Seconds, the share of all cores that was used in them, and what came of it."""

    seconds: float
    used: float
    entries: list[dict[str, Any]]


def bench_dataset(size: Size, repeats: int, quick: bool) -> bool:
    """Pictures per second of sca-tiny, of a large random model with `size.regions` boxes in each, and memory."""
    cores = len(os.sched_getaffinity(0))
    ways = {
        "one by one": Way(1, 1, 0),
        f"one by one, {cores} threads": Way(cores, 1, 0),
        "ours": Way(cores, None, cores),
    }
    scenes = [
        ImageItem(f"{n}.png", Image.fromarray(render_scene(_SCENE + n).image)) for n in range(32 if quick else 200)
    ]
    tiny = ImageCaptioner(FolderRun("", None, device="cpu"))
    good = compare("sca-tiny, 16 x 16 points", tiny, scenes, ways, repeats)
    boxes_each = min(size.regions, _BOXES)
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(size, torch.device("cpu"))
        model.save_pretrained(folder)
        processor_of(model).save_pretrained(folder)
        del model
        picture = noise_image(size)
        items = [ImageItem(f"{n}.png", picture.rotate(90 * n)) for n in range(cores * (1 if quick else repeats))]
        boxes = random_boxes(boxes_each, size.image_size, torch.device("cpu"))[0].tolist()
        run = FolderRun("", folder, boxes={item.name: boxes for item in items}, device="cpu")
        title = f"{size.vision_layers} encoder layers at {size.image_size} px, {boxes_each} boxes a picture"
        good &= compare(title, ImageCaptioner(run), items, ways, 1 if quick else repeats)
    return good & _flat(tiny, scenes, 64 if quick else 2000, ways["ours"])


def compare(
    title: str, captioner: ImageCaptioner, items: Sequence[ImageItem], ways: dict[str, Way], repeats: int
) -> bool:
    """Times all ways on the same pictures, round by round, and prints the median of the rounds."""
    print(f"\n{title}, {len(items)} pictures")
    share = -(-len(items) // repeats)
    found: dict[str, list[Spent]] = {name: [] for name in ways}
    for turn in range(repeats):
        part = items[turn * share : (turn + 1) * share]
        for name, way in ways.items():
            found[name].append(_spent(captioner, part, way))
            print(f"  round {turn + 1}/{repeats} {name}: {found[name][-1].seconds:.1f} s", file=sys.stderr, flush=True)
    rates = {name: share / statistics.median(one.seconds for one in spent) for name, spent in found.items()}
    for name, spent in found.items():
        used = statistics.median(one.used for one in spent)
        ratio = rates["ours"] / rates[name]
        print(f"  {name:26} {rates[name]:8.3f} pictures/s   ours {ratio:.2f} x   {used:.0%} of the cores", flush=True)
    first = _records(found["one by one"])
    # Threads inside an operation round otherwise, which turns pixels of a random model's masks.
    agreed = {name: agree_on_records(name, first, _records(spent)) for name, spent in found.items()}
    return agreed["ours"]


def _spent(captioner: ImageCaptioner, items: Sequence[ImageItem], way: Way) -> Spent:
    with _threads(way.threads):
        began, before = time.perf_counter(), _cpu_seconds()
        entries = list(_ahead(captioner, way)(items))
        seconds = time.perf_counter() - began
        return Spent(seconds, (_cpu_seconds() - before) / seconds / len(os.sched_getaffinity(0)), entries)


def _ahead(captioner: ImageCaptioner, way: Way) -> Callable[[Sequence[ImageItem]], Iterator[dict[str, Any]]]:
    captioner.run = replace(captioner.run, num_workers=way.num_workers)
    captioner.batch_size = way.batch_size or images_at_once(captioner.model)
    return captioner.captions


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _records(spent: list[Spent]) -> list[dict[str, Any]]:
    return [record for one in spent for entry in one.entries for record in entry["records"]]


def agree_on_records(name: str, one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    """Whether masks and captions are the same, and what the model thinks of them but for rounding."""
    pairs = list(zip(one, other, strict=False))
    equal = sum(all(left[key] == right[key] for key in ("segmentation", "caption")) for left, right in pairs)
    numbers = ("score", "predicted_iou", "confidence")
    apart = max((abs(left[key] - right[key]) for left, right in pairs for key in numbers if key in left), default=0.0)
    print(f"  {name}: {equal} of {len(one)} masks and captions equal, scores within {apart:.1e}")
    return equal == len(one) == len(other) and apart < _ROUNDING


def _flat(captioner: ImageCaptioner, scenes: Sequence[ImageItem], count: int, way: Way) -> bool:
    """Whether memory stays as it is over many pictures: the reader's own, and the largest worker's."""
    captions = _ahead(captioner, way)
    with _threads(way.threads):
        peaks = []
        for pictures in (count // 10, count):
            many = [scenes[number % len(scenes)] for number in range(pictures)]
            for _ in captions(many):
                pass
            kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            peaks.append([resource.getrusage(kind).ru_maxrss >> 10 for kind in kinds])
    (reader, worker), (last_reader, last_worker) = peaks
    print(f"\npeak memory after {count // 10} and after {count} pictures, MiB")
    print(f"  reader {reader} and {last_reader}, largest worker {worker} and {last_worker}")
    return last_reader <= _GROWTH * reader and last_worker <= _GROWTH * worker
