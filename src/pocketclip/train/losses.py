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

# Images and texts of a block: large enough for fast products, on a CPU small enough for its cache.
BLOCK = {"cpu": (512, 2048), "cuda": (8192, 8192)}
NARROW = 80.0  # e^-80 is still a normal float32: of logits that differ by less no term of a sum is lost
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
        own words, and the images of one caption from each other (openai/CLIP#464). Best on the CPU, wherever the
        embeddings are: whether any are equal is asked there, and asking a GPU would stop its queue.
    label_smoothing: share of each target spread over the whole batch.
    ranks: the processes that hold a part of the batch each.

    Returns the mean over both directions, in nats; without repeated captions it is cross-entropy against the diagonal.
    With several ranks it is this rank's share: the sum over all ranks is the loss, and the sum of their gradients its
    gradient.
    """
    sums = log_sums(images, texts, scale, captions, ranks)
    pairs = ranks.total(len(images))
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


def blocks(rows: int, columns: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    """A matrix in blocks: (which rows, which columns) of each."""
    height, width = BLOCK.get(device.type, BLOCK["cuda"])
    for top in range(0, rows, height):
        for left in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(left, min(left + width, columns))


class _Blocks:
    """The images of this rank against the texts of all ranks, block by block."""

    def __init__(self, images: Tensor, texts: Tensor, captions: Tensor, ranks: Ranks) -> None:
        self.images = images
        self.texts, self.first = ranks.gather(texts)
        everyones, _ = ranks.gather(captions)
        self.repeated = len(torch.unique(everyones)) < len(everyones)
        self.captions = everyones.to(images.device, non_blocking=True)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor | int]]:
        """(which images, which texts, where the positives of the block are: a mask, or how far right of its diagonal).

        Nothing of it stops a GPU's queue, as rows and columns to be looked up would.
        """
        for rows, columns in blocks(len(self.images), len(self.texts), self.images.device):
            top, bottom = rows.start + self.first, rows.stop + self.first  # this block's images, among those of all
            if self.repeated:
                yield rows, columns, self.captions[top:bottom, None] == self.captions[columns]
            else:
                yield rows, columns, top - columns.start


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, ranks: Ranks
    ) -> tuple[Tensor, ...]:
        blocks = _Blocks(images, texts, captions, ranks)
        of_images = [images.new_full((len(images),), -torch.inf) for _ in range(2)]
        of_texts = [images.new_full((len(blocks.texts),), -torch.inf) for _ in range(2)]
        for rows, columns, positive in blocks:
            logits = (scale * images[rows]) @ blocks.texts[columns].T
            narrow = _is_narrow(logits)
            kinds = [logits]
            if isinstance(positive, Tensor):
                kinds.append(logits.masked_fill(~positive, -torch.inf))
                logits.masked_fill_(positive, -torch.inf)
            else:
                logits.diagonal(positive).fill_(-torch.inf)
            for kind, some in enumerate(kinds):
                by_row, by_column = _log_sums_of(some, narrow)
                of_images[kind][rows] = torch.logaddexp(of_images[kind][rows], by_row)
                of_texts[kind][columns] = torch.logaddexp(of_texts[kind][columns], by_column)
        mine = slice(blocks.first, blocks.first + len(texts))
        if not blocks.repeated:
            of_images[1] = of_texts[1][mine] = scale * (images * texts).sum(dim=1)
        of_texts = [ranks.log_sum(one) for one in of_texts]
        ctx.save_for_backward(images, texts, scale, *of_images, *of_texts)
        ctx.blocks, ctx.ranks = blocks, ranks
        return of_images[0], of_texts[0][mine].clone(), of_images[1], of_texts[1][mine].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, texts, scale, *sums = ctx.saved_tensors
        ranks: Ranks = ctx.ranks
        blocks: _Blocks = ctx.blocks
        by_image = (gradients[0], gradients[2])
        by_text = [ranks.gather(one)[0] for one in (gradients[1], gradients[3])]
        shares = [_Shares(sums[kind], by_image[kind], sums[2 + kind], by_text[kind]) for kind in range(2)]
        grad_images, grad_texts = torch.zeros_like(images), torch.zeros_like(blocks.texts)
        for rows, columns, positive in blocks:
            logits = (scale * images[rows]) @ blocks.texts[columns].T
            if isinstance(positive, Tensor):
                of_positives = shares[1].of(logits.clone(), rows, columns)
                of_logits = torch.where(positive, of_positives, shares[0].of(logits, rows, columns))
            else:
                of_logits = shares[0].of(logits, rows, columns)
                here = of_logits.diagonal(positive)
                of_images, of_texts = by_image[1][rows][max(0, -positive) :], by_text[1][columns][max(0, positive) :]
                here.copy_(of_images[: len(here)] + of_texts[: len(here)])
            grad_images[rows].addmm_(of_logits, blocks.texts[columns])
            grad_texts[columns].addmm_(of_logits.T, images[rows])
        grad_scale = (grad_images * images).sum()
        return grad_images * scale, ranks.sum_own(grad_texts, blocks.first, len(texts)) * scale, grad_scale, None, None


def _is_narrow(values: Tensor) -> bool:
    """Whether e^value of all of them can share one factor; not asked of a GPU, which would have to stop for it."""
    if values.device.type != "cpu" or not len(values):
        return False
    least, most = values.aminmax()
    return bool(most - least < NARROW)


def _log_sums_of(logits: Tensor, narrow: bool) -> tuple[Tensor, Tensor]:
    """Logarithms of the sums of e^logit over each row and over each column of a block, which may be overwritten."""
    if not narrow:
        return logits.logsumexp(dim=1), logits.logsumexp(dim=0)
    most = logits.max()
    if most.isneginf():
        return logits.amax(dim=1), logits.amax(dim=0)
    terms = logits.sub_(most).exp_()
    return terms.sum(dim=1).log_().add_(most), terms.sum(dim=0).log_().add_(most)


class _Shares:
    """The gradient of sums by the logits in them: each logit's share of its row's sum and of its column's."""

    def __init__(self, of_images: Tensor, by_image: Tensor, of_texts: Tensor, by_text: Tensor) -> None:
        self.of_images, self.by_image, self.of_texts, self.by_text = of_images, by_image, of_texts, by_text
        self.narrow = False
        if of_images.device.type != "cpu":
            return
        finite = torch.cat([one[one.isfinite()] for one in (of_images, of_texts)])
        self.narrow = _is_narrow(finite)
        if self.narrow:  # e^(l - r) x + e^(l - c) y = e^(l - most) (e^(most - r) x + e^(most - c) y): one e^ a logit
            self.most = finite.max()
            self.image_factors = (self.most - of_images).exp_().mul_(by_image).nan_to_num_(0.0, 0.0)
            self.text_factors = (self.most - of_texts).exp_().mul_(by_text).nan_to_num_(0.0, 0.0)

    def of(self, logits: Tensor, rows: slice, columns: slice) -> Tensor:
        """A block of logits, which is overwritten -> the gradient by each."""
        if self.narrow:
            factors = self.image_factors[rows, None] + self.text_factors[columns]
            return logits.sub_(self.most).exp_().mul_(factors)
        by_row = (logits - self.of_images[rows, None]).exp_().mul_(self.by_image[rows, None])
        return by_row.add_(logits.sub_(self.of_texts[columns]).exp_().mul_(self.by_text[columns]))


class _Sigmoid(torch.autograd.Function):
    """Each logit's gradient is known as soon as the logit is, so one pass computes the loss and all gradients."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, captions: Tensor, ranks: Ranks
    ) -> Tensor:
        blocks = _Blocks(images, texts, captions, ranks)
        loss, grad_bias = images.new_zeros(()), images.new_zeros(())
        grad_images, grad_texts = torch.zeros_like(images), torch.zeros_like(blocks.texts)
        for rows, columns, positive in blocks:
            logits = torch.addmm(bias, scale * images[rows], blocks.texts[columns].T)
            # -log sigmoid(-z) = softplus(z) of a negative; of a positive it is softplus(z) - z, and its slope one less
            attracted = logits * positive if isinstance(positive, Tensor) else logits.diagonal(positive)
            loss += F.softplus(logits).sum() - attracted.sum()
            of_logits = logits.sigmoid_()
            if isinstance(positive, Tensor):
                of_logits -= positive.to(logits.dtype)
            else:
                of_logits.diagonal(positive).sub_(1)
            grad_bias += of_logits.sum()
            grad_images[rows].addmm_(of_logits, blocks.texts[columns])
            grad_texts[columns].addmm_(of_logits.T, images[rows])
        pairs = len(blocks.texts)
        grad_scale = (grad_images * images).sum() / pairs
        own_texts = ranks.sum_own(grad_texts, blocks.first, len(texts))
        ctx.save_for_backward(grad_images * (scale / pairs), own_texts * (scale / pairs), grad_scale, grad_bias / pairs)
        return loss / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return (*(gradients[0] * one for one in ctx.saved_tensors), None, None)
