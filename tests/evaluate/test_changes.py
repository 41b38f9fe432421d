import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from conftest import example_rows, small_recipe
from pocketclip.bundle import load
from pocketclip.data.rows import Row
from pocketclip.data.shards import write_shards
from pocketclip.errors import CheckpointError, DataError
from pocketclip.evaluate import before
from pocketclip.evaluate.before import compare_with_start
from pocketclip.evaluate.changes import Change, read_changes, what_it_has_forgotten
from pocketclip.evaluate.results import read_lines
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.show.report import write_report
from pocketclip.train.loop import train
from train.test_start import recipe_from

SPLITS = 'evaluate.splits=["known", "train"]'


def other_captions() -> Iterator[Row]:
    """The same pictures under the captions of others, as if colours and places had swapped their meaning."""
    rows = list(example_rows(test=False))
    for row, other in zip(rows, rows[7:] + rows[:7], strict=True):
        yield replace(row, captions=other.captions)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures to train on with other captions, and `known`, the ones that the start has learned."""
    path = tmp_path_factory.mktemp("tuning")
    write_shards(other_captions(), path, "train")
    write_shards(example_rows(test=False), path, "known")
    return path


@pytest.fixture(scope="module")
def forgetful(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, console: Console) -> Path:
    """The run of a fine-tuning on other captions, evaluated by the command line."""
    folder = tmp_path_factory.mktemp("forgetful")
    recipe = recipe_from(trained, data, folder, "train.steps=60", "train.learning_rate=3e-3", SPLITS, "name=forgetful")
    train(recipe, folder / "forgetful", console)
    return folder / "forgetful"


def evaluated(bundle: Path, output: Path) -> str:
    """Evaluate as the verb does; what it says of before and after."""
    loaded, said = load(bundle), io.StringIO()
    recipe, console = loaded.recipe, Console(file=said, width=400)
    evaluate_splits(loaded, Path(recipe.data.folder), recipe.evaluate.splits, output, console, str(bundle))
    compare_with_start(loaded, output, console)
    return said.getvalue()


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 9), (9, 3), (10, 10), (40, 0), (700, 800)])
def test_mcnemars_test_is_the_exact_binomial(lost: int, gained: int) -> None:
    change = Change("a", 2000, 1000, lost, gained, 0.1)
    expected = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert change.p_value == pytest.approx(expected, rel=1e-9)


def test_a_change_counts_images() -> None:
    right_before, right_after = [1] * 600 + [0] * 400, [1] * 300 + [0] * 300 + [1] * 100 + [0] * 300
    moves = np.array(right_after) - right_before
    change = Change("a", 1000, 600, int((moves < 0).sum()), int((moves > 0).sum()), 1.0)
    assert (change.before, change.after, change.difference) == (60, 40, pytest.approx(-20))
    assert change.standard_error == pytest.approx(100 * moves.std() / 1000**0.5, rel=0.01)
    assert 1 < Change("a", 45, 45, 45, 0, 1.0).standard_error < 5, "not sure, though all moved the same way"


@pytest.mark.parametrize(
    ("images", "lost", "gained", "forgotten"),
    [
        (1000, 40, 5, True),
        (1000, 5, 40, False),  # it has learned
        (1000, 40, 28, False),  # 1.2 points, but luck does as much
        (10000, 80, 5, False),  # sure, but 0.75 points
        (100, 5, 0, False),  # 5 points, p = 0.06
        (100, 6, 0, True),  # 6 points, p = 0.03
    ],
)
def test_forgetting_is_more_than_a_point_and_more_than_luck(
    images: int, lost: int, gained: int, forgotten: bool
) -> None:
    change = Change("old", images, images // 2, lost, gained, 0.1)
    assert change.forgotten == forgotten
    assert ("it has forgotten: old (50.0 % before" in what_it_has_forgotten([change])) == forgotten


def test_other_captions_are_learned_and_what_was_known_is_forgotten(forgetful: Path) -> None:
    said = evaluated(forgetful / "bundle", forgetful / "evaluation")
    known, learned = read_changes(forgetful / "evaluation")
    assert (known.split, learned.split, known.images) == ("known", "train", 45)
    assert known.before > 80
    assert known.after < 50
    assert known.lost - known.gained > 15
    assert learned.after > learned.before
    right = [line["rank"] == 0 for line in read_lines(forgetful / "evaluation" / "known-predictions.jsonl")]
    assert known.after == pytest.approx(100 * sum(right) / 45)
    assert f"known: top-1 {known.before:.1f} % before, {known.after:.1f} % after: -" in said
    assert f"warning: it has forgotten: known ({known.before:.1f} % before" in said
    assert "train (" not in said


def test_the_same_captions_again_are_not_forgotten(
    trained: Path, folder: Path, tmp_path: Path, console: Console
) -> None:
    lines = ["train.steps=4", "train.learning_rate=1e-4", 'evaluate.splits=["train"]']
    bundle = train(recipe_from(trained, folder, tmp_path, *lines), tmp_path / "run", console)
    said = evaluated(bundle, tmp_path / "evaluation")
    (change,) = read_changes(tmp_path / "evaluation")
    assert abs(change.difference) < 10
    assert "top-1" in said
    assert "forgotten" not in said


def test_the_start_is_evaluated_as_by_itself_and_once(
    trained: Path, data: Path, forgetful: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluated(forgetful / "bundle", tmp_path / "a")
    evaluate_splits(load(trained / "bundle"), data, ["known", "train"], tmp_path / "b", console, "x")
    for split in ("known", "train"):
        name = f"{split}-predictions.jsonl"
        assert (tmp_path / "a" / "before" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    calls = []
    monkeypatch.setattr(before, "evaluate_splits", lambda *given: calls.append(given) or evaluate_splits(*given))
    assert evaluated(forgetful / "bundle", tmp_path / "a") == first
    assert not calls
    (tmp_path / "a" / "before" / "subject.json").write_text("{}")
    assert evaluated(forgetful / "bundle", tmp_path / "a") == first
    assert len(calls) == 1, "what is of something else is made anew"


def test_a_start_that_is_gone_or_another_is_said_and_nothing_old_is_shown(
    trained: Path, folder: Path, tmp_path: Path, console: Console
) -> None:
    start = train(small_recipe(folder), tmp_path / "start", console)
    recipe = recipe_from(start.parent, folder, tmp_path, 'evaluate.splits=["test"]')
    bundle = train(recipe, tmp_path / "run", console)
    evaluated(bundle, tmp_path / "evaluation")
    assert len(read_changes(tmp_path / "evaluation")) == 1
    start.rename(tmp_path / "elsewhere")
    assert "not compared with what it was before: " in (said := evaluated(bundle, tmp_path / "evaluation"))
    assert "no bundle" in said
    assert read_changes(tmp_path / "evaluation") == []
    shutil.copytree(trained / "bundle", start)
    assert "is not the bundle any more that training started from" in evaluated(bundle, tmp_path / "evaluation")
    assert read_changes(tmp_path / "evaluation") == []
    (tmp_path / "elsewhere evaluated" / "before").mkdir(parents=True)
    (own := tmp_path / "elsewhere evaluated" / "before" / "mine.txt").write_text("precious")
    evaluated(bundle, tmp_path / "elsewhere evaluated")
    assert own.read_text() == "precious"
    shutil.rmtree(start)
    (tmp_path / "elsewhere").rename(start)
    evaluated(bundle, tmp_path / "evaluation")
    assert len(read_changes(tmp_path / "evaluation")) == 1


def test_a_run_does_not_go_on_from_another_start(folder: Path, tmp_path: Path, console: Console) -> None:
    start = train(small_recipe(folder), tmp_path / "start", console)
    recipe = recipe_from(start.parent, folder, tmp_path)
    bundle = train(recipe, tmp_path / "run", console)
    bundle.rename(tmp_path / "taken away")  # the checkpoint of the last step is there
    text = (start / "bundle.json").read_text()
    train(small_recipe(folder, train={"epochs": 1}), tmp_path / "second", console)
    start.rename(tmp_path / "first bundle")
    (tmp_path / "second" / "bundle").rename(start)
    assert (start / "bundle.json").read_text() != text
    with pytest.raises(CheckpointError, match=rf"other files than {start} now holds \(start changed\)"):
        train(recipe, tmp_path / "run", console)


def test_results_of_other_images_are_refused(forgetful: Path, tmp_path: Path) -> None:
    evaluated(forgetful / "bundle", tmp_path)
    path = tmp_path / "before" / "known-predictions.jsonl"
    lines = [json.loads(line) | {"captions": ["quite another"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(
        DataError, match=r"before: is of other images .*\(known\); delete it and evaluate the run again"
    ):
        read_changes(tmp_path)


def test_the_command_line_and_the_report_tell_before_and_after(trained: Path, forgetful: Path) -> None:
    command = [sys.executable, "-m", "pocketclip", "evaluate", str(forgetful / "bundle")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "warning: it has forgotten: known" in done.stdout.replace("\n", " ")
    html = write_report(forgetful).read_text(encoding="utf-8")
    known, _ = read_changes(forgetful / "evaluation")
    assert f"<td>{known.before:.1f} %</td><td>{known.after:.1f} %</td>" in html
    assert "<strong>Warning: it has forgotten: known" in html
    assert f"fine-tuned from {trained / 'bundle'}" in html
    assert "pocketclip tokenizer" not in html
    assert (forgetful / "figures" / "before-and-after.png").exists()
    first = (forgetful / "figures" / "before-and-after.csv").read_text().splitlines()[1].split(",")
    assert first[:4] == ["known", "45", str(known.before), str(known.after)]
