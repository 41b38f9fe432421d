"""Token ids -> embeddings: a causal transformer read at the caption's last token.

Source: Radford et al. 2021, section 2.4.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketclip.model.transformer import Transformer
from pocketclip.recipe.towers import TextTowerSettings

LENGTH_MULTIPLE = 8  # on a GPU: attention's kernels want it, and few shapes come back often


def rounded(tokens: Tensor, longest: int) -> Tensor:
    """[batch, length] ids, padded to a length that is a multiple of LENGTH_MULTIPLE, or `longest`."""
    length = tokens.shape[1]
    return F.pad(tokens, (0, min(longest, math.ceil(length / LENGTH_MULTIPLE) * LENGTH_MULTIPLE) - length))


class TextTower(nn.Module):
    """A causal transformer; its parameters carry the names of OpenCLIP's text tower."""

    def __init__(self, settings: TextTowerSettings, vocabulary_size: int, embedding_width: int) -> None:
        super().__init__()
        width = settings.width
        self.token_embedding = nn.Embedding(vocabulary_size, width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(settings.context_length, width))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer = Transformer(
            width, settings.layers, settings.heads, settings.mlp_width, settings.activation == "quick_gelu"
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(width**-0.5 * torch.randn(width, embedding_width))

    def forward(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Embed captions, not normalised.

        tokens: [batch, length] ids, length at most the context length; what stands after a caption's end
            cannot be seen from it, so any padding will do, and trimming to the longest caption changes nothing.
        ends: [batch] position of each caption's end-of-text token; on the CPU even where the tokens are on a GPU, as it
            then is known there how many tokens are worth computing.
        """
        if tokens.device.type != "cpu":
            tokens = rounded(tokens, len(self.positional_embedding))
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer.read_ends(x, ends)
        embeddings: Tensor = self.ln_final(x) @ self.text_projection
        return embeddings
