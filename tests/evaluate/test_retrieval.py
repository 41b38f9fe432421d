"""Retrieval on a benchmark, beside a plain count over all pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import draw
from labelled_samples import write_coco
from pocketclip.bundle import load
from pocketclip.cli.main import app
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import Place, find
from pocketclip.evaluate.results import read_lines, read_results
from pocketclip.evaluate.retrieval import evaluate_captioned, measure_captioned

IMAGES = {
    f"{number}.png": (draw(colour, shape, place), [f"{colour} {shape} {place}", f"a {shape} in {colour}, {place}"])
    for number, (colour, shape, place) in enumerate(
        [(c, s, p) for c in ("red", "green", "blue") for s in ("circle", "bar") for p in ("left", "right")]
    )
}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    images = IMAGES | {
        "same.png": (draw("purple", "circle", "left"), ["red circle left", " ", "something else"]),
        "bad.png": (b"no image", ["bad"]),
        "mute.png": (draw("red", "bar", "left"), [" "]),
    }
    write_coco(tmp_path / "coco", images)
    return tmp_path / "coco"


def test_recall_equals_a_plain_count(trained: Path, coco: Path, tmp_path: Path, console: Console) -> None:
    bundle = load(trained / "bundle")
    result = evaluate_captioned(bundle, Place("coco", coco, "captions"), tmp_path / "out", console, "x")
    own = {name: {text for text in texts if text.strip()} for name, (_, texts) in IMAGES.items()}
    own["same.png"] = {"red circle left", "something else"}
    names, texts = list(own), sorted(set().union(*own.values()))
    images = bundle.encode_images([coco / "val2017" / name for name in names]).numpy()
    cosines = images @ bundle.encode_texts(texts).numpy().T
    for k in (1, 5, 10):
        to_text, to_image = [], []
        for name, scores in zip(names, cosines, strict=True):
            to_text.append(any(texts[c] in own[name] for c in np.argsort(-scores)[:k]))
        for text, scores in zip(texts, cosines.T, strict=True):
            to_image.append(any(text in own[names[i]] for i in np.argsort(-scores)[:k]))
        assert result.recall[f"image_to_text_recall@{k}"] == pytest.approx(100 * np.mean(to_text))
        assert result.recall[f"text_to_image_recall@{k}"] == pytest.approx(100 * np.mean(to_image))
    assert result.top_1 == result.recall["image_to_text_recall@1"]
    assert (result.images, result.candidates, result.kind) == (13, 25, "retrieval")
    assert result.dropped == {"no JPEG, PNG or WebP": 1, "no caption": 1}
    lines = read_lines(tmp_path / "out" / "coco-predictions.jsonl")
    assert [line["name"] for line in lines] == names
    assert [line["rank"] == 0 for line in lines].count(True) == round(13 * result.top_1 / 100)
    dropped = [json.loads(line) for line in (tmp_path / "out" / "coco-dropped.jsonl").read_text().splitlines()]
    assert {one["name"] for one in dropped} == {"bad.png", "mute.png"}
    assert measure_captioned(bundle, Place("coco", coco, "captions")) == result


def test_the_command_and_where_it_looks(trained: Path, coco: Path, tmp_path: Path) -> None:
    assert find("coco", tmp_path) == Place("coco", coco, "captions", known=True)
    command = ["evaluate", str(trained / "bundle"), f"evaluate.folder={tmp_path}", "--on", "coco", "--output"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "of 13 images against 25 captions" in done.output
    assert "coco: dropped 1 x no JPEG, PNG or WebP (bad.png)" in done.output
    (result,) = read_results(tmp_path / "out" / "results.json")
    chance = result.chance_recall["text_to_image_recall@1"]
    assert f"text to image recall@1 {result.recall['text_to_image_recall@1']:.1f} % (chance {chance:.2f})" in " ".join(
        done.output.split()
    )
    assert [one.name for one in result.measured] == list(result.recall), "whose first are its top-k"
    assert result.kind == "retrieval"


def test_captions_of_several_lines_and_of_half_characters(trained: Path, tmp_path: Path, console: Console) -> None:
    captions = [["red bar\nleft", "half \ud83d"], ["blue bar", "blue pole\rright"]]
    write_coco(tmp_path, {f"{n}.png": (draw("red", "bar", "left"), some) for n, some in enumerate(captions)})
    bundle = load(trained / "bundle")
    evaluation = bundle.recipe.evaluate.model_copy(update={"robustness": True})
    bundle.recipe = bundle.recipe.model_copy(update={"evaluate": evaluation})
    evaluate_captioned(bundle, Place("coco", tmp_path, "captions"), tmp_path / "out", console, "x")
    found = [line["captions"] for line in read_lines(tmp_path / "out" / "coco-predictions.jsonl")]
    assert found == [["red bar\nleft", "half ?"], ["blue bar", "blue pole\rright"]]
    assert (tmp_path / "out" / "coco-robustness.csv").exists()


def test_figures_are_there_before_the_damage(
    trained: Path, coco: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pocketclip.evaluate.retrieval.evaluate_robustness", interrupted)
    bundle = load(trained / "bundle")
    evaluation = bundle.recipe.evaluate.model_copy(update={"robustness": True})
    bundle.recipe = bundle.recipe.model_copy(update={"evaluate": evaluation})
    with pytest.raises(KeyboardInterrupt):
        evaluate_captioned(bundle, Place("coco", coco, "captions"), tmp_path / "out", console, "x")
    assert read_results(tmp_path / "out" / "results.json")


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_splits_name_is_taken(trained: Path, folder: Path, coco: Path, tmp_path: Path, name: str) -> None:
    command = ["evaluate", str(trained / "bundle"), f"data.folder={folder}", "--on", f"{name}={coco}"]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "out")])
    assert f"something else is called '{name}' too" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_results_of_another_hand_stay(trained: Path, coco: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.json"
    path.parent.mkdir()
    for content in ('{"my": "own"}', "[1]", "precious"):
        path.write_text(content)
        done = CliRunner().invoke(
            app, ["evaluate", str(trained / "bundle"), "--on", f"mine={coco}", "--output", str(path.parent)]
        )
        assert "results.json: is there, and no results of PocketCLIP's" in str(done.exception)
        assert [one.name for one in path.parent.iterdir()] == ["results.json"]
        assert path.read_text() == content


def test_nothing_of_use_is_an_error(trained: Path, tmp_path: Path, console: Console) -> None:
    write_coco(tmp_path, {"bad.png": (b"", ["x"])})
    with pytest.raises(DataError, match="no image can be used: 1 x no JPEG, PNG or WebP"):
        evaluate_captioned(
            load(trained / "bundle"), Place("coco", tmp_path, "captions"), tmp_path / "out", console, "x"
        )
