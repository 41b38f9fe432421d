import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.recipe.training import TrainSettings
from pocketclip.train.schedule import learning_rate


def rates(steps: int, **changes: float) -> list[float]:
    settings = TrainSettings(**changes)
    return [learning_rate(step, steps, settings) for step in range(steps)]


@given(st.integers(1, 500), st.floats(0, 1), st.floats(1e-6, 1))
def test_the_peak_is_the_recipes_and_the_rate_never_leaves_its_bounds(steps: int, warmup: float, peak: float) -> None:
    found = rates(steps, warmup=warmup, learning_rate=peak)
    assert max(found) == pytest.approx(peak)
    assert min(found) >= 0


def test_rise_then_fall() -> None:
    found = rates(100, warmup=0.2, learning_rate=1e-3)
    assert found[:20] == pytest.approx([1e-3 * (step + 1) / 20 for step in range(20)])
    assert all(a > b for a, b in itertools.pairwise(found[19:]))
    assert found[59] == pytest.approx(0.5e-3)
    assert found[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates(100, final_learning_rate=0.1)[-1] == pytest.approx(5e-5)
