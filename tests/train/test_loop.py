import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from conftest import example_rows, small_recipe
from pocketclip.data.rows import Row
from pocketclip.data.shards import write_shards
from pocketclip.device import choose_device
from pocketclip.errors import BundleError, CheckpointError, DataError, Stopped, TokenizerError, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe, to_toml
from pocketclip.tokenizer import learn_tokenizer, save_tokenizer
from pocketclip.train import loop
from pocketclip.train.check import check
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from pocketclip.train.ranks import Ranks


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise SIGTERM in this process while the given step (0 for the first) is at work."""
    original: Callable[..., object] = Learner.step

    def step_and_stop(self: Learner, batch: object, number: int) -> object:
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, number)

    monkeypatch.setattr(Learner, "step", step_and_stop)


@pytest.mark.parametrize(
    "settings",
    [{"precision": "float32"}, {"precision": "bfloat16"}, {"loss": "global", "label_smoothing": 0.0}],
    ids=["float32", "bfloat16", "global loss"],
)
@pytest.mark.parametrize("stop", [0, 4])
def test_ten_steps_are_five_and_a_stop_and_five(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], stop: int
) -> None:
    recipe = small_recipe(folder, train=settings)
    train(recipe, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        with pytest.raises(Stopped, match=f"stopped after step {stop + 1} of 12.*the same command goes on"):
            train(recipe, tmp_path / "stopped", console)
    assert not (tmp_path / "stopped" / "bundle").exists()
    train(recipe, tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("steps", [2, 7])
def test_a_run_of_steps_ends_inside_an_epoch_and_stops_and_goes_on(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    recipe = small_recipe(folder, train={"steps": steps}, data={"workers": 1})
    assert check(recipe).steps == steps
    train(recipe, tmp_path / "whole", console)
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["step"], last["epoch"], last["pairs"]) == (steps, steps / 3, 15 * steps)
    assert last["learning_rate"] < 0.1 * recipe.train.learning_rate or steps == 2, "the cosine ends where the run does"
    alone = small_recipe(folder, train={"steps": steps, "epochs": 50})
    with monkeypatch.context() as patch:
        stop_after(steps - 2, patch)
        with pytest.raises(Stopped, match=f"stopped after step {steps - 1} of {steps}"):
            train(alone, tmp_path / "stopped", console)
    train(alone, tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_steps_are_as_good_as_their_epochs(folder: Path, tmp_path: Path, console: Console) -> None:
    train(small_recipe(folder, train={"steps": 6}), tmp_path / "steps", console)
    train(small_recipe(folder, train={"epochs": 2}), tmp_path / "epochs", console)
    assert_same_weights(tmp_path / "steps", tmp_path / "epochs")
    with pytest.raises(TrainingError, match=r"another recipe \(train\.steps differ\)"):
        train(small_recipe(folder, train={"steps": 7}), tmp_path / "steps", console)


def test_the_loss_falls_and_the_log_says_so(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert lines[-1]["step"] == 180
    assert lines[0]["loss"] > 2 * lines[-1]["loss"]
    assert {"epoch", "learning_rate", "scale", "gradient_norm", "pairs", "seconds", "memory_mb"} <= lines[0].keys()
    assert lines[-1]["pairs"] == 180 * 15
    assert (trained / "recipe.toml").exists()
    assert json.loads((trained / "environment.json").read_text())["precision"] == "float32"


def test_a_finished_run_is_not_trained_again(trained: Path, folder: Path, console: Console) -> None:
    before = (trained / "bundle" / "model.safetensors").stat().st_mtime_ns
    train(small_recipe(folder, train={"epochs": 60}), trained, console)
    assert (trained / "bundle" / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_does_not_go_on_in_the_folder(trained: Path, folder: Path, console: Console) -> None:
    with pytest.raises(TrainingError, match=r"another recipe \(train\.learning_rate differ\)"):
        train(small_recipe(folder, train={"epochs": 60, "learning_rate": 1.0}), trained, console)


def test_a_folder_with_other_things_is_left_alone(recipe: Recipe, tmp_path: Path, console: Console) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(TrainingError, match="is not empty and holds no run"):
        train(recipe, tmp_path, console)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_nan_stops_the_run_before_anything_is_overwritten(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(folder, train={"checkpoint_minutes": 1e-9})
    original = Learner.step

    def poisoned(self: Learner, batch: object, number: int) -> object:
        if number == 11:
            self.model.logit_scale.data.fill_(float("nan"))
        return original(self, batch, number)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(TrainingError, match=r"the loss became nan between steps 11 and 12.*lower train\.learning_rate"):
        train(recipe, tmp_path / "run", console)
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000010"]
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_loss_that_stays_at_chance_is_said_plainly(folder: Path, tmp_path: Path) -> None:
    said = io.StringIO()
    recipe = small_recipe(folder, train={"epochs": 10, "learning_rate": 1e-9})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"initial_temperature": 10.0})})
    train(recipe, tmp_path / "run", Console(file=said, width=400))
    assert said.getvalue().count("ln(batch size) = 2.71: nothing is being learned") == 1


@pytest.mark.parametrize("loss", ["softmax", "global", "sigmoid"])
def test_each_loss_has_its_own_value_at_chance(
    loss: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    recipe = small_recipe(folder, train={"epochs": 10, "learning_rate": 1e-9, "loss": loss})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"initial_temperature": 10.0})})
    train(recipe, tmp_path / "blind", Console(file=said, width=400))
    assert said.getvalue().count("nothing is being learned") == 1
    chance, rows = recipe.train.chance_loss(45), math.log(45)
    assert chance is not None
    last = [json.loads(line) for line in (tmp_path / "blind" / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["loss"] == pytest.approx(chance, abs=0.05)
    for name, value in {"below": 0.9 * chance, "at": chance}.items():
        monkeypatch.setattr(Learner, "step", lambda *_, now=value: (torch.tensor(now), torch.tensor(1.0)))
        said.truncate(0)
        train(recipe, tmp_path / name, Console(file=said, width=400))
        assert said.getvalue().count("nothing is being learned") == (name == "at")
    assert (loss == "global") == (chance == pytest.approx(rows))


def test_a_changed_data_set_is_noticed_on_resume(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    write_shards(example_rows(test=False), data, "train")
    recipe = small_recipe(data)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "run", console)
    vocabulary = (data / "tokenizer.json").read_text()
    save_tokenizer(learn_tokenizer(["quite other words"], recipe.tokenizer), data / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"other files than .*\(tokenizer changed\)"):
        train(recipe, tmp_path / "run", console)
    (data / "tokenizer.json").write_text(vocabulary)
    rows = list(example_rows(test=False))
    write_shards(rows[:30], data, "train")
    with pytest.raises(CheckpointError, match=r"\(rows changed\)"):
        train(recipe, tmp_path / "run", console)
    write_shards(reversed(rows), data, "train")
    with pytest.raises(CheckpointError, match=r"\(data changed\)"):
        train(recipe, tmp_path / "run", console)
    write_shards(rows, data, "train")
    train(recipe, tmp_path / "run", console)


def test_a_vocabulary_that_folds_capitals_otherwise_is_named(folder: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(TokenizerError, match=r"was learned with tokenizer\.lowercase = true"):
        train(small_recipe(folder, tokenizer={"lowercase": False}), tmp_path / "run", console)


def test_what_a_kill_leaves_at_the_start_does_not_stop_the_next_one(
    folder: Path, tmp_path: Path, console: Console
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".recipe.toml.77.part").write_text("half")
    (run / "training.lock").touch()
    train(small_recipe(folder), run, console)
    assert (run / "environment.json").exists()
    assert not list(run.glob("*.part"))


def test_settings_that_cannot_change_the_weights_may_change(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small_recipe(folder), tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(Stopped):
            train(small_recipe(folder), tmp_path / "run", console)
    (tmp_path / "run" / "environment.json").unlink()
    train(small_recipe(folder, data={"workers": 1}, evaluate={"splits": []}), tmp_path / "run", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.toml").data.workers == 1
    assert (tmp_path / "run" / "environment.json").exists()


def test_rows_that_the_shards_left_out_are_counted(folder: Path, tmp_path: Path, console: Console) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    with tarfile.open(data / "train-00009.tar", "w") as tar:
        member = tarfile.TarInfo("alone.txt")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"words"))
    train(small_recipe(data), tmp_path / "run", console)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["dropped"] == {"no image file": 1}


def test_kill_nine_three_times_then_the_same_weights(folder: Path, tmp_path: Path) -> None:
    """A real process, really killed, at three moments; the same command each time."""
    recipe = small_recipe(folder, train={"epochs": 200, "checkpoint_minutes": 1e-9})
    (tmp_path / "small.toml").write_text(to_toml(recipe))
    command = [
        sys.executable,
        "-m",
        "pocketclip",
        "train",
        str(tmp_path / "small.toml"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    checkpoints = tmp_path / "runs" / "small" / "checkpoint"

    def newest() -> int:
        return max((int(path.name[5:]) for path in checkpoints.glob("step-*")), default=0)

    for kill, extra in enumerate((0.0, 0.013, 0.029)):
        before = newest()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while newest() < before + 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(extra)
        assert process.poll() is None, "it was to be killed while it worked"
        process.kill()
        process.wait()
        assert newest() >= 20 * (kill + 1)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    undisturbed = [*command[:-1], str(tmp_path / "undisturbed")]
    subprocess.run(undisturbed, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert_same_weights(tmp_path / "runs" / "small", tmp_path / "undisturbed" / "small")
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/small/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(10, 601, 10))
    assert not list((tmp_path / "runs").rglob("*.part"))


def test_a_vocabulary_that_is_too_large_is_named(folder: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.vocabulary_size is 258"):
        train(small_recipe(folder, tokenizer={"vocabulary_size": 258}), tmp_path / "run", console)


def test_data_without_one_usable_row_is_named(folder: Path, tmp_path: Path, console: Console) -> None:
    write_shards([Row(str(n), b"text", "jpg", ("words",)) for n in range(20)], tmp_path, "train")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    for use in (
        lambda: train(small_recipe(tmp_path), tmp_path / "run", console),
        lambda: check(small_recipe(tmp_path)),
    ):
        with pytest.raises(DataError, match="can be used: 15 x no JPEG, PNG or WebP"):
            use()


@pytest.mark.skipif(os.name == "nt", reason="POSIX process groups")
@pytest.mark.parametrize("stop", ["SIGINT", "SIGTERM"])
def test_a_second_process_is_refused_and_a_stop_of_the_whole_group_saves(
    folder: Path, tmp_path: Path, stop: str
) -> None:
    recipe = small_recipe(folder, train={"epochs": 3000}, data={"workers": 2})
    (tmp_path / "small.toml").write_text(to_toml(recipe))
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "pocketclip", "train", str(tmp_path / "small.toml"), "--runs", str(runs)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    metrics = runs / "small" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 2
    assert "another process is training in it" in second.stderr
    os.killpg(process.pid, signal.Signals[stop])
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 130, said + complained
    assert "the same command goes on" in said
    assert complained == ""
    assert list((runs / "small" / "checkpoint").glob("step-*"))


def test_what_is_refused_leaves_the_name_free(folder: Path, tmp_path: Path, console: Console) -> None:
    recipe = small_recipe(folder, train={"start_from": str(tmp_path / "nowhere")})
    (tmp_path / "nowhere").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "nowhere")
    with pytest.raises(BundleError):
        train(recipe, tmp_path / "run", console)
    assert [file.name for file in (tmp_path / "run").iterdir()] in ([], ["training.lock"])
    train(small_recipe(folder, train={"steps": 1}), tmp_path / "run", console)


def test_a_run_goes_on_with_the_parts_that_it_began_with(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory is free then: a batch norm sees a part at a time."""

    def fits(chunk: int) -> None:
        def fitted(recipe: Recipe, *_: object) -> tuple[Recipe, None]:
            return recipe.model_copy(update={"train": recipe.train.model_copy(update={"chunk_size": chunk})}), None

        monkeypatch.setattr(loop, "fit_to_memory", fitted)

    recipe = small_recipe(folder)
    fits(4)
    train(recipe, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped", console)
    fits(8)
    train(recipe, tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_process_without_a_pair_is_refused(folder: Path, tmp_path: Path, console: Console) -> None:
    with pytest.raises(TrainingError, match=r"train\.batch_size = 15: each of the 16 processes needs a pair"):
        loop._train(small_recipe(folder), tmp_path, console, choose_device("cpu", "float32"), Ranks(0, 16))
