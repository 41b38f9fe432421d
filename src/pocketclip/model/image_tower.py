"""Images -> embeddings: a vision transformer, behind a patch stem or a convolutional one.

Source: Dosovitskiy et al. 2021 (patches); Xiao et al. 2021, "Early convolutions help transformers see better"
(the convolutional stem); Radford et al. 2021, section 2.4 (the norm before the first block, the projection).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketclip.model.transformer import Transformer
from pocketclip.recipe.towers import ImageTowerSettings


def interpolated(positions: Tensor, side: int) -> Tensor:
    """Positions of a grid of patches, as those of a grid of another side: bicubic, antialiased.

    positions: [first + before^2, width]; what stands first, as a class token's, stays. Returns [first + side^2, width].
    Source: Dosovitskiy et al. 2021, section 3.2.
    """
    before = math.isqrt(len(positions))
    first = len(positions) - before**2
    if before == side:
        return positions
    grid = positions[first:].float().T.reshape(1, -1, before, before)
    resized = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([positions[:first], resized.flatten(2)[0].T.to(positions.dtype)])


def patches(pixels: Tensor, size: int) -> Tensor:
    """An image in squares of `size` pixels, row by row: [batch, channels, height, width] -> [batch, squares, values].

    Values are in the order in which an image lies in memory, [size, size, channels]. What is over at the right and at
    the bottom is left out. A product of them is a convolution whose stride is its width, which GPUs have no good kernel
    for (docs/log.md, 2026-11-26).
    """
    batch, channels, height, width = pixels.shape
    down, across = height // size, width // size
    whole = pixels.permute(0, 2, 3, 1)[:, : down * size, : across * size]
    squares = whole.reshape(batch, down, size, across, size, channels).transpose(2, 3)
    return squares.reshape(batch, down * across, size * size * channels)


class ConvolutionStem(nn.Sequential):
    """3x3 convolutions of stride 2 with batch norm and ReLU: each halves the picture.

    [batch, 3, size, size] -> [batch, channels[-1], size / 2^n, size / 2^n].
    """

    def __init__(self, channels: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class ImageTower(nn.Module):
    """A vision transformer; its parameters carry the names of OpenCLIP's `visual`."""

    def __init__(self, settings: ImageTowerSettings, image_size: int, embedding_width: int) -> None:
        super().__init__()
        width = settings.width
        self.pool, self.patch_dropout = settings.pool, settings.patch_dropout
        self.stem = ConvolutionStem(settings.stem_channels) if settings.stem_channels else None
        channels = settings.stem_channels[-1] if settings.stem_channels else 3
        patch = settings.patch_size // settings.stem_stride
        self.conv1 = nn.Conv2d(channels, width, kernel_size=patch, stride=patch, bias=False)
        nn.init.normal_(self.conv1.weight, std=(channels * patch**2) ** -0.5)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width)) if self.pool == "class" else None
        tokens = (image_size // settings.patch_size) ** 2 + (self.pool == "class")
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(
            width, settings.layers, settings.heads, settings.mlp_width, settings.activation == "quick_gelu"
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embedding_width))

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, 3, size, size], normalised -> [batch, embedding width], not normalised.

        Images of another size than the tower was made for are seen with positions in between (`interpolated`).
        """
        if self.stem is not None:
            pixels = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        patch = self.conv1.kernel_size[0]
        x = patches(pixels, patch) @ self.conv1.weight.permute(2, 3, 1, 0).flatten(0, 2)
        if self.class_embedding is not None:
            first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
            x = torch.cat([first, x], dim=1)
        x = x + interpolated(self.positional_embedding, pixels.shape[-1] // patch).to(x.dtype)
        if self.training and self.patch_dropout:
            x = self._drop_patches(x)
        x = self.ln_pre(x)
        x = self.transformer(x).mean(dim=1) if self.pool == "mean" else self.transformer.read_first(x)
        embeddings: Tensor = self.ln_post(x) @ self.proj
        return embeddings

    def _drop_patches(self, x: Tensor) -> Tensor:
        """Keep some of each image's patches, drawn anew; a class token stays (Li et al. 2023, FLIP, section 3)."""
        first = int(self.class_embedding is not None)
        batch, tokens, width = x.shape
        kept = max(1, round((tokens - first) * (1 - self.patch_dropout)))
        drawn = torch.rand(batch, tokens - first, device=x.device).topk(kept, dim=1).indices + first
        patches = x.gather(1, drawn[:, :, None].expand(-1, -1, width))
        return torch.cat([x[:, :first], patches], dim=1)
