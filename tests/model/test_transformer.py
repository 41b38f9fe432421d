from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from conftest import small_recipe
from pocketclip.model import transformer
from pocketclip.model.clip import CLIP
from pocketclip.model.text_tower import rounded
from pocketclip.model.transformer import Attention, Layout, QuickGELU, Transformer, packed_rows


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("written_out", [False, True])
def test_attention_equals_torchs(causal: bool, written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer, "FUSED_ATTENTION_FROM", 100 if written_out else 0)
    torch.manual_seed(0)
    ours, theirs = Attention(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_weight, std=0.3)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 7, 24)
    mask = nn.Transformer.generate_square_subsequent_mask(7) if causal else None
    expected = theirs(x, x, x, need_weights=False, attn_mask=mask)[0]
    found = ours(x.flatten(0, 1), Layout(3, 7, None), causal).view(3, 7, 24)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_blocks_equal_torchs_pre_norm_layers() -> None:
    torch.manual_seed(0)
    ours = Transformer(16, 2, 2, 64, quick_gelu=False)
    x = torch.randn(2, 5, 16)
    expected = x
    for block in ours.resblocks:
        layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, F.gelu, batch_first=True, norm_first=True)
        names = {"ln_1": "norm1", "ln_2": "norm2", "attn": "self_attn", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
        state = {}
        for key, value in block.state_dict().items():
            old = next(name for name in names if key.startswith(name))
            state[names[old] + key.removeprefix(old)] = value
        layer.load_state_dict(state)
        expected = layer(expected)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)


def test_quick_gelu_is_near_gelu() -> None:
    x = torch.linspace(-4, 4, 100)
    torch.testing.assert_close(QuickGELU()(x), F.gelu(x), atol=0.03, rtol=0)


@pytest.mark.parametrize("written_out", [False, True])
def test_reading_ends_equals_torchs_causal_layers(written_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every token computed, padding too, each block in torch's own form; values and gradients."""
    monkeypatch.setattr(transformer, "FUSED_ATTENTION_FROM", 100 if written_out else 0)
    torch.manual_seed(0)
    tower = Transformer(16, 3, 2, 64, quick_gelu=False)
    x = torch.randn(4, 6, 16, requires_grad=True)
    ends = torch.tensor([0, 5, 2, 3])
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    expected = x
    for block in tower.resblocks:
        normed, attention = block.ln_1(expected), nn.MultiheadAttention(16, 2, batch_first=True)
        weights = dict(block.attn.named_parameters())
        mixed = torch.func.functional_call(attention, weights, (normed, normed, normed), {"attn_mask": mask})[0]
        expected = expected + mixed
        expected = expected + block.mlp(block.ln_2(expected))
    assert_same_with_gradients(tower.read_ends(x, ends), expected[torch.arange(4), ends], [x, *tower.parameters()])


def test_reading_the_first_token_equals_computing_all() -> None:
    torch.manual_seed(0)
    tower = Transformer(16, 2, 2, 64, quick_gelu=False)
    x = torch.randn(4, 6, 16, requires_grad=True)
    assert_same_with_gradients(tower.read_first(x), tower(x)[:, 0], [x, *tower.parameters()])


def assert_same_with_gradients(ours: torch.Tensor, theirs: torch.Tensor, parameters: list[torch.Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours)
    expected = torch.autograd.grad((theirs * weights).sum(), parameters)
    for found, wanted in zip(torch.autograd.grad((ours * weights).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_later_token_cannot_be_seen_and_an_earlier_one_is() -> None:
    torch.manual_seed(0)
    tower = Transformer(16, 2, 2, 64, quick_gelu=False)
    x = torch.randn(1, 6, 16)
    for end in range(6):
        before = tower.read_ends(x, torch.tensor([end]))
        for place in range(6):
            changed = x.clone()
            changed[0, place] += torch.randn(16)
            difference = (tower.read_ends(changed, torch.tensor([end])) - before).abs().max()
            assert (difference > 1e-4) == (place <= end)


LENGTHS = {"mixed": [2, 15, 4, 3, 8, 2], "alike": [15, 14, 15, 13, 15, 15]}


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_gpus_way_gives_the_same_embeddings_and_gradients(
    lengths: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, forced onto the CPU: padded to a good length, packed where that pays."""
    torch.manual_seed(0)
    model = CLIP(small_recipe(folder, text_tower={"layers": 3, "context_length": 20}))
    ends = torch.tensor(LENGTHS[lengths]) - 1
    tokens = torch.randint(2, 300, (6, 15))
    monkeypatch.setattr(transformer, "packed_rows", lambda *_: None)
    expected = model.encode_texts(tokens, ends)
    packed = []

    def as_on_a_gpu(ends: torch.Tensor, tokens: int, _: torch.device) -> int | None:
        packed.append(packed_rows(ends, tokens, torch.device("cuda")))
        return packed[-1]

    monkeypatch.setattr(transformer, "packed_rows", as_on_a_gpu)
    found = model.encode_texts(rounded(tokens, 20), ends)
    assert packed == [6 * 6 if lengths == "mixed" else None]  # 34 tokens, a whole number each
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    weights = torch.randn_like(found)
    for one, other in zip(
        *(torch.autograd.grad((x * weights).sum(), list(model.text.parameters())) for x in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_packed_depends_on_where() -> None:
    ends, gpu = torch.tensor(LENGTHS["mixed"]) - 1, torch.device("cuda")
    assert packed_rows(ends, 16, torch.device("cpu")) == 64  # 34 in multiples of 32
    assert packed_rows(ends, 9, torch.device("cpu")) == 54, "no more than there are"
    assert packed_rows(ends, 16, gpu) == 36
    assert packed_rows(ends, 7, gpu) is None, "little would be saved"
    assert packed_rows(ends.to("meta"), 16, gpu) is None, "a look at ends on the GPU would stop its queue"


def test_lengths_are_rounded_up_to_the_longest() -> None:
    tokens = torch.arange(2 * 17).view(2, 17)
    found = rounded(tokens, 77)
    assert found.shape == (2, 24)
    assert torch.equal(found[:, :17], tokens)
    assert rounded(tokens, 20).shape == (2, 20)
    assert rounded(tokens[:, :16], 77).shape == (2, 16)
