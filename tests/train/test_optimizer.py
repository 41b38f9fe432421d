from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import small_recipe
from pocketclip.data.batches import Batch
from pocketclip.device import choose_device
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.optimizer import Optimizer, decays, depths_from_top


def a_batch() -> Batch:
    from collections import Counter

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(2, 300, (8, 6), generator=generator)
    return Batch((0, 0), pixels, tokens, torch.full((8,), 5), torch.arange(8), Counter())


def test_each_parameter_is_in_exactly_one_group(recipe: Recipe) -> None:
    model = CLIP(recipe)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimizer, layer_decay in product(("adamw", "muon"), (1.0, 0.7)):
        settings = recipe.train.model_copy(update={"optimizer": optimizer, "layer_decay": layer_decay})
        groups = Optimizer(model, settings).groups
        assert sorted(id(one) for group in groups for one in group["params"]) == sorted(names)
        assert {group["weight_decay"] for group in groups} == {recipe.train.weight_decay, 0.0}
        for group in groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                plain = name.endswith("bias") or any(
                    word in name for word in ("ln_", "embedding", "logit_scale", "stem.1", "stem.4")
                )
                assert (group["weight_decay"] == 0.0) == plain == (not decays(name, parameter)), name


def test_layers_below_learn_slower(folder: object) -> None:
    recipe = small_recipe(
        Path(str(folder)), image_tower={"layers": 3}, text_tower={"layers": 2}, train={"layer_decay": 0.5}
    )
    model = CLIP(recipe)
    depths = depths_from_top(model)
    assert depths["visual.proj"] == depths["text.ln_final.bias"] == depths["logit_scale"] == 0
    assert [depths[f"visual.transformer.resblocks.{layer}.ln_1.weight"] for layer in range(3)] == [3, 2, 1]
    assert depths["visual.conv1.weight"] == depths["visual.stem.0.weight"] == 4
    assert depths["text.token_embedding.weight"] == 3
    optimizer = Optimizer(model, recipe.train)
    optimizer.step(1e-3)
    rates = {id(one): group["lr"] for group in optimizer.groups for one in group["params"]}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == 1e-3 * 0.5 ** depths[name], name


def test_muon_moves_the_blocks_matrices_as_torchs_does_and_adamw_all_else(folder: object) -> None:
    recipe = small_recipe(Path(str(folder)), train={"optimizer": "muon"})
    torch.manual_seed(0)
    model, by_adamw = CLIP(recipe), CLIP(recipe)
    by_adamw.load_state_dict(model.state_dict())
    for one, other in zip(model.parameters(), by_adamw.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    alone = model.get_parameter(name).detach().clone().requires_grad_()
    alone.grad = model.get_parameter(name).grad.clone()
    reference = torch.optim.Muon(
        [alone], lr=1e-3, momentum=0.95, weight_decay=recipe.train.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    reference.step()
    Optimizer(model, recipe.train).step(1e-3)
    Optimizer(by_adamw, recipe.train.model_copy(update={"optimizer": "adamw"})).step(1e-3)
    torch.testing.assert_close(model.get_parameter(name), alone)
    assert not torch.equal(model.get_parameter(name), by_adamw.get_parameter(name))
    for other in ("visual.proj", "visual.conv1.weight", "text.token_embedding.weight"):
        torch.testing.assert_close(model.get_parameter(other), by_adamw.get_parameter(other))


def test_every_learnable_moves_in_one_step(recipe: Recipe) -> None:
    for pool in ("class", "mean"):
        tower = recipe.image_tower.model_copy(update={"pool": pool})
        learner = Learner(recipe.model_copy(update={"image_tower": tower}), choose_device("cpu", "float32"), 10)
        before = {name: parameter.clone() for name, parameter in learner.model.named_parameters()}
        learner.step(a_batch(), 0)
        for name, parameter in learner.model.named_parameters():
            assert not torch.equal(before[name], parameter), name


def test_the_applied_rate_peaks_at_the_recipes(recipe: Recipe) -> None:
    learner = Learner(recipe, choose_device("cpu", "float32"), 10)
    applied = []
    for step in range(10):
        learner.step(a_batch(), step)
        applied.append({group["lr"] for group in learner.optimizer.groups})
    assert all(len(rates) == 1 for rates in applied)
    assert max(max(rates) for rates in applied) == recipe.train.learning_rate


def test_gradients_are_clipped(folder: object) -> None:
    recipe = small_recipe(Path(str(folder)), train={"clip_norm": 1e-3})
    learner = Learner(recipe, choose_device("cpu", "float32"), 10)
    seen = []
    learner.optimizer.step = lambda _: seen.append(  # type: ignore[method-assign]
        torch.stack([p.grad.norm() for p in learner.model.parameters() if p.grad is not None]).norm()
    )
    _, length = learner.step(a_batch(), 0)
    assert length > 1e-2
    torch.testing.assert_close(seen[0], torch.tensor(1e-3), rtol=0.01, atol=0)


@pytest.mark.parametrize("longest", [1e-3, 1e3])
def test_gradients_are_clipped_as_torch_does(recipe: Recipe, longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    train = recipe.train.model_copy(update={"clip_norm": longest})
    learner = Learner(recipe.model_copy(update={"train": train}), choose_device("cpu", "float32"), 10)
    found: dict[str, torch.Tensor] = {}

    def keep(_rate: float) -> None:
        found.update({name: one.grad for name, one in learner.model.named_parameters() if one.grad is not None})

    monkeypatch.setattr(learner.optimizer, "step", keep)
    _, length = learner.step(a_batch(), 0)
    other = Learner(learner.recipe, choose_device("cpu", "float32"), 10)
    torch.manual_seed(int(np.random.SeedSequence([recipe.seed, 0, 0]).generate_state(1, np.uint64)[0]))
    other.backward(a_batch())
    expected = torch.nn.utils.clip_grad_norm_(other.model.parameters(), longest)
    assert torch.equal(length, expected)
    assert 1e-3 < length < 1e3
    assert len(found) > 20
    assert all(torch.equal(found[name], one.grad) for name, one in other.model.named_parameters() if name in found)
