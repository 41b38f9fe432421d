"""The pre-norm transformer that both towers share.

Parameter names are those of OpenAI's CLIP and of OpenCLIP (`resblocks.0.attn.in_proj_weight`, ...), so
that weights move key for key. Source: Radford et al. 2021, section 2.4; Vaswani et al. 2017.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# On a CPU in half precision torch's fused attention is slower than the plain products for short sequences
# (docs/log.md, 2026-11-23); from this many tokens on its smaller memory wins.
FUSED_ATTENTION_FROM = 256

# Packed streams have a multiple of this many rows on the CPU, where each new number costs a newly compiled product.
PACKED_MULTIPLE = 32
# On a GPU packing a stream costs copies in each block, which are worth it up to this share of the whole.
PACKED_AT_MOST = 0.65


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU, x * sigmoid(1.702 x); their published weights need it."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * torch.sigmoid(1.702 * x)


@dataclass(frozen=True)
class Layout:
    """Where the rows of a packed stream [rows, width] stand in [batch, tokens].

    filled: [rows], positions in the flattened batch; None: all of them.
    """

    batch: int
    tokens: int
    filled: Tensor | None

    def spread(self, x: Tensor) -> Tensor:
        """[rows, width] -> [batch, tokens, width], zeros where nothing stands."""
        if self.filled is not None:
            x = x.new_zeros(self.batch * self.tokens, x.shape[1]).index_copy(0, self.filled, x)
        return x.view(self.batch, self.tokens, -1)

    def gather(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] -> [rows, width]."""
        flat = x.reshape(self.batch * self.tokens, -1)
        return flat if self.filled is None else flat.index_select(0, self.filled)


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, layout: Layout, causal: bool) -> Tensor:
        """[rows, width] -> the same shape; `causal` hides what stands after each token."""
        query, key, value = self._heads(F.linear(x, self.in_proj_weight, self.in_proj_bias), layout, 3)
        joined: Tensor = self.out_proj(layout.gather(_attend(query, key, value, causal).transpose(1, 2).flatten(2)))
        return joined

    def read(self, x: Tensor, here: Tensor, layout: Layout, seen: Tensor | None) -> Tensor:
        """What `forward` gives at one token of each sequence.

        x: [rows, width]. here: [batch, width], those tokens. seen: [batch, 1, 1, tokens], what they may look at.
        Returns [batch, width].
        """
        width = x.shape[1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query = F.linear(here, weight[:width], bias[:width]).view(layout.batch, self.heads, 1, -1)
        key, value = self._heads(F.linear(x, weight[width:], bias[width:]), layout, 2)
        joined: Tensor = self.out_proj(_attend(query, key, value, False, seen).reshape(layout.batch, width))
        return joined

    def _heads(self, projected: Tensor, layout: Layout, parts: int) -> Tensor:
        """[rows, parts * width] -> [parts, batch, heads, tokens, head width]."""
        spread = layout.spread(projected)
        return spread.view(layout.batch, layout.tokens, parts, self.heads, -1).permute(2, 0, 3, 1, 4)


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, seen: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V; query [batch, heads, queries, head width] -> the same shape.

    causal: whether a query may look at no later key. seen: true where a query may look at a key, [..., queries, keys];
    None: everywhere.
    """
    if query.device.type != "cpu" or key.shape[-2] >= FUSED_ATTENTION_FROM:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, is_causal=causal)
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    if causal:
        tokens = key.shape[-2]
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
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

    def forward(
        self, x: Tensor, layout: Layout, causal: bool, rows: Tensor | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """[rows, width] -> the same shape; or, at one row of each sequence alone, [batch, width].

        rows: [batch], the numbers of those rows. seen: [batch, 1, 1, tokens], what they may look at.
        """
        normed = self.ln_1(x)
        if rows is None:
            here = x + self.attn(normed, layout, causal)
        else:
            here = x[rows] + self.attn.read(normed, normed[rows], layout, seen)
        mixed: Tensor = here + self.mlp(self.ln_2(here))
        return mixed


def packed_rows(ends: Tensor, tokens: int, device: torch.device) -> int | None:
    """How many tokens of sequences [batch, tokens] that end at `ends` are computed on a device; None: all.

    Their own, and a few more: numbers of rows should repeat. On a GPU nothing is packed where little would be saved,
    nor where the ends lie there, as a look at them would stop its queue; nor in a graph for other programs, whose
    number of rows cannot depend on the captions.
    """
    if ends.device.type != "cpu" or torch.compiler.is_exporting():
        return None
    on_cpu, whole = device.type == "cpu", len(ends) * tokens
    multiple = PACKED_MULTIPLE if on_cpu else max(1, len(ends))
    rows = min(whole, math.ceil(int((ends + 1).sum()) / multiple) * multiple)
    return rows if on_cpu or rows <= PACKED_AT_MOST * whole else None


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int, quick_gelu: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width, quick_gelu) for _ in range(layers))
        self.recompute = False
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

    def forward(self, x: Tensor) -> Tensor:
        """Every token sees all: [batch, tokens, width] -> the same shape."""
        layout = Layout(x.shape[0], x.shape[1], None)
        x = layout.gather(x)
        for block in self.resblocks:
            x = self._through(block, x, layout, False)
        return layout.spread(x)

    def read_first(self, x: Tensor) -> Tensor:
        """The same at the first token alone: [batch, tokens, width] -> [batch, width].

        Nothing else of the last block is computed: it would be thrown away.
        """
        layout = Layout(x.shape[0], x.shape[1], None)
        first = torch.arange(layout.batch, device=x.device) * layout.tokens
        return self._read(layout.gather(x), first, layout, None)

    def read_ends(self, x: Tensor, ends: Tensor) -> Tensor:
        """Each token sees itself and those before it; read at the positions `ends` [batch] -> [batch, width].

        What stands after an end cannot be seen from it, and is left out of the stream (`packed_rows`). ends: best on
        the CPU, wherever x is.
        """
        batch, tokens = x.shape[:2]
        computed = packed_rows(ends, tokens, x.device)
        ends = ends.to(x.device, non_blocking=True)
        before = torch.arange(tokens, device=x.device) <= ends[:, None]
        if computed is not None:
            filled = before.flatten().logical_not().argsort(stable=True)[:computed]
            layout, rows = Layout(batch, tokens, filled), (ends + 1).cumsum(0) - 1
        else:
            layout, rows = Layout(batch, tokens, None), torch.arange(batch, device=x.device) * tokens + ends
        return self._read(layout.gather(x), rows, layout, before[:, None, None, :])

    def _read(self, x: Tensor, rows: Tensor, layout: Layout, seen: Tensor | None) -> Tensor:
        *blocks, last = self.resblocks
        for block in blocks:
            x = self._through(block, x, layout, seen is not None)
        result: Tensor = last(x, layout, seen is not None, rows, seen)
        return result

    def _through(self, block: nn.Module, x: Tensor, layout: Layout, causal: bool) -> Tensor:
        if self.recompute and torch.is_grad_enabled():  # no random numbers are drawn in a block
            recomputed: Tensor = checkpoint(block, x, layout, causal, use_reentrant=False, preserve_rng_state=False)
            return recomputed
        mixed: Tensor = block(x, layout, causal)
        return mixed
