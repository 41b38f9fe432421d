import math

import pytest
import torch
from torch.nn import functional as F

from pocketclip.train.losses import contrastive_loss


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_without_repeats_it_is_cross_entropy_against_the_diagonal(smoothing: float) -> None:
    torch.manual_seed(0)
    images, texts, scale = unit(9, 8).requires_grad_(), unit(9, 8).requires_grad_(), torch.tensor(14.0)
    tokens = torch.arange(9)[:, None]
    loss = contrastive_loss(images, texts, scale, tokens, smoothing)
    logits, diagonal = scale * images @ texts.T, torch.arange(9)
    expected = F.cross_entropy(logits, diagonal, label_smoothing=smoothing)
    expected = (expected + F.cross_entropy(logits.T, diagonal, label_smoothing=smoothing)) / 2
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, (images, texts))
    for one, other in zip(ours, torch.autograd.grad(expected, (images, texts)), strict=True):
        torch.testing.assert_close(one, other)


def test_repeated_captions_are_positives_by_a_plain_count() -> None:
    torch.manual_seed(0)
    images, texts, scale = unit(5, 8), unit(5, 8), torch.tensor(5.0)
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 3], [1, 2]])
    texts[2] = texts[4] = texts[0]
    logits = (scale * images @ texts.T).tolist()
    total = 0.0
    for rows in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(rows):
            right = sum(math.exp(row[j]) for j in range(5) if tokens[i].tolist() == tokens[j].tolist())
            total -= math.log(right / sum(map(math.exp, row))) / 5
    assert contrastive_loss(images, texts, scale, tokens, 0.0).item() == pytest.approx(total / 2, rel=1e-5)


def test_perfect_pairs_with_repeats_cost_nothing_and_are_left_alone() -> None:
    vectors = torch.eye(4)[[0, 1, 0, 2]].requires_grad_()
    texts = torch.eye(4)[[0, 1, 0, 2]]
    loss = contrastive_loss(vectors, texts, torch.tensor(100.0), torch.tensor([[0], [1], [0], [2]]), 0.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(loss, vectors)[0].abs().max() < 1e-6
    as_negatives = contrastive_loss(vectors, texts, torch.tensor(100.0), torch.arange(4)[:, None], 0.0)
    assert as_negatives.item() == pytest.approx(math.log(2) / 2, abs=1e-4)


def test_images_of_one_caption_are_not_pushed_apart() -> None:
    """Image 2 has caption 0 too: how near it comes to that caption is no cost to pair 0."""
    texts = torch.eye(3)[[0, 1, 0]]
    far = contrastive_loss(torch.eye(3)[[0, 1, 2]], texts, torch.tensor(50.0), torch.tensor([[0], [1], [0]]), 0.0)
    near = contrastive_loss(torch.eye(3)[[0, 1, 0]], texts, torch.tensor(50.0), torch.tensor([[0], [1], [0]]), 0.0)
    assert near < far
