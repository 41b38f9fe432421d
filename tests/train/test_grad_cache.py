from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import small_recipe
from pocketclip.device import choose_device
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner, Part
from train.test_optimizer import a_batch

NO_STEM: dict[str, object] = {"stem_channels": [], "layers": 2}


def learner(recipe: Recipe, **changes: object) -> Learner:
    settings = recipe.train.model_copy(update=changes)
    return Learner(recipe.model_copy(update={"train": settings}), choose_device("cpu", "float32"), 10)


def gradients(one: Learner) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in one.model.named_parameters()}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
@pytest.mark.parametrize("chunk_size", [1, 3, 4, 100])
def test_the_gradient_is_the_whole_batchs(chunk_size: int, loss: str, folder: Path) -> None:
    recipe = small_recipe(folder, image_tower=NO_STEM)
    whole, cached = learner(recipe, loss=loss), learner(recipe, loss=loss, chunk_size=chunk_size)
    torch.testing.assert_close(cached.backward(a_batch()), whole.backward(a_batch()))
    expected = gradients(whole)
    for name, gradient in gradients(cached).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_no_more_rows_than_a_chunk_are_embedded_at_a_time_with_gradients(folder: Path) -> None:
    one = learner(small_recipe(folder, image_tower=NO_STEM), chunk_size=3)
    seen, original = [], one._embed

    def embed(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((len(part.pixels), torch.is_grad_enabled()))
        return original(part)

    one._embed = embed  # type: ignore[method-assign]
    one.backward(a_batch())
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


def test_both_passes_drop_the_same_patches(folder: Path) -> None:
    one = learner(small_recipe(folder, image_tower={**NO_STEM, "patch_dropout": 0.5}), chunk_size=4)
    seen, original = [], one._embed

    def embed(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        found = original(part)
        seen.append(found[0].detach())
        return found

    one._embed = embed  # type: ignore[method-assign]
    one.backward(a_batch())
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    one.backward(a_batch())
    assert not torch.equal(seen[0], seen[4])


def test_the_statistics_of_batch_norms_move_once(recipe: Recipe) -> None:
    batch = a_batch()
    cached, plain = learner(recipe, chunk_size=4), learner(recipe)
    cached.backward(batch)
    for part in plain._parts(batch.pixels.view(2, 4, 32, 32, 3)[0], batch.tokens[:4], batch.ends[:4]):
        plain._embed(part)
    for part in plain._parts(batch.pixels[4:], batch.tokens[4:], batch.ends[4:]):
        plain._embed(part)
    expected = dict(plain.model.named_buffers())
    for name, buffer in cached.model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, expected[name], msg=name)


def test_a_locked_tower_needs_no_gradient(folder: Path) -> None:
    one = learner(small_recipe(folder, image_tower=NO_STEM), chunk_size=3)
    one.model.visual.requires_grad_(False)
    one.backward(a_batch())
    assert all(parameter.grad is None for parameter in one.model.visual.parameters())
    assert all(parameter.grad is not None for parameter in one.model.text.parameters())


@pytest.mark.parametrize("chunk_size", [0, 3])
def test_several_captions_an_image_are_the_mean_of_their_losses(chunk_size: int, folder: Path) -> None:
    recipe = small_recipe(folder, image_tower=NO_STEM, caption={"per_image": 2})
    one = learner(recipe, chunk_size=chunk_size)
    batch = a_batch()
    tokens = torch.randint(2, 300, (16, 6), generator=torch.Generator().manual_seed(1))
    loss = one.backward(replace(batch, tokens=tokens, ends=torch.full((16,), 5)))
    singles = []
    for place in (0, 1):
        single = learner(small_recipe(folder, image_tower=NO_STEM))
        singles.append(single.backward(replace(batch, tokens=tokens[place::2], ends=torch.full((8,), 5))))
    torch.testing.assert_close(loss, torch.stack(singles).mean())
