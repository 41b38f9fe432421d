"""Evaluation during training: the figures, and that training does not notice it."""

import io
import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from conftest import COLOURS, SHAPES, draw, small_recipe
from labelled_samples import write_class_folders
from pocketclip.bundle import load
from pocketclip.device import choose_device
from pocketclip.errors import CheckpointError, DataError, RecipeError, Stopped, TrainingError
from pocketclip.evaluate.benchmarks.catalogue import Place
from pocketclip.evaluate.classes import measure_classes
from pocketclip.evaluate.results import Result
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from pocketclip.train.watch import Watch, evaluation_mode
from train.test_loop import assert_same_weights, stop_after, weights

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


def test_benchmarks_are_evaluated_during_training(folder: Path, tmp_path: Path, console: Console) -> None:
    images = {f"{shape}/{colour}.png": draw(colour, shape, "left") for shape in SHAPES for colour in COLOURS}
    write_class_folders(tmp_path / "shapes", images)
    about = {"every": 5, "splits": ["test"], "benchmarks": [str(tmp_path / "shapes")]}
    run = tmp_path / "run"
    train(small_recipe(folder, train={"epochs": 10, "best_by": "loss"}, evaluate=about), run, console)
    found = lines(run)
    assert [(line["split"], line["step"]) for line in found] == [
        ("test", 15), ("shapes", 15), ("test", 30), ("shapes", 30),
    ]  # fmt: skip
    assert all(line["evaluation_seconds"] > 0 for line in found)
    result = measure_classes(load(run / "bundle", "cpu"), Place("shapes", tmp_path / "shapes"))
    best = json.loads((run / "bundle" / "bundle.json").read_text())["training"]["best"]["step"]
    (line,) = [line for line in found if line["split"] == "shapes" and line["step"] == best]
    assert (line["top_1"], line["images"], line["candidates"]) == (result.top_1, 24, 4)
    with pytest.raises(DataError, match="no such folder and no benchmark"):
        train(small_recipe(folder, evaluate={"every": 1, "benchmarks": ["nope"]}), tmp_path / "other", console)


@pytest.mark.parametrize("asked", ["{}", "mine={}"])
def test_weights_are_chosen_by_a_benchmark_however_it_was_named(
    folder: Path, tmp_path: Path, console: Console, asked: str
) -> None:
    place = tmp_path / "shapes"
    write_class_folders(place, {f"{shape}/a.png": draw("red", shape, "left") for shape in SHAPES})
    asked = asked.format(place)
    by, _, _ = asked.partition("=")
    about = {"every": 5, "splits": [], "benchmarks": [asked]}
    run = tmp_path / "run"
    train(small_recipe(folder, train={"epochs": 10, "best_by": by}, evaluate=about), run, console)
    best = json.loads((run / "bundle" / "bundle.json").read_text())["training"]["best"]
    assert best["by"] == lines(run)[0]["split"] == ("shapes" if by == asked else "mine")
    assert best["value"] == max(line["top_1"] for line in lines(run))


def test_a_benchmark_that_cannot_be_read_is_named_before_anything_is_trained(
    folder: Path, tmp_path: Path, console: Console
) -> None:
    write_class_folders(tmp_path / "one", {"dog/a.png": b""})
    with pytest.raises(DataError, match="has one class alone"):
        train(
            small_recipe(folder, evaluate={"every": 1, "benchmarks": [str(tmp_path / "one")]}),
            tmp_path / "run",
            console,
        )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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

    def slow(self: Watch, model: CLIP) -> list[Result]:
        time.sleep(pause)
        return original(self, model)

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
    for length in (12, 7):  # a run that `train.steps` makes shorter still has epochs of three steps
        learner = Learner(recipe, choose_device("cpu", "float32"), length)
        watch = Watch(recipe, tmp_path, learner, None, 3, console)  # type: ignore[arg-type]
        found = [step for step in range(length + 1) if watch.due(step)]
        assert found == sorted({*(step for step in steps if step < length), length})


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


