"""Pictures that are the same for the eye: a perceptual hash for their shapes, small mean colours beside it.

The hash is dHash of 256 bits (Krawetz 2013, "Kind of Like That"): whether each of 16 by 16 cells is brighter than the
one beside it. It outlives shrinking and compressing, of smooth pictures and drawings too, where pHash's fine
frequencies are noise (docs/log.md has both). But it is blind to colour, and a drawing on much white has few bits that
say anything. So two pictures count as one only if their mean colours in a grid of 8 by 8 agree too.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.errors import DataError

HASH_SIDE = 16
BITS = HASH_SIDE * HASH_SIDE
WORDS = BITS // 64
GRID_SIDE = 8
GRID = 3 * GRID_SIDE * GRID_SIDE
MEAN_COLOURS, WORST_COLOUR = 2.0, 20.0  # of 255: how far a copy's grid may be off, on average and at most
AT_ONCE = 1 << 14  # rows of a memory-mapped array looked at together
SMALL = 256  # rows of a group that are compared as they are; larger groups are divided first
# The order in which a hash's bits are dealt out to bands: neighbours, and the margins that pictures share, go to
# different ones, so that every band keeps bits that tell pictures apart.
SPREAD = 101 * np.arange(BITS) % BITS
# Signs of a grid's cells: all; green, then blue against the other colours; left against right; above against below.
_SIDE = np.where(np.arange(GRID_SIDE) < GRID_SIDE // 2, 1, -1)
_ONES = np.ones((GRID_SIDE, GRID_SIDE, 3), dtype=np.int64)
SIGNS = np.stack([_ONES, _ONES * [1, -1, 1], _ONES * [1, 1, -1], _ONES * _SIDE[:, None], _ONES * _SIDE[:, None, None]])
SIGNS = SIGNS.reshape(len(SIGNS), GRID).astype(np.float32)  # sums of so few bytes are exact in float32

# Rows -> for each a value, equal for those that are kept together.
Key = Callable[[NDArray[np.int64]], NDArray[np.uint64]]


def look_hash(image: Image.Image) -> NDArray[np.uint64]:
    """An RGB image's perceptual hash, uint64 [4]. Raises DataError where the extra is not installed."""
    try:
        import imagehash
    except ImportError:
        raise DataError("perceptual hashes need the extra: pip install 'pocketclip[collect]'") from None
    bits = imagehash.dhash(image, hash_size=HASH_SIDE).hash
    return np.packbits(bits).view(np.uint64)


def colour_grid(image: Image.Image) -> NDArray[np.uint8]:
    """Mean colours of an RGB image's 8 by 8 cells, uint8 [192]."""
    return np.asarray(image.resize((GRID_SIDE, GRID_SIDE), Image.Resampling.BOX), dtype=np.uint8).ravel()


