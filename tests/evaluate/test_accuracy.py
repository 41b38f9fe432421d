"""What accuracies are worth: chance and bootstrap intervals beside brute force and SciPy."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from pocketclip.evaluate.accuracy import by_group, chance, intervals, mean_top_1


def test_intervals_equal_scipys_bootstrap() -> None:
    random = np.random.default_rng(0)
    rank = random.integers(0, 14, 400)
    groups = by_group(rank, ["a"] * 400)
    found = intervals(rank, groups)
    for k in (1, 5, 10):
        right = 100.0 * (rank < k)
        expected = bootstrap((right,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
        assert found[f"top_{k}"] == pytest.approx((expected.low, expected.high), abs=0.3)


def test_the_interval_of_a_mean_over_classes_equals_redrawing_within_each() -> None:
    random = np.random.default_rng(0)
    names = ["rare"] * 10 + ["usual"] * 200
    rank = np.concatenate([random.integers(0, 2, 10), random.integers(0, 9, 200)])
    groups = by_group(rank, names)
    assert mean_top_1(groups) == pytest.approx(100 * np.mean([np.mean(rank[:10] == 0), np.mean(rank[10:] == 0)]))
    redrawn = []
    for _ in range(10_000):
        shares = [np.mean(some[random.integers(0, len(some), len(some))] == 0) for some in (rank[:10], rank[10:])]
        redrawn.append(100 * np.mean(shares))
    expected = np.percentile(redrawn, (2.5, 97.5))
    assert intervals(rank, groups)["mean_group_top_1"] == pytest.approx(tuple(expected), abs=0.6)
    assert intervals(rank, groups) == intervals(rank, groups)


def test_groups_equal_a_plain_count() -> None:
    rank, names = np.array([0, 3, 0, 7]), ["b", "a", "b", "a"]
    groups = by_group(rank, names)
    assert list(groups) == ["a", "b"]
    assert (groups["a"].images, groups["a"].top_1, groups["a"].top_5) == (2, 0.0, 50.0)
    assert (groups["b"].images, groups["b"].top_1, groups["b"].top_5) == (2, 100.0, 100.0)


def test_chance_equals_blind_guessing() -> None:
    random = np.random.default_rng(0)
    right = np.array([1, 3])
    hits = [[bool((random.permutation(9)[:5] < one).any()) for _ in range(20_000)] for one in right]
    assert chance(right, 9, 5) == pytest.approx(100 * np.mean(hits), abs=1)
    assert chance(np.ones(1, np.int64), 1000, 5) == pytest.approx(0.5)
    assert chance(np.ones(1, np.int64), 3, 10) == 100
