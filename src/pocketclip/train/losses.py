"""The contrastive loss."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, tokens: Tensor, label_smoothing: float) -> Tensor:
    """The symmetric softmax loss of CLIP (Radford et al. 2021, figure 3), repeated captions being positives.

    images, texts: [pairs, width] of length one, row i of both from the same pair.
    scale: what cosines are multiplied with. tokens: [pairs, length]; equal rows are the same caption, and share the
    target evenly, as otherwise a pair would be pushed away from its own words (openai/CLIP#464).

    Returns the mean over both directions, in nats; without repeated captions it is what cross-entropy against the
    diagonal gives.
    """
    logits = scale * images @ texts.T
    caption = torch.unique(tokens, dim=0, return_inverse=True)[1]
    same = (caption[:, None] == caption[None, :]).to(logits.dtype)
    targets = same / same.sum(dim=1, keepdim=True)
    to_text = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    to_image = F.cross_entropy(logits.T, targets, label_smoothing=label_smoothing)
    return (to_text + to_image) / 2
