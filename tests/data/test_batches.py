import io
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from conftest import draw, small_recipe
from pocketclip.bundle import load
from pocketclip.data.batches import Batch, RowChance, TrainingBatches, augment, load_batches
from pocketclip.data.images import normalise, open_image
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.data.square import decode
from pocketclip.errors import DataError
from pocketclip.evaluate.splits import embed_split
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import load_tokenizer


def make_batches(recipe: Recipe) -> TrainingBatches:
    folder = Path(recipe.data.folder)
    encode = load_tokenizer(folder / "tokenizer.json", 16).encode
    return TrainingBatches(Split(folder, recipe.data.split), recipe, encode)


def same(one: Batch, other: Batch) -> bool:
    fields = ("pixels", "tokens", "ends", "rows")
    return one.position == other.position and all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields)


def test_an_epoch_holds_every_row_once_and_epochs_differ(folder: Path) -> None:
    batches = make_batches(small_recipe(folder, image={"shift": 0.0}))
    images = [decode(batches.split.image(row), batches.image).tobytes() for row in range(45)]
    orders = []
    for epoch in range(3):
        order = [images.index(image.numpy().tobytes()) for step in range(3) for image in batches[epoch, step].pixels]
        assert sorted(order) == list(range(45))
        assert order == [row for step in range(3) for row in batches[epoch, step].rows.tolist()]
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


