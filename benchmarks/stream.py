"""The pipeline over a stream of images with prompts of their own: in batches against one by one, and its memory.

    python -m benchmarks.stream
    python -m benchmarks.stream --images 200 --model FOLDER --device cuda

Each image has 1 to 4 regions: boxes, points of any number, masks, or the whole image. One thread, CPU time of the
process (CUDA: wall time). A ratio below the wanted one, other results than one by one, or memory that grows with the
number of images, are an error.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from sca_hf import region_captioning_pipeline
from sca_hf.testing import tiny_image

from .measure import resident_bytes


BATCH_SIZE = 8
MIN_GAIN = 1.5
# Growth from the second tenth of the images to the last, MiB: the answers that are kept, and the allocator.
FLAT = 16
# Rounding may move the edge of a mask, and the score.
MASK_DIFFERENCE, SCORE_DIFFERENCE = 1e-3, 1e-4


def items(count: int) -> Iterator[dict[str, Any]]:
    """Images of several sizes with ragged prompts, the same for the same count."""
    draw = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(side) for side in draw.integers(96, 193, 2))
        item: dict[str, Any] = {"image": tiny_image(number % 50, (width, height))}
        regions = int(draw.integers(1, 5))
        corners = draw.uniform(2, 40, (regions, 2))
        boxes = np.concatenate([corners, corners + draw.uniform(20, 50, (regions, 2))], 1)
        kind = draw.choice(["boxes", "boxes", "points", "both", "mask", "whole"])
        if kind in ("boxes", "both"):
            item["input_boxes"] = boxes.tolist()
        if kind in ("points", "both"):
            item["input_points"] = [draw.uniform(2, 90, (int(draw.integers(1, 4)), 2)).tolist() for _ in boxes]
        if kind == "mask":
            item["input_masks"] = np.zeros((height, width), bool)
            item["input_masks"][10:60, 20:70] = True
        yield item


class Run:
    """What a run over the stream said, how long it took, and what memory it held."""

    def __init__(self) -> None:
        self.records: list[list[dict[str, Any]]] = []
        self.held: list[int] = []
        self.seconds = 0.0

    def take(self, answers: Iterable[list[dict[str, Any]]], clock: Any) -> None:
        """Goes through the answers; of a mask only its bits are kept."""
        start = clock()
        for records in answers:
            self.records.append([{**record, "mask": np.packbits(record["mask"])} for record in records])
            self.held.append(resident_bytes())
        self.seconds = clock() - start

    @property
    def growth(self) -> float:
        """MiB from the second tenth of the images to the last."""
        tenth = max(1, len(self.held) // 10)
        return float(np.median(self.held[-tenth:]) - np.median(self.held[tenth : 2 * tenth])) / 2**20


def differences(runs: list[Run]) -> list[int]:
    """Numbers of the images of which two runs say different things."""
    return [number for number, pair in enumerate(zip(*(run.records for run in runs), strict=True)) if not _same(*pair)]


def _same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    return len(ours) == len(theirs) and all(
        a["caption"] == b["caption"]
        and abs(a["score"] - b["score"]) <= SCORE_DIFFERENCE
        and np.unpackbits(a["mask"] ^ b["mask"]).mean() <= MASK_DIFFERENCE
        for a, b in zip(ours, theirs, strict=True)
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--model", default="sca-tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    describe = region_captioning_pipeline(options.model, device=options.device)
    clock = time.perf_counter if options.device.startswith("cuda") else time.process_time
    list(describe(items(2 * BATCH_SIZE), batch_size=BATCH_SIZE))
    alone, together = Run(), Run()
    together.take(describe(items(options.images), batch_size=BATCH_SIZE), clock)
    alone.take((describe(item) for item in items(options.images)), clock)
    gain, wrong = alone.seconds / together.seconds, differences([alone, together])
    good = gain >= MIN_GAIN and not wrong and together.growth <= FLAT
    print(
        f"{options.images} images, {sum(map(len, together.records))} regions: one by one {alone.seconds:.1f} s, in "
        f"batches of {BATCH_SIZE} {together.seconds:.1f} s, {gain:.2f} times as fast (at least {MIN_GAIN:g}); "
        f"{len(wrong)} images with other results; memory grew by {together.growth:.1f} MiB (at most {FLAT})"
        f"{'' if good else '  FAILED'}"
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
