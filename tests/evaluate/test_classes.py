"""Zero-shot classification of a benchmark, from files to results."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from typer.testing import CliRunner

from conftest import COLOURS, SHAPES, draw
from labelled_samples import write_class_folders, write_clip_benchmark
from pocketclip.bundle import Bundle, load
from pocketclip.cli.main import app
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import PROMPTS, Place
from pocketclip.evaluate.classes import evaluate_classes, measure_classes
from pocketclip.evaluate.prompts import class_embeddings
from pocketclip.evaluate.results import read_lines, read_results
from pocketclip.recipe.toml import override


@pytest.fixture
def bundle(trained: Path) -> Bundle:
    found = load(trained / "bundle")
    small = found.recipe.evaluate.model_copy(update={"batch_size": 7})  # a ragged last batch
    found.recipe = found.recipe.model_copy(update={"evaluate": small})
    return found


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    """24 pictures of four shapes, in folders."""
    images = {f"{shape}/{colour}.png": draw(colour, shape, "left") for shape in SHAPES for colour in COLOURS}
    write_class_folders(tmp_path / "shapes", images)
    return tmp_path / "shapes"


def test_figures_equal_scikit_learns(bundle: Bundle, shapes: Path, tmp_path: Path, console: Console) -> None:
    result = evaluate_classes(bundle, Place("shapes", shapes), tmp_path / "out", console, "x")
    names = sorted(SHAPES)
    prompts = ["a photo of a {}", "a picture of a {}", "a drawing of a {}", "a {} seen from nearby", "one {}", "{}"]
    classes = []
    for name in names:
        each = bundle.encode_texts([prompt.format(name) for prompt in prompts]).numpy().mean(axis=0)
        classes.append(each / np.linalg.norm(each))
    files = [shapes / name / f"{colour}.png" for name in names for colour in sorted(COLOURS)]
    labels = np.repeat(range(4), 6)
    scores = bundle.encode_images(files).numpy() @ np.array(classes).T
    assert result.top_1 == pytest.approx(100 * top_k_accuracy_score(labels, scores, k=1))
    assert result.top_5 == result.top_10 == result.chance_top_5 == 100
    assert result.chance_top_1 == pytest.approx(25)
    assert (result.images, result.candidates, result.kind, result.missing) == (24, 4, "classes", ())
    low, high = result.intervals["top_1"]
    assert low <= result.top_1 <= high
    predicted = scores.argmax(axis=1)
    for number, name in enumerate(names):
        own = predicted[labels == number] == number
        assert (result.groups[name].images, result.groups[name].top_1) == (6, pytest.approx(100 * own.mean()))
    assert result.mean_group_top_1 == pytest.approx(np.mean([one.top_1 for one in result.groups.values()]))

    lines = read_lines(tmp_path / "out" / "shapes-predictions.jsonl")
    assert [line["name"] for line in lines] == [f"{file.parent.name}/{file.name}" for file in files]
    assert [names.index(line["best"][0][0]) for line in lines] == predicted.tolist()
    assert [line["best"][0][1] for line in lines] == pytest.approx(scores.max(axis=1), abs=1e-4)
    with (tmp_path / "out" / "shapes-confusion.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["class", *names]
    assert np.array(rows[1:])[:, 1:].astype(int).tolist() == confusion_matrix(labels, predicted).tolist()
    assert not (tmp_path / "out" / "shapes-dropped.jsonl").exists()
    again = measure_classes(bundle, Place("shapes", shapes))
    assert again == result


def test_top_5_and_10_are_scikit_learns_among_many_classes(bundle: Bundle, tmp_path: Path, console: Console) -> None:
    names = [f"{colour} {shape} {place}" for colour in COLOURS for shape in SHAPES for place in ("left", "right")]
    names.sort()
    others = names[:16] + names[17:] + names[16:17]  # most have another's picture, or there were no mistakes to count
    write_class_folders(
        tmp_path / "x", {f"{name}/a.png": draw(*other.split()) for name, other in zip(names, others, strict=True)}
    )
    result = evaluate_classes(bundle, Place("x", tmp_path / "x"), tmp_path / "out", console, "x")
    texts = class_embeddings(bundle, [[prompt.format(name) for prompt in PROMPTS] for name in names])
    scores = bundle.encode_images([tmp_path / "x" / name / "a.png" for name in names]).numpy() @ texts.T
    found = {1: result.top_1, 5: result.top_5, 10: result.top_10}
    for k, value in found.items():
        assert value == pytest.approx(100 * top_k_accuracy_score(range(len(names)), scores, k=k))
    assert len(set(found.values())) == 3, "or nothing was tried"


def test_two_of_one_name_are_refused_before_anything_is_lost(trained: Path, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "other" / shapes.name)
    asked = ["evaluate", str(trained / "bundle"), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*asked, "--on", str(shapes), "--on", str(tmp_path / "other" / shapes.name)])
    assert isinstance(done.exception, DataError)
    assert "something else is called 'shapes' too; give it another name: NAME=" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_probe_without_images_of_use_loses_nothing(bundle: Bundle, shapes: Path, tmp_path: Path) -> None:
    shutil.copytree(shapes, tmp_path / "x" / "test")
    write_class_folders(tmp_path / "x" / "train", {"bar/a.png": b"", "pole/b.png": b""})
    said = io.StringIO()
    probing = replace(bundle, recipe=override(bundle.recipe, ["evaluate.probe=true"], ("evaluate.",)))
    result = evaluate_classes(probing, Place("x", tmp_path / "x"), tmp_path / "out", Console(file=said, width=300), "x")
    assert (result.images, result.further) == (24, {})
    assert "x: no probe: x: no image can be used: 2 x no JPEG, PNG or WebP" in said.getvalue()
    assert (tmp_path / "out" / "x-predictions.jsonl").exists()


def test_what_cannot_be_used_is_counted_and_named(bundle: Bundle, tmp_path: Path) -> None:
    images = {
        "airplanes/a.png": draw("red", "bar", "left"),
        "airplanes/b.png": b"no picture",
        "BACKGROUND_Google/c.png": draw("red", "bar", "left"),
        "dodo/d.png": draw("red", "bar", "left"),
        "ant/e.txt": b"",
    }
    write_class_folders(tmp_path / "caltech", images)
    (tmp_path / "caltech" / "ant" / "f.png").symlink_to("/dev/zero")
    said = Console(file=(tmp_path / "said").open("w"), width=300)
    result = evaluate_classes(
        bundle, Place("caltech101", tmp_path / "caltech", known=True), tmp_path / "out", said, "x"
    )
    assert (result.images, result.candidates) == (1, 101)
    assert result.dropped == {
        "class BACKGROUND_Google, which the benchmark ignores": 1,
        "no JPEG, PNG or WebP": 1,
        "not a plain file": 1,
        "file of another kind": 1,
        "unknown class 'dodo'": 1,
    }
    assert len(result.missing) == 100
    assert "ant" in result.missing
    said.file.close()
    text = (tmp_path / "said").read_text()
    assert "caltech101: dropped 1 x no JPEG, PNG or WebP (airplanes/b.png)" in text
    assert "caltech101: no image of accordion, anchor, ant and 97 more" in text
    named = [json.loads(line) for line in (tmp_path / "out" / "caltech101-dropped.jsonl").read_text().splitlines()]
    assert {one["name"] for one in named} == {
        "airplanes/b.png", "BACKGROUND_Google/c.png", "dodo/d.png", "ant/e.txt", "ant/f.png",
    }  # fmt: skip


def test_nothing_of_use_is_an_error(bundle: Bundle, tmp_path: Path, console: Console) -> None:
    write_class_folders(tmp_path / "x", {"dodo/d.png": b"", "moa/e.png": b""})
    with pytest.raises(DataError, match="x: no image can be used: 2 x no JPEG, PNG or WebP"):
        evaluate_classes(bundle, Place("x", tmp_path / "x"), tmp_path / "out", console, "x")


def test_a_label_outside_the_classes_is_unknown(bundle: Bundle, tmp_path: Path, console: Console) -> None:
    rows = [{"png": draw("red", "bar", "left"), "cls": label} for label in (b"0", b"1", b"2")]
    write_clip_benchmark(tmp_path / "set", rows, ["bar", "pole"], ["{c}"])
    result = evaluate_classes(bundle, Place("set", tmp_path / "set"), tmp_path / "out", console, "x")
    assert (result.images, result.dropped) == (2, {"unknown class 2": 1})


def test_the_command(trained: Path, shapes: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = CliRunner()
    done = run.invoke(app, ["evaluate", str(trained / "bundle"), "--output", str(out), f"data.folder={folder}"])
    assert done.exit_code == 0, done.output
    done = run.invoke(app, ["evaluate", str(trained / "bundle"), "--output", str(out), "--on", f"{shapes}"])
    assert done.exit_code == 0, done.output
    assert "shapes: top-1 " in done.output
    assert "of 24 images against 4 classes (chance 25.00 %, 100.00 %)" in done.output
    assert [one.benchmark for one in read_results(out / "results.json")] == ["shapes", "test"], "none is lost"
    content = json.loads((out / "results.json").read_text())
    content["seal"] = "of other weights"
    (out / "results.json").write_text(json.dumps(content))
    run.invoke(app, ["evaluate", str(trained / "bundle"), "--output", str(out), "--on", f"{shapes}"])
    assert [one.benchmark for one in read_results(out / "results.json")] == ["shapes"]
    for name in ("b32", "l14"):  # of a folder with several
        shutil.copytree(trained / "bundle", tmp_path / "models" / name)
        assert run.invoke(app, ["evaluate", str(tmp_path / "models" / name), "--on", f"{shapes}"]).exit_code == 0
        assert (tmp_path / "models" / f"{name}-evaluation" / "results.json").exists()
    assert not (tmp_path / "models" / "evaluation").exists()
    done = run.invoke(app, ["evaluate", str(trained / "bundle"), "--output", str(out), "--on", "cifar10,nope"])
    assert isinstance(done.exception, DataError)
