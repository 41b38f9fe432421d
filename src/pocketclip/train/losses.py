"""The contrastive losses, exact, in memory that grows with the batch and not with its square.

Logits are computed in blocks of rows, used and thrown away; the backward pass computes them once more. What is kept
between the passes is a number or two a row, so that 32,768 pairs take some hundred megabytes where the whole matrix and
its gradients take seventeen gigabytes (docs/log.md).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from pocketclip.train.ranks import Ranks

BLOCK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 26}  # logits at a time: large enough for fast products
GOLDEN = -0x61C8864680B583EB  # 2^64 / the golden ratio, as int64 has it: its multiples are spread evenly
ALONE = Ranks()


def caption_numbers(tokens: Tensor, ends: Tensor) -> Tensor:
    """One int64 a caption, equal where the captions are: [pairs, length] ids and [pairs] end positions -> [pairs].

    A linear hash of the ids, modulo 2^64: two captions that differ share one with a chance of about 2^-63.
    """
    places = torch.arange(tokens.shape[1], device=tokens.device)
    factors = (places + 1) * GOLDEN
    factors = ((factors ^ (factors >> 29)) * GOLDEN) | 1
    return ((tokens + 1) * factors).masked_fill(places > ends[:, None], 0).sum(dim=1)


def softmax_loss(
    images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, label_smoothing: float = 0.0, ranks: Ranks = ALONE
) -> Tensor:
    """The symmetric softmax loss of CLIP (Radford et al. 2021, figure 3), repeated captions being positives.

    images, texts: [pairs, width] float32 of length one, row i of both from the same pair.
    scale: what cosines are multiplied with.
    captions: [pairs] int64, see `caption_numbers`; equal ones are the same caption. A pair's probability is then that
        of all its positives together (MIL-NCE, Miech et al. 2020, equation 1): else it would be pushed away from its
        own words, and the images of one caption from each other (openai/CLIP#464).
    label_smoothing: share of each target spread over the whole batch.
    ranks: the processes that hold a part of the batch each.

    Returns the mean over both directions, in nats; without repeated captions it is cross-entropy against the diagonal.
    With several ranks it is this rank's share: the sum over all ranks is the loss, and the sum of their gradients its
    gradient.
    """
    sums = log_sums(images, texts, scale, captions, ranks)
    pairs = ranks.sum(torch.tensor(float(len(images)), device=images.device))
    loss = torch.zeros((), device=images.device)
    for negative, positive in zip(sums[:2], sums[2:], strict=True):
        # -log(e^p / (e^p + e^n)), and what smoothing adds to it
        loss = loss + (F.softplus(negative - positive) + label_smoothing * positive).sum() / (2 * pairs)
    if label_smoothing:
        loss = loss - label_smoothing * _sum_of_logits(images, texts, scale, ranks) / pairs**2
    return loss


def _sum_of_logits(images: Tensor, texts: Tensor, scale: Tensor, ranks: Ranks) -> Tensor:
    """A rank's share of the sum of all logits, which is the product of the sums of both sides."""
    image_sum, text_sum = images.sum(dim=0), texts.sum(dim=0)
    share = scale * (ranks.sum(image_sum) * text_sum).sum()
    # The same for the images of this rank, of no value but with a gradient.
    by_images = scale.detach() * (image_sum * ranks.sum(text_sum)).sum()
    return share + by_images - by_images.detach()


def sigmoid_loss(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, captions: Tensor, ranks: Ranks = ALONE
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, algorithm 1), repeated captions being positives.

    bias: added to every logit; it starts at -log(pairs - 1), where a random model's loss is least.
    The other arguments, and the share of several ranks, are those of `softmax_loss`. Returns the sum over all images
    and captions, divided by the number of pairs, in nats.
    """
    loss: Tensor = _Sigmoid.apply(images, texts, scale, bias, captions, ranks)  # type: ignore[no-untyped-call]
    return loss


def log_sums(
    images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logarithms of the sums of e^logit over each image's and each text's negatives and positives.

    Returns four tensors [pairs]: (images' negatives, texts' negatives, images' positives, texts' positives); minus
    infinity where a pair has no negatives. logits = scale * images @ texts.T, over the batch of all ranks, are never
    kept whole. Positives are the pairs of the same caption.
    """
    of_images, of_texts, positive_images, positive_texts = _LogSums.apply(images, texts, scale, captions, ranks)  # type: ignore[no-untyped-call]
    return of_images, of_texts, positive_images, positive_texts


class _Blocks:
    """The images of this rank against the texts of all ranks, some rows at a time."""

    def __init__(self, images: Tensor, texts: Tensor, captions: Tensor, ranks: Ranks) -> None:
        self.images = images
        self.texts, self.first = ranks.gather(texts)
        self.captions, _ = ranks.gather(captions)
        self.repeated = len(torch.unique(self.captions)) < len(self.captions)

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """(which images, their positives): bool [rows, texts] where captions repeat, else int64 [rows], the columns."""
        rows = max(1, BLOCK_LOGITS.get(self.images.device.type, 1 << 24) // max(1, len(self.texts)))
        for start in range(0, len(self.images), rows):
            some = slice(start, min(start + rows, len(self.images)))
            own = slice(self.first + some.start, self.first + some.stop)
            if self.repeated:
                yield some, self.captions[own, None] == self.captions
            else:
                yield some, torch.arange(own.start, own.stop, device=self.images.device)


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, ranks: Ranks
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(images, texts, captions, ranks)
        nothing = -torch.inf
        of_images = [images.new_full((len(images),), nothing) for _ in range(2)]
        of_texts = [images.new_full((len(blocks.texts),), nothing) for _ in range(2)]
        for some, positive in blocks:
            logits = (scale * images[some]) @ blocks.texts.T
            for kind, kept in enumerate(_split(logits, positive)):
                if kept.ndim == 1:  # one positive a row
                    of_images[kind][some] = of_texts[kind][positive] = kept
                else:
                    of_images[kind][some] = kept.logsumexp(dim=1)
                    of_texts[kind] = torch.logaddexp(of_texts[kind], kept.logsumexp(dim=0))
        of_texts = [ranks.log_sum(one) for one in of_texts]
        ctx.save_for_backward(images, texts, scale, *of_images, *of_texts)
        ctx.blocks, ctx.ranks = blocks, ranks
        mine = slice(blocks.first, blocks.first + len(texts))
        return of_images[0], of_texts[0][mine].clone(), of_images[1], of_texts[1][mine].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, *sums = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        blocks: _Blocks = ctx.blocks
        by_image = (gradients[0], gradients[2])
        by_text = [ranks.gather(one)[0] for one in (gradients[1], gradients[3])]
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(blocks.texts)
        for some, positive in blocks:
            logits = (scale * images[some]) @ blocks.texts.T
            by_kind = [
                _shares(logits, sums[kind][some], by_image[kind][some], sums[2 + kind], by_text[kind])
                for kind in range(2 if blocks.repeated else 1)
            ]
            if blocks.repeated:
                of_logits = torch.where(positive, by_kind[1], by_kind[0])
            else:
                of_logits = by_kind[0]
                own = torch.arange(len(positive), device=positive.device)
                of_logits[own, positive] = by_image[1][some] + by_text[1][positive]
            grad_images[some] = of_logits @ blocks.texts
            grad_texts.addmm_(of_logits.T, images[some])
        grad_scale = (grad_images * images).sum()
        return grad_images * scale, ranks.sum_own(grad_texts, blocks.first, len(texts)) * scale, grad_scale, None, None


def _split(logits: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(negatives, positives) of a block, minus infinity elsewhere; positives [rows] where each row has just one."""
    if positive.dtype == torch.bool:
        return logits.masked_fill(positive, -torch.inf), logits.masked_fill(~positive, -torch.inf)
    own = torch.arange(len(positive), device=positive.device)
    positives = logits[own, positive]
    logits[own, positive] = -torch.inf
    return logits, positives


def _shares(logits: Tensor, of_images: Tensor, by_image: Tensor, of_texts: Tensor, by_text: Tensor) -> Tensor:
    """The gradient of sums by the logits in them: each logit's share of its row's sum and of its column's."""
    shares = (logits - of_images[:, None]).exp_().mul_(by_image[:, None])
    return shares.add_((logits - of_texts).exp_().mul_(by_text))


class _Sigmoid(torch.autograd.Function):
    """Each logit's gradient is known as soon as the logit is, so one pass computes the loss and all gradients."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, captions: Tensor, ranks: Ranks
    ) -> Tensor:
        blocks = _Blocks(images, texts, captions, ranks)
        loss, grad_bias = images.new_zeros(()), images.new_zeros(())
        grad_images, grad_texts = torch.empty_like(images), torch.zeros_like(blocks.texts)
        for some, positive in blocks:
            logits = torch.addmm(bias, scale * images[some], blocks.texts.T)
            own = positive if blocks.repeated else (torch.arange(len(positive), device=positive.device), positive)
            # -log sigmoid(-z) = softplus(z) of a negative; of a positive it is softplus(z) - z, and its slope one less
            loss += F.softplus(logits).sum() - logits[own].sum()
            of_logits = logits.sigmoid_()
            of_logits[own] -= 1
            grad_bias += of_logits.sum()
            grad_images[some] = of_logits @ blocks.texts
            grad_texts.addmm_(of_logits.T, images[some])
        pairs = len(blocks.texts)
        grad_scale = (grad_images * images).sum() / pairs
        own_texts = ranks.sum_own(grad_texts, blocks.first, len(texts))
        ctx.save_for_backward(grad_images * (scale / pairs), own_texts * (scale / pairs), grad_scale, grad_bias / pairs)
        return loss / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradients[0] * one for one in ctx.saved_tensors), None, None)
