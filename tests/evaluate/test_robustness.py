"""Damage of known size, words that can be read off again, and a model that reads nothing else."""

import base64
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from conftest import COLOURS, SHAPES, draw
from labelled_samples import picture, write_class_folders
from pocketclip.bundle import Bundle, load
from pocketclip.cli.main import app
from pocketclip.data.square import decode
from pocketclip.evaluate.corruptions import AMOUNTS, STRENGTHS, WRITINGS, Writing, corrupt, write
from pocketclip.evaluate.robustness import (
    SCRAMBLED,
    WORD,
    Names,
    Task,
    evaluate_robustness,
    evenly,
    scramble,
    some_of,
    wrong_candidates,
)


def photograph(side: int = 64) -> np.ndarray:
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("kind", AMOUNTS)
def test_damage_grows_with_its_strength(kind: str) -> None:
    image = photograph()
    damages = [np.abs(corrupt(image, kind, one, 3).astype(float) - image).mean() for one in STRENGTHS]
    assert damages[0] > 0
    if kind not in ("rotation", "crop"):  # a quarter turn is not further away than an eighth
        assert damages == sorted(damages)
    for strength in STRENGTHS:
        once, again = (corrupt(image, kind, strength, 3) for _ in range(2))
        assert np.array_equal(once, again)
        assert once.shape == image.shape
        assert once.dtype == np.uint8


def test_each_damage_does_what_it_says() -> None:
    image = photograph()
    grey = corrupt(image, "grey", 5, 0)
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], np.asarray(Image.fromarray(image).convert("L")))
    assert np.array_equal(corrupt(image, "rotation", 5, 0), np.rot90(image))
    flat = np.full((64, 64, 3), 128, np.uint8)
    assert corrupt(flat, "noise", 4, 0).std() == pytest.approx(0.2 * 255, rel=0.05)
    assert not np.array_equal(corrupt(flat, "noise", 4, 0), corrupt(flat, "noise", 4, 1))
    for kind in ("blur", "crop", "rotation", "JPEG"):
        assert np.abs(corrupt(flat, kind, 3, 0).astype(int) - 128).max() <= 1
    step = np.zeros((64, 64, 3), np.uint8)
    step[:, 32:] = 255
    profile = corrupt(step, "blur", 5, 0)[32, :, 0] / 255  # of a Gaussian with a standard deviation of 4.48 pixels
    assert profile[32 + 3] == pytest.approx(0.78, abs=0.03)
    marked = np.zeros((100, 100, 3), np.uint8)
    marked[35:65, 35:65] = 255
    assert corrupt(marked, "crop", 5, 0).mean() > 240


@pytest.mark.parametrize("writing", WRITINGS, ids=str)
@pytest.mark.parametrize("word", ["cat", "a very long name of a class that has to shrink", "é–猫", "i"])
def test_a_word_is_drawn_where_and_as_large_as_it_says(writing: Writing, word: str) -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    drawn = write(image, word, writing)
    changed = np.argwhere((drawn != image).any(axis=2))
    assert len(changed)
    top, bottom = changed[:, 0].min(), changed[:, 0].max()
    assert bottom - top + 1 <= 64 * writing.size * 1.6
    if writing.place == "bottom":
        assert bottom == 63
    else:
        assert abs((top + bottom) / 2 - 31.5) <= 1
    if writing.contrast == 1:
        assert drawn.max() == 255
    else:
        assert drawn.max() <= 128 + 0.4 * 127 + 1
    assert image.min() == image.max() == 128


def test_what_cannot_be_printed_is_a_space() -> None:
    image, writing = np.full((64, 64, 3), 128, np.uint8), Writing(0.2, "middle", 1.0)
    for word in ("a\nb", "a\r\n b", " a\x00b\t", "a\u2028b"):
        assert np.array_equal(write(image, word, writing), write(image, "a b", writing))
    assert (write(image, "\n\u200b", writing) != image).any()


def test_a_word_can_be_read_off() -> None:
    image = np.full((224, 224, 3), 255, np.uint8)
    letter = write(image, "L", Writing(0.2, "middle", 1.0))[..., 0] < 128
    rows, columns = np.flatnonzero(letter.any(axis=1)), np.flatnonzero(letter.any(axis=0))
    assert letter[rows[0] : rows[-1], columns[0]].all(), "an upright on the left"
    assert letter[rows[-1], columns[0] : columns[-1]].all(), "a foot along the bottom"
    assert not letter[rows[0], columns[-1]]


