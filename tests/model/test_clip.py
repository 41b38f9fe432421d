import math
from pathlib import Path

import pytest
import torch

from conftest import small_recipe
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe


@pytest.fixture
def model(recipe: Recipe) -> CLIP:
    torch.manual_seed(0)
    return CLIP(recipe).eval()


def test_one_changed_word_changes_the_vector_and_padding_does_not(model: CLIP) -> None:
    tokens = torch.tensor([[0, 7, 8, 9, 1]])
    ends = torch.tensor([4])
    base = model.encode_texts(tokens, ends)
    for place in range(4):
        changed = tokens.clone()
        changed[0, place] = 50
        assert (model.encode_texts(changed, ends) - base).abs().max() > 1e-3, place
    for padding in (1, 77):
        padded = torch.cat([tokens, torch.full((1, 6), padding)], dim=1)
        torch.testing.assert_close(model.encode_texts(padded, ends), base)


def test_word_order_matters(model: CLIP) -> None:
    one, other = torch.tensor([[0, 7, 8, 1]]), torch.tensor([[0, 8, 7, 1]])
    ends = torch.tensor([3])
    assert (model.encode_texts(one, ends) - model.encode_texts(other, ends)).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["class", "mean"])
@pytest.mark.parametrize("channels", [[], [8, 16]])
def test_every_patch_reaches_the_embedding(pool: str, channels: list[int], folder: Path) -> None:
    torch.manual_seed(0)
    model = CLIP(small_recipe(folder, image_tower={"pool": pool, "stem_channels": channels})).eval()
    pixels = torch.randn(1, 3, 32, 32)
    base = model.encode_images(pixels)
    for row in range(4):
        for column in range(4):
            changed = pixels.clone()
            changed[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1
            assert (model.encode_images(changed) - base).abs().max() > 1e-4


def test_embeddings_have_length_one(model: CLIP) -> None:
    vectors = torch.cat(
        [
            model.encode_images(torch.randn(4, 3, 32, 32)),
            model.encode_texts(torch.zeros(3, 4, dtype=torch.long), torch.tensor([3, 2, 1])),
        ]
    )
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(7))


def test_the_scale_starts_at_the_temperature_and_is_clamped_with_its_gradient_alive(recipe: Recipe) -> None:
    model = CLIP(recipe)
    assert math.isclose(model.scale().item(), 1 / 0.07, rel_tol=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(10.0)
    model.clamp_scale()
    assert math.isclose(model.scale().item(), 100.0, rel_tol=1e-5)
    model.scale().backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() > 0


def test_parameter_names_are_openclips(folder: Path) -> None:
    model = CLIP(small_recipe(folder, image_tower={"pool": "class", "stem_channels": []}))
    block = ["ln_1.weight", "ln_1.bias", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight"]
    block += ["attn.out_proj.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias"]
    block += ["mlp.c_proj.weight", "mlp.c_proj.bias"]
    blocks = [f"transformer.resblocks.0.{name}" for name in block]
    visual = ["class_embedding", "positional_embedding", "proj", "conv1.weight", "ln_pre.weight", "ln_pre.bias"]
    visual += [*blocks, "ln_post.weight", "ln_post.bias"]
    text = [
        "positional_embedding",
        "text_projection",
        "token_embedding.weight",
        *blocks,
        "ln_final.weight",
        "ln_final.bias",
    ]
    expected = {"logit_scale", *(f"visual.{name}" for name in visual), *(f"text.{name}" for name in text)}
    assert set(model.state_dict()) == expected


def test_recomputed_blocks_give_the_same_gradients_and_keep_less(folder: Path) -> None:
    recipe = small_recipe(folder, image_tower={"layers": 3}, text_tower={"layers": 3})
    found, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = CLIP(recipe)
        model.recompute_blocks(recompute)
        pixels, tokens = torch.randn(4, 3, 32, 32), torch.randint(2, 300, (4, 9))
        total = [0]

        def count(tensor: torch.Tensor, total: list[int] = total) -> torch.Tensor:
            total[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            images, texts = model.encode_images(pixels), model.encode_texts(tokens, torch.tensor([8, 5, 3, 8]))
        (images * texts).sum().backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        kept.append(total[0])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert kept[1] < 0.7 * kept[0]


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_patch_dropout_keeps_a_share_of_whole_patches_in_training_alone(pool: str, folder: Path) -> None:
    torch.manual_seed(0)
    model = CLIP(small_recipe(folder, image_tower={"pool": pool, "stem_channels": [], "patch_dropout": 0.75})).visual
    first = int(pool == "class")
    x = torch.arange(2 * (16 + first)).view(2, -1, 1).expand(-1, -1, 32).float()
    kept = model._drop_patches(x)
    assert kept.shape == (2, 4 + first, 32)
    for row, whole in zip(kept, x, strict=True):
        numbers = row[:, 0].tolist()
        assert len(set(numbers)) == 4 + first
        assert set(numbers) <= set(whole[:, 0].tolist())
        assert numbers[:first] == whole[:first, 0].tolist()
    drawn = torch.cat([model._drop_patches(x)[0, first:, 0] for _ in range(200)]).long() - first
    assert (torch.bincount(drawn, minlength=16) > 20).all()  # 50 each on average
    pixels = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(pixels), model(pixels))
    assert torch.equal(model.eval()(pixels), model(pixels))
