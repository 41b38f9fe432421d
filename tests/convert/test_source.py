import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import RESNET, exact, plain_recipe, random_bundle

from pocketclip.bundle import Bundle
from pocketclip.convert.source import Source, ratio, to_bundle
from pocketclip.errors import ConvertError, RecipeError
from pocketclip.model.clip import CLIP


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return exact(random_bundle(tmp_path_factory.mktemp("source") / "bundle"))


def described(bundle: Bundle, **changes: Any) -> Source:
    """A bundle as if it had been another project's."""
    recipe = bundle.recipe
    towers = {"image_tower": recipe.image_tower, "text_tower": recipe.text_tower}
    settings = {
        f"{name}.{key}": getattr(tower, key) for name, tower in towers.items() for key in ("heads", "activation")
    }
    source = Source(
        path=Path("model"),
        weights=Path("weights"),
        state=dict(bundle.model.state_dict()),
        settings=settings,
        claims={},
        tokenizer=bundle.tokenizer.tokenizer,
        mend=False,
        end=bundle.tokenizer.end,
    )
    return replace(source, **changes)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"image_tower": {"patch_size": 16, "mlp_ratio": 2.7}, "text_tower": {"context_length": 3, "layers": 1}},
        {"image": {"size": 40}, "image_tower": {"width": 20, "layers": 5}, "model": {"embedding_width": 7}},
        {"image": {"size": 64}, "image_tower": RESNET},
        {"image": {"size": 96}, "image_tower": {**RESNET, "stages": [2, 1, 3], "patch_size": 16}},
    ],
)
def test_every_size_follows_from_the_shapes(sections: dict[str, Any], tmp_path: Path) -> None:
    wanted = exact(random_bundle(tmp_path / "bundle", plain_recipe(**sections)))
    found = to_bundle(described(wanted), "name").recipe
    for name in ("image", "image_tower", "text_tower"):
        keys = (
            "width",
            "heads",
            "activation",
            "patch_size",
            "stages",
            "cut_edges",
            "context_length",
            "layers",
            "mlp_width",
        )
        for key in keys[:-2] if name == "image_tower" and wanted.recipe.image_tower.stages else keys:
            if hasattr(getattr(wanted.recipe, name), key):
                assert getattr(getattr(found, name), key) == getattr(getattr(wanted.recipe, name), key), (name, key)
    assert found.image.size == wanted.recipe.image.size
    assert found.model.embedding_width == wanted.recipe.model.embedding_width
    assert found.tokenizer.vocabulary_size == wanted.recipe.tokenizer.vocabulary_size
    assert (found.name, found.tokenizer.lowercase) == ("name", True)


def test_the_weights_are_taken_over_in_float32(bundle: Bundle) -> None:
    state = {key: tensor.to(torch.bfloat16) for key, tensor in bundle.model.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    state |= {
        "text.attn_mask": torch.zeros(16, 16),
        "visual.position_ids": torch.arange(3),
        "vocab_size": torch.tensor(1),
    }
    found = to_bundle(described(bundle, state=state), "name").model
    for key, parameter in found.named_parameters():
        assert parameter.dtype == torch.float32
        assert parameter.requires_grad
        assert torch.equal(parameter, state[key].float().reshape(parameter.shape)), key


def test_edges_that_patches_leave_out_are_known_from_the_claim_alone(tmp_path: Path) -> None:
    recipe = plain_recipe(image={"size": 35}, image_tower={"cut_edges": True})
    wanted = exact(random_bundle(tmp_path / "bundle", recipe))
    found = to_bundle(described(wanted, claims={"image.size": ("size", 35)}), "name").recipe
    assert (found.image.size, found.image_tower.cut_edges) == (35, True)
    found = to_bundle(described(wanted), "name").recipe
    assert (found.image.size, found.image_tower.cut_edges) == (32, False)
    for wrong in (31, 40, "35"):
        with pytest.raises(ConvertError, match=r"contradicts its weights: size = .*, the weights have 32"):
            to_bundle(described(wanted, claims={"image.size": ("size", wrong)}), "name")


def test_the_sigmoid_losss_bias_travels(tmp_path: Path) -> None:
    wanted = exact(random_bundle(tmp_path / "bundle", plain_recipe(train={"loss": "sigmoid", "batch_size": 9})))
    state = dict(wanted.model.state_dict())
    state["logit_bias"] = torch.tensor([-7.5])
    found = to_bundle(described(wanted, state=state), "name")
    assert found.recipe.train.loss == "sigmoid"
    assert found.model.logit_bias is not None
    assert found.model.logit_bias.item() == -7.5


def test_batch_norms_that_did_not_count(tmp_path: Path) -> None:
    wanted = exact(random_bundle(tmp_path / "bundle", plain_recipe(image={"size": 64}, image_tower=RESNET)))
    state = {key: one for key, one in wanted.model.state_dict().items() if "num_batches_tracked" not in key}
    assert len(state) < len(wanted.model.state_dict())
    found = to_bundle(described(wanted, state=state), "name")
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found.model.encode_images(pixels), wanted.model.encode_images(pixels))


