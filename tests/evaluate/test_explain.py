"""Explanations that add up, and that point to where the picture is."""

from pathlib import Path

import numpy as np
import pytest

from conftest import TEST_COMBINATIONS, draw
from pocketclip.bundle import Bundle, load
from pocketclip.data.square import decode
from pocketclip.evaluate.explain import explain


@pytest.fixture(scope="module")
def bundle(trained: Path) -> Bundle:
    return load(trained / "bundle")


def texts(bundle: Bundle, *captions: str) -> np.ndarray:
    return bundle.encode_texts(captions).numpy()


@pytest.mark.parametrize(("colour", "shape", "place"), [*sorted(TEST_COMBINATIONS), ("purple", "pole", "left")])
def test_what_patches_add_is_the_whole_difference(bundle: Bundle, colour: str, shape: str, place: str) -> None:
    pixels = decode(draw(colour, shape, place), bundle.recipe.image)
    pixels.flags.writeable = False  # as Pillow's are
    captions = f"{colour} {shape} {place}", "a bar in green, right"
    for found, caption in zip(explain(bundle, pixels, texts(bundle, *captions)), captions, strict=True):
        assert found.patches.shape == (4, 4)
        blank = np.broadcast_to(pixels.mean(axis=(0, 1)).round().astype(np.uint8), pixels.shape)
        for value, image in ((found.cosine, pixels), (found.blank, blank)):
            embedded = bundle.encode_pixels(torch_of(image)).numpy()[0]
            assert value == pytest.approx(float(embedded @ texts(bundle, caption)[0]), abs=1e-5)
        assert found.patches.sum() == pytest.approx(found.cosine - found.blank, abs=0.03)


def torch_of(image: np.ndarray):
    import torch

    return torch.from_numpy(image.copy())[None]


@pytest.mark.parametrize("place", ["left", "right"])
def test_it_points_to_where_the_picture_is(bundle: Bundle, place: str) -> None:
    """What tells red from blue lies where the circle is; left from right is told by the empty half as well."""
    pixels = decode(draw("red", "circle", place), bundle.recipe.image)
    red, blue = explain(bundle, pixels, texts(bundle, f"red circle {place}", f"blue circle {place}"))
    colour = np.abs(red.patches - blue.patches)
    share = colour[:, :2].sum() / colour.sum()
    assert (share > 0.65) if place == "left" else (share < 0.35)


def test_the_patches_that_count_cost_most_when_they_are_hidden(bundle: Bundle) -> None:
    """Samek et al. 2017: hiding what is said to count has to lower the cosine further than hiding anything else."""
    lost = []
    for colour, shape, place in (("red", "circle", "left"), ("blue", "pole", "right"), ("green", "square", "left")):
        pixels = decode(draw(colour, shape, place), bundle.recipe.image)
        caption = texts(bundle, f"{colour} {shape} {place}")
        (found,) = explain(bundle, pixels, caption)
        order = np.argsort(-found.patches, axis=None)
        cosines = [
            float(bundle.encode_pixels(torch_of(hidden(pixels, chosen)))[0].numpy() @ caption[0])
            for chosen in (order[:3], order[-3:])
        ]
        lost.append([found.cosine - cosine for cosine in cosines])
    most, least = np.mean(lost, axis=0)
    assert most > least + 0.1


def hidden(pixels: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    result, side = pixels.copy(), 8
    for number in chosen:
        row, column = divmod(int(number), 4)
        result[row * side : (row + 1) * side, column * side : (column + 1) * side] = pixels.mean(axis=(0, 1))
    return result


def test_nothing_of_the_model_is_changed(bundle: Bundle) -> None:
    before = {name: value.clone() for name, value in bundle.model.state_dict().items()}
    explain(bundle, decode(draw("red", "bar", "left"), bundle.recipe.image), texts(bundle, "red bar left"))
    assert all(value.equal(before[name]) for name, value in bundle.model.state_dict().items())
    assert all(one.grad is None for one in bundle.model.parameters())
    assert not bundle.model.training
