import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import pocketclip
from conftest import draw, example_rows
from pocketclip.data.batches import TrainingBatches
from pocketclip.data.images import normalise
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.data.square import decode
from pocketclip.errors import TrainingError
from pocketclip.train.features import Squares, cache_features, features_path
from pocketclip.train.loop import train
from train.test_start import learner, recipe_from

LOCKED = "image_tower.locked_layers=1"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The small set with two rows that cannot be used."""
    bad = [Row("text", b"hello", "png", ("a text",)), Row("cut", draw("red", "bar", "left")[:90], "png", ("cut off",))]
    write_shards([*example_rows(test=False), *bad], tmp_path / "data", "train", rows_per_shard=20)
    return tmp_path / "data"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_they_are_the_locked_towers_embeddings(trained: Path, data: Path, tmp_path: Path, console: Console) -> None:
    recipe = recipe_from(trained, data, tmp_path, LOCKED, "evaluate.batch_size=7")
    split = Split(data, "train")
    found = np.load(cache_features(recipe, split, console))
    assert found.shape == (47, 32)
    bundle = pocketclip.load(trained / "bundle")
    images = [split.image(row) for row in range(45)]
    np.testing.assert_allclose(found[:45], bundle.encode_images(images).numpy(), atol=1e-3)
    assert np.isnan(found[45:]).all()


def test_they_are_what_the_run_itself_would_see(trained: Path, data: Path, tmp_path: Path, console: Console) -> None:
    """Also where its preprocessing is not the bundle's."""
    recipe = recipe_from(trained, data, tmp_path, LOCKED, "image.mean=[0.5, 0.6, 0.7]")
    split = Split(data, "train")
    found = np.load(cache_features(recipe, split, console))
    pixels = torch.from_numpy(np.stack([decode(split.image(row), recipe.image) for row in range(45)]))
    with torch.no_grad():
        expected = learner(recipe).model.encode_images(normalise(pixels, recipe.image))
    np.testing.assert_allclose(found[:45], expected.numpy(), atol=1e-3)
    assert np.abs(found[:45] - pocketclip.load(trained / "bundle").encode_pixels(pixels).numpy()).max() > 0.05


def test_training_with_and_without_them_has_the_same_loss_curve(
    trained: Path, data: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, original = Counter(), TrainingBatches._pixels

    def counted(self: TrainingBatches, row: int, *how: object) -> object:
        decoded[bool(self.features)] += 1
        return original(self, row, *how)

    monkeypatch.setattr(TrainingBatches, "_pixels", counted)
    runs = {}
    for cached in (True, False):
        recipe = recipe_from(
            trained, data, tmp_path, LOCKED, "train.epochs=10", f"train.cache_features={str(cached).lower()}"
        )
        runs[cached] = tmp_path / f"run-{cached}"
        train(recipe, runs[cached], console)
    assert losses(runs[True])[0] == pytest.approx(losses(runs[False])[0], abs=2e-3)
    assert losses(runs[True]) == pytest.approx(losses(runs[False]), abs=1e-2)  # half precision adds up over steps
    last = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["dropped"] for run in runs.values()]
    assert last[0] == last[1]
    assert set(last[0]) == {"no JPEG, PNG or WebP", "damaged image"}
    assert decoded[True] == sum(last[0].values()), "only what has no features was looked at again"
    assert decoded[False] == 450 + 15, "and one batch to see how long captions are"


def test_a_stopped_pass_goes_on_where_it_was(
    trained: Path, data: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_from(trained, data, tmp_path, LOCKED, "evaluate.batch_size=10")
    split = Split(data, "train")
    whole = np.load(cache_features(recipe, split, console))
    features_path(recipe, split).unlink()
    original, seen = Squares.__getitem__, []

    def stopping(self: Squares, rows: range) -> object:
        seen.append(rows.start)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(Squares, "__getitem__", stopping)
    with pytest.raises(KeyboardInterrupt):
        cache_features(recipe, split, console)
    assert not features_path(recipe, split).exists()
    np.testing.assert_array_equal(np.load(cache_features(recipe, split, console)), whole)
    assert seen == [0, 10, 20, 10, 20, 30, 40], "of the last one before the stop a part may be missing"
    assert [path.name for path in features_path(recipe, split).parent.iterdir()] == [features_path(recipe, split).name]


def test_another_tower_or_size_is_another_file_and_augmentation_has_none(
    trained: Path, folder: Path, data: Path, tmp_path: Path, console: Console
) -> None:
    one = recipe_from(trained, data, tmp_path, LOCKED)
    paths = {features_path(one, Split(data, "train")), features_path(one, Split(folder, "train"))}
    paths.add(features_path(recipe_from(trained, data, tmp_path, LOCKED, "image.size=64"), Split(data, "train")))
    train(recipe_from(trained, folder, tmp_path), tmp_path / "other", console)
    other = recipe_from(tmp_path / "other", data, tmp_path, LOCKED)
    paths.add(features_path(other, Split(data, "train")))
    assert len(paths) == 4
    for change in ("image.flip=true", "image.shift=0.1", "image.crop=0.9", "image_tower.locked_layers=0"):
        assert not recipe_from(trained, data, tmp_path, LOCKED, change).has_constant_features


def test_a_folder_that_cannot_be_written_says_so(trained: Path, data: Path, tmp_path: Path, console: Console) -> None:
    (data / "features").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot be written.*train\.cache_features = false"):
        cache_features(recipe_from(trained, data, tmp_path, LOCKED), Split(data, "train"), console)
