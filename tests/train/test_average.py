import torch

from pocketclip.device import choose_device
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from train.test_optimizer import a_batch


def test_it_is_the_average_by_a_plain_count(recipe: Recipe) -> None:
    settings = recipe.train.model_copy(update={"ema_decay": 0.6})
    learner = Learner(recipe.model_copy(update={"train": settings}), choose_device("cpu", "float32"), 10)
    expected = {name: value.clone() for name, value in learner.model.state_dict().items()}
    for step in range(8):
        learner.step(a_batch(), step)
        keep = min(0.6, (1 + step) / (10 + step))
        for name, value in learner.model.state_dict().items():
            if value.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * value
    found = learner.finished().state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, msg=name)
    assert not torch.equal(found["visual.proj"], learner.model.visual.proj)


def test_without_it_the_bundle_gets_the_last_weights(recipe: Recipe) -> None:
    learner = Learner(recipe, choose_device("cpu", "float32"), 10)
    assert learner.finished() is learner.model
