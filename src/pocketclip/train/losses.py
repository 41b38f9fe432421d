"""The contrastive loss."""

import torch
from torch import Tensor


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, tokens: Tensor, label_smoothing: float) -> Tensor:
    """The symmetric softmax loss of CLIP (Radford et al. 2021, figure 3), repeated captions being positives.

    images, texts: [pairs, width] of length one, row i of both from the same pair.
    scale: what cosines are multiplied with.
    tokens: [pairs, length]; equal rows are the same caption. A pair's probability is then that of all its positives
        together (MIL-NCE, Miech et al. 2020, equation 1): else it would be pushed away from its own words, and the
        images of one caption from each other (openai/CLIP#464).
    label_smoothing: share of each target spread over the whole batch.

    Returns the mean over both directions, in nats; without repeated captions it is cross-entropy against the diagonal.
    """
    logits = scale * images @ texts.T
    caption = torch.unique(tokens, dim=0, return_inverse=True)[1]
    same = caption[:, None] == caption[None, :]
    return (_to_positives(logits, same, label_smoothing) + _to_positives(logits.T, same, label_smoothing)) / 2


def _to_positives(logits: Tensor, positive: Tensor, label_smoothing: float) -> Tensor:
    """Mean over rows of -log of the positives' probability, smoothed; both [pairs, pairs]."""
    everything = logits.logsumexp(dim=1)
    positives = logits.masked_fill(~positive, float("-inf")).logsumexp(dim=1)
    target = (1 - label_smoothing) * positives + label_smoothing * logits.mean(dim=1)
    return (everything - target).mean()