@given(width=st.integers(1, 5000), hidden=st.integers(1, 50_000))
def test_the_perceptrons_width_comes_back(width: int, hidden: int) -> None:
    assert int(width * ratio(width, hidden)) == hidden


def without(state: dict[str, torch.Tensor], *keys: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in state.items() if key not in keys}


def test_weights_of_another_architecture_are_named(bundle: Bundle) -> None:
    state = dict(bundle.model.state_dict())
    attention = "visual.transformer.resblocks.1.attn.in_proj_weight"
    cases: list[tuple[dict[str, torch.Tensor], str]] = [
        ({}, r"weights: weights of another architecture \(logit_scale, text\..* and \d+ more missing\)"),
        ({"fc.weight": torch.zeros(2)}, r"\(fc\.weight unknown; logit_scale"),
        ({**state, **{f"visual.trunk{i}": torch.zeros(2) for i in range(5)}}, r"trunk0, .*trunk1, .*trunk2 and 2 more"),
        ({**state, "visual.layer1.0.bn1.bias": torch.zeros(2)}, r"visual\.class_embedding, .* unknown; .* missing"),
        (without(state, attention), rf"\({attention} missing\)"),
        ({**state, attention: torch.zeros(9)}, rf"\({attention} is torch.float32 \[9\]\)"),
        ({**state, attention: state[attention].to(torch.int8)}, rf"\({attention} is torch.int8"),
        ({**state, "visual.proj": torch.zeros(0, 24)}, r"visual\.proj is torch.float32 \[0, 24\]"),
        ({**state, attention: state[attention] * math.nan}, rf"{attention} holds values that are no numbers"),
        ({**state, attention: state[attention][:9]}, rf"contradict each other: {attention} is \[9, 32\], \[96, 32\]"),
        (
            {**state, "visual.positional_embedding": torch.zeros(15, 32)},
            r"positional_embedding is \[15, 32\], \[10, 32\]",
        ),
    ]
    for changed, message in cases:
        with pytest.raises(ConvertError, match=message):
            to_bundle(described(bundle, state=changed), "name")


def test_a_configuration_that_contradicts_the_weights(bundle: Bundle) -> None:
    right = {"image_tower.mlp_width": ("vision.mlp", 96), "image.size": ("size", 32)}
    to_bundle(described(bundle, claims=right), "name")
    for wrong in (64, "96", None, [96]):
        claims = {**right, "image_tower.mlp_width": ("vision.mlp", wrong)}
        with pytest.raises(
            ConvertError, match=r"model: its configuration contradicts its weights: vision\.mlp = .* have 96"
        ):
            to_bundle(described(bundle, claims=claims), "name")


def test_what_nothing_tells_is_asked_for(bundle: Bundle) -> None:
    heads = {"image_tower.heads": 4, "text_tower.heads": 3}
    with pytest.raises(ConvertError, match=r"model: does not say which activation .*--activation gelu"):
        to_bundle(described(bundle, settings=heads), "name")
    activations = {"image_tower.activation": "gelu", "text_tower.activation": "gelu"}
    with pytest.raises(ConvertError, match=r"model: does not say how many attention heads .* width of 32"):
        to_bundle(described(bundle, settings=activations), "name")
    with pytest.raises(RecipeError, match=r"model: image_tower: heads = 7 does not divide width = 32"):
        to_bundle(described(bundle, settings={**activations, **heads, "image_tower.heads": 7}), "name")
    with pytest.raises(RecipeError, match=r"model: image_tower\.activation = 'tanh'"):
        to_bundle(described(bundle, settings={**heads, **activations, "image_tower.activation": "tanh"}), "name")


def test_heads_are_64_wide_where_nothing_says_more(tmp_path: Path) -> None:
    recipe = plain_recipe(image_tower={"width": 128, "heads": 2}, text_tower={"width": 64, "heads": 1})
    wanted = exact(random_bundle(tmp_path / "bundle", recipe))
    activations = {"image_tower.activation": "gelu", "text_tower.activation": "gelu"}
    found = to_bundle(described(wanted, settings=activations), "name")
    assert (found.recipe.image_tower.heads, found.recipe.text_tower.heads) == (2, 1)


def test_another_vocabulary_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ConvertError, match="model: its tokenizer is of another vocabulary"):
        to_bundle(described(bundle, end=None), "name")


@given(data=st.data())
def test_any_state_gives_a_model_or_one_clear_line(data: st.DataObject, bundle: Bundle) -> None:
    state: dict[str, torch.Tensor] = dict(bundle.model.state_dict())
    shapes = st.lists(st.integers(0, 40), max_size=4)
    for key in data.draw(st.lists(st.sampled_from(sorted(state)), min_size=1, max_size=4)):
        state[key] = torch.ones(data.draw(shapes), dtype=data.draw(st.sampled_from([torch.float32, torch.int64])))
    try:
        found = to_bundle(described(bundle, state=state), "name")
    except (ConvertError, RecipeError) as error:
        assert "\n" not in str(error)
    else:
        assert isinstance(found.model, CLIP)
