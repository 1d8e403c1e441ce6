"""Score all pairs of 64 regions and 64 captions, against `generate` for the 64: encodings counted, times as a ratio.

    python -m benchmarks.listener

By sca-tiny, CPU time of one thread, interleaved, medians. The captions are what `generate` says of the 64 regions, as
where the listener judges a model's own captions, and 64 different true ones, which share less. More than one encoding,
or own captions that take more than 3 times as long as `generate`, are an error.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sca_hf.captioning import load
from sca_hf.data.scenes import scenes


REGIONS = 64
MAX_RATIO = 3.0


def timed(call: Callable[[], Any]) -> float:
    """Seconds of CPU that a call takes."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main(repeats: int = 5) -> int:
    """Returns 1 where the picture is encoded more than once, or scoring takes too long."""
    torch.set_num_threads(1)
    model, processor = load("sca-tiny", device="cpu")
    pictures = list(scenes("test", 30))
    captions = list(dict.fromkeys(text for scene in pictures for obj in scene.objects for text in obj.captions))
    corners = np.random.default_rng(0).uniform(0, 150, (REGIONS, 2))
    inputs = processor(pictures[0].to_pil(), input_boxes=[np.hstack([corners, corners + 40]).tolist()])
    calls: list[int] = []
    model.sam.vision_encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    said = {
        "own captions": {"input_ids": model.generate(**inputs).sequences},
        "different captions": dict(processor.caption_inputs([captions[:REGIONS]])),
    }
    good = True
    for name, texts in said.items():
        calls.clear()
        found = model.score_captions(**inputs, **texts).log_likelihoods
        encodings = sum(calls)
        seconds = [
            (
                timed(lambda: model.generate(**inputs)),
                timed(lambda texts=texts: model.score_captions(**inputs, **texts)),
            )
            for _ in range(repeats)
        ]
        generate, score = (statistics.median(column) for column in zip(*seconds, strict=True))
        fine = encodings == 1 and (score <= MAX_RATIO * generate or name != "own captions")
        good &= fine
        print(
            f"{name}: {found[0].numel()} pairs, {encodings} encoding; generate {generate:.2f} s, score {score:.2f} s, "
            f"ratio {score / generate:.2f}{'' if fine else '  FAILED'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
