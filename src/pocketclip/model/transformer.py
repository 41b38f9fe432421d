"""The pre-norm transformer that both towers share.

Parameter names are those of OpenAI's CLIP and of OpenCLIP (`resblocks.0.attn.in_proj_weight`, ...), so
that weights move key for key. Source: Radford et al. 2021, section 2.4; Vaswani et al. 2017.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# On a CPU in half precision torch's fused attention is slower than the plain products for short sequences
# (docs/log.md, 2026-11-23); from this many tokens on its smaller memory wins.
FUSED_ATTENTION_FROM = 256


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x); their published weights need it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[batch, tokens, width] -> the same shape; `causal` hides what stands after each token."""
        batch, tokens, width = x.shape
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril() if causal else None
        joined: Tensor = self.out_proj(_attend(query, key, value, seen).transpose(1, 2).reshape(batch, tokens, width))
        return joined

    def read(self, x: Tensor, causal: bool, places: Tensor) -> Tensor:
        """What `forward` gives at one token of each row: [batch, tokens, width], [batch] -> [batch, width]."""
        batch, tokens, width = x.shape
        weight, bias, split = self.in_proj_weight, self.in_proj_bias, width // self.heads
        query = F.linear(x[torch.arange(batch, device=x.device), places], weight[:width], bias[:width])
        packed = F.linear(x, weight[width:], bias[width:])
        key, value = packed.view(batch, tokens, 2, self.heads, split).permute(2, 0, 3, 1, 4)
        seen = torch.arange(tokens, device=x.device) <= places[:, None, None, None] if causal else None
        mixed = _attend(query.view(batch, self.heads, 1, split), key, value, seen)
        joined: Tensor = self.out_proj(mixed.reshape(batch, width))
        return joined


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V; query [batch, heads, queries, head width] -> the same shape.

    seen: true where a query may look at a key, [..., queries, keys]; None: everywhere.
    """
    if query.device.type != "cpu" or key.shape[-2] >= FUSED_ATTENTION_FROM:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


class Perceptron(nn.Module):
    """Two linear layers with an activation between them, on each token alone."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        output: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return output


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to the stream after a layer norm of its input."""

    def __init__(self, width: int, heads: int, mlp_width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, mlp_width, quick_gelu)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        """[batch, tokens, width] -> the same shape."""
        x = x + self.attn(self.ln_1(x), causal)
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed

    def read(self, x: Tensor, causal: bool, places: Tensor) -> Tensor:
        """What `forward` gives at one token of each row: [batch, tokens, width], [batch] -> [batch, width]."""
        here = x[torch.arange(len(x), device=x.device), places] + self.attn.read(self.ln_1(x), causal, places)
        mixed: Tensor = here + self.mlp(self.ln_2(here))
        return mixed


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width, quick_gelu) for _ in range(layers))
        self.initialise(width, layers)

    def initialise(self, width: int, layers: int) -> None:
        """Scaled normal weights, the residual branches smaller with depth (OpenAI CLIP, `initialize_parameters`)."""
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for module in self.resblocks:
            assert isinstance(module, Block)
            nn.init.normal_(module.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(module.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(module.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(module.mlp.c_proj.weight, std=residual_std)
            for linear in (module.attn.out_proj, module.mlp.c_fc, module.mlp.c_proj):
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, causal: bool = False, places: Tensor | None = None) -> Tensor:
        """[batch, tokens, width] -> the same shape, or [batch, width] at one token of each row.

        places: [batch], the token to read. Nothing else of the last block is then computed: it would be thrown away.
        """
        *blocks, last = self.resblocks
        for block in blocks:
            x = block(x, causal)
        result: Tensor = last(x, causal) if places is None else last.read(x, causal, places)  # type: ignore[operator]
        return result
