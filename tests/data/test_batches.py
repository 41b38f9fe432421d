from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import draw, small_recipe
from pocketclip.bundle import load
from pocketclip.data.batches import Batch, TrainingBatches, augment, load_batches
from pocketclip.data.images import normalise
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.data.square import decode
from pocketclip.errors import DataError
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import load_tokenizer


def make_batches(recipe: Recipe) -> TrainingBatches:
    folder = Path(recipe.data.folder)
    encode = load_tokenizer(folder / "tokenizer.json", 16).encode
    return TrainingBatches(Split(folder, recipe.data.split), recipe, encode)


def same(one: Batch, other: Batch) -> bool:
    fields = ("pixels", "tokens", "ends")
    return one.position == other.position and all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields)


def test_an_epoch_holds_every_row_once_and_epochs_differ(folder: Path) -> None:
    batches = make_batches(small_recipe(folder, image={"shift": 0.0}))
    images = [decode(batches.split.image(row), batches.image).tobytes() for row in range(45)]
    orders = []
    for epoch in range(3):
        order = [images.index(image.numpy().tobytes()) for step in range(3) for image in batches[epoch, step].pixels]
        assert sorted(order) == list(range(45))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    shards = [[row // 20 for row in order[:15]] for order in orders]
    assert all(len(set(shard)) > 1 for shard in shards), "a batch draws from all shards: a true shuffle"


def test_pairs_stay_pairs_and_every_caption_is_drawn(folder: Path) -> None:
    recipe = small_recipe(folder, image={"shift": 0.0})
    batches = make_batches(recipe)
    by_image = {
        decode(batches.split.image(row), batches.image).tobytes(): batches.split.captions(row) for row in range(45)
    }
    tokenizer = load_tokenizer(folder / "tokenizer.json", 16).tokenizer
    seen = Counter()
    for epoch in range(15):
        for step in range(3):
            batch = batches[epoch, step]
            for image, tokens in zip(batch.pixels, batch.tokens, strict=True):
                caption = tokenizer.decode(tokens.tolist()).strip()
                assert caption in by_image[image.numpy().tobytes()]
                seen[caption] += 1
    assert len(seen) == 90


def test_position_and_seed_fix_a_batch_whatever_the_workers(folder: Path) -> None:
    recipe = small_recipe(folder)
    one, other = make_batches(recipe), make_batches(recipe)
    for position in ((2, 1), (0, 0), (2, 1)):
        assert same(one[position], other[position])
    assert not torch.equal(one[0, 0].tokens, make_batches(recipe.model_copy(update={"seed": 1}))[0, 0].tokens)
    plain = list(load_batches(one, 2, 8, workers=0))
    assert [batch.position for batch in plain] == [(0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert all(same(a, b) for a, b in zip(plain, load_batches(one, 2, 8, workers=2), strict=True))
    cached = make_batches(small_recipe(folder, data={"cache": True}))
    assert all(same(cached[position], one[position]) for position in ((0, 0), (1, 0), (2, 0)))


def test_training_and_evaluation_see_the_same_tensor(
    folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(folder, image={"shift": 0.0})
    batches = make_batches(recipe)
    bundle = load(trained / "bundle")
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(bundle.model, "encode_images", lambda x: seen.append(x) or torch.zeros(len(x), 32))
    rows = np.random.default_rng([recipe.seed, 0]).permutation(45)[:15]
    bundle.encode_images([batches.split.image(int(row)) for row in rows])
    torch.testing.assert_close(torch.cat(seen), normalise(batches[0, 0].pixels, recipe.image), rtol=0, atol=0)


def test_bad_rows_are_counted_and_dropped_never_replaced(tmp_path: Path, folder: Path) -> None:
    good = [Row(f"good{n}", draw("red", "bar", "left"), "png", (f"caption {n}",)) for n in range(5)]
    noise = np.random.default_rng(0).bytes(500)
    bad = [
        Row("corrupt", b"\xff\xd8\xff\xe0" + noise, "jpg", ("corrupt jpeg",)),
        Row("text", b"hello", "jpg", ("a text named jpg",)),
        Row("empty", draw("red", "bar", "left"), "png", ("  ",)),
    ]
    write_shards([*good, *bad], tmp_path, "train")
    recipe = small_recipe(tmp_path, train={"batch_size": 8})
    encode = load_tokenizer(folder / "tokenizer.json", 16).encode
    for cache in (False, True):
        batches = TrainingBatches(
            Split(tmp_path, "train"),
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"cache": cache})}),
            encode,
        )
        for epoch in range(2):
            batch = batches[epoch, 0]
            assert len(batch.pixels) == len(batch.tokens) == 5
            assert len({tuple(tokens.tolist()) for tokens in batch.tokens}) == 5
            assert sum(batch.dropped.values()) == 3
            assert batch.dropped["empty caption"] == 1
            assert batch.dropped["no JPEG, PNG or WebP"] >= 1


def test_too_few_rows_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"split train has 45 rows, less than one batch of train\.batch_size = 64"):
        make_batches(small_recipe(folder, train={"batch_size": 64}))


@given(st.integers(0, 2**32), st.floats(0, 0.3))
def test_augment_shifts_by_whole_pixels_within_reach(seed: int, shift: float) -> None:
    marked = np.zeros((20, 20, 3), np.uint8)
    marked[10, 10] = 255
    moved = augment(marked, shift, False, np.random.default_rng(seed))
    ((row, column),) = np.argwhere(moved[..., 0])
    reach = round(shift * 20)
    assert abs(row - 10) <= reach
    assert abs(column - 10) <= reach


def test_flip_mirrors_half_of_the_time() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    random = np.random.default_rng(0)
    flipped = sum(not (augment(picture, 0.0, True, random) == picture).all() for _ in range(400))
    assert 150 < flipped < 250


def test_unknown_words_come_into_their_share_of_captions(folder: Path) -> None:
    recipe = small_recipe(folder, caption={"unknown_words": 0.4})
    batches = make_batches(recipe)
    known = {caption.casefold() for caption in batches.split.every_caption()}
    tokenizer = load_tokenizer(folder / "tokenizer.json", 16).tokenizer
    captions = [
        tokenizer.decode(tokens.tolist()).strip()
        for epoch in range(10)
        for step in range(3)
        for tokens in batches[epoch, step].tokens
    ]
    changed = sum(caption not in known for caption in captions)
    assert 0.3 < changed / len(captions) < 0.5
    assert same(batches[1, 1], make_batches(recipe)[1, 1])


def test_only_a_share_of_the_draws_is_augmented(folder: Path) -> None:
    recipe = small_recipe(folder, image={"shift": 0.3, "augmented": 0.5})
    batches = make_batches(recipe)
    originals = {decode(batches.split.image(row), batches.image).tobytes() for row in range(45)}
    images = [
        image.numpy().tobytes() for epoch in range(10) for step in range(3) for image in batches[epoch, step].pixels
    ]
    assert 0.4 < np.mean([image in originals for image in images]) < 0.65
