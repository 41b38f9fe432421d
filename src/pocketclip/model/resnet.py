"""The ResNet of OpenAI's CLIP: three convolutions before the first stage, average pooling before every stride, and an
attention that pools at the end.

Source: Radford et al. 2021, section 2.4; He et al. 2016 (bottlenecks); Zhang 2019 (antialiased strides). Parameters
carry the names of OpenCLIP's `visual`.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketclip.model.image_tower import interpolated
from pocketclip.recipe.towers import ImageTowerSettings

EXPANSION = 4  # a bottleneck's outputs, in its inner channels


def _convolution(before: int, after: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a short cut: [batch, before, s, s] -> [batch, 4 * inner, s/stride, ...]."""

    def __init__(self, before: int, inner: int, stride: int) -> None:
        super().__init__()
        after = inner * EXPANSION
        self.conv1, self.bn1 = _convolution(before, inner), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = _convolution(inner, inner, 3), nn.BatchNorm2d(inner)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = _convolution(inner, after), nn.BatchNorm2d(after)
        nn.init.zeros_(self.bn3.weight)  # a block begins as its short cut (OpenAI CLIP, `initialize_parameters`)
        self.downsample: nn.Module | None = None
        if stride > 1 or before != after:
            parts = {"-1": nn.AvgPool2d(stride), "0": _convolution(before, after), "1": nn.BatchNorm2d(after)}
            self.downsample = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, before, side, side] -> [batch, after, side / stride, side / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.avgpool(F.relu(self.bn2(self.conv2(out))))
        beside = x if self.downsample is None else self.downsample(x)
        mixed: Tensor = F.relu(self.bn3(self.conv3(out)) + beside)
        return mixed


class AttentionPool(nn.Module):
    """The mean of all positions attends to them and to itself: [batch, width, s, s] -> [batch, embedding width]."""

    def __init__(self, side: int, width: int, heads: int, embedding_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(side**2 + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embedding_width)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width, side, side] -> [batch, embedding width]."""
        positions = interpolated(self.positional_embedding, x.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + positions.to(x.dtype)
        split = (x.shape[0], -1, self.heads, x.shape[2] // self.heads)
        query, key, value = (
            linear(part).view(split).transpose(1, 2)
            for linear, part in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        pooled: Tensor = self.c_proj(F.scaled_dot_product_attention(query, key, value).flatten(1))
        return pooled


class ResNet(nn.Module):
    """A stem of three convolutions, stages of bottlenecks, and the attention that pools."""

    def __init__(self, settings: ImageTowerSettings, image_size: int, embedding_width: int) -> None:
        super().__init__()
        width = settings.width
        self.conv1, self.bn1 = _convolution(3, width // 2, 3, stride=2), nn.BatchNorm2d(width // 2)
        self.conv2, self.bn2 = _convolution(width // 2, width // 2, 3), nn.BatchNorm2d(width // 2)
        self.conv3, self.bn3 = _convolution(width // 2, width, 3), nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        channels, self.stages = width, len(settings.stages)
        for number, blocks in enumerate(settings.stages):
            inner = width * 2**number
            first = Bottleneck(channels, inner, stride=1 if number == 0 else 2)
            channels = inner * EXPANSION
            rest = (Bottleneck(channels, inner, stride=1) for _ in range(blocks - 1))
            self.add_module(f"layer{number + 1}", nn.Sequential(first, *rest))
        side = image_size // settings.patch_size
        self.attnpool = AttentionPool(side, channels, settings.heads, embedding_width)

    def forward(self, pixels: Tensor) -> Tensor:
        """[batch, 3, size, size], normalised -> [batch, embedding width], not normalised."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for number in range(1, 4):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        x = self.avgpool(x)
        for number in range(self.stages):
            x = getattr(self, f"layer{number + 1}")(x)
        embeddings: Tensor = self.attnpool(x)
        return embeddings
