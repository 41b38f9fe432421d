from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.show.crossing import crossings, last_of_each_pair


def lines(**runs: list[tuple[float, float]]) -> list[dict]:
    return [
        {"run": run, "split": "test", "seconds": seconds, "top_1": top_1}
        for run, points in runs.items()
        for seconds, top_1 in points
    ]


def test_a_slow_start_overtakes() -> None:
    (one,) = crossings(lines(early=[(10, 20), (110, 40)], late=[(10, 0), (60, 30), (110, 60)]))
    assert (one.faster, one.slower) == ("late", "early")
    assert one.seconds == pytest.approx(60)
    assert one.top_1 == pytest.approx(30)
    assert str(one) == "On test, late overtakes early after 60 seconds, at 30.0 %"


def test_of_runs_that_cross_often_the_last_time_is_said() -> None:
    up_and_down = [(float(n), 20.0 + (-1) ** n) for n in range(9)]
    found = crossings(lines(a=up_and_down, b=[(0, 20), (8, 20)], c=[(0, 0), (8, 40)]))
    last = {(one.faster, one.slower): one.seconds for one in last_of_each_pair(found)}
    assert len(found) > len(last) == 3
    for (faster, slower), seconds in last.items():
        assert seconds == max(one.seconds for one in found if {one.faster, one.slower} == {faster, slower})


def test_between_evaluations_at_other_times() -> None:
    (one,) = crossings(lines(a=[(0, 0), (100, 100)], b=[(0, 30), (40, 30), (100, 30)]))
    assert (one.faster, one.seconds, one.top_1) == ("a", pytest.approx(30), pytest.approx(30))


def test_no_crossing_outside_what_both_have_run() -> None:
    assert not crossings(lines(a=[(0, 10), (10, 20)], b=[(20, 5), (30, 50)]))
    assert not crossings(lines(a=[(0, 10)], b=[(0, 5)]))
    assert not crossings(lines(a=[(0, 10), (10, 10)], b=[(0, 10), (10, 10)]))
    assert not crossings(lines(a=[(0, 10), (5, 10), (10, 20)], b=[(0, 5), (5, 10), (10, 15)])), "it touches"


@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.lists(st.integers(0, 20), min_size=2, max_size=8))
def test_there_are_as_many_as_the_order_changes(first: list[int], second: list[int]) -> None:
    a = [(float(n), float(value)) for n, value in enumerate(first)]
    b = [(float(n), float(value)) for n, value in enumerate(second)]
    both = min(len(a), len(b))
    signs = [np.sign(x - y) for x, y in zip(first[:both], second[:both], strict=True)]
    signs = [sign for sign in signs if sign]
    expected = sum(one != other for one, other in pairwise(signs))
    found = crossings(lines(a=a, b=b))
    assert len(found) == expected
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    for one in found:
        assert np.interp(one.seconds, *zip(*a, strict=True)) == pytest.approx(one.top_1)
