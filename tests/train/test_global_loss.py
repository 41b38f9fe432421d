import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketclip.recipe.training import TrainSettings
from pocketclip.train.global_loss import RememberedNegatives, global_loss
from pocketclip.train.losses import ALONE, softmax_loss
from pocketclip.train.schedule import renewed_share
from train.test_losses import CAPTIONS

CPU = torch.device("cpu")


def pairs(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    images = F.normalize(torch.randn(count, 6, dtype=torch.float64), dim=1)
    texts = F.normalize(images + 0.5 * torch.randn(count, 6, dtype=torch.float64), dim=1)
    return [images.requires_grad_(), texts.requires_grad_(), torch.tensor(8.0, dtype=torch.float64).requires_grad_()]


@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS.keys())
def test_of_a_batch_that_is_the_whole_data_set_it_is_the_softmax_loss(captions: Tensor) -> None:
    inputs = pairs(9)
    remembered = RememberedNegatives(9, CPU)
    loss = global_loss(*inputs, captions, torch.arange(9), remembered, 0.5, ALONE)  # what is seen first counts whole
    expected = softmax_loss(*inputs, captions)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_small_batches_give_the_whole_data_sets_gradient_on_average() -> None:
    """Which the softmax loss of small batches does not: that is what it is for."""
    *inputs, scale = pairs(16)
    captions = torch.arange(16)
    expected = torch.autograd.grad(softmax_loss(*inputs, scale, captions), inputs)
    remembered = RememberedNegatives(16, CPU)
    sums = {"global": [torch.zeros_like(one) for one in inputs], "softmax": [torch.zeros_like(one) for one in inputs]}
    steps, warm = 1200, 200
    for step in range(steps):
        rows = torch.randperm(16)[:4]
        for name in sums:
            part = [inputs[0][rows], inputs[1][rows], scale, captions[rows]]
            loss = global_loss(*part, rows, remembered, 0.03, ALONE) if name == "global" else softmax_loss(*part)
            for total, one in zip(sums[name], torch.autograd.grad(loss, inputs), strict=True):
                total += one * (step >= warm) / (steps - warm)
    away = {
        name: [float((one - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]
        for name, found in sums.items()
    }
    assert max(away["global"]) < 0.15
    assert min(away["softmax"]) > 0.4


def test_a_pair_alone_meets_nothing() -> None:
    """As where all other rows of a batch were dropped."""
    inputs = pairs(1)
    loss = global_loss(*inputs, torch.arange(1), torch.tensor([3]), RememberedNegatives(9, CPU), 0.5, ALONE)
    assert all(one.isfinite().all() for one in (loss, *torch.autograd.grad(loss, inputs)))


def test_a_row_renews_its_own_share_and_others_keep_theirs() -> None:
    remembered = RememberedNegatives(5, CPU)
    remembered.means[:, 1:3] = torch.tensor([[2.0, 4.0], [8.0, 1.0]]).log()
    now = remembered.renew(torch.tensor([2, 1, 4]), torch.tensor([[1.0, 1.0, 3.0], [1.0, 2.0, 3.0]]).log(), 0.25, ALONE)
    expected = torch.tensor([[0.75 * 4 + 0.25, 0.75 * 2 + 0.25, 3.0], [1.0, 0.75 * 8 + 0.5, 3.0]])
    torch.testing.assert_close(now.exp(), expected)
    assert torch.equal(remembered.means[:, [2, 1, 4]], now)
    assert remembered.means[:, [0, 3]].isnan().all()


def test_a_batch_of_one_caption_teaches_nothing_and_stays_finite() -> None:
    inputs = pairs(4)
    loss = global_loss(
        *inputs, torch.zeros(4, dtype=torch.long), torch.arange(4), RememberedNegatives(9, CPU), 1.0, ALONE
    )
    assert all(one.isfinite().all() and not one.any() for one in torch.autograd.grad(loss, inputs))


def test_the_renewed_share_falls_from_one_to_the_setting_by_the_middle() -> None:
    settings = TrainSettings(renewed_share=0.2)
    assert renewed_share(0, 100, settings) == 1
    assert renewed_share(25, 100, settings) == pytest.approx(0.6)
    assert renewed_share(50, 100, settings) == renewed_share(99, 100, settings) == pytest.approx(0.2)
