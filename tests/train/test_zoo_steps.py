"""Every size of the zoo takes a real step and goes on from a real checkpoint, by the benchmark's own functions."""

import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import small_recipe
from pocketclip.device import choose_device
from pocketclip.train.learner import Learner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import zoo


@pytest.mark.slow
@pytest.mark.parametrize(("image", "text"), zoo.SIZES)
def test_a_size_steps_and_resumes(image: str, text: str) -> None:
    (trial,) = zoo.try_sizes([(image, text)])
    assert (trial.built, trial.stepped, trial.resumed) == (True, True, True), trial.why


@pytest.mark.parametrize("forgets", ["nothing", "optimizer", "model"])
def test_what_a_resume_forgets_is_seen(
    forgets: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner.restore

    def forgetful(self: Learner, state: dict[str, Any]) -> None:
        original(self, state | ({forgets: self.state()[forgets]} if forgets in state else {}))

    monkeypatch.setattr(Learner, "restore", forgetful)
    found: dict[str, Any] = {}
    for result in zoo.step_and_resume(small_recipe(folder), choose_device("cpu", "float32"), tmp_path):
        found |= result
    assert found["built"]
    assert found["stepped"]
    assert found["resumed"] == (forgets == "nothing")
