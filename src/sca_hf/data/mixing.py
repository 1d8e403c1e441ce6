"""Makes one data set of several, and two of one, on what `datasets` has for it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

Stopping = Literal["all_exhausted", "first_exhausted"]


def mix_regions(
    datasets: Sequence[Dataset] | Sequence[IterableDataset],
    probabilities: Sequence[float] | None = None,
    by_size: bool = False,
    seed: int = 0,
    stopping: Stopping = "all_exhausted",
    max_samples: int | Sequence[int | None] | None = None,
    sizes: Sequence[int] | None = None,
) -> Dataset | IterableDataset:
    """Mixes data sets of regions, all stored or all streamed; each record keeps its own task.

    Args:
        datasets: The data sets to mix, as `load_regions` returns them.
        probabilities: How often each set is drawn from, in any unit. None without `by_size` takes one set after the
            other.
        by_size: Whether sets are drawn from in proportion to their sizes. Stored sets are then joined and shuffled, so
            that "all_exhausted" has every record exactly once.
        seed: Determines the order.
        stopping: "all_exhausted" continues, starting smaller sets again, until every record has been seen;
            "first_exhausted" ends with the first set that ends.
        max_samples: How many records of each set to take, from its start; a single number limits the mixture instead.
        sizes: How many records each set has, for `by_size` on streamed sets, which do not know their size.
    """
    from datasets import concatenate_datasets, interleave_datasets

    sets: list[Any] = list(datasets)
    limits = [max_samples] if isinstance(max_samples, int) else list(max_samples or ())
    if stopping not in ("all_exhausted", "first_exhausted"):
        raise ValueError(f'stopping is {stopping!r}, expected "all_exhausted" or "first_exhausted".')
    if any(limit is not None and limit < 1 for limit in limits):
        raise ValueError(f"max_samples is {max_samples}, expected positive numbers.")
    if by_size and probabilities is not None:
        raise ValueError("by_size and probabilities contradict each other: give one of them.")
    stored = _check_kind(sets)
    if isinstance(max_samples, Sequence):
        _check_length(limits, sets, "max_samples")
        sets = [_first(one, limit) for one, limit in zip(sets, limits, strict=True)]
    if len(sets) == 1:
        mixture = sets[0]
    elif by_size and stored and stopping == "all_exhausted":
        mixture = concatenate_datasets(sets).shuffle(seed=seed)
    else:
        weights = _sizes(sets, limits, sizes, stored) if by_size else probabilities
        odds = None if weights is None else _normalized(weights, sets)
        mixture = interleave_datasets(sets, probabilities=odds, seed=seed, stopping_strategy=stopping)
    return _first(mixture, max_samples) if isinstance(max_samples, int) else mixture


def _check_kind(sets: Sequence[Any]) -> bool:
    """Raises unless the sets can be mixed; returns whether they are stored."""
    from datasets import Dataset, IterableDataset

    if not sets:
        raise ValueError("datasets is empty, expected at least one data set.")
    for index, one in enumerate(sets):
        if not isinstance(one, Dataset | IterableDataset):
            raise ValueError(f"data set {index} is a {type(one).__name__}, expected what load_regions returns.")
        if isinstance(one, Dataset) != isinstance(sets[0], Dataset):
            raise ValueError(
                f"data set {index} is streamed or stored where data set 0 is not: load all with streaming=..."
            )
        if isinstance(one, Dataset) and not len(one):
            raise ValueError(f"data set {index} has no record.")
        if one.features is None or one.features != sets[0].features:
            wanted, found = dict(sets[0].features or {}), dict(one.features or {})
            names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            raise ValueError(
                f"data set {index} differs from data set 0 in its columns {', '.join(names) or '(unknown)'}: mix sets "
                "with the features of data.region.region_features()."
            )
    return isinstance(sets[0], Dataset)


def _check_length(values: Sequence[Any], sets: Sequence[Any], name: str) -> None:
    if len(values) != len(sets):
        raise ValueError(f"{name} has {len(values)} numbers for {len(sets)} data sets.")


def _first(dataset: Any, count: int | None) -> Any:
    if count is None or (hasattr(dataset, "__len__") and len(dataset) <= count):
        return dataset
    return dataset.take(count)


def _sizes(
    sets: Sequence[Any], limits: Sequence[int | None], sizes: Sequence[int] | None, stored: bool
) -> Sequence[int]:
    if stored:
        return [len(one) for one in sets]
    if sizes is None:
        raise ValueError("by_size: streamed data sets do not know their size; give sizes, or probabilities.")
    _check_length(sizes, sets, "sizes")
    if len(limits) != len(sets):
        return sizes
    return [size if limit is None else min(size, limit) for size, limit in zip(sizes, limits, strict=True)]


def _normalized(weights: Sequence[float], sets: Sequence[Any]) -> list[float]:
    _check_length(weights, sets, "probabilities")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"probabilities are {list(weights)}, expected positive numbers.")
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def hold_out(datasets: Sequence[Dataset], share: float, seed: int = 0) -> tuple[list[Dataset], list[Dataset]]:
    """Splits each data set into what to train on and what to keep out.

    Which images are kept out depends on their `image_id` and the seed alone, not on the order of the records; an image
    that several sets have is on the same side in all of them.

    Args:
        datasets: The map-style data sets of region records to split.
        share: The fraction of each set's images to keep out, between 0 and 1; at least one image goes to each side.

    Returns:
        The training sets and the sets kept out, in the order of `datasets`.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1.")
    identities = [[str(name) for name in dataset["image_id"]] for dataset in datasets]
    kept_out: list[set[str]] = []
    for place, names in enumerate(identities):
        images = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
        if len(images) < 2:
            raise ValueError(f"data set {place} has {len(images)} image: a split needs two or more.")
        count = min(max(1, round(share * len(images))), len(images) - 1)
        kept_out.append(set(images[:count]))
    everywhere = set().union(*kept_out)
    train, test = [], []
    for place, (dataset, names) in enumerate(zip(datasets, identities, strict=True)):
        train.append(dataset.select([i for i, name in enumerate(names) if name not in everywhere]))
        test.append(dataset.select([i for i, name in enumerate(names) if name in kept_out[place]]))
        if not len(train[-1]):
            raise ValueError(
                f"all images of data set {place} are kept out of training because the other sets have them too."
            )
    return train, test
