"""The loss by which a student learns a teacher's similarities, in blocks as the contrastive losses are.

How alike a teacher finds each image of a batch and each caption says more than which belong together. The teacher's
space need not be the student's: only what both make of the batch is compared.
Sources: Vasu et al. 2024, "MobileCLIP", section 3, with one teacher; Wu et al. 2023, "TinyCLIP", section 3 ("affinity
mimicking").
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pocketclip.train.losses import ALONE, blocks
from pocketclip.train.ranks import Ranks


def distillation_loss(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    teacher_images: Tensor,
    teacher_texts: Tensor,
    teacher_scale: float,
    ranks: Ranks = ALONE,
) -> Tensor:
    """How far a student's softmax over the batch is from a teacher's: KL(teacher || student), from images and texts.

    images, texts: [images, width] and [texts, width] of length one; which belong together does not matter, and there
        may be more of the ones than of the others.
    scale: what the student's cosines are multiplied with.
    teacher_images, teacher_texts, teacher_scale: the same of the teacher, of its own width; they get no gradient.
    ranks: the processes that hold a part of the batch each.

    Returns the mean over both directions, in nats; 0 where both say the same, or where there is nothing to compare.
    With several ranks it is this rank's share: the sum over all ranks is the loss, and the sum of their gradients its
    gradient.
    """
    loss: Tensor = _Distillation.apply(images, texts, scale, teacher_images, teacher_texts, teacher_scale, ranks)  # type: ignore[no-untyped-call]
    return loss


class _Logits:
    """Images of this rank against the texts of all ranks, never kept whole, and the logarithms of their sums of e^."""

    def __init__(self, images: Tensor, texts: Tensor, scale: Tensor | float, ranks: Ranks) -> None:
        self.images, self.texts, self.scale = images, texts, scale
        self.of_images = images.new_full((len(images),), -torch.inf)
        of_texts = images.new_full((len(texts),), -torch.inf)
        for rows, columns in blocks(len(images), len(texts), images.device):
            logits = self._block(rows, columns)
            self.of_images[rows] = torch.logaddexp(self.of_images[rows], logits.logsumexp(dim=1))
            of_texts[columns] = torch.logaddexp(of_texts[columns], logits.logsumexp(dim=0))
        self.of_texts = ranks.log_sum(of_texts)

    def _block(self, rows: slice, columns: slice) -> Tensor:
        return (self.scale * self.images[rows]) @ self.texts[columns].T

    def log_softmax(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Of a block: over all texts of each image, and over all images of each text."""
        logits = self._block(rows, columns)
        return logits - self.of_images[rows, None], logits - self.of_texts[columns]


class _Distillation(torch.autograd.Function):
    """Once the sums are known, a second pass computes the loss and all gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        texts: Tensor,
        scale: Tensor,
        teacher_images: Tensor,
        teacher_texts: Tensor,
        teacher_scale: float,
        ranks: Ranks,
    ) -> Tensor:
        all_texts, first = ranks.gather(texts)
        student = _Logits(images, all_texts, scale, ranks)
        teacher = _Logits(teacher_images, ranks.gather(teacher_texts)[0], teacher_scale, ranks)
        terms = 2 * ranks.total(len(images)), 2 * len(all_texts)
        loss, grad_images, grad_texts = images.new_zeros(()), torch.zeros_like(images), torch.zeros_like(all_texts)
        for rows, columns in blocks(len(images), len(all_texts), images.device):
            both = student.log_softmax(rows, columns), teacher.log_softmax(rows, columns)
            of_logits = torch.zeros_like(both[0][0])
            for ours, theirs, count in zip(*both, terms, strict=True):
                wanted = theirs.exp()
                loss += (wanted * (theirs - ours)).sum() / count
                of_logits += (ours.exp() - wanted) / count
            grad_images[rows].addmm_(of_logits, all_texts[columns])
            grad_texts[columns].addmm_(of_logits.T, images[rows])
        own_texts = ranks.sum_own(grad_texts, first, len(texts))
        ctx.save_for_backward(grad_images * scale, own_texts * scale, (grad_images * images).sum())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradients[0] * one for one in ctx.saved_tensors), None, None, None, None)
