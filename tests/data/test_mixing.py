"""Several data sets as one: in what proportions, for how long, in which order."""

from collections import Counter

import pytest
from PIL import Image

from sca_hf.data.mixing import mix_regions
from sca_hf.data.region import region_features


datasets = pytest.importorskip("datasets")


def one_set(names, task, streaming):
    region = {"region_id": "0", "box": [0, 0, 4, 4], "captions": ["a"], "category": "a"}
    size = {"width": 4, "height": 4, "image": Image.new("RGB", (4, 4))}
    rows = [{**size, "image_id": name, "task": task, "regions": [region]} for name in names]
    stored = datasets.Dataset.from_list(rows, features=region_features())
    return stored.to_iterable_dataset() if streaming else stored


def sets(streaming=False):
    """A set of five and one of two, for another task."""
    return [one_set("01234", "caption", streaming), one_set("AB", "recognition", streaming)]


def ids(mixture):
    return [record["image_id"] for record in mixture]


def tasks(mixture):
    return [record["task"] for record in mixture]


@pytest.mark.parametrize("streaming", [False, True])
def test_sets_take_turns_until_all_or_the_first_is_exhausted(streaming):
    mixture = mix_regions(sets(streaming), stopping="first_exhausted")
    assert tasks(mixture) == ["caption", "recognition"] * 2
    everything = "".join(ids(mix_regions(sets(streaming))))
    assert everything.startswith("0A1B2A3B4") and set(everything) == set("01234AB")


@pytest.mark.parametrize("streaming", [False, True])
def test_odds_and_seed_settle_the_order(streaming):
    def drawn(seed, odds=(3, 1)):
        return ids(mix_regions(sets(streaming), probabilities=odds, seed=seed))

    assert drawn(1) == drawn(1) == drawn(1, (0.75, 0.25)) != drawn(2)
    assert set(drawn(1)) == set("01234AB")


def test_odds_are_how_often_a_set_has_its_turn():
    many = [one_set(map(str, range(600)), task, streaming=False) for task in ("caption", "recognition")]
    drawn = Counter(mix_regions(many, probabilities=[3, 1], stopping="first_exhausted")["task"])
    assert drawn["caption"] == 600 and 150 < drawn["recognition"] < 250


def test_stored_and_streamed_mixtures_are_the_same():
    for options in ({"probabilities": [3, 1]}, {"probabilities": [1, 2], "stopping": "first_exhausted", "seed": 5}):
        assert ids(mix_regions(sets(), **options)) == ids(mix_regions(sets(streaming=True), **options))


def test_by_size_every_record_is_seen_exactly_once_in_a_seeded_order():
    mixture = mix_regions(sets(), by_size=True, seed=3)
    assert sorted(ids(mixture)) == sorted([*ids(sets()[0]), *ids(sets()[1])])
    assert (
        ids(mixture)
        == ids(mix_regions(sets(), by_size=True, seed=3))
        != ids(mix_regions(sets(), by_size=True, seed=4))
    )
    assert Counter(tasks(mixture)) == {"caption": 5, "recognition": 2}


def test_streamed_sets_have_to_be_told_their_sizes():
    with pytest.raises(ValueError, match="streamed data sets have no known size"):
        mix_regions(sets(streaming=True), by_size=True)
    mixture = mix_regions(sets(streaming=True), by_size=True, sizes=[5, 2], seed=1)
    assert ids(mixture) == ids(mix_regions(sets(streaming=True), probabilities=[5, 2], seed=1))


@pytest.mark.parametrize("streaming", [False, True])
def test_samples_are_limited_of_each_set_or_of_the_mixture(streaming):
    limited = ids(mix_regions(sets(streaming), max_samples=[2, None]))
    assert set(limited) == set("01AB")
    assert len(ids(mix_regions(sets(streaming), max_samples=3))) == 3
    assert len(ids(mix_regions(sets(streaming)[:1], max_samples=100))) == 5


def test_a_single_set_is_itself():
    (one, _) = sets()
    assert mix_regions([one]) is one


def test_sets_that_do_not_fit_are_refused():
    first, second = sets()
    cases = [
        ([], {}, "datasets is empty"),
        ([first, [1]], {}, "data set 1 is a list"),
        ([first, sets(streaming=True)[0]], {}, "data sets 0 and 1 are not both streamed or both stored"),
        ([first, second.remove_columns("task")], {}, "data set 1 differs from data set 0 in its columns task"),
        ([first, second.select([])], {}, "data set 1 has no records"),
        ([first, second], {"probabilities": [1]}, "probabilities has 1 numbers for 2 data sets"),
        ([first, second], {"probabilities": [1, 0]}, r"probabilities are \[1, 0\], expected positive"),
        ([first, second], {"probabilities": [1, 1], "by_size": True}, "contradict each other"),
        ([first, second], {"stopping": "never"}, "stopping is 'never'"),
        ([first, second], {"max_samples": 0}, "max_samples is 0"),
        ([first, second], {"max_samples": [1]}, "max_samples has 1 numbers for 2 data sets"),
    ]
    for mixed, options, message in cases:
        with pytest.raises(ValueError, match=message):
            mix_regions(mixed, **options)