def colours_agree(grids: NDArray[np.uint8], grid: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which of some grids [rows, 192] can be of copies of the picture with that grid; bool [rows]."""
    off = np.maximum(grids, grid) - np.minimum(grids, grid)
    mean = off.sum(axis=-1, dtype=np.int64) / GRID
    agree: NDArray[np.bool_] = (mean <= MEAN_COLOURS) & (off.max(axis=-1) <= WORST_COLOUR)
    return agree


@dataclass(frozen=True, slots=True)
class Looks:
    """How all pictures look; rows stand in the order of preference, what is to be kept first.

    hashes: uint64 [rows, 4]. grids: uint8 [rows, 192]. Both may be memory-mapped.
    distance: bits of the hash that may differ.
    """

    hashes: NDArray[np.uint64]
    grids: NDArray[np.uint8]
    distance: int

    def alike(self, ones: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows look like their counterparts; bool [rows]."""
        found = np.zeros(len(others), dtype=np.bool_)
        for start in range(0, len(others), AT_ONCE):
            places = np.arange(start, min(start + AT_ONCE, len(others)))
            bits = np.zeros(len(places), dtype=np.uint8)
            for word in range(WORDS):  # most differ too much in the first quarter of their hashes
                bits = bits + np.bitwise_count(self.hashes[others[places], word] ^ self.hashes[ones[places], word])
                near = bits <= self.distance
                places, bits = places[near], bits[near]
            found[places] = colours_agree(self.grids[others[places]], self.grids[ones[places]])
        return found

    def duplicates(self, alive: NDArray[np.bool_], fixed: int = 0) -> NDArray[np.int64]:
        """For each row the row that it repeats, -1 if it repeats none; int64 [rows].

        alive: bool [rows]; rows that take part. fixed: so many first rows are only compared with: if there are any,
        rows are sought that look like one of them, and no others.
        No two rows that are left look alike (up to `fixed`); a row that was dropped looks like the one it is said to
        repeat, or like one that repeats it in its turn.

        Nothing is left out for the sake of speed: `_Search` says how, and what the work depends on.
        """
        search = _Search(self, alive.copy(), np.full(len(alive), -1, dtype=np.int64), fixed)
        everything = np.nonzero(alive)[0]
        for band in np.array_split(SPREAD, self.distance + 1):
            others = SPREAD[~np.isin(SPREAD, band)]
            search.divide(everything, np.zeros_like(everything), partial(self.band, band), Rest(others))
        repeats = search.repeats
        dropped = np.nonzero(repeats >= 0)[0]
        while (further := repeats[repeats[dropped]] >= 0).any():  # what was repeated may have been dropped later
            repeats[dropped[further]] = repeats[repeats[dropped[further]]]
        return repeats

    def band(self, bits: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Some bits of the rows' hashes, mixed where they lie in several words; uint64 [rows]."""
        masks = [sum(1 << int(bit) % 64 for bit in bits if bit // 64 == word) for word in range(WORDS)]
        values = np.zeros(len(rows), dtype=np.uint64)
        for word, mask in enumerate(masks):
            # Odd multipliers keep different bands different but for rare accidents, which only cost a comparison.
            values = (values * np.uint64(0x9E3779B97F4A7C15)) ^ (self.hashes[rows, word] & np.uint64(mask))
        return values

    def shade(self, signs: NDArray[np.float32], shifted: bool, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The step of a stair on which the signed sum of each row's grid stands; uint64 [rows].

        The sums of two pictures that look alike differ by at most as much as all their cells do. The edges of this
        stair and of the shifted one alternate, further apart than that: on one of the two they share a step.
        """
        apart = int(MEAN_COLOURS * GRID) + 1
        steps = np.zeros(len(rows), dtype=np.int64)
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            steps[part] = (self.grids[rows[part]] @ signs + apart * shifted) // (2 * apart)
        return steps.astype(np.uint64)


@dataclass(frozen=True, slots=True)
class Rest:
    """What a group of rows can still be divided by: bits of the hash, and which of the SIGNS."""

    bits: NDArray[np.int64]
    signs: tuple[int, ...] = tuple(range(len(SIGNS)))

    def ways(self, looks: Looks) -> Iterator[list[tuple[Key, "Rest"]]]:
        """Ways to divide a group, each a list of keys; rows that look alike have at least one of a list in common.

        With each key what is left after it.
        """
        for sign in self.signs:
            rest = Rest(self.bits, tuple(other for other in self.signs if other != sign))
            yield [(partial(looks.shade, SIGNS[sign], shifted), rest) for shifted in (False, True)]
        if len(self.bits) > looks.distance:
            yield [
                (partial(looks.band, band), Rest(self.bits[~np.isin(self.bits, band)], self.signs))
                for band in np.array_split(self.bits, looks.distance + 1)
            ]


@dataclass(frozen=True, slots=True)
class _Search:
    """A search for duplicates under way: all rows are divided into groups, in several ways; the groups are compared.

    Where two hashes differ in at most d bits and are cut into d + 1 bands, one band is equal (the pigeonhole
    principle), so only rows that share a band are compared. Pictures with white margins share much of their hashes,
    pictures without any shape all of it; where too many share a band, they are divided again, by their colours and by
    bands of the bits that are left. A group is only divided if that leaves less than half of its pairs, counting all
    keys, so that the work is never much more than to compare its rows as they are. Groups that nothing divides cost
    a comparison of each row with those that are kept of it: little where they are copies of a few pictures.
    Slowest are many different pictures whose shapes and colours both hardly vary: the work nears that for all their
    pairs (docs/log.md has figures).

    Rows lie in one group after the other, each in the order of preference. alive, repeats: of all rows, so far.
    """

    looks: Looks
    alive: NDArray[np.bool_]
    repeats: NDArray[np.int64]
    fixed: int

    def divide(self, rows: NDArray[np.int64], groups: NDArray[np.int64], key: Key, rest: Rest) -> None:
        """Compare the rows of each group that share a key too. rest: what those can be divided by in their turn."""
        alive = self.alive[rows]
        rows, groups = rows[alive], groups[alive]
        order, starts, sizes = _together(key(rows), groups)
        rows = rows[order]
        asked = sizes > 1
        if self.fixed:
            asked &= (rows[starts] < self.fixed) & (rows[starts + sizes - 1] >= self.fixed)
        groups = np.repeat(np.arange(len(sizes)), sizes)
        small, large = (np.repeat(asked & some, sizes) for some in (sizes <= SMALL, sizes > SMALL))
        self._compare(rows[small], groups[small])
        self._search(rows[large], groups[large], rest)

    def _search(self, rows: NDArray[np.int64], groups: NDArray[np.int64], rest: Rest) -> None:
        """Divide each large group in the first way that is worth it, and compare the rows of those that have none."""
        for keys in rest.ways(self.looks):
            if not len(rows):
                return
            worth = self._worth(rows, groups, keys)[groups]
            for key, left in keys:
                self.divide(rows[worth], groups[worth], key, left)
            rows, groups = rows[~worth], groups[~worth]
        self._compare(rows, groups)

    def _worth(
        self, rows: NDArray[np.int64], groups: NDArray[np.int64], keys: list[tuple[Key, Rest]]
    ) -> NDArray[np.bool_]:
        """Which groups have less than half of their pairs left if they are divided by some keys; bool [groups]."""
        before = np.bincount(groups).astype(np.float64) ** 2
        after = np.zeros(len(before))
        for key, _ in keys:
            order, starts, sizes = _together(key(rows), groups)
            after += np.bincount(groups[order[starts]], sizes.astype(np.float64) ** 2, len(before))
        worth: NDArray[np.bool_] = after < before / 2
        return worth

    def _compare(self, rows: NDArray[np.int64], groups: NDArray[np.int64]) -> None:
        """In each group keep the first row and drop those that look like it, then the first of what is left, ..."""
        while len(rows):
            first = np.diff(groups, prepend=-1) > 0
            leads = rows[first][np.cumsum(first) - 1]
            rows, leads, groups = rows[~first], leads[~first], groups[~first]
            if self.fixed:
                asked = np.nonzero((leads < self.fixed) & (rows >= self.fixed))[0]
                same = np.zeros(len(rows), dtype=np.bool_)
                same[asked] = self.looks.alike(leads[asked], rows[asked])
            else:
                same = self.looks.alike(leads, rows)
            self.repeats[rows[same]], self.alive[rows[same]] = leads[same], False
            rows, groups = rows[~same], groups[~same]


def _together(keys: NDArray[np.uint64], groups: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Rows of the same group and key side by side, otherwise in their order: int64 arrays.

    Returns the rows' places in that order [rows], where each new group starts in it, and its size [new groups].
    """
    values = keys + groups.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    order = np.argsort(values, kind="stable")
    values, groups = values[order], groups[order]
    new = np.ones(len(order), dtype=np.bool_)
    new[1:] = (values[1:] != values[:-1]) | (groups[1:] != groups[:-1])
    starts = np.nonzero(new)[0]
    return order, starts, np.diff(starts, append=len(order))
