import math

import pytest
import torch
from torch.nn import functional as F

from pocketclip.train.losses import contrastive_loss


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_without_repeats_it_is_cross_entropy_against_the_diagonal() -> None:
    torch.manual_seed(0)
    images, texts, scale = unit(9, 8).requires_grad_(), unit(9, 8).requires_grad_(), torch.tensor(14.0)
    tokens = torch.arange(9)[:, None]
    loss = contrastive_loss(images, texts, scale, tokens, 0.0)
    logits, diagonal = scale * images @ texts.T, torch.arange(9)
    expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(loss, expected)
    for one, other in zip(
        torch.autograd.grad(loss, (images, texts)), torch.autograd.grad(expected, (images, texts)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_repeated_captions_are_positives_by_a_plain_count() -> None:
    torch.manual_seed(0)
    images, scale = unit(5, 8), torch.tensor(5.0)
    tokens = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 3], [1, 2]])
    texts = unit(5, 8)
    texts[2] = texts[4] = texts[0]
    logits = (scale * images @ texts.T).tolist()
    total = 0.0
    for rows in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i, row in enumerate(rows):
            same = [j for j in range(5) if tokens[i].tolist() == tokens[j].tolist()]
            log_sum = math.log(sum(map(math.exp, row)))
            total += sum(log_sum - row[j] for j in same) / len(same) / 5
    assert contrastive_loss(images, texts, scale, tokens, 0.0).item() == pytest.approx(total / 2, rel=1e-5)


def test_perfect_pairs_with_repeats_have_no_gradient_between_them() -> None:
    vectors = torch.eye(4)[[0, 1, 0, 2]].requires_grad_()
    loss = contrastive_loss(
        vectors, torch.eye(4)[[0, 1, 0, 2]], torch.tensor(100.0), torch.tensor([[0], [1], [0], [2]]), 0.0
    )
    assert loss.item() == pytest.approx(math.log(2) / 2, abs=1e-4)  # two places share two rows' targets
    assert torch.autograd.grad(loss, vectors)[0].abs().max() < 1e-4
