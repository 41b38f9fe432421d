"""Measures of bias beside brute force, SciPy and cases whose answers are known."""

from itertools import permutations
from math import log

import numpy as np
import pytest
from scipy.stats import entropy, permutation_test

from pocketclip.evaluate import association
from pocketclip.evaluate.association import effect_size, max_skew, ndkl, p_values, skews


def p_value(a, b) -> float:
    (found,) = p_values(a[:, None], b[:, None])
    return float(found)


def difference(a, b, axis=-1):
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


@pytest.mark.parametrize(("first", "second"), [(4, 5), (3, 6), (7, 7)])
def test_the_exact_p_value_is_scipys(first: int, second: int) -> None:
    random = np.random.default_rng(first)
    a, b = random.normal(0.5, 1, first), random.normal(0, 1, second)
    expected = permutation_test(
        (a, b), lambda x, y, axis: np.abs(difference(x, y, axis)), vectorized=True, n_resamples=np.inf,
        alternative="greater",
    ).pvalue  # fmt: skip
    assert p_value(a, b) == pytest.approx(expected)


def test_a_drawn_p_value_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.7, 1, 8), random.normal(0, 1, 8)
    exact = p_value(a, b)
    monkeypatch.setattr(association, "EXACT", 5000)
    assert p_value(a, b) == pytest.approx(exact, abs=0.02)
    assert p_value(a, b) == p_value(a, b)
    assert 0 < p_value(a + 100, b) == pytest.approx(2 / 12870, abs=3e-4)


@pytest.mark.parametrize("size", [3, 40])
def test_all_attributes_at_once_are_as_one_by_one_however_many_partitions_are_held(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    random = np.random.default_rng(size)
    a, b = random.normal(0.3, 1, (size, 4)), random.normal(0, 1, (size + 1, 4))
    found = p_values(a, b)
    assert found.tolist() == [p_value(a[:, one], b[:, one]) for one in range(4)]
    assert len(set(found.tolist())) > 1
    monkeypatch.setattr(association, "VALUES", 700)
    assert p_values(a, b) == pytest.approx(found, abs=0 if size == 3 else 0.02)


def test_the_p_value_of_no_difference_is_evenly_spread() -> None:
    random = np.random.default_rng(0)
    found = [p_value(random.normal(size=6), random.normal(size=6)) for _ in range(300)]
    assert np.mean(np.array(found) < 0.1) == pytest.approx(0.1, abs=0.05)
    assert p_value(np.ones(4), np.ones(4)) == 1


def test_effect_sizes_of_known_groups() -> None:
    a, b = np.array([3.0, 3.0]), np.array([1.0, 1.0])
    assert effect_size(a, b) == pytest.approx(2 / np.std([3, 3, 1, 1], ddof=1))
    assert effect_size(b, a) == -effect_size(a, b)
    assert effect_size(5 * a + 7, 5 * b + 7) == pytest.approx(effect_size(a, b)), "no unit, no origin"
    assert effect_size(np.ones(3), np.ones(2)) == 0


def test_skews_of_known_rankings() -> None:
    ranked = np.array([0, 0, 0, 1, 1, 1])
    assert skews(ranked, 2, 3) == pytest.approx([log(2), -np.inf])
    assert max_skew(ranked, 2, 3) == pytest.approx(log(2))
    assert max_skew(ranked, 2, 6) == 0
    assert max_skew(np.array([0, 1, 0, 1]), 2, 2) == 0
    assert max_skew(np.array([0, 0, 0, 0, 1]), 2, 1) == pytest.approx(log(1 / 0.8)), "its share of all is wanted"
    assert max_skew(ranked, 2, 99) == 0


def test_ndkl_equals_a_plain_count() -> None:
    ranked = np.array([0, 0, 1, 2, 1, 0, 2, 2])
    wanted = np.bincount(ranked) / 8
    weights = [1 / np.log2(place + 1) for place in range(1, 9)]
    each = [entropy(np.bincount(ranked[:place], minlength=3) / place, wanted) for place in range(1, 9)]
    assert ndkl(ranked, 3) == pytest.approx(np.dot(weights, each) / sum(weights))
    orders = [ndkl(np.array(order), 2) for order in set(permutations([0, 0, 0, 1, 1, 1]))]
    assert ndkl(np.array([0, 0, 0, 1, 1, 1]), 2) == pytest.approx(max(orders))
    assert min(orders) == pytest.approx(ndkl(np.array([0, 1, 0, 1, 0, 1]), 2), rel=0.1)
