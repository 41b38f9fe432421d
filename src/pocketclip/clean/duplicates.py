"""Pictures that are the same for the eye: a perceptual hash for their shapes, small mean colours beside it.

The hash is dHash of 256 bits (Krawetz 2013, "Kind of Like That"): whether each of 16 by 16 cells is brighter than the
one beside it. It outlives shrinking and compressing, of smooth pictures and drawings too, where pHash's fine
frequencies are noise (docs/log.md has both). But it is blind to colour, and a drawing on much white has few bits that
say anything. So two pictures count as one only if their mean
colours in a grid of 8 by 8 agree too.
"""

from collections.abc import Iterator
from dataclasses import dataclass

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
AT_ONCE = 1 << 22  # rows of a memory-mapped array looked at together


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
    off = np.abs(grids.astype(np.int16) - grid.astype(np.int16))
    agree: NDArray[np.bool_] = (off.mean(axis=-1) <= MEAN_COLOURS) & (off.max(axis=-1) <= WORST_COLOUR)
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

    def alike(self, one: int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows look like a row; bool [others]."""
        bits = np.bitwise_count(self.hashes[others] ^ self.hashes[one]).sum(axis=1)
        near = np.nonzero(bits <= self.distance)[0]
        found = np.zeros(len(others), dtype=np.bool_)
        found[near] = colours_agree(self.grids[others[near]], self.grids[one])
        return found

    def duplicates(self, alive: NDArray[np.bool_], fixed: int = 0) -> NDArray[np.int64]:
        """For each row the row that it repeats, -1 if it repeats none; int64 [rows].

        alive: bool [rows]; rows that take part. fixed: so many first rows are only compared with: if there are any,
        rows are sought that look like one of them, and no others.
        No two rows that are left look alike (up to `fixed`); a row that was dropped looks like the one it is said to
        repeat, or like one that repeats it in its turn.

        Where two hashes differ in at most d bits and are cut into d + 1 bands, one band is equal (the pigeonhole
        principle), so only rows that share a band are compared.
        """
        repeats = np.full(len(alive), -1, dtype=np.int64)
        alive = alive.copy()
        for band in range(self.distance + 1):
            for group in self._groups(band, alive):
                self._compare(group, repeats, alive, fixed)
        for row in np.nonzero(repeats >= 0)[0]:  # the one that was repeated may have been dropped later
            while repeats[repeats[row]] >= 0:
                repeats[row] = repeats[repeats[row]]
        return repeats

    def _groups(self, band: int, alive: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
        """Rows that are alive and share a band, in the order of preference."""
        rows = np.nonzero(alive)[0]
        values = self._band(band, rows)
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        starts = np.nonzero(np.concatenate([[True], values[1:] != values[:-1]]))[0]
        for start, stop in zip(starts, np.append(starts[1:], len(rows)), strict=True) if len(rows) else ():
            if stop - start > 1:
                yield rows[start:stop]

    def _band(self, band: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The bits of one band, at most 64 of them as they are: int [rows]."""
        first, last = (BITS * edge // (self.distance + 1) for edge in (band, band + 1))
        values = np.zeros(len(rows), dtype=np.uint64)
        for start in range(0, len(rows), AT_ONCE):
            part = self.hashes[rows[start : start + AT_ONCE]]
            mixed = np.zeros(len(part), dtype=np.uint64)
            for word in range(first // 64, -(-last // 64)):
                low, high = max(first - 64 * word, 0), min(last - 64 * word, 64)
                mask = np.uint64(((1 << (high - low)) - 1) << low)
                # Odd multipliers keep different bands different but for rare accidents, which only cost a comparison.
                mixed = (mixed * np.uint64(0x9E3779B97F4A7C15)) ^ (part[:, word] & mask)
            values[start : start + AT_ONCE] = mixed
        return values

    def _compare(
        self, group: NDArray[np.int64], repeats: NDArray[np.int64], alive: NDArray[np.bool_], fixed: int
    ) -> None:
        """Drop rows of a group that look like one before them."""
        waiting = group
        while len(waiting) > 1 and (not fixed or waiting[0] < fixed):
            one, waiting = int(waiting[0]), waiting[1:]
            others = waiting[waiting >= fixed]
            same = others[self.alike(one, others)]
            repeats[same], alive[same] = one, False
            waiting = waiting[alive[waiting]]
