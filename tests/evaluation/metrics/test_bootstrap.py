"""Bootstrap: draws of sums equal scoring drawn items, are the same for all, and keep groups together."""

import numpy as np
import pytest

from sca_hf.evaluation.metrics import bleu, bleu_sums, interval, p_value, resample
from sca_hf.evaluation.metrics.results import mean_sums


def words(random, count):
    return [list(random.choice(list("abcde"), size=random.integers(1, 9))) for _ in range(count)]


def test_a_draw_of_bleu_equals_bleu_of_the_drawn_items():
    random = np.random.default_rng(0)
    candidates, references = words(random, 12), [words(random, 2) for _ in range(12)]
    drawn = resample(bleu_sums(candidates, references), resamples=5, seed=3)["BLEU@2"]
    same = np.random.default_rng(3)
    for value in drawn:
        chosen = same.integers(12, size=12)
        scored = bleu([candidates[k] for k in chosen], [references[k] for k in chosen])
        assert value == pytest.approx(scored["BLEU@2"]["corpus"], abs=1e-12)


def test_draws_repeat_by_their_seed_whatever_else_is_drawn():
    first, second = mean_sums(range(50)), mean_sums([k**2 for k in range(50)])
    alone = resample({"a": first}, 20, seed=1)["a"]
    assert (resample({"b": second, "a": first}, 20, seed=1)["a"] == alone).all()
    assert (resample({"a": first}, 20, seed=2)["a"] != alone).any()


def test_an_interval_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = interval(resample({"a": mean_sums(values)}, 2000)["a"])
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / np.sqrt(2000), rel=0.1)


def test_items_of_a_group_are_drawn_together():
    values, groups = [0.0] * 50 + [1.0] * 50, [0] * 50 + [1] * 50
    assert set(resample({"a": mean_sums(values)}, 200, groups=groups)["a"]) == {0, 0.5, 1}


def test_p_values_are_of_the_rarer_side():
    assert p_value(np.linspace(-1, 1, 1001)) == pytest.approx(1, abs=0.01)
    assert p_value(np.full(999, 0.1)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(99)) == 1


def test_metrics_of_different_items_cannot_be_drawn_together():
    with pytest.raises(ValueError, match=r"\[2, 3\] items"):
        resample({"a": mean_sums([1, 2]), "b": mean_sums([1, 2, 3])})
