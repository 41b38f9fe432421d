"""Whole runs of several processes, as `torchrun` starts them, beside the same run of one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from conftest import small_recipe
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import to_toml
from pocketclip.train.loop import train

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")


def recipe_of(folder: Path, growth: object = (), **changes: object) -> Recipe:
    """No batch norm, whose statistics would be those of a rank's part; 45 rows in batches of 14: 7 each, or 3 and 4.

    Three pairs at a time are one part of a rank with three, and two of a rank with four.
    """
    tower: dict[str, object] = {"stem_channels": [], "pool": "class"}
    return small_recipe(folder, image={"growth": growth}, image_tower=tower, train={"batch_size": 14, **changes})


def start(count: int, file: Path, runs: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += ["-m", "pocketclip", "train", str(file), "--runs", str(runs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


def assert_close(one: Path, other: Path) -> None:
    first, second = (load_file(run / "bundle" / "model.safetensors") for run in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
def test_compiled_ranks_train_the_model_that_one_eager_process_trains(
    folder: Path, tmp_path: Path, console: Console
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe_of(folder, epochs=2, compile=True)))
    train(recipe_of(folder, epochs=2), tmp_path / "alone", console)
    finish(start(2, file, tmp_path / "runs"))
    assert_close(tmp_path / "alone", tmp_path / "runs" / "small")


@pytest.mark.parametrize(("count", "growth", "length"), [(2, [], {"epochs": 2}), (4, [[16, 0.5]], {"steps": 5})])
def test_ranks_train_the_model_that_one_process_trains(
    count: int, growth: list[list[float]], length: dict[str, int], folder: Path, tmp_path: Path, console: Console
) -> None:
    recipe = recipe_of(folder, growth, chunk_size=3, **length)
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe))
    train(recipe, tmp_path / "alone", console)
    said = finish(start(count, file, tmp_path / "runs"))
    assert said.count("the trained model") == 1
    assert_close(tmp_path / "alone", tmp_path / "runs" / "small")
    lines = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (tmp_path / "alone", tmp_path / "runs" / "small")
    ]
    for one, other in zip(*lines, strict=True):
        for key in ("loss", "gradient_norm", "scale"):
            assert other[key] == pytest.approx(one[key], rel=1e-3), key
        assert (one["pairs"], one["dropped"]) == (other["pairs"], other["dropped"])


def test_a_killed_rank_ends_the_run_which_goes_on_with_another_number_of_them(
    folder: Path, tmp_path: Path, console: Console
) -> None:
    recipe = recipe_of(folder, epochs=60, checkpoint_minutes=1e-9)
    file, run = tmp_path / "recipe.toml", tmp_path / "runs" / "small"
    file.write_text(to_toml(recipe))
    train(recipe, tmp_path / "alone", console)
    first = start(2, file, tmp_path / "runs")
    checkpoints = run / "checkpoint"
    while not list(checkpoints.glob("step-*")):
        assert first.poll() is None
        time.sleep(0.01)
    ranks = [one for one in psutil.Process(first.pid).children() if "pocketclip" in " ".join(one.cmdline())]
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGKILL)
    finish(first, 1)
    assert not (run / "bundle").exists()
    step = json.loads(next(checkpoints.glob("step-*/checkpoint.json")).read_text())["step"]
    assert 0 < step < 180
    said = finish(start(3, file, tmp_path / "runs"))
    assert f"going on from step {step} of 180" in said
    assert_close(tmp_path / "alone", run)


def test_the_first_rank_evaluates_and_all_end_early(folder: Path, tmp_path: Path, console: Console) -> None:
    recipe = small_recipe(
        folder,
        image_tower={"stem_channels": [], "pool": "class"},
        train={"batch_size": 14, "epochs": 60, "learning_rate": 1e-9, "best_by": "train", "patience": 2},
        evaluate={"splits": ["train"], "every": 1},
    )
    run = tmp_path / "runs" / "small"
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(recipe))
    train(recipe, tmp_path / "alone", console)
    said = finish(start(2, file, tmp_path / "runs"))
    assert said.count("ended early after step 9 of 180") == 1, said
    assert said.count("evaluated in") == 3
    assert_close(tmp_path / "alone", run)
    found = [
        [(line["step"], line["pairs"], line["top_1"]) for line in map(json.loads, file.read_text().splitlines())]
        for file in (tmp_path / "alone" / "evaluations.jsonl", run / "evaluations.jsonl")
    ]
    assert [step for step, _, _ in found[0]] == [3, 6, 9]
    assert found[0] == found[1]


def test_a_stop_of_all_ranks_saves_and_a_mistake_is_said_once(folder: Path, tmp_path: Path) -> None:
    file, run = tmp_path / "recipe.toml", tmp_path / "runs" / "small"
    file.write_text(to_toml(recipe_of(folder, epochs=3000)))
    process = start(2, file, tmp_path / "runs")
    while not (run / "metrics.jsonl").exists() or not (run / "metrics.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
    said, _ = process.communicate(timeout=300)
    assert said.count("the same command goes on") == 1, said
    assert list((run / "checkpoint").glob("step-*"))
    file.write_text(to_toml(recipe_of(folder, epochs=3000, learning_rate=1.0)))
    said = finish(start(2, file, tmp_path / "runs"), 1)
    assert said.count("holds a run of another recipe") == 1, said