def test_lots_are_fair_and_repeatable() -> None:
    task = Task("x", ["a"] * 300, [[0, 2]] * 300, ["a", "b", "c", "d"], [], np.eye(4, dtype=np.float32))
    wrong = wrong_candidates(task)
    assert wrong == wrong_candidates(task)
    assert set(wrong) == {1, 3}
    assert sorted(scramble("water", 3)) == sorted("water") != list("water")
    assert scramble("aa", 0) == "aa"
    assert evenly([str(n) for n in range(10)], 4) == ["0", "3", "6", "9"]
    assert evenly(["a", "b"], 9) == ["a", "b"]


class Reader:
    """In the place of a bundle: sees the picture's colour, but believes a white label rather than that.

    What it embeds is known: an image without pure white is its colour, one with such a label the class "label".
    """

    def __init__(self, bundle: Bundle) -> None:
        self.recipe, self.seal = bundle.recipe, bundle.seal

    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        label = (pixels == 255).all(dim=3).flatten(1).float().mean(dim=1) > 0.002
        colour = pixels.float().mean(dim=(1, 2)).argmax(dim=1)
        return torch.eye(4)[torch.where(label, 3, colour)]


def test_a_model_that_believes_labels_is_found_out(trained: Path, tmp_path: Path, console: Console) -> None:
    names = ["red", "green", "blue"]
    squares = [picture(name, 128) // 2 + 40 for name in names] * 4
    numbers = [[n] for n in [0, 1, 2] * 4]
    texts = np.eye(4, dtype=np.float32)
    task = Task("colours", [f"{n}" for n in range(12)], numbers, [*names, "label"], squares, texts)
    lines = evaluate_robustness(Reader(load(trained / "bundle")), task, tmp_path, console)
    table = {(line.kind, line.strength, line.detail): line for line in lines}
    assert len(table) == len(lines) == 1 + 30 + 16
    assert lines[0].top_1 == 100
    assert table["blur", 5, "0.07"].top_1 == 100
    assert table["grey", 5, "1.0"].top_1 < 50
    wrong = wrong_candidates(task)
    for writing in WRITINGS:
        for kind in (WORD, SCRAMBLED):
            line = table[kind, 0, str(writing)]
            believed = writing.contrast == 1
            assert line.top_1 == (0 if believed else 100), line
            expected = 100 * np.mean([number == 3 for number in wrong]) if believed else 0
            assert line.taken_in == pytest.approx(expected)
    with (tmp_path / "colours-robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["top_1"]) for row in rows] == [line.top_1 for line in lines]
    about = json.loads((tmp_path / "colours-robustness.json").read_text())
    assert about["images"] == 12
    first = about["examples"][0]
    assert first["before"]["best"][0] == ["red", 1.0]
    assert first["after"]["best"][0] == ["label", 1.0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(first["before"]["image"]))))
    assert np.array_equal(shown, squares[0])


def test_images_of_one_name_keep_their_own_labels(trained: Path) -> None:
    """As a line that stands twice in a list of test images makes them."""
    bundle = load(trained / "bundle")
    images = {name: draw(colour, "bar", "left") for name, colour in (("a", "red"), ("b", "blue"), ("c", "green"))}
    names = Names("x", ["a", "a", "b", "c"], [[0], [0], [1], [2]], ["red", "blue", "green"])
    source = [("a", b"damaged"), ("a", images["a"]), ("b", images["b"]), ("c", images["c"])]
    task = some_of(bundle, names, np.zeros((3, 4), np.float32), source)
    assert (task.names, task.true) == (["a", "b", "c"], [[0], [1], [2]])
    for name, square in zip(task.names, task.squares, strict=True):
        assert np.array_equal(square, decode(images[name], bundle.recipe.image))


def test_the_command(trained: Path, folder: Path, tmp_path: Path) -> None:
    write_class_folders(tmp_path / "shapes", {f"{s}/{c}.png": draw(c, s, "left") for s in SHAPES for c in COLOURS})
    write_class_folders(tmp_path / "shapes", {"bar/bad.png": b"no image"})
    out = tmp_path / "out"
    command = ["evaluate", str(trained / "bundle"), "--robustness", "--output", str(out)]
    done = CliRunner().invoke(app, [*command, "--on", str(tmp_path / "shapes"), "evaluate.robustness_images=10"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, [*command, f"data.folder={folder}"])
    assert done.exit_code == 0, done.output
    for name, images in (("shapes", 10), ("test", 3)):
        assert json.loads((out / f"{name}-robustness.json").read_text())["images"] == images
