import pytest
import torch
from torch.nn import functional as F

from pocketclip.model.budget import count_budget
from pocketclip.model.clip import CLIP
from pocketclip.model.resnet import AttentionPool, Bottleneck, ResNet
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import parse_recipe
from pocketclip.recipe.towers import ImageTowerSettings


def rn50() -> Recipe:
    sizes = {"image_tower": {"size": "RN50@224"}, "model": {"embedding_width": 1024}}
    return parse_recipe({**sizes, "tokenizer": {"vocabulary_size": 49408}}, "RN50")


def test_published_sizes() -> None:
    budget = count_budget(rn50(), 77, 4)
    assert budget.image_parameters == 38_316_896  # OpenAI's RN50
    # OpenCLIP's model_profile.csv: 18.18 G a forward pass of both towers; our last text block reads one token
    assert 0.9 * 18.18e9 < budget.flops_per_pair / 3 < 18.3e9


def test_a_bottleneck_equals_its_convolutions_written_out() -> None:
    torch.manual_seed(0)
    block = Bottleneck(16, 8, stride=2).eval()
    for name, buffer in block.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    torch.nn.init.uniform_(block.bn3.weight, 0.5, 1.0)
    x = torch.randn(2, 16, 6, 6)

    def norm(values: torch.Tensor, layer: torch.nn.BatchNorm2d) -> torch.Tensor:
        shape = (1, -1, 1, 1)
        mean, variance = layer.running_mean.view(shape), layer.running_var.view(shape)
        return (values - mean) / (variance + layer.eps).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)

    out = norm(F.conv2d(x, block.conv1.weight), block.bn1).relu()
    out = norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2).relu()
    out = norm(F.conv2d(F.avg_pool2d(out, 2), block.conv3.weight), block.bn3)
    beside = norm(F.conv2d(F.avg_pool2d(x, 2), block.downsample[1].weight), block.downsample[2])
    torch.testing.assert_close(block(x), (out + beside).relu(), rtol=1e-4, atol=1e-5)


def test_the_pool_equals_torchs_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(3, 12, 2, 5)
    x = torch.randn(4, 12, 3, 3)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=12,
        num_heads=2,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    torch.testing.assert_close(pool(x), expected[0])


def test_every_part_of_the_picture_reaches_the_embedding() -> None:
    torch.manual_seed(0)
    settings = ImageTowerSettings(width=16, heads=4, stages=(1, 1), patch_size=8)
    tower = ResNet(settings, 32, 8).eval()
    pixels = torch.randn(1, 3, 32, 32)
    base = tower(pixels)
    for place in range(0, 32, 8):
        changed = pixels.clone()
        changed[:, :, place : place + 8, place : place + 8] += 1
        assert (tower(changed) - base).abs().max() > 1e-4


@pytest.mark.peer
def test_it_equals_openclips_on_its_weights() -> None:
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from openclip import import_open_clip

    torch.manual_seed(0)
    theirs, ours = import_open_clip().create_model("RN50").eval(), CLIP(rn50()).eval()
    state = {}
    for name, value in theirs.state_dict().items():
        if "bn" in name and value.is_floating_point():
            value.uniform_(0.5, 1.0)
        if name != "attn_mask":
            state[name if name.startswith(("visual", "logit")) else f"text.{name}"] = value
    ours.load_state_dict(state)
    pixels = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(ours.encode_images(pixels), F.normalize(theirs.encode_image(pixels), dim=-1))
