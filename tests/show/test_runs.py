import json
import os
import shutil

import pytest
from filelock import FileLock
from rich.console import Console

from pocketclip.errors import DataError
from pocketclip.recipe.toml import load_resolved, to_toml
from pocketclip.show.runs import list_runs, runs_table, to_json
from show.test_report import make_run


@pytest.fixture
def finished(tmp_path):
    return make_run(tmp_path)


def unfinished(finished, name, *lines, **training):
    """A run beside another that has got as far as these lines of its log."""
    run = finished.parent / name
    run.mkdir()
    recipe = load_resolved(finished / "recipe.toml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": 4} | training)})
    (run / "recipe.toml").write_text(to_toml(recipe))
    (run / "training.lock").touch()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


LINE = {"step": 10, "epoch": 0.4, "pairs": 80, "loss": 2.5, "seconds": 20.0}


def test_a_finished_run_has_the_numbers_of_its_bundle_and_its_evaluation(finished):
    (run,) = list_runs(finished.parent)
    assert (run.name, run.state, run.step, run.steps, run.pairs) == ("tiny", "finished", 25, 25, 200)
    assert (run.loss, run.seconds, run.parameters) == (1.25, 50.0, 13)
    assert run.top_1 == {"train": 50.0, "unseen": 50.0}


def test_a_run_is_running_while_its_lock_is_held_and_stopped_without(finished):
    run = unfinished(finished, "half", LINE)
    with FileLock(run / "training.lock"):
        state = list_runs(finished.parent)[-1]
        assert (state.state, state.step, state.steps, state.loss) == ("running", 10, 100, 2.5)
    assert list_runs(finished.parent)[-1].state == "stopped"
    (run / "training.lock").unlink()
    assert list_runs(finished.parent)[-1].state == "stopped"
    assert not (run / "training.lock").exists()


def test_a_run_of_so_many_steps_has_so_many(finished):
    unfinished(finished, "short", LINE, steps=30)
    assert list_runs(finished.parent)[-1].steps == 30


def test_the_run_that_was_last_at_work_is_the_last(finished):
    for age, name in ((300, "b"), (100, "c"), (200, "a")):
        run = unfinished(finished, name, LINE)
        for file in run.iterdir():
            os.utime(file, (2e9 - age,) * 2)
    assert [run.name for run in list_runs(finished.parent)] == ["tiny", "b", "a", "c"]


def test_a_run_before_its_first_line_and_other_folders(finished):
    unfinished(finished, "begun")
    (finished.parent / "notes").mkdir()
    (finished.parent / "compare.html").touch()
    assert [run.name for run in list_runs(finished.parent)] == ["tiny", "begun"]
    assert "begun" in shown(finished.parent)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("recipe.toml", None, r"recipe.toml: cannot be read"),
        ("recipe.toml", "name =", r"recipe.toml: not valid TOML"),
        ("metrics.jsonl", "{}\n", r"'step'"),
        ("metrics.jsonl", "[1]\n", r"tiny"),
        ("metrics.jsonl", "no json\n", r"metrics.jsonl: damaged"),
        ("bundle/bundle.json", None, r"bundle.json: missing"),
        ("bundle/bundle.json", "[]", r"bundle.json: not a JSON object"),
        ("evaluation/results.json", "{", r"results.json: damaged"),
    ],
)
def test_a_damaged_run_is_named_among_the_others(finished, file, content, said):
    shutil.copytree(finished, finished.parent / "whole")
    (finished / file).unlink() if content is None else (finished / file).write_text(content)
    states = {run.name: run for run in list_runs(finished.parent)}
    assert states["whole"].state == "finished"
    assert states["tiny"].state == "damaged"
    assert str(finished) in states["tiny"].problem
    assert said in states["tiny"].problem
    assert "damaged" in shown(finished.parent)


def shown(folder):
    console = Console(width=40, record=True, soft_wrap=True)  # a narrow terminal: nothing is lost
    console.print(runs_table(list_runs(folder)))
    return console.export_text()


def test_the_table_has_every_number_with_its_unit(finished):
    unfinished(finished, "half", LINE)
    lines = shown(finished.parent).splitlines()
    assert lines[0].split() == ["run", "state", "steps", "pairs", "loss", "pairs/s", "time", "top-1", "parameters"]
    assert " ".join(lines[1].split()) == "tiny finished 25/25 200 1.250 4 0:00:50 train 50.0 %, unseen 50.0 % 0.00 M"
    assert " ".join(lines[2].split()) == "half stopped 10/100 80 2.500 4 0:00:20"


def test_json_has_the_same_for_programs(finished):
    assert json.loads(to_json(list_runs(finished.parent)[0]))["top_1"]["unseen"] == 50.0


def test_an_unfinished_run_has_its_best_accuracy_so_far(finished):
    run = unfinished(finished, "half", LINE)
    rest = dict.fromkeys(("step", "pairs", "seconds", "top_5", "chance_top_1"), 1.0)
    of = (("unseen", 1.0), ("unseen", 3.0), ("unseen", 2.0), ("train", 9.0))
    found = [rest | {"split": split, "top_1": value} for split, value in of]
    (run / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    assert list_runs(finished.parent)[-1].top_1 == {"unseen": 3.0, "train": 9.0}


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        list_runs(tmp_path / "none")