class Played:
    """Evaluations whose top-1 are as a list says; the weights are the real ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        evaluate, measure = Watch.evaluate, Watch._measure
        step = 0

        def evaluated(watch: Watch, now: int, pairs: int, seconds: float) -> float:
            nonlocal step
            step = now
            return evaluate(watch, now, pairs, seconds)

        def measured(watch: Watch, model: CLIP) -> list[Result]:
            self.weights[step] = {name: value.clone() for name, value in model.state_dict().items()}
            return [replace(one, top_1=values[step // 3 - 1]) for one in measure(watch, model)]

        monkeypatch.setattr(Watch, "evaluate", evaluated)
        monkeypatch.setattr(Watch, "_measure", measured)


def training_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "bundle" / "bundle.json").read_text())["training"]
    return found


def assert_weights_are(run: Path, expected: dict[str, torch.Tensor]) -> None:
    found = weights(run)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def best_recipe(folder: Path, **changes: object) -> Recipe:
    return small_recipe(folder, train={"best_by": "test", "epochs": 6, **changes}, evaluate={"every": 1})


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}], ids=["last weights", "averaged"])
def test_the_bundle_holds_the_weights_of_the_best_evaluation_the_first_of_equals(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    played = Played(monkeypatch, 10, 30, 20, 30, 0, 25)
    run = tmp_path / "run"
    train(best_recipe(folder, **changes), run, console)
    assert_weights_are(run, played.weights[6])
    assert training_of(run)["best"] == {"by": "test", "value": 30, "step": 6}
    assert training_of(run)["steps"] == 18
    assert "ended_early" not in training_of(run)
    assert [path.name for path in (run / "best").iterdir()] == ["step-00000006.safetensors"]


def test_a_plateau_ends_the_run_with_a_bundle_and_the_reason(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = Played(monkeypatch, 10, 30, 20, 30, 99, 99)
    said, run = io.StringIO(), tmp_path / "run"
    train(best_recipe(folder, patience=2), run, Console(file=said, width=200))
    assert_weights_are(run, played.weights[6])
    reason = "top-1 30.0 % on test at step 6 was not bettered in 2 evaluations"
    assert f"ended early after step 12 of 18: {reason}" in said.getvalue()
    assert (training_of(run)["steps"], training_of(run)["ended_early"]) == (12, reason)
    assert [line["step"] for line in lines(run)] == [3, 6, 9, 12]
    assert training_of(run)["pairs"] == 12 * 15


@pytest.mark.parametrize("kill", ["before the bundle", "before the evaluation"])
def test_a_run_that_was_to_end_ends_after_a_kill_too(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, kill: str
) -> None:
    played = Played(monkeypatch, 30, 20, 10, 99, 99, 99)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        if kill == "before the bundle":
            patch.setattr("pocketclip.train.loop.save_bundle", lambda *_: 1 / 0)
        else:
            stop_after(8, patch)
        with pytest.raises((ZeroDivisionError, Stopped)):
            train(best_recipe(folder, patience=2), run, console)
    train(best_recipe(folder, patience=2), run, console)
    assert_weights_are(run, played.weights[3])
    assert training_of(run)["steps"] == 9
    assert [line["step"] for line in lines(run)] == [3, 6, 9]


def test_the_best_of_a_killed_process_does_not_count(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of step 8 knows of the best of step 6; a killed process had found a better one, at step 9."""
    run = tmp_path / "run"
    played = Played(monkeypatch, 10, 30, 20, 15, 25, 0)
    with monkeypatch.context() as patch:
        stop_after(7, patch)
        with pytest.raises(Stopped):
            train(best_recipe(folder), run, console)
    best = run / "best" / "step-00000006.safetensors"
    (run / "best" / "step-00000009.safetensors").write_bytes(b"of other weights")
    whole = best.read_bytes()
    train(best_recipe(folder), run, console)
    assert_weights_are(run, played.weights[6])
    assert [path.name for path in (run / "best").iterdir()] == [best.name]
    shutil.rmtree(run / "bundle")
    best.write_bytes(whole[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"step-00000006\.safetensors: damaged"):
        train(best_recipe(folder), run, console)
    best.unlink()
    with pytest.raises(CheckpointError, match=r"step-00000006\.safetensors: missing"):
        train(best_recipe(folder), run, console)


def test_the_lowest_loss_counts_the_same_wherever_the_run_was_stopped(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, dict[str, object]] = {"train": {"best_by": "loss", "epochs": 6}}
    recipe = small_recipe(folder, **changes, evaluate={"splits": [], "every": 1.5})
    train(recipe, tmp_path / "whole", console)
    run = tmp_path / "run"
    for stop in (3, 4, 10):
        with monkeypatch.context() as patch:
            stop_after(stop, patch)
            with pytest.raises(Stopped):
                train(recipe, run, console)
    train(recipe, run, console)
    best = training_of(run)["best"]
    assert best == training_of(tmp_path / "whole")["best"]
    assert_same_weights(tmp_path / "whole", run)
    losses = {line["step"]: line["loss"] for line in lines(tmp_path / "whole", "metrics.jsonl")}
    assert list(losses) == [5, 9, 10, 14, 18]
    means = {5: losses[5], 9: losses[9], 14: (losses[10] + 4 * losses[14]) / 5, 18: losses[18]}
    assert best["step"] == min(means, key=means.__getitem__)
    assert best["value"] == pytest.approx(min(means.values()))


@pytest.mark.parametrize(
    ("training", "evaluation", "said"),
    [
        (
            {"best_by": "tset"},
            {"every": 1},
            r"train\.best_by = 'tset' is none of evaluate\.splits and evaluate\.benchmarks \(test\), nor `loss`",
        ),
        ({"best_by": "test"}, {}, r"train\.best_by = 'test' chooses among evaluations .* set evaluate\.every"),
        ({"best_by": "loss"}, {}, r"set evaluate\.every"),
        ({"patience": 3}, {"every": 1}, r"train\.patience = 3 waits for something better: set train\.best_by"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(
    folder: Path, training: dict[str, object], evaluation: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        small_recipe(folder, train=training, evaluate=evaluation)


def test_what_the_best_are_chosen_by_cannot_change_on_the_way(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        with pytest.raises(Stopped):
            train(best_recipe(folder), tmp_path / "run", console)
    recipe = best_recipe(folder)
    other = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"every": 2.0})})
    with pytest.raises(TrainingError, match=r"another recipe \(evaluate\.every differ\)"):
        train(other, tmp_path / "run", console)
