"""Results as CSV, Markdown and a model card that the Hub's own library reads."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from conftest import draw
from labelled_samples import write_class_folders
from pocketclip.bundle import load
from pocketclip.cli.main import app
from pocketclip.errors import DataError
from pocketclip.evaluate.results import read_results


@pytest.fixture
def run(trained: Path, folder: Path, tmp_path: Path) -> Path:
    place = tmp_path / "runs" / "mine"
    shutil.copytree(trained, place)
    write_class_folders(tmp_path / "a|b", {"bar/x.png": draw("red", "bar", "left"), "pole/y.png": b"bad"})
    write_class_folders(tmp_path / "a|b", {"pole/z.png": draw("red", "pole", "left")})
    for more in ([f"data.folder={folder}"], ["--on", str(tmp_path / "a|b")]):
        done = CliRunner().invoke(app, ["evaluate", str(place / "bundle"), *more])
        assert done.exit_code == 0, done.output
    return place


def export(*arguments: object):
    return CliRunner().invoke(app, ["export-results", *map(str, arguments)])


def test_tables_hold_what_the_results_say(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "evaluation" / "results.json", tmp_path / "theirs.json")
    done = export(run, tmp_path / "theirs.json", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "results.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    results = {one.benchmark: one for one in read_results(run / "evaluation" / "results.json")}
    assert [(line["run"], line["benchmark"]) for line in lines] == [
        (name, benchmark) for name in ("mine", "theirs") for benchmark in results
    ]
    for line in lines:
        one = results[line["benchmark"]]
        assert float(line["top_1"]) == one.top_1
        assert (float(line["top_1_low"]), float(line["top_1_high"])) == one.intervals["top_1"]
        assert int(line["dropped"]) == sum(one.dropped.values())
        for name, value in one.recall.items():
            assert float(line[name]) == value
            assert float(line[f"chance_{name}"]) == one.chance_recall[name]
        for name, (low, high) in one.intervals.items():
            assert (float(line[f"{name}_low"]), float(line[f"{name}_high"])) == (low, high)
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines()]
    assert rows[0][1:] == ["mine", "theirs |"]
    assert rows[2][0].startswith("| a\\|b")
    assert all(len(row) == 3 for row in rows)
    (one,) = [one for one in results.values() if one.kind == "classes"]
    low, high = one.intervals["top_1"]
    assert rows[2][1] == f"{one.top_1:.1f} ({low:.1f} to {high:.1f}; 50.00)"


def test_the_card_is_read_by_the_hubs_library(run: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    assert export(run, "--output", tmp_path / "out").exit_code == 0
    found = ModelCard.load(run / "bundle" / "README.md")
    about = found.data.to_dict()
    assert about["library_name"] == "pocketclip"
    assert about["pipeline_tag"] == "zero-shot-image-classification"
    results = {one.benchmark: one for one in read_results(run / "evaluation" / "results.json")}
    read = {(one.dataset_name, one.metric_name): one.metric_value for one in found.data.eval_results}
    assert read == {
        (name, figure): pytest.approx(round(value, 2))
        for name, one in results.items()
        for figure, value in (("top-1", one.top_1), ("top-5", one.top_5))
    }
    for part in (
        "trained from scratch",
        "names no author and no licence",
        "## Limits",
        'name = "small"',
        "chance",
        "top-10 ",
    ):
        assert part in found.text, part
    load(run / "bundle")  # which is whole as before


def test_a_card_that_somebody_changed_is_kept(run: Path, tmp_path: Path) -> None:
    path = run / "bundle" / "README.md"
    assert export(run, "--output", tmp_path / "out").exit_code == 0
    first = path.read_text()
    assert export(run, "--output", tmp_path / "out").exit_code == 0
    assert path.read_text() == first
    licensed = first.replace("---\n", "---\nlicense: mit\n", 1)
    for mine in (first + "\nMy own words.\n", "My own card.", licensed, "caf\xe9"):
        path.write_text(mine, encoding="latin-1" if mine == "caf\xe9" else "utf-8")
        (tmp_path / "out" / "results.csv").write_text("as it was")
        done = export(run, "--output", tmp_path / "out")
        assert isinstance(done.exception, DataError)
        assert "is not as PocketCLIP wrote it" in str(done.exception)
        assert path.read_text(encoding="latin-1" if mine == "caf\xe9" else "utf-8") == mine
        assert (tmp_path / "out" / "results.csv").read_text() == "as it was"


@pytest.mark.parametrize("name", ["results.csv", "results.md"])
def test_tables_of_another_hand_are_kept(run: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(run / "evaluation" / "results.json", tmp_path / "results.json")
    (tmp_path / name).write_text("precious")
    done = export(tmp_path / "results.json")
    assert isinstance(done.exception, DataError)
    assert f"{name}: is there, and no table of PocketCLIP's" in str(done.exception)
    assert (tmp_path / name).read_text() == "precious"
    (tmp_path / name).unlink()
    for _ in range(2):  # its own may be written anew
        assert export(tmp_path / "results.json").exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": []}, "groups: Input should be an object"),
        ({"top_1": None}, "top_1: Input should be a valid number"),
        ({"top_1": "90"}, "top_1: Input should be a valid number"),
        ({"top_1": float("nan")}, "top_1: Input should be a finite number"),
        ({"benchmark": 5}, "benchmark: Input should be a valid string"),
        ({"dropped": []}, "dropped: Input should be an object"),
        ({"intervals": {}}, "lacks an interval or a recall"),
        ({"recall": {"x": 1.0}}, "lacks an interval or a recall"),
        ({"images": "x"}, "images: Input should be a valid integer"),
        ({"more": 1}, "more: Unexpected keyword argument"),
        ({"benchmark": "a\ud800"}, "damaged"),
    ],
)
def test_anybodys_results_are_checked(run: Path, tmp_path: Path, change: dict, said: str) -> None:
    content = json.loads((run / "evaluation" / "results.json").read_text())
    content["results"][0] |= change
    (tmp_path / "x.json").write_text(json.dumps(content))
    done = export(tmp_path / "x.json", "--output", tmp_path / "out")
    assert isinstance(done.exception, DataError), done.exception
    assert said in str(done.exception)


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "others" / "mine")
    assert export(run, tmp_path / "others" / "mine", "--output", tmp_path / "out").exit_code == 0
    head = (tmp_path / "out" / "results.md").read_text().splitlines()[0]
    assert str(run) in head
    assert str(tmp_path / "others" / "mine") in head


def test_what_was_not_evaluated_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for source in (tmp_path / "run", tmp_path / "none.json"):
        done = export(source, "--output", tmp_path / "out")
        assert isinstance(done.exception, DataError)
        assert "missing" in str(done.exception)
    (tmp_path / "x.json").write_text(json.dumps({"format": 3, "seal": "", "results": [{}]}))
    assert "damaged" in str(export(tmp_path / "x.json", "--output", tmp_path / "out").exception)
