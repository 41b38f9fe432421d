from pathlib import Path

import pytest
import torch

from pocketclip.errors import RecipeError
from pocketclip.model.budget import count_budget
from pocketclip.model.clip import CLIP
from pocketclip.recipe.toml import load_recipe, parse_recipe, to_toml
from pocketclip.recipe.zoo import IMAGE_TOWERS, TEXT_TOWERS

# Radford et al. 2021 and OpenCLIP's model_profile.csv: parameters of the image tower with an embedding of that width
PUBLISHED = {"B/32@224": (512, 87_849_216), "B/16@224": (512, 86_192_640), "L/14@224": (768, 303_966_208)}


@pytest.mark.parametrize("size", IMAGE_TOWERS)
def test_each_image_tower_builds_and_has_its_price(size: str) -> None:
    recipe = parse_recipe({"image_tower": {"size": size}, "model": {"embedding_width": 512}}, size)
    assert recipe.image.size == int(size.partition("@")[2])
    with torch.device("meta"):
        model = CLIP(recipe)
        pixels = torch.empty(2, 3, recipe.image.size, recipe.image.size)
        assert model.encode_images(pixels).shape == (2, 512)
    assert count_budget(recipe, 16, 4).flops_per_pair > 1e9


@pytest.mark.parametrize(("size", "published"), PUBLISHED.items())
def test_published_parameters(size: str, published: tuple[int, int]) -> None:
    width, parameters = published
    recipe = parse_recipe({"image_tower": {"size": size}, "model": {"embedding_width": width}}, size)
    assert count_budget(recipe, 77, 4).image_parameters == parameters


@pytest.mark.parametrize("size", TEXT_TOWERS)
def test_each_text_tower_builds(size: str) -> None:
    recipe = parse_recipe({"text_tower": {"size": size}}, size)
    with torch.device("meta"):
        tower = CLIP(recipe).text
    assert tower.token_embedding.weight.shape[1] == recipe.text_tower.width == TEXT_TOWERS[size]["width"]


def test_keys_beside_a_size_count_and_the_resolved_recipe_reads_back_the_same() -> None:
    values = {"image": {"size": 64}, "image_tower": {"size": "S/16@112", "layers": 3}, "text_tower": {"size": "L"}}
    recipe = parse_recipe(values, "test")
    assert (recipe.image.size, recipe.image_tower.layers, recipe.image_tower.width) == (64, 3, 384)
    assert (recipe.text_tower.width, recipe.text_tower.heads) == (768, 12)
    import tomllib

    assert parse_recipe(tomllib.loads(to_toml(recipe)), "again") == recipe


def test_a_size_on_the_command_line_replaces_what_the_file_says(tmp_path: Path) -> None:
    file = tmp_path / "one.toml"
    file.write_text('image.size = 64\nimage_tower = { size = "S/16@112", width = 192, heads = 3, pool = "mean" }\n')
    recipe = load_recipe(file, ["image_tower.size=B/32@224", "image_tower.layers=2"])
    tower = recipe.image_tower
    assert (recipe.image.size, tower.width, tower.heads, tower.patch_size, tower.layers) == (224, 768, 12, 32, 2)
    assert tower.pool == "mean"


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"B/32@226.*nearest is 'B/32@22"):
        parse_recipe({"image_tower": {"size": "B/32@226"}}, "test")
    with pytest.raises(RecipeError, match=r"text_tower.*'XXL'"):
        parse_recipe({"text_tower": {"size": "XXL"}}, "test")
    with pytest.raises(RecipeError, match="image_tower"):
        parse_recipe({"image_tower": 3, "image": 4}, "test")


def test_edges_are_cut_only_where_that_is_asked_for() -> None:
    with pytest.raises(RecipeError, match="does not divide"):
        parse_recipe({"image_tower": {"size": "B/32@336", "cut_edges": False}}, "test")
    with pytest.raises(RecipeError, match="ResNet of 4 stages"):
        parse_recipe({"image_tower": {"size": "RN50@224", "patch_size": 16}}, "test")


def test_edges_cannot_be_cut_behind_a_stem() -> None:
    with pytest.raises(RecipeError, match="cut_edges is for plain patches"):
        parse_recipe({"image_tower": {"size": "conv-S/16@112", "cut_edges": True}}, "test")
