import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pocketclip.train import losses
from pocketclip.train.distillation import distillation_loss
from train.test_losses import unit

SIZES = {"one block": (512, 2048), "blocks": (4, 2), "stripes": (2, 100), "single logits": (1, 1)}


def plain(images: Tensor, texts: Tensor, scale: Tensor, *teacher: Tensor | float) -> Tensor:
    """By torch's own function, with the whole matrices."""
    ours, theirs = scale * images @ texts.T, teacher[2] * teacher[0] @ teacher[1].T  # type: ignore[union-attr]
    both = [
        F.kl_div(one.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)
        for one, other in ((ours, theirs), (ours.T, theirs.T))
    ]
    return (both[0] + both[1]) / 2


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("texts", [9, 5])
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_it_equals_its_definition(
    size: tuple[int, int], texts: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.BLOCK, "cpu", size)
    torch.manual_seed(0)
    inputs = [unit(count, 8, dtype=torch.float64).requires_grad_() for count in (9, texts)]
    inputs.append(torch.tensor(scale, dtype=torch.float64, requires_grad=True))
    teacher = [unit(count, 5, dtype=torch.float64) for count in (9, texts)]
    loss, expected = distillation_loss(*inputs, *teacher, 50.0), plain(*inputs, *teacher, 50.0)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(3 * loss, inputs)
    for one, other in zip(ours, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_student_that_agrees_pays_nothing_and_is_left_alone() -> None:
    """However its space lies: only similarities are compared."""
    torch.manual_seed(0)
    images, texts = unit(9, 8, dtype=torch.float64), unit(9, 8, dtype=torch.float64)
    turned, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    inputs = [(images @ turned).requires_grad_(), (texts @ turned).requires_grad_()]
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    loss = distillation_loss(*inputs, scale, images, texts, 20.0)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert all(one.abs().max() < 1e-12 for one in torch.autograd.grad(loss, [*inputs, scale]))
    assert distillation_loss(*inputs, scale, images, texts, 10.0).item() > 0.01, "the teacher's own temperature counts"


def test_without_captions_there_is_nothing_to_compare() -> None:
    images = unit(4, 8).requires_grad_()
    none = torch.zeros(0, 8)
    loss = distillation_loss(images, none, torch.tensor(10.0), unit(4, 5), torch.zeros(0, 5), 10.0)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, images)[0].abs().max() == 0


def test_extreme_logits_stay_finite() -> None:
    images, texts = torch.eye(4)[[0, 0, 0, 0]].requires_grad_(), torch.eye(4)[[0, 0, 0, 0]]
    opposite = texts * torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    loss = distillation_loss(images, opposite, torch.tensor(100.0), texts, -opposite, 100.0)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, images)[0].isfinite().all()
