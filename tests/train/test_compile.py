"""Compiled blocks: the same weights, as fast as they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from conftest import small_recipe
from pocketclip.data.batches import Batch
from pocketclip.device import choose_device
from pocketclip.errors import Stopped, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from train.test_loop import assert_same_weights, stop_after
from train.test_optimizer import a_batch

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch does to compile makes torch warn


def recipe_of(folder: Path, **changes: object) -> Recipe:
    tower = {"layers": 3, "stem_channels": [], "pool": "class"}
    return small_recipe(folder, image_tower=tower, text_tower={"layers": 3}, train={"batch_size": 8, **changes})


def batches() -> list[Batch]:
    """Some pairs were dropped, images grow, captions differ in length."""
    whole = a_batch()
    fewer = replace(whole, pixels=whole.pixels[:7, ::2, ::2], tokens=whole.tokens[:7, :5], ends=whole.ends[:7] - 2)
    return [fewer, whole, replace(whole, ends=torch.tensor([5, 2, 1, 4, 2, 5, 3, 3]))]


def learned(recipe: Recipe, ranks_of: list[Batch]) -> dict[str, torch.Tensor]:
    one = Learner(recipe, choose_device("cpu", recipe.train.precision), 10)
    for number, batch in enumerate(ranks_of):
        one.step(batch, number)
    return {name: value.clone() for name, value in one.state()["model"].items()}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"recompute": True}, {"chunk_size": 3}, {"ema_decay": 0.9}], ids=str)
def test_compiled_steps_move_the_weights_as_eager_ones(changes: dict[str, object], folder: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = (learned(recipe_of(folder, compile=compile_, **changes), batches()) for compile_ in (False, True))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5, msg=name)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 4 <= graphs <= 16, "two towers, their last blocks, with and without gradients: neither each layer nor shape"
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
def test_a_compiled_run_goes_on_exactly(
    folder: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(folder, compile=True, epochs=2)
    train(recipe, tmp_path / "whole", console)
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped", console)
    torch._dynamo.reset()  # as in a new process
    train(recipe, tmp_path / "stopped", console)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_missing_compiler_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"train\.compile: needs a compiler, .* no no-such-compiler; install one"):
        Learner(recipe_of(folder, compile=True), choose_device("cpu", "float32"), 10)
