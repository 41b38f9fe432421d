"""What cleaning finds and what it loses: copies of pictures, and captions in other languages.

    pip install "pocketclip[collect]"
    python benchmarks/cleaning.py

Near duplicates: of OpenMoji's pictures (all distinct) copies are made as the Web makes them, and looked for by two
hashes, alone and with the colours beside them. Languages: Unicode's names of emoji in fourteen languages, by their
number of words. Search: time and memory of `Looks.duplicates` on made-up hashes and colours that have much in common.
"""

import argparse
import io
import time
import tracemalloc
from collections.abc import Callable, Sequence

import emoji
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from pocketclip.clean.captions import LANGUAGE, why_not
from pocketclip.clean.duplicates import BITS, GRID, GRID_SIDE, HASH_SIDE, Looks, colour_grid, colours_agree
from pocketclip.data.images import open_image
from pocketclip.data.openmoji import rows
from pocketclip.recipe.collecting import CleanSettings

Change = Callable[[Image.Image], Image.Image]
Hash = Callable[[Image.Image], NDArray[np.bool_]]
LANGUAGES = ("en", "es", "pt", "it", "fr", "de", "id", "tr", "fa", "ar", "ru", "zh", "ja", "ko")
LENGTHS = ((1, 1), (2, 2), (3, 4), (5, 99))


def jpeg(quality: int) -> Change:
    """Compressed anew."""

    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def scaled(share: float) -> Change:
    """Shrunk."""
    return lambda image: image.resize(
        (round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC
    )


def cut(image: Image.Image) -> Image.Image:
    """Two hundredths cut off at each side."""
    x, y = image.width // 50, image.height // 50
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Change] = {
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "JPEG 20": jpeg(20),
    "half the size": scaled(0.5),
    "a quarter of the size": scaled(0.25),
    "half, JPEG 75": lambda image: jpeg(75)(scaled(0.5)(image)),
    "brighter by 10 %": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "2 % cut off": cut,
}
HASHES: dict[str, Hash] = {
    "dHash": lambda image: imagehash.dhash(image, hash_size=16).hash.ravel(),
    "pHash": lambda image: imagehash.phash(image, hash_size=16).hash.ravel(),
}


def near_duplicates(pictures: Sequence[Image.Image], distance: int) -> None:
    """Print which copies are found, and how many pairs of different pictures are taken for one."""
    grids = np.array([colour_grid(image) for image in pictures])
    for name, look in HASHES.items():
        hashes = np.array([look(image) for image in pictures])
        for said, change in CHANGES.items():
            copies = [change(image) for image in pictures]
            near = (np.array([look(copy) for copy in copies]) != hashes).sum(1) <= distance
            same = colours_agree(np.array([colour_grid(copy) for copy in copies]), grids)
            print(f"{name}: {said:<22} found {near.mean():6.1%}, with colours {(near & same).mean():6.1%}")
        pairs = alike = 0
        for one in range(len(pictures) - 1):
            near = (hashes[one] != hashes[one + 1 :]).sum(1) <= distance
            same = colours_agree(grids[one + 1 :], grids[one])
            pairs, alike = pairs + int(near.sum()), alike + int((near & same).sum())
        print(f"{name}: pairs of different pictures taken for one: {pairs:,}; with colours {alike:,}")


def languages() -> None:
    """Print the share of captions that are dropped as being in no wanted language."""
    print("words     " + "".join(f"{language:>7}" for language in LANGUAGES))
    for least, most in LENGTHS:
        shares = []
        for language in LANGUAGES:
            emoji.config.load_language(language)
            names = {one[language].strip(":").replace("_", " ") for one in emoji.EMOJI_DATA.values() if language in one}
            some = sorted(name for name in names if least <= len(name.split()) <= most)
            dropped = sum(why_not(name, CleanSettings()) == LANGUAGE for name in some)
            shares.append(f"{dropped / len(some):7.1%}" if len(some) >= 30 else "      -")
        print(f"{least} to {most:<5}" + "".join(shares))


def made_up(kind: str, rows: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Hashes and grids of pictures that do not exist."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (rows, BITS // 8), dtype=np.uint8)
    grids = random.integers(0, 256, (rows, GRID), dtype=np.uint8)
    seen = hashes.reshape(rows, HASH_SIDE, HASH_SIDE // 8)
    if kind == "white above and below":
        seen[:, :2] = seen[:, -2:] = 0
    elif kind == "object on white":  # in the middle quarter; mostly of one colour
        seen[:, :4] = seen[:, -4:] = 0
        seen &= np.array([0x0F, 0xF0], dtype=np.uint8)
        cells = grids.reshape(rows, GRID_SIDE, GRID_SIDE, 3)
        middle = cells[:, 2:6, 2:6] // 4 + random.integers(0, 192, (rows, 1, 1, 3), dtype=np.uint8)
        cells[:], cells[:, 2:6, 2:6] = 255, middle
    elif kind == "100 alike each":
        hashes = np.repeat(hashes[: -(-rows // 100)], 100, axis=0)[:rows]
        grids[:] = 0
    elif kind == "one colour each":
        hashes[:], grids[:] = 0, np.tile(grids[:, :3], GRID // 3)
    return hashes.view(np.uint64), grids


def search(kind: str, rows: int, distance: int) -> None:
    """Print how long duplicates are sought, and the memory that it takes beside hashes and grids."""
    looks = Looks(*made_up(kind, rows), distance)
    tracemalloc.start()
    start = time.perf_counter()
    repeats = looks.duplicates(np.ones(rows, dtype=np.bool_))
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = int((repeats < 0).sum())
    print(
        f"{kind:<22} {rows:>9,} rows: {seconds:6.1f} s, {peak / rows:6.0f} bytes a row; {kept:,} are left", flush=True
    )


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--distance", type=int, default=CleanSettings().duplicate_distance, help="bits of 256")
    parser.add_argument("--pictures", type=int, default=1000, help="how many of OpenMoji's")
    parser.add_argument("--rows", type=int, default=200_000, help="made-up pictures to search duplicates among")
    parser.add_argument("--search-only", action="store_true")
    asked = parser.parse_args()
    for kind in ("random", "white above and below", "object on white", "100 alike each", "one colour each"):
        search(kind, asked.rows, asked.distance)
    if asked.search_only:
        return
    drawn = [row for _, some in sorted(rows(192, validation=False).items()) for row in some]
    step = max(1, len(drawn) // asked.pictures)
    near_duplicates([open_image(row.image) for row in drawn[::step][: asked.pictures]], asked.distance)
    languages()


if __name__ == "__main__":
    main()
