"""One set of weights, images of other sizes than it was made for."""

import math
from pathlib import Path

import pytest
import torch

from conftest import small_recipe
from pocketclip.model import image_tower, resnet
from pocketclip.model.clip import CLIP
from pocketclip.model.image_tower import interpolated
from pocketclip.recipe.schema import Recipe
from pocketclip.train.start import POSITIONS

TOWERS: dict[str, dict[str, object]] = {
    "patches": {"stem_channels": [], "pool": "class"},
    "stem": {},
    "edges": {"stem_channels": [], "patch_size": 12, "cut_edges": True},
    "resnet": {"stem_channels": [], "stages": [1, 1], "heads": 4},
}


def recipe_of(folder: Path, tower: str, size: int) -> Recipe:
    return small_recipe(folder, image={"size": size}, image_tower=TOWERS[tower])


@pytest.mark.parametrize("tower", TOWERS)
def test_a_small_image_is_seen_as_by_a_tower_of_its_size_with_interpolated_positions(tower: str, folder: Path) -> None:
    torch.manual_seed(0)
    large, small = (CLIP(recipe_of(folder, tower, size)).eval() for size in (64, 32))
    state, own = large.state_dict(), small.state_dict()
    (name,) = POSITIONS & state.keys()
    assert state[name].shape != own[name].shape
    state[name] = interpolated(state[name], math.isqrt(len(own[name])))
    small.load_state_dict(state)
    pixels = torch.randn(3, 3, 32, 32)
    expected = small.encode_images(pixels)
    found = large.encode_images(pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    found[:, 0].sum().backward()
    gradient = large.get_parameter(name).grad
    assert gradient is not None
    assert (gradient.abs().sum(1) > 0).all(), "every position of the large grid learns"


@pytest.mark.parametrize("tower", TOWERS)
def test_at_its_own_size_nothing_is_interpolated(tower: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, pixels = CLIP(recipe_of(folder, tower, 64)).eval(), torch.randn(2, 3, 64, 64)
    found = model.encode_images(pixels)
    for module in (image_tower, resnet):
        monkeypatch.setattr(module, "interpolated", lambda positions, _: positions)
    assert torch.equal(found, model.encode_images(pixels))


@pytest.mark.parametrize("first", [0, 1])
def test_positions_of_a_plane_stay_a_plane(first: int) -> None:
    """In the middle of the grid bicubic interpolation keeps what is linear; a class token's position stays."""
    before, after = 16, 8
    at = torch.arange(before) + 0.5
    plane = (3 * at[:, None] + 5 * at[None, :]).reshape(-1, 1)
    found = interpolated(torch.cat([torch.full((first, 1), 7.0), plane]), after)
    assert found[:first].tolist() == [[7.0]] * first
    at = (torch.arange(after) + 0.5) * before / after
    expected = 3 * at[:, None] + 5 * at[None, :]
    torch.testing.assert_close(found[first:].view(after, after)[2:-2, 2:-2], expected[2:-2, 2:-2])