@pytest.mark.parametrize("decoding", ["scaled", "exact"])
def test_training_and_evaluation_see_the_same_tensor(
    decoding: str, folder: Path, trained: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = hard_rows()[0]
    write_shards((Row(name, data, "jpg", (name,)) for name, data in images.items()), tmp_path, "train", 4)
    recipe = small_recipe(tmp_path, image={"decoding": decoding, "shift": 0.0}, train={"batch_size": len(images)})
    batches = TrainingBatches(Split(tmp_path, "train"), recipe, load_tokenizer(folder / "tokenizer.json", 16).encode)
    bundle = replace(load(trained / "bundle"), recipe=recipe)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(bundle.model, "encode_images", lambda x: seen.append(x) or torch.zeros(len(x), 32))
    order = np.random.default_rng([recipe.seed, 0]).permutation(len(images)).tolist()
    data = [batches.split.image(row) for row in order]
    paths = [tmp_path / f"{row}.image" for row in order]
    for path, image in zip(paths, data, strict=True):
        path.write_bytes(image)
    bundle.encode_images(data)
    bundle.encode_images(paths)
    embed_split(bundle, batches.split, console)
    bundle.encode_images([open_image(image) for image in data])
    from_bytes, from_files, from_split, from_pictures = seen
    trained_on = normalise(batches[0, 0].pixels, recipe.image)
    for found in (from_bytes, from_files, from_split[order]):
        torch.testing.assert_close(found, trained_on, rtol=0, atol=0)
    # Of a Pillow image nothing is left to decode: it is what `exact` makes.
    torch.testing.assert_close(from_pictures, trained_on, rtol=0, atol=0 if decoding == "exact" else 0.5)
    augmented = recipe.model_copy(update={"image": recipe.image.model_copy(update={"crop": 0.3, "augmented": 0.0})})
    batches = TrainingBatches(batches.split, augmented, batches.encode)
    torch.testing.assert_close(normalise(batches[0, 0].pixels, recipe.image), trained_on, rtol=0, atol=0)


def photograph(number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (9, 14, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((203, 131), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def hard_rows() -> tuple[dict[str, bytes], dict[str, tuple[bytes, str]]]:
    """Images of all kinds that can be read, and what cannot be, with the reason."""
    turned = Image.Exif()
    turned[0x0112] = 6
    photo = encoded(photograph(0), "JPEG")
    giant = bytearray(encoded(photograph(0), "PNG"))
    giant[16:24] = struct.pack(">II", 60_000, 60_000)
    giant[29:33] = struct.pack(">I", zlib.crc32(giant[12:29]))
    good = {
        "plain": encoded(photograph(1), "JPEG"),
        "cmyk": encoded(photograph(2).convert("CMYK"), "JPEG"),
        "grey": encoded(photograph(3).convert("L"), "JPEG"),
        "progressive": encoded(photograph(4), "JPEG", progressive=True),
        "turned": encoded(photograph(5), "JPEG", exif=turned),
        "two-pictures": encoded(photograph(6), "MPO", save_all=True, append_images=[photograph(7)]),
        "sixteen-bits": encoded(Image.fromarray(np.asarray(photograph(8).convert("L")).astype(np.uint16) * 257), "PNG"),
        "palette": encoded(photograph(9).convert("P"), "PNG"),
        "webp": encoded(photograph(10), "WEBP"),
    }
    bad = {
        "corrupt": (b"\xff\xd8\xff\xe0" + np.random.default_rng(0).bytes(500), "no JPEG, PNG or WebP"),
        "text": (b"hello", "no JPEG, PNG or WebP"),
        "nothing": (b"", "no JPEG, PNG or WebP"),
        "truncated": (photo[: len(photo) // 2], "damaged image"),
        "holed": (photo[:700] + bytes(400), "damaged image"),
        "giant": (bytes(giant), "more than 50000000 pixels"),
    }
    return good, bad


@pytest.mark.parametrize("image", [{}, {"decoding": "exact"}, {"crop": 0.5, "flip": True, "augmented": 0.7}], ids=str)
def test_no_row_ends_a_worker_and_batches_are_the_same(image: dict[str, object], tmp_path: Path, folder: Path) -> None:
    good, bad = hard_rows()
    images = good | {name: data for name, (data, _) in bad.items()}
    write_shards((Row(name, data, "jpg", (name,)) for name, data in images.items()), tmp_path, "train", 4)
    recipe = small_recipe(tmp_path, image={"shift": 0.0, **image}, train={"batch_size": 5})
    encode = load_tokenizer(folder / "tokenizer.json", 16).encode
    batches = TrainingBatches(Split(tmp_path, "train"), recipe, encode)
    here = list(load_batches(batches, 0, 6, workers=0))
    assert all(same(one, other) for one, other in zip(here, load_batches(batches, 0, 6, workers=2), strict=True))
    dropped = sum((batch.dropped for batch in here), Counter())
    assert dropped == Counter([reason for _, reason in bad.values()] * 2)
    if "crop" not in image:
        expected = [decode(data, recipe.image).tobytes() for data in good.values()]
        found = [pixels.numpy().tobytes() for batch in here[:3] for pixels in batch.pixels]
        assert Counter(found) == Counter(expected)


def test_an_error_ends_the_process_though_workers_are_busy(folder: Path) -> None:
    code = (
        "import sys\n"
        "from pocketclip.data.batches import TrainingBatches, load_batches\n"
        "from pocketclip.data.shards import Split\n"
        "from pocketclip.tokenizer import load_tokenizer\n"
        "from conftest import Path, small_recipe\n"
        "folder = Path(sys.argv[1])\n"
        "encode = load_tokenizer(folder / 'tokenizer.json', 16).encode\n"
        "batches = load_batches(TrainingBatches(Split(folder, 'train'), small_recipe(folder), encode), 0, 99, 2)\n"
        "next(batches)\n"
        "raise RuntimeError('a mistake')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().endswith("RuntimeError: a mistake"), done.stderr


def test_batches_of_workers_are_made_in_memory_that_is_shared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_batches(small_recipe(folder))
    here = made[0, 0]
    monkeypatch.setattr("pocketclip.data.batches.get_worker_info", lambda: "a worker")
    there = made[0, 0]
    assert (here.pixels.is_shared(), there.pixels.is_shared()) == (False, True)
    assert same(here, there)
    assert there.pixels.is_contiguous()


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


def test_several_captions_of_a_row_come_after_each_other_and_differ_where_they_can(folder: Path) -> None:
    batches = make_batches(small_recipe(folder, image={"shift": 0.0}, caption={"per_image": 3}))
    tokenizer = load_tokenizer(folder / "tokenizer.json", 16).tokenizer
    by_image = {
        decode(batches.split.image(row), batches.image).tobytes(): batches.split.captions(row) for row in range(45)
    }
    batch = batches[0, 0]
    assert len(batch.tokens) == len(batch.ends) == 3 * len(batch.pixels) == 45
    for image, tokens in zip(batch.pixels, batch.tokens.view(15, 3, -1), strict=True):
        said = [tokenizer.decode(one.tolist()).strip() for one in tokens]
        assert set(said) == set(by_image[image.numpy().tobytes()])  # both of the two, and one of them again


def test_a_rows_chance_is_that_of_a_generator_of_its_own() -> None:
    chance = RowChance(3, 1, 2)
    key = np.random.SeedSequence([3, 1, 2]).generate_state(2, np.uint64)
    for place in (5, 0, 5, 2**40):
        alone = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, place]))
        random = chance.of(place)
        assert random.integers(1000) == alone.integers(1000)  # leaves half a number behind
        assert random.random(3).tolist() == alone.random(3).tolist()
        assert random.permutation(9).tolist() == alone.permutation(9).tolist()
