"""Which labels are kept: the best of each class by all judges together, a few of each picture, none twice.

A fixed threshold keeps what the teacher knows best, and starves the rest. So each class keeps a share of its own: its
best by the geometric mean of the ranks that the judges give within the class, in which one bad rank counts.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .judges import caption_words
from .settings import SelectionSettings


_RARE = "(rare words)"


@dataclass
class Candidate:
    """One region that may become a label.

    Attributes:
        image: The name of its picture.
        region: Its number in the picture.
        caption: What the teacher says of it.
        judges: What each judge says of it.
        group: Its class.
        combined: The geometric mean of its ranks within the class, above 0 (worst) to 1.
        kept: Whether it becomes a label.
        reason: Why, or why not.
    """

    image: str
    region: int
    caption: str
    judges: Mapping[str, float | None]
    group: str = ""
    combined: float = 0.0
    kept: bool = False
    reason: str = ""


def select(candidates: Sequence[Candidate], settings: SelectionSettings) -> None:
    """Fills in the class, the combined rank, whether it is kept, and why, of every candidate."""
    _group(candidates, settings)
    groups: dict[str, list[Candidate]] = defaultdict(list)
    for one in candidates:
        groups[one.group].append(one)
    quotas = {}
    for name, members in groups.items():
        _rank(members, settings.weights)
        quota = math.ceil(settings.coverage * len(members))
        quotas[name] = quota if settings.max_class is None else min(quota, settings.max_class)
    taken, pictures = Counter[str](), Counter[str]()
    said: dict[tuple[str, str], int] = {}
    for one in sorted(candidates, key=lambda one: (-one.combined, one.image, one.region)):
        said_by = said.get((one.image, " ".join(caption_words(one.caption))))
        low = next((name for name, limit in settings.thresholds.items() if _is_below(one, name, limit)), None)
        rank = f"rank {one.combined:.2f}"
        whole = f"{len(groups[one.group])} of the class {one.group!r}"
        one.kept = False
        if not one.caption.strip():
            one.reason = "the teacher said nothing"
        elif low is not None:
            one.reason = f"{low} is {one.judges[low]:.3g}, below {settings.thresholds[low]:.3g}"
        elif said_by is not None:
            one.reason = f"region {said_by} of the picture has the same caption, and a better rank"
        elif taken[one.group] >= quotas[one.group]:
            one.reason = f"{rank}, below the best {quotas[one.group]} of {whole}"
        elif pictures[one.image] >= settings.max_per_picture:
            one.reason = f"{rank}, but {settings.max_per_picture} better ones of its picture are kept"
        else:
            one.kept, one.reason = True, f"{rank}, among the best {quotas[one.group]} of {whole}"
            taken[one.group] += 1
            pictures[one.image] += 1
            said[one.image, " ".join(caption_words(one.caption))] = one.region


def _is_below(one: Candidate, judge: str, limit: float) -> bool:
    value = one.judges.get(judge)
    return value is not None and value < limit


def _group(candidates: Sequence[Candidate], settings: SelectionSettings) -> None:
    words = [sorted(set(caption_words(one.caption))) for one in candidates]
    counts = Counter(word for part in words for word in part)
    for one, own in zip(candidates, words, strict=True):
        if settings.class_by == "none":
            one.group = "(all)"
        elif settings.class_by == "caption":
            one.group = " ".join(caption_words(one.caption))
        else:
            common = [word for word in own if counts[word] >= settings.min_class]
            one.group = min(common, key=lambda word: (counts[word], word), default=_RARE)


def _rank(members: Sequence[Candidate], weights: Mapping[str, float]) -> None:
    """Fills in the geometric mean of the ranks of the members of a class; what a judge leaves open does not count."""
    totals, counted = [0.0] * len(members), [0.0] * len(members)
    for judge in dict.fromkeys(name for one in members for name in one.judges):
        known = [(index, value) for index, one in enumerate(members) if (value := one.judges.get(judge)) is not None]
        weight = weights.get(judge, 1.0)
        for (index, _), rank in zip(known, _ranks([value for _, value in known]), strict=True):
            totals[index] += weight * math.log(rank)
            counted[index] += weight
    for one, total, count in zip(members, totals, counted, strict=True):
        one.combined = math.exp(total / count) if count else 0.5


def _ranks(values: Sequence[float]) -> list[float]:
    """Returns the place of each value among all, above 0 to 1; equal values share the middle of their places."""
    counts = Counter(values)
    place, below = {}, 0
    for value in sorted(counts):
        place[value] = (below + (counts[value] + 1) / 2) / len(values)
        below += counts[value]
    return [place[value] for value in values]


def class_balance(candidates: Sequence[Candidate]) -> dict[str, dict[str, Any]]:
    """Returns of each class how many regions there are and how many are kept, the largest first."""
    whole, kept = Counter(one.group for one in candidates), Counter(one.group for one in candidates if one.kept)
    return {name: {"regions": count, "kept": kept[name]} for name, count in sorted(whole.items(), key=_by_size)}


def _by_size(item: tuple[str, int]) -> Any:
    return -item[1], item[0]
