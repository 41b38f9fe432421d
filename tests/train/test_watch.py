"""Evaluation during training: the figures, and that training does not notice it."""

import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import small_recipe
from pocketclip.bundle import load
from pocketclip.device import choose_device
from pocketclip.errors import DataError, RecipeError, Stopped
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from pocketclip.train.watch import Watch, evaluation_mode
from train.test_loop import assert_same_weights, stop_after

EVERY = {"splits": ["test", "train"], "every": 1}


def lines(run: Path, file: str = "evaluations.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def without_times(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    varying = ("seconds", "evaluation_seconds", "memory_mb")
    return [{name: value for name, value in line.items() if name not in varying} for line in found]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}], ids=["last weights", "averaged"])
def test_the_weights_are_those_of_a_run_without_evaluation(
    folder: Path, tmp_path: Path, console: Console, changes: dict[str, object]
) -> None:
    tower = {"patch_dropout": 0.25, "stem_channels": [], "patch_size": 8}  # draws random numbers in training
    train(small_recipe(folder, image_tower=tower, train=changes), tmp_path / "without", console)
    train(small_recipe(folder, image_tower=tower, train=changes, evaluate=EVERY), tmp_path / "with", console)
    assert_same_weights(tmp_path / "without", tmp_path / "with")
    assert not (tmp_path / "without" / "evaluations.jsonl").exists()


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}], ids=["last weights", "averaged"])
def test_the_last_figures_are_those_of_the_bundle(
    folder: Path, tmp_path: Path, console: Console, changes: dict[str, object]
) -> None:
    run = tmp_path / "run"
    train(small_recipe(folder, train={"epochs": 10, **changes}, evaluate=EVERY), run, console)
    found = lines(run)
    assert [(line["step"], line["split"]) for line in found] == [
        (step, split) for step in range(3, 31, 3) for split in ("test", "train")
    ]
    assert [line["epoch"] for line in found[::2]] == list(range(1, 11))
    results = evaluate_splits(load(run / "bundle", "cpu"), folder, ("test", "train"), tmp_path / "out", console, "")
    for line, result in zip(found[-2:], results, strict=True):
        for name in ("images", "candidates", "top_1", "top_5", "chance_top_1", "chance_top_5"):
            assert line[name] == getattr(result, name), name
        assert line["text_to_image_recall@1"] == result.recall["text_to_image_recall@1"]
    logged = {line["step"]: line for line in lines(run, "metrics.jsonl")}
    for line in found:
        assert (line["pairs"], line["seconds"]) == (line["step"] * 15, logged[line["step"]]["seconds"])


def test_interpolated_weights_are_what_is_evaluated(folder: Path, trained: Path) -> None:
    recipe = small_recipe(folder, train={"start_from": str(trained / "bundle"), "interpolation": 0.25})
    learner = Learner(recipe, choose_device("cpu", "float32"), 10)
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    with torch.no_grad():
        learner.model.logit_scale += 1.0
    for _ in range(2):  # asked for it a second time, it has not gone further back
        found = learner.finished().state_dict()["logit_scale"]
        torch.testing.assert_close(found, start["logit_scale"] + 0.25)
    assert learner.model.logit_scale == start["logit_scale"] + 1.0


@pytest.mark.parametrize("stop", [3, 5])  # after the fourth step, and after the sixth, whose evaluation is due
def test_a_stop_neither_loses_nor_repeats_an_evaluation(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    recipe = small_recipe(folder, evaluate=EVERY)
    train(recipe, tmp_path / "whole", console)
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        with pytest.raises(Stopped):
            train(recipe, run, console)
    assert [line["step"] for line in lines(run)] == [3, 3]
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 6, "from": "a process that was killed"}\n{"st')
    train(recipe, run, console)
    assert without_times(lines(run)) == without_times(lines(tmp_path / "whole"))
    assert_same_weights(tmp_path / "whole", run)


def test_evaluation_is_no_training_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, pause = Watch._measure, 0.4

    def slow(self: Watch) -> object:
        time.sleep(pause)
        return original(self)

    monkeypatch.setattr(Watch, "_measure", slow)
    said = io.StringIO()
    run = tmp_path / "run"
    train(small_recipe(folder, evaluate=EVERY), run, Console(file=said, width=200))
    training = json.loads((run / "bundle" / "bundle.json").read_text())["training"]
    assert training["evaluation_seconds"] >= 4 * pause
    steps = lines(run, "metrics.jsonl")
    assert max(b["seconds"] - a["seconds"] for a, b in itertools.pairwise(steps)) < pause
    assert all(line["evaluation_seconds"] >= pause for line in lines(run))
    assert "step 12/12  test top-1 " in said.getvalue()
    assert "evaluated in 0." in said.getvalue()


@pytest.mark.parametrize(("every", "steps"), [(0.5, [2, 3, 5, 6, 8, 9, 11, 12]), (1.5, [5, 9, 12]), (100, [12])])
def test_parts_of_epochs_and_the_end(
    folder: Path, tmp_path: Path, console: Console, every: float, steps: list[int]
) -> None:
    recipe = small_recipe(folder, evaluate={"splits": ["test"], "every": every})
    learner = Learner(recipe, choose_device("cpu", "float32"), 12)
    watch = Watch(recipe, tmp_path, learner, None, console)  # type: ignore[arg-type]
    assert [step for step in range(13) if watch.due(step)] == steps


def test_each_part_of_a_model_returns_to_its_own_mode() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(3).eval())
    with evaluation_mode(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == [True, True, False]


def test_mistakes_are_named_before_anything_is_trained(folder: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(DataError, match=r"evaluate\.splits: 'tset' is not in .*, which has test, train"):
        train(small_recipe(folder, evaluate={"splits": ["tset"], "every": 1}), tmp_path / "run", console)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    with pytest.raises(RecipeError, match=r"evaluate\.every = 1\.0 has nothing to evaluate on"):
        small_recipe(folder, evaluate={"splits": [], "every": 1})


def test_evaluation_may_be_asked_for_in_a_run_that_is_under_way(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_recipe(folder), tmp_path / "whole", console)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            train(small_recipe(folder), run, console)
    description = next((run / "checkpoint").glob("*/checkpoint.json"))
    known = json.loads(description.read_text())
    del known["evaluations"]  # as an earlier version wrote it
    description.write_text(json.dumps(known))
    train(small_recipe(folder, evaluate=EVERY), run, console)
    assert [line["step"] for line in lines(run)] == [6, 6, 9, 9, 12, 12]
    assert_same_weights(tmp_path / "whole", run)
