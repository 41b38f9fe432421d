"""What TensorBoard itself reads of a run's folder."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conftest import small_recipe
from pocketclip.errors import Stopped, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from train.test_loop import assert_same_weights, stop_after
from train.test_watch import lines


def die_at(step: int) -> Any:
    original = Learner.step

    def step_or_die(self: Learner, batch: Any, number: int) -> Any:
        if number == step:
            raise KeyboardInterrupt
        return original(self, batch, number)

    return step_or_die


def board_recipe(folder: Path) -> Recipe:
    return small_recipe(
        folder, train={"tensorboard": True, "epochs": 10}, evaluate={"splits": ["test", "train"], "every": 1}
    )


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value, as TensorBoard shows them; raises where a step is there twice."""
    accumulator: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {}
    for tag in found.Tags()["scalars"]:
        events = found.Scalars(tag)
        shown[tag] = {event.step: event.value for event in events}
        assert len(shown[tag]) == len(events), f"{tag} repeats a step"
    return shown


def assert_shows_the_logs(run: Path) -> None:
    shown = scalars(run)
    metrics = lines(run, "metrics.jsonl")
    for name in ("loss", "learning_rate", "gradient_norm", "pairs", "memory_mb"):
        assert shown[f"training/{name}"] == pytest.approx({line["step"]: line[name] for line in metrics}), name
    for split in ("test", "train"):
        expected = {line["step"]: line["top_1"] for line in lines(run) if line["split"] == split}
        assert shown[f"evaluation/top_1/{split}"] == pytest.approx(expected)


def test_it_shows_what_the_logs_say_also_after_a_stop(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run, recipe = tmp_path / "run", board_recipe(folder)
    with monkeypatch.context() as patch:
        stop_after(11, patch)  # an evaluation is due then
        with pytest.raises(Stopped):
            train(recipe, run, console)
    train(recipe, run, console)
    assert_shows_the_logs(run)
    train(small_recipe(folder, train={"epochs": 10}), tmp_path / "without", console)
    assert_same_weights(tmp_path / "without", run)
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_what_a_killed_process_wrote_after_its_checkpoint_is_hidden(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run, recipe = tmp_path / "run", board_recipe(folder)
    with monkeypatch.context() as patch:
        stop_after(11, patch)
        with pytest.raises(Stopped):
            train(recipe, run, console)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", die_at(20))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, run, console)
    assert max(scalars(run)["training/loss"]) == 20
    train(recipe, run, console)
    assert_shows_the_logs(run)


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="it is there")
def test_without_the_extra_it_is_said_before_anything_starts(folder: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(TrainingError, match=r"pip install 'pocketclip\[tensorboard\]'"):
        train(board_recipe(folder), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()
