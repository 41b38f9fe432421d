"""Pictures that are the same for the eye: a perceptual hash for their shapes, small mean colours beside it.

The hash is dHash of 256 bits (Krawetz 2013, "Kind of Like That"): whether each of 16 by 16 cells is brighter than the
one beside it. It outlives shrinking and compressing, of smooth pictures and drawings too, where pHash's fine
frequencies are noise (docs/log.md has both). But it is blind to colour, and a drawing on much white has few bits that
say anything. So two pictures count as one only if their mean
colours in a grid of 8 by 8 agree too.
"""

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
AT_ONCE = 1 << 20  # rows of a memory-mapped array looked at together
SMALL = 256  # rows that share a band; of so many all pairs are compared at once, of more one with all others


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

    def alike(self, ones: NDArray[np.int64] | int, others: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of some rows look like a row, or each like its own; bool [others]."""
        found = np.zeros(len(others), dtype=np.bool_)
        places = np.arange(len(others))
        bits = np.zeros(len(others), dtype=np.int64)
        for word in range(WORDS):  # most differ too much in the first quarter of their hashes
            of = ones if isinstance(ones, int) else ones[places]
            bits = bits + np.bitwise_count(self.hashes[others[places], word] ^ self.hashes[of, word])
            near = bits <= self.distance
            places, bits = places[near], bits[near]
        of = ones if isinstance(ones, int) else ones[places]
        found[places] = colours_agree(self.grids[others[places]], self.grids[of])
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
            rows, size, behind = self._groups(band, alive)
            small = size <= SMALL
            for one, other in self._pairs(rows[small], behind[small], fixed):
                if alive[one] and alive[other]:
                    repeats[other], alive[other] = one, False
            large, last = rows[~small], np.nonzero(behind[~small] == 0)[0]
            for group in np.split(large, last[:-1] + 1) if len(large) else ():
                self._compare(group, repeats, alive, fixed)
        for row in np.nonzero(repeats >= 0)[0]:  # the one that was repeated may have been dropped later
            while repeats[repeats[row]] >= 0:
                repeats[row] = repeats[repeats[row]]
        return repeats

    def _groups(self, band: int, alive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
        """Rows that are alive and share a band with others, group by group, in the order of preference.

        Returns the rows, the size of each one's group, and how many of the group stand behind it; int64 [rows].
        """
        rows = np.nonzero(alive)[0]
        values = self._band(band, rows)
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        starts = np.nonzero(np.concatenate([[True], values[1:] != values[:-1]])[: len(rows)])[0]
        sizes = np.diff(np.append(starts, len(rows)))
        size = np.repeat(sizes, sizes)
        behind = np.repeat(starts + sizes, sizes) - np.arange(len(rows)) - 1
        return rows[size > 1], size[size > 1], behind[size > 1]

    def _pairs(self, rows: NDArray[np.int64], behind: NDArray[np.int64], fixed: int) -> list[tuple[int, int]]:
        """Rows of small groups that look alike, two by two, the preferred ones first."""
        found = []
        step = 1
        places = np.nonzero(behind >= step)[0]
        while len(places):
            for start in range(0, len(places), AT_ONCE):
                part = places[start : start + AT_ONCE]
                ones, others = rows[part], rows[part + step]
                if fixed:
                    asked = (ones < fixed) & (others >= fixed)
                    ones, others = ones[asked], others[asked]
                same = self.alike(ones, others)
                found.append(np.stack([ones[same], others[same]], axis=1))
            step += 1
            places = places[behind[places] >= step]
        pairs = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
        return [(int(one), int(other)) for one, other in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]]

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
        """Drop rows of a large group that look like one before them; many copies of one picture cost one look each."""
        waiting = group
        while len(waiting) > 1 and (not fixed or waiting[0] < fixed):
            one, waiting = int(waiting[0]), waiting[1:]
            others = waiting[waiting >= fixed]
            same = others[self.alike(one, others)]
            repeats[same], alive[same] = one, False
            waiting = waiting[alive[waiting]]
