"""Makes one data set of several, and two of one, on what `datasets` has for it."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from .notes import NOTES
from .region import region_features
from .sources import Unit, source_units


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)
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
    sets = _with_notes(_with_groups(sets))
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


def _with_groups(sets: list[Any]) -> list[Any]:
    """Gives stored sets without a column `group` an empty one, where others have one."""
    from datasets import Dataset, Value

    if not any(isinstance(one, Dataset) and "group" in one.column_names for one in sets):
        return sets
    return [
        one.add_column("group", [None] * len(one), feature=Value("string"))
        if isinstance(one, Dataset) and "group" not in one.column_names
        else one
        for one in sets
    ]


def _with_notes(sets: list[Any]) -> list[Any]:
    """Gives the captions of stored sets without lengths or languages empty ones, where others have some."""
    from datasets import Dataset

    kinds = [region_features(*has)["regions"] for has in product((False, True), repeat=len(NOTES))]
    stored = {i for i, one in enumerate(sets) if isinstance(one, Dataset) and one.features.get("regions") in kinds}
    said = {name for i in stored for name in NOTES if name in sets[i].features["regions"].feature}
    wanted = region_features(**dict.fromkeys(said, True))["regions"]
    fits = [i in stored and one.features["regions"] != wanted for i, one in enumerate(sets)]
    return [one.cast_column("regions", wanted) if fit else one for one, fit in zip(sets, fits, strict=True)]


def _check_kind(sets: Sequence[Any]) -> bool:
    """Raises unless the sets can be mixed; returns whether they are stored."""
    from datasets import Dataset, IterableDataset

    if not sets:
        raise ValueError("datasets is empty, expected at least one data set.")
    for index, one in enumerate(sets):
        if not isinstance(one, Dataset | IterableDataset):
            raise ValueError(f"data set {index} is a {type(one).__name__}, expected the result of load_regions.")
        if isinstance(one, Dataset) != isinstance(sets[0], Dataset):
            raise ValueError(
                f"data sets 0 and {index} are not both streamed or both stored: load all with the same streaming=..."
            )
        if isinstance(one, Dataset) and not len(one):
            raise ValueError(f"data set {index} has no records.")
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
        raise ValueError("by_size: streamed data sets have no known size; give sizes, or probabilities.")
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


def hold_out(
    datasets: Sequence[Dataset], share: float, seed: int = 0, group: str = "group"
) -> tuple[list[Dataset], list[Dataset]]:
    """Splits each data set into what to train on and what to keep out.

    Pictures of one source are on one side, in all of the sets: records of one group, copies that Roboflow made of one
    picture, files of the same content, records of one `image_id`. Which are kept out depends on groups and ids and the
    seed alone, not on the order of the records.

    Args:
        datasets: The map-style data sets of region records to split.
        share: The fraction of each set's images to keep out, between 0 and 1; at least one source goes to each side.
        group: The column that says what each record is of, as a patient or a film, where a set has it.

    Returns:
        The training sets and the sets kept out, in the order of `datasets`.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1.")
    if group != "group" and not any(group in dataset.column_names for dataset in datasets):
        raise ValueError(f"group is {group!r}, but the data sets have {', '.join(datasets[0].column_names)}.")
    units = source_units(datasets, group)
    if any(len(set(part)) < 2 for part in units):
        whole, units = units, source_units(datasets, group, by_content=False)
        if any(len(set(part)) < 2 <= len(set(finer)) for part, finer in zip(whole, units, strict=True)):
            logger.warning("a data set has the same picture everywhere: it is split as if these were different ones")
    kept_out = [_chosen(*part, share, seed) for part in zip(range(len(datasets)), datasets, units, strict=True)]
    everywhere = set().union(*kept_out)
    train, test = [], []
    for place, (dataset, of) in enumerate(zip(datasets, units, strict=True)):
        train.append(dataset.select([i for i, unit in enumerate(of) if unit not in everywhere]))
        test.append(dataset.select([i for i, unit in enumerate(of) if unit in kept_out[place]]))
        if not len(train[-1]):
            raise ValueError(
                f"all images of data set {place} are held out of training because the other sets have them too."
            )
    return train, test


def _chosen(place: int, dataset: Dataset, units: Sequence[Unit], share: float, seed: int) -> set[Unit]:
    """Draws the units of a data set to keep out: in a seeded order, those that the share has room for."""
    images = set(zip(units, dataset["image_id"], strict=True))
    sizes = Counter(unit for unit, _ in images)
    if len(sizes) < 2:
        what = "1 image" if len(images) == 1 else f"{len(images)} images, but from 1 source"
        raise ValueError(f"data set {place} has {what}: a split needs two or more.")
    order = sorted(sizes, key=lambda unit: (hashlib.sha256(f"{seed} {unit[1]}".encode()).digest(), unit))
    count = min(max(1, round(share * len(images))), len(images) - 1)
    chosen: set[Unit] = set()
    for unit in order:
        if sizes[unit] <= count:
            chosen.add(unit)
            count -= sizes[unit]
    return chosen or {min(order, key=sizes.__getitem__)}
