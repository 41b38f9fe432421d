import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from pocketclip.train import losses
from pocketclip.train.losses import caption_numbers, sigmoid_loss, softmax_loss


def unit(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=dtype), dim=-1)


def plain_softmax(images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, smoothing: float) -> Tensor:
    """By the definition, with the whole matrix."""
    logits, same = scale * images @ texts.T, captions[:, None] == captions
    total = torch.zeros((), dtype=images.dtype)
    for matrix in (logits, logits.T):
        positives = matrix.masked_fill(~same, -torch.inf).logsumexp(1)
        target = (1 - smoothing) * positives + smoothing * matrix.mean(1)
        total = total + (matrix.logsumexp(1) - target).mean() / 2
    return total


def plain_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, captions: Tensor) -> Tensor:
    sign = torch.where(captions[:, None] == captions, 1.0, -1.0).to(images.dtype)
    return -F.logsigmoid(sign * (scale * images @ texts.T + bias)).sum() / len(images)


@pytest.fixture(params=[(4, 2), (2, 100), (512, 2048)], ids=["blocks", "stripes", "one block"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and texts in a block."""
    monkeypatch.setitem(losses.BLOCK, "cpu", request.param)


@pytest.fixture(params=[0.0, losses.NARROW], ids=["one by one", "one factor for all"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """From which range on sums are computed the slow way."""
    monkeypatch.setattr(losses, "NARROW", request.param)


CAPTIONS = {
    "all different": torch.arange(9),
    "repeated": torch.tensor([1, 2, 1, 4, 2, 6, 1, 8, 9]),
    "one caption": torch.zeros(9, dtype=torch.long),
}


@pytest.mark.usefixtures("block", "narrow")
@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS.keys())
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_softmax_equals_its_definition(captions: Tensor, smoothing: float, scale: float) -> None:
    torch.manual_seed(0)
    inputs = [unit(9, 8, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(scale, dtype=torch.float64, requires_grad=True))
    loss = softmax_loss(*inputs, captions, smoothing)
    expected = plain_softmax(*inputs, captions, smoothing)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(3 * loss, inputs)
    for one, other in zip(ours, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_without_repeats_it_is_torchs_cross_entropy_against_the_diagonal() -> None:
    torch.manual_seed(0)
    images, texts, scale, diagonal = unit(9, 8), unit(9, 8), torch.tensor(14.0), torch.arange(9)
    logits = scale * images @ texts.T
    both = [F.cross_entropy(matrix, diagonal, label_smoothing=0.1) for matrix in (logits, logits.T)]
    torch.testing.assert_close(softmax_loss(images, texts, scale, diagonal, 0.1), (both[0] + both[1]) / 2)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("captions", CAPTIONS.values(), ids=CAPTIONS.keys())
def test_sigmoid_equals_its_definition(captions: Tensor) -> None:
    torch.manual_seed(0)
    inputs = [unit(9, 8, dtype=torch.float64).requires_grad_() for _ in range(2)]
    inputs += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (10.0, -math.log(8))]
    loss, expected = sigmoid_loss(*inputs, captions), plain_sigmoid(*inputs, captions)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad(3 * loss, inputs)
    for one, other in zip(ours, torch.autograd.grad(3 * expected, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_sigmoids_bias_of_log_pairs_makes_a_blind_models_loss_least() -> None:
    images = torch.eye(2)[[0] * 64]
    texts, scale, captions = torch.eye(2)[[1] * 64], torch.tensor(10.0), torch.arange(64)  # every cosine is 0
    at = {
        bias: sigmoid_loss(images, texts, scale, torch.tensor(bias), captions) for bias in (-3.0, -math.log(63), -5.0)
    }
    assert min(at, key=lambda bias: at[bias].item()) == -math.log(63)


@pytest.mark.usefixtures("block")
def test_extreme_logits_stay_finite() -> None:
    """A right pair at cosine 1 and all wrong ones at -1 are 200 apart at the highest scale: e^200 is no float32."""
    for sign in (1, -1):
        images = (sign * torch.eye(4)[[0, 0, 0, 0]]).requires_grad_()
        texts = torch.eye(4)[[0, 0, 0, 0]] * torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
        loss = softmax_loss(images, texts, torch.tensor(100.0), torch.arange(4))
        gradient = torch.autograd.grad(loss, images)[0]
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_perfect_pairs_with_repeats_cost_nothing_and_are_left_alone() -> None:
    vectors = torch.eye(4)[[0, 1, 0, 2]].requires_grad_()
    texts = torch.eye(4)[[0, 1, 0, 2]]
    loss = softmax_loss(vectors, texts, torch.tensor(100.0), torch.tensor([0, 1, 0, 2]))
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, vectors)[0].abs().max() < 1e-6
    as_negatives = softmax_loss(vectors, texts, torch.tensor(100.0), torch.arange(4))
    assert as_negatives.item() == pytest.approx(math.log(2) / 2, abs=1e-4)


def test_images_of_one_caption_are_not_pushed_apart() -> None:
    """Image 2 has caption 0 too: how near it comes to that caption is no cost to pair 0."""
    texts, captions = torch.eye(3)[[0, 1, 0]], torch.tensor([0, 1, 0])
    far = softmax_loss(torch.eye(3)[[0, 1, 2]], texts, torch.tensor(50.0), captions)
    near = softmax_loss(torch.eye(3)[[0, 1, 0]], texts, torch.tensor(50.0), captions)
    assert near < far


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=2, max_size=30), st.integers(0, 3))
def test_caption_numbers_are_equal_where_captions_are(captions: list[list[int]], padding: int) -> None:
    longest = max(map(len, captions))
    tokens = torch.tensor([[*one, *[padding] * (longest - len(one))] for one in captions])
    numbers = caption_numbers(tokens, torch.tensor([len(one) - 1 for one in captions])).tolist()
    for (one, first), (other, second) in product(zip(captions, numbers, strict=True), repeat=2):
        assert (one == other) == (first == second)
    wider = F.pad(tokens, (0, 3), value=7)
    assert caption_numbers(wider, torch.tensor([len(one) - 1 for one in captions])).tolist() == numbers
