"""Many images to embeddings, of which no more than a few are in memory."""

import weakref
from pathlib import Path

import numpy as np

from conftest import COLOURS, draw
from pocketclip.bundle import load
from pocketclip.evaluate.embed import embed_images


class Item:
    def __init__(self, number: int) -> None:
        self.number, self.data = number, draw(COLOURS[number % 6], "bar", "left")


def test_images_are_let_go_of(trained: Path) -> None:
    bundle = load(trained / "bundle")
    small = bundle.recipe.evaluate.model_copy(update={"batch_size": 5})
    bundle.recipe = bundle.recipe.model_copy(update={"evaluate": small})
    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def items():
        nonlocal most
        for number in range(48):
            item = Item(number)
            alive.add(item)
            most = max(most, len(alive))
            yield item

    kept, images = embed_images(bundle, items(), lambda item: item.data, lambda *_: None, lambda item: item.number)
    assert kept == list(range(48))
    assert np.allclose(images[0], images[6], atol=1e-6)
    assert most <= 20, "a few batches at most"
