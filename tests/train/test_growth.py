"""Runs whose images grow: sizes, borders, stops, ranks, prices."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import pocketclip
from conftest import draw, small_recipe
from data.test_batches import make_batches, same
from pocketclip.data.batches import Batch, load_batches
from pocketclip.data.square import decode
from pocketclip.errors import RecipeError, Stopped
from pocketclip.model.budget import count_budget
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe
from pocketclip.train.check import Imagined, check
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from train.test_loop import assert_same_weights, stop_after

GROWTH = [[16, 0.5], [24, 0.25]]  # of twelve steps: six, three, and three at 32


def growing(folder: Path, **sections: dict[str, object]) -> Recipe:
    image = {"growth": GROWTH} | sections.pop("image", {})
    return small_recipe(folder, image=image, **sections)


def test_the_step_says_how_large_images_are(folder: Path) -> None:
    batches = make_batches(growing(folder, image={"shift": 0.0}))
    found = list(load_batches(batches, 0, 12, workers=0))
    assert [batch.pixels.shape[1] for batch in found] == [16] * 6 + [24] * 3 + [32] * 3
    rows = np.random.default_rng([0, 2]).permutation(45)[:15]
    settings = batches.image.model_copy(update={"size": 24})
    expected = [decode(batches.split.image(int(row)), settings) for row in rows]
    assert np.array_equal(found[6].pixels.numpy(), np.stack(expected)), "decoded straight to the size"


@pytest.mark.parametrize("changes", [{"cache": True}, {"workers": 2}, {"cache": True, "workers": 1}], ids=str)
def test_neither_cache_nor_workers_change_batches_that_grow(changes: dict[str, object], folder: Path) -> None:
    plain, other = make_batches(growing(folder)), make_batches(growing(folder, data=changes))
    workers = int(str(changes.get("workers", 0)))
    pairs = zip(load_batches(plain, 0, 12, 0), load_batches(other, 0, 12, workers), strict=True)
    assert all(same(one, two) for one, two in pairs)
    if changes == {"cache": True}:
        assert other._cache is not None
        kept = {len(pixels) for pixels in other._cache.values() if not isinstance(pixels, str)}
        assert kept == {32}, "what was kept of a smaller size has made room"


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_a_stop_at_the_border_changes_nothing(
    stop: int, folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = growing(folder, data={"cache": True})
    train(recipe, tmp_path / "whole", console)
    with monkeypatch.context() as patch:
        stop_after(stop, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped", console)
    bundle = train(recipe, tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    found = pocketclip.load(bundle)
    assert len(found.model.state_dict()["visual.positional_embedding"]) == 16
    assert found.encode_images([draw("red", "bar", "left")]).shape == (1, 32)


def test_a_price_is_the_mean_over_the_run_and_the_memory_of_its_largest_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tower in ({}, {"stem_channels": [], "stages": [1, 1], "heads": 4}):
        budgets = {
            size: count_budget(small_recipe(folder, image={"size": size}, image_tower=dict(tower)), 8, 4)
            for size in (16, 24, 32)
        }
        found = count_budget(growing(folder, image_tower=dict(tower)), 8, 4)
        mean = sum(share * budgets[size].flops_per_pair for size, share in ((16, 0.5), (24, 0.25), (32, 0.25)))
        assert found.flops_per_pair == pytest.approx(mean)
        assert found.memory_bytes == budgets[32].memory_bytes
    seen: Counter[int] = Counter()

    def slow(_: Learner, batch: Batch, _number: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen[batch.pixels.shape[1]] += 1
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(Learner, "step", slow)
    for imagined in (None, Imagined(45, 8)):
        seen.clear()
        assert check(growing(folder), imagined).steps == 12
        assert seen.keys() == {16, 24, 32}


def test_time_is_weighed_by_shares(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def step(_: Learner, batch: Batch, _number: int) -> tuple[torch.Tensor, torch.Tensor]:
        clock[0] += batch.pixels.shape[1] * len(batch.pixels)
        return torch.zeros(()), torch.zeros(())

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr("pocketclip.train.check.time.monotonic", lambda: clock[0])
    assert check(growing(folder)).seconds == pytest.approx(12 * 15 * (0.5 * 16 + 0.25 * 24 + 0.25 * 32))


@pytest.mark.parametrize("growth", [(), ((16, 0.5),), ((16, 0.25), (24, 0.5))], ids=str)
def test_the_share_of_pixels_shown_is_their_count(growth: tuple[tuple[int, float], ...], folder: Path) -> None:
    image = small_recipe(folder, image={"growth": growth}).image
    steps = 40
    pixels = [image.at(step / steps).size ** 2 for step in range(steps)]
    for step in range(steps + 1):
        assert image.shown(step / steps) == pytest.approx(sum(pixels[:step]) / sum(pixels))


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ("[[20, 0.5]]", r"image_tower\.patch_size = 8 does not divide image\.growth's 20"),
        ("[[24, 0.5], [16, 0.1]]", r"image: growth: the sides 24, 16, 32, of which size is the last, must grow"),
        ("[[32, 0.5]]", r"the sides 32, 32"),
        ("[[16, 0.7], [24, 0.3]]", r"growth: the shares must leave some of the run for size"),
        ("[[16, 1.5]]", r"image\.growth\.0\.1 = 1\.5"),
        ("[16]", r"image\.growth\.0 = 16"),
    ],
)
def test_a_mistake_is_named(growth: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("image.size = 32\nimage_tower.patch_size = 8\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(tmp_path / "r.toml", [f"image.growth={growth}"])


def test_a_locked_towers_features_are_not_kept_where_images_grow(folder: Path) -> None:
    recipe = small_recipe(folder, image={"shift": 0.0}, image_tower={"locked_layers": 1}, train={"start_from": "x"})
    assert recipe.has_constant_features
    image = recipe.image.model_copy(update={"growth": ((16, 0.5),)})
    assert not recipe.model_copy(update={"image": image}).has_constant_features


def test_the_shares_of_a_run_are_met_to_a_step(folder: Path) -> None:
    image = growing(folder, image={"size": 224, "growth": [[112, 0.7], [160, 0.2]]}).image
    for steps in (10, 97, 1000):
        found = Counter(image.at(step / steps).size for step in range(steps))
        for size, share in image.phases:
            assert math.isclose(found[size], share * steps, abs_tol=1), (size, steps)
