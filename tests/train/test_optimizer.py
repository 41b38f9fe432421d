import torch

from conftest import small_recipe
from pocketclip.data.batches import Batch
from pocketclip.device import choose_device
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.train.loop import Learner
from pocketclip.train.optimizer import build_optimizer, parameter_groups


def a_batch() -> Batch:
    from collections import Counter

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(2, 300, (8, 6), generator=generator)
    return Batch((0, 0), pixels, tokens, torch.full((8,), 5), Counter())


def test_each_parameter_is_in_exactly_one_group(recipe: Recipe) -> None:
    model = CLIP(recipe)
    decayed, kept = parameter_groups(model)
    everything = list(model.parameters())
    assert sorted(map(id, [*decayed, *kept])) == sorted(map(id, everything))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter in kept:
        name = names[id(parameter)]
        assert name.endswith("bias") or any(word in name for word in ("ln_", "embedding", "logit_scale", "stem")), name
    for parameter in decayed:
        assert parameter.ndim >= 2
        assert "embedding" not in names[id(parameter)]
    groups = build_optimizer(model, recipe.train).param_groups
    assert [group["weight_decay"] for group in groups] == [recipe.train.weight_decay, 0.0]


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
        applied.append({group["lr"] for group in learner.optimizer.param_groups})
    assert all(len(rates) == 1 for rates in applied)
    assert max(max(rates) for rates in applied) == recipe.train.learning_rate


def test_gradients_are_clipped(folder: object) -> None:
    from pathlib import Path

    recipe = small_recipe(Path(str(folder)), train={"clip_norm": 1e-3})
    learner = Learner(recipe, choose_device("cpu", "float32"), 10)
    seen = []
    learner.optimizer.step = lambda: seen.append(  # type: ignore[method-assign]
        torch.stack([p.grad.norm() for p in learner.model.parameters() if p.grad is not None]).norm()
    )
    _, length = learner.step(a_batch(), 0)
    assert length > 1e-2
    torch.testing.assert_close(seen[0], torch.tensor(1e-3), rtol=0.01, atol=0)
