"""Linear probe and nearest neighbours beside scikit-learn's."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

from conftest import COLOURS, SHAPES, draw
from labelled_samples import write_class_folders
from pocketclip.cli.main import app
from pocketclip.evaluate.probe import NEIGHBOURS, TEMPERATURE, fit, linear_probe, nearest_neighbours, predicted
from pocketclip.evaluate.results import read_results


def clusters(count: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Points of length one around three directions."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    points = np.eye(3, 6)[labels] + noise * random.normal(size=(count, 6))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("inverse", [0.01, 1.0, 100.0])
def test_the_fit_is_scikit_learns(inverse: float, monkeypatch: pytest.MonkeyPatch) -> None:
    known, labels = clusters(200, 0)
    monkeypatch.setattr("pocketclip.evaluate.probe.SCORES", 3 * 64)  # 64 images at a time
    weight, bias = fit(known, labels, 3, inverse)
    expected = LogisticRegression(C=inverse, max_iter=10_000, tol=1e-8).fit(known, labels)
    assert weight.numpy() == pytest.approx(expected.coef_, abs=2e-3 * max(1.0, float(np.abs(expected.coef_).max())))
    centred = bias.numpy() - bias.numpy().mean()
    assert centred == pytest.approx(expected.intercept_ - expected.intercept_.mean(), abs=5e-3)
    images, _ = clusters(100, 1)
    assert np.array_equal(predicted(images, weight, bias), expected.predict(images))


def test_the_penalty_is_chosen_on_held_out_images() -> None:
    known, labels = clusters(400, 0)
    images, true = clusters(400, 1)
    found, inverse = linear_probe(known, labels, images, 3)
    best = max(
        np.mean(LogisticRegression(C=10.0**power, max_iter=10_000).fit(known, labels).predict(images) == true)
        for power in range(-2, 7)
    )
    assert np.mean(found == true) >= best - 0.02
    assert 0.01 < inverse < 1e6
    random = np.random.default_rng(5).permutation(labels)
    assert abs(np.mean(linear_probe(known, random, images, 3)[0] == true) - 1 / 3) < 0.15, "nothing to learn"


def test_neighbours_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketclip.evaluate.probe.SCORES", 7 * 150)
    known, labels = clusters(150, 0, noise=0.8)
    images, _ = clusters(60, 1, noise=0.8)

    def votes(distances: np.ndarray) -> np.ndarray:  # of points of length one: half the squared distance is 1 - cosine
        return np.exp((1 - distances**2 / 2) / TEMPERATURE)

    expected = KNeighborsClassifier(NEIGHBOURS, weights=votes, algorithm="brute").fit(known, labels)
    assert np.array_equal(nearest_neighbours(known, labels, images, 3), expected.predict(images))
    few = nearest_neighbours(known[:2], labels[:2], images, 3)
    assert set(few) <= set(labels[:2])


def test_the_command(trained: Path, tmp_path: Path) -> None:
    for split, place in (("test", "left"), ("train", "right")):
        images = {f"{split}/{s}/{c}.png": draw(c, s, place) for s in SHAPES for c in COLOURS}
        write_class_folders(tmp_path / "shapes", images)
    write_class_folders(tmp_path / "alone", {f"{s}/{c}.png": draw(c, s, "left") for s in SHAPES for c in COLOURS})
    on = f"{tmp_path / 'shapes'},{tmp_path / 'alone'}"
    command = [
        "evaluate",
        str(trained / "bundle"),
        "evaluate.probe=true",
        "--on",
        on,
        "--output",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "of 24 training images: linear probe " in done.output
    assert "alone: no probe: " in done.output
    first, second = read_results(tmp_path / "out" / "results.json")
    assert {first.benchmark: bool(first.further), second.benchmark: bool(second.further)} == {
        "alone": False, "shapes": True,
    }  # fmt: skip
    shapes = first if first.further else second
    assert shapes.further["linear_top_1"] > 50
    assert shapes.further["neighbours_top_1"] > 40
