"""Near duplicates: against brute force, and on pictures."""

import io
import tracemalloc
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from conftest import draw
from pocketclip.clean.duplicates import BITS, GRID, MEAN_COLOURS, WORDS, WORST_COLOUR, Looks, colour_grid, look_hash


def picture(seed: int, size: int = 200) -> Image.Image:
    """Smooth coloured noise, as unlike another seed's as photographs are."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def again(image: Image.Image, quality: int, size: int) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def looks_of(images: list[Image.Image], distance: int = 10) -> Looks:
    hashes = np.stack([look_hash(image) for image in images])
    return Looks(hashes, np.stack([colour_grid(image) for image in images]), distance)


def alike(looks: Looks, one: int, other: int) -> bool:
    bits = sum(int(a ^ b).bit_count() for a, b in zip(looks.hashes[one], looks.hashes[other], strict=True))
    off = [abs(int(a) - int(b)) for a, b in zip(looks.grids[one], looks.grids[other], strict=True)]
    return bits <= looks.distance and sum(off) / GRID <= MEAN_COLOURS and max(off) <= WORST_COLOUR


def test_copies_are_found_and_other_pictures_are_not() -> None:
    originals = [picture(seed) for seed in range(40)]
    copies = [again(image, quality, size) for image in originals for quality, size in ((85, 200), (60, 90), (50, 64))]
    repeats = looks_of(originals + copies).duplicates(np.ones(160, dtype=bool))
    assert (repeats[:40] == -1).all()
    expected = np.repeat(np.arange(40), 3)
    assert (repeats[40:] == expected).mean() > 0.95
    assert ((repeats[40:] == expected) | (repeats[40:] == -1)).all()


def test_the_same_shape_in_another_colour_is_another_picture() -> None:
    images = [Image.open(io.BytesIO(draw(colour, "circle", "left"))) for colour in ("red", "blue", "green")]
    looks = looks_of(images, distance=15)
    assert int(np.bitwise_count(looks.hashes[0] ^ looks.hashes[1]).sum()) <= 15  # to the hash alone they are one
    assert (looks.duplicates(np.ones(3, dtype=bool)) == -1).all()


@st.composite
def crowds(draw_from: st.DrawFn) -> tuple[Looks, np.ndarray]:
    """Hashes in clusters: centres, copies of them with some bits turned and colours shifted; margins all may share."""
    random = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    distance = draw_from(st.integers(0, 15))
    rows = draw_from(st.integers(1, 60))
    centres = random.integers(0, 2, (draw_from(st.integers(1, 30)), BITS))
    centres[:, random.random(BITS) < draw_from(st.sampled_from([0, 0.5, 0.8, 1]))] = 0
    bits = centres[random.integers(0, len(centres), rows)].copy()
    for row in bits:
        turned = random.choice(BITS, random.integers(0, distance + 4), replace=False)
        row[turned] ^= 1
    shades = random.integers(0, draw_from(st.sampled_from([1, 9, 100])), (rows, 1))
    grids = (100 + shades + random.integers(0, 2, (rows, 1)) * random.integers(0, 6, (rows, GRID))).astype(np.uint8)
    grids[random.random((rows, GRID)) < 0.001] += 30  # one cell far off
    hashes = np.packbits(bits.astype(np.uint8), axis=1).view(np.uint64)
    assert hashes.shape == (rows, WORDS)
    return Looks(hashes, grids, distance), random.random(rows) < 0.9


@pytest.mark.parametrize("small", [1, 4, 256])  # groups whose pairs are compared all at once
@given(crowds())
def test_what_is_left_is_unlike_and_what_is_dropped_is_like_something_left(
    small: int, crowd: tuple[Looks, np.ndarray]
) -> None:
    looks, alive = crowd
    with patch("pocketclip.clean.duplicates.SMALL", small):
        repeats = looks.duplicates(alive)
    kept = [row for row in range(len(alive)) if alive[row] and repeats[row] < 0]
    assert not any(alike(looks, *pair) for pair in combinations(kept, 2))
    linked = {row: {row} for row in range(len(alive))}
    for one, other in combinations(np.nonzero(alive)[0].tolist(), 2):
        if alike(looks, one, other) and linked[one] is not linked[other]:
            linked[one] |= linked[other]
            for row in linked[one]:
                linked[row] = linked[one]
    for row, of in enumerate(repeats.tolist()):
        if of >= 0:
            assert of in kept
            assert of < row  # the preferred one stays
            assert of in linked[row]
    assert (repeats[~alive] == -1).all()


@pytest.mark.parametrize("small", [1, 4, 256])
@given(crowds(), st.integers(1, 10))
def test_against_fixed_rows_every_match_is_found(small: int, crowd: tuple[Looks, np.ndarray], fixed: int) -> None:
    looks, alive = crowd
    with patch("pocketclip.clean.duplicates.SMALL", small):
        repeats = looks.duplicates(alive, fixed=fixed)
    for row in range(len(alive)):
        matches = {one for one in range(min(fixed, row)) if alive[one] and alive[row] and alike(looks, one, row)}
        if row < fixed or not matches:
            assert repeats[row] == -1
        else:
            assert repeats[row] in matches


class Counting(Looks):
    """Counts the comparisons."""

    counted = 0

    def alike(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        Counting.counted += len(others)
        return super().alike(ones, others)


def crowd_of(kind: str, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and grids of many pictures that have much in common."""
    random = np.random.default_rng(rows)
    hashes = random.integers(0, 2**64, (rows, WORDS), dtype=np.uint64)
    grids = random.integers(0, 256, (rows, GRID), dtype=np.uint8)
    if kind == "copies":
        hashes[:], grids[:] = look_hash(picture(1)), 0
    elif kind == "clusters":
        hashes, grids = np.repeat(hashes[: rows // 100], 100, axis=0), np.zeros_like(grids)
    elif kind == "margins":  # white above and below
        hashes[:, [0, -1]] = 0
    elif kind == "margins and copies":
        hashes[: rows // 2], grids[: rows // 2] = hashes[0], grids[0]
        hashes[:, [0, -1]] = 0
    elif kind == "one colour each":
        hashes[:], grids[:] = 0, np.tile(grids[:, :3], GRID // 3)
    return hashes, grids


@pytest.mark.parametrize(
    ("kind", "left", "most"),
    [
        ("copies", 1, 2),
        ("clusters", 100, 2),
        ("margins", 10_000, 400),
        ("margins and copies", 5_001, 400),
        ("one colour each", None, 2_000),
    ],
)
def test_work_grows_with_the_rows_not_with_their_pairs(kind: str, left: int | None, most: int) -> None:
    """At most so many comparisons a row; all pairs would be 5,000."""
    rows = 10_000
    Counting.counted = 0
    repeats = Counting(*crowd_of(kind, rows), 12).duplicates(np.ones(rows, dtype=bool))
    assert left is None or (repeats < 0).sum() == left
    assert Counting.counted < most * rows


def test_a_row_takes_little_memory_however_many_look_like_it() -> None:
    def peak(rows: int) -> int:
        looks = Looks(*crowd_of("clusters", rows), 12)
        tracemalloc.start()
        looks.duplicates(np.ones(rows, dtype=bool))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(80_000) - peak(40_000) < 40_000 * 150  # bytes


def test_a_hash_is_the_library_s_own() -> None:
    import imagehash

    image = picture(3)
    bits = np.unpackbits(look_hash(image).view(np.uint8)).astype(bool)
    assert (bits == imagehash.dhash(image, hash_size=16).hash.ravel()).all()
    assert colour_grid(image).reshape(8, 8, 3)[0, 0] == pytest.approx(np.asarray(image)[:25, :25].mean((0, 1)), abs=1)
