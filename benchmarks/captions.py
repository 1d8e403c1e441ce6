"""CIDEr-D of 10,000 pairs, ours against pycocoevalcap (extra `java`): CPU time of one process, and equality.

    python -m benchmarks.captions

Captions are random sentences over a skewed vocabulary, or with --items those of a file, repeated. Rounds are
interleaved, medians count. A ratio below the wanted one, or scores that differ, are an error.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sca_hf.evaluation.metrics import cider_d


PAIRS = 10_000
# References of a pair -> how many times faster ours has to be.
MIN_GAIN = {1: 3.0, 5: 2.5}
TOLERANCE = 1e-9
Pairs = tuple[list[list[str]], list[list[list[str]]]]


def random_pairs(pairs: int, references: int) -> Pairs:
    """Sentences of 3 to 14 words; a few words are frequent, as in captions."""
    draw = random.Random(0)
    words = [f"w{k}" for k in range(4000)]
    weights = [1 / (k + 3) for k in range(len(words))]

    def sentence() -> list[str]:
        return draw.choices(words, weights, k=draw.randint(3, 14))

    return [sentence() for _ in range(pairs)], [[sentence() for _ in range(references)] for _ in range(pairs)]


def pairs_of(path: Path, pairs: int, references: int) -> Pairs:
    """The tokens of a file `{"items": [{"ptb_candidate", "ptb_references"}]}`, over and over."""
    items = json.loads(path.read_text("utf-8"))["items"]
    chosen = [items[k % len(items)] for k in range(pairs)]
    candidates = [item["ptb_candidate"].split() for item in chosen]
    return candidates, [[text.split() for text in item["ptb_references"][:references]] for item in chosen]


def bench(pairs: Pairs, repeats: int) -> tuple[float, float, float]:
    """Median seconds of CPU of theirs and of ours, and the largest difference of a score, corpus included."""
    from pycocoevalcap.cider.cider import Cider

    candidates, references = pairs
    # Each gets what it takes: joined tokens by key, and lists of tokens.
    said = {k: [" ".join(tokens)] for k, tokens in enumerate(candidates)}
    wanted = {k: [" ".join(tokens) for tokens in refs] for k, refs in enumerate(references)}
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(repeats):
        (corpus, items), spent = timed(lambda: Cider().compute_score(wanted, said))
        seconds["theirs"].append(spent)
        found, spent = timed(lambda: cider_d(candidates, references))
        seconds["ours"].append(spent)
    error = max(abs(a - b) for a, b in zip([corpus, *items], [found["corpus"], *found["per_item"]], strict=True))
    return statistics.median(seconds["theirs"]), statistics.median(seconds["ours"]), float(error)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and the seconds of CPU that it took."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def main() -> int:
    """Returns 1 where ours is too slow or differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=Path, help="captions to score in place of random ones")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    good = True
    for references, wanted in MIN_GAIN.items():
        pairs = (
            random_pairs(PAIRS, references) if options.items is None else pairs_of(options.items, PAIRS, references)
        )
        theirs, ours, error = bench(pairs, options.repeats)
        fine = theirs / ours >= wanted and error <= TOLERANCE
        good &= fine
        print(
            f"CIDEr-D, {PAIRS} pairs x {references}: pycocoevalcap {theirs:.2f} s, ours {ours:.2f} s, "
            f"{theirs / ours:.1f} times (at least {wanted:g}), largest difference {error:.1e}"
            f"{'' if fine else '  FAILED'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
