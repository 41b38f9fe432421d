"""A small true-to-format data set that a model can learn in seconds, and a model trained on it."""

import io
import os
import signal
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import hypothesis
import pytest
from PIL import Image, ImageDraw
from rich.console import Console

from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import parse_recipe
from pocketclip.tokenizer import learn_tokenizer, save_tokenizer

# Small products on many threads spend their time waiting for each other, most of all beside other test processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests that are run in a shell's background ignore Ctrl-C, and what they start would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example may take long where the machine is busy: a fact of the machine, not of the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

COLOURS = ("red", "green", "blue", "black", "orange", "purple")
SHAPES = ("circle", "square", "bar", "pole")
PLACES = ("left", "right")
TEST_COMBINATIONS = {("red", "square", "left"), ("blue", "circle", "right"), ("green", "bar", "right")}


def draw(colour: str, shape: str, place: str, size: int = 32) -> bytes:
    image = Image.new("RGB", (size, size), "white")
    left = 2 if place == "left" else 16
    box = {
        "circle": (left, 9, left + 13, 22),
        "square": (left, 9, left + 13, 22),
        "bar": (left, 14, left + 13, 17),
        "pole": (left + 5, 2, left + 8, 30),
    }[shape]
    pen = ImageDraw.Draw(image)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def example_rows(test: bool) -> Iterator[Row]:
    for colour, shape, place in product(COLOURS, SHAPES, PLACES):
        if ((colour, shape, place) in TEST_COMBINATIONS) == test:
            captions = (f"{colour} {shape} {place}", f"a {shape} in {colour}, {place}")
            yield Row(f"{colour}-{shape}-{place}", draw(colour, shape, place), "png", captions, {"group": shape})


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 45 training and 3 test rows, with a tokenizer."""
    path = tmp_path_factory.mktemp("data")
    write_shards(example_rows(test=False), path, "train", rows_per_shard=20)
    write_shards(example_rows(test=True), path, "test")
    learned = learn_tokenizer(Split(path, "train").every_caption(), small_recipe(path).tokenizer)
    save_tokenizer(learned, path / "tokenizer.json")
    return path


def small_recipe(folder: Path, **sections: dict[str, object]) -> Recipe:
    values: dict[str, dict[str, object]] = {
        "data": {"folder": str(folder)},
        "image": {"size": 32, "mean": [0.9, 0.9, 0.9], "std": [0.3, 0.3, 0.3], "shift": 0.06},
        "tokenizer": {"vocabulary_size": 400},
        "image_tower": {
            "width": 32, "layers": 1, "heads": 2, "patch_size": 8, "stem_channels": [16, 32], "pool": "mean",
        },
        "text_tower": {"width": 32, "layers": 1, "heads": 2, "context_length": 16},
        "model": {"embedding_width": 32},
        "train": {
            "batch_size": 15, "epochs": 4, "learning_rate": 3e-3, "warmup": 0.1, "weight_decay": 0.01,
            "precision": "float32", "device": "cpu",
        },
        "evaluate": {"splits": ["test"]},
    }  # fmt: skip
    for name, changes in sections.items():
        values.setdefault(name, {}).update(changes)
    return parse_recipe({"name": "small", **values}, "small recipe")


@pytest.fixture
def recipe(folder: Path) -> Recipe:
    return small_recipe(folder)


@pytest.fixture(scope="session")
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="session")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory, console: Console) -> Path:
    """The run folder of a model that has learned the small set."""
    from pocketclip.train.loop import train

    run = tmp_path_factory.mktemp("runs") / "trained"
    train(small_recipe(folder, train={"epochs": 60}), run, console)
    return run
