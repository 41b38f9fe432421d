"""The blocks of a bzip2 file, each of which can be decompressed alone, so that all cores share one stream.

A block begins at any bit with a number of 48 bits and ends where the next one, or the stream's end with a number of
its own, begins; bzip2recover finds them in the same way. Within a block such a number comes up by chance once in
2^48 bits; the block would then be called damaged, as its checksum is compared.
"""

import bz2
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MARKS = BLOCK, END = 0x314159265359, 0x177245385090  # digits of pi and of its square root
MARK_BITS, CHECKSUM_BITS = 48, 32
WINDOW = 1 << 18  # bytes that are searched for all marks before those found are given out


class Block(NamedTuple):
    """Where a block begins and ends in its file, bits."""

    start: int
    end: int


def find_blocks(path: Path, start: int = 0) -> Iterator[Block]:
    """The blocks of a file of one or many streams, those from byte `start` on.

    Raises EOFError where the file ends within a block, OSError where it cannot be read.
    """
    begun: int | None = None
    with path.open("rb") as file:
        for place, mark in _marks(file, start):
            if begun is not None:
                yield Block(begun, place)
            begun = place if mark == BLOCK else None
    if begun is not None:
        raise EOFError("a block without an end")


def _marks(file: BinaryIO, start: int) -> Iterator[tuple[int, int]]:
    """(bit, BLOCK or END), in order, of the marks that begin in byte `start` or behind it.

    Of a mark's six or seven bytes the five inner ones are the same wherever in a byte it begins, but for a shift.
    """
    inner = {(mark >> shift & 0xFF_FFFF_FFFF).to_bytes(5, "big"): (mark, shift) for mark in MARKS for shift in range(8)}
    file.seek(start)
    window = file.read(WINDOW)
    while window:
        ahead = file.read(WINDOW)
        searched = window + ahead[:6]
        found = []
        for needle, (mark, shift) in inner.items():
            place = searched.find(needle, 1)
            while 0 <= place <= len(window):
                around = int.from_bytes(searched[place - 1 : place + 6].ljust(7, b"\0"), "big")
                if around >> 8 - shift & (1 << MARK_BITS) - 1 == mark:
                    found.append((8 * (start + place - 1) + shift, mark))
                place = searched.find(needle, place + 1)
        yield from sorted(found)
        start += len(window)
        window = ahead


def read_block(path: Path, block: Block) -> bytes:
    """What a block holds, decompressed, at most 900 kB.

    Raises OSError or ValueError where it is damaged, OSError where the file cannot be read.
    """
    first, last = block.start // 8, -(-block.end // 8)
    with path.open("rb") as file:
        file.seek(first)
        bits = int.from_bytes(file.read(last - first), "big")
    size = block.end - block.start
    bits = bits >> (-block.end % 8) & (1 << size) - 1
    if size < MARK_BITS + CHECKSUM_BITS:
        raise ValueError("a block without a checksum")
    # A stream of this block alone: its checksum is the block's.
    checksum = bits >> size - MARK_BITS - CHECKSUM_BITS & (1 << CHECKSUM_BITS) - 1
    bits = (bits << MARK_BITS | END) << CHECKSUM_BITS | checksum
    size += MARK_BITS + CHECKSUM_BITS
    return bz2.decompress(b"BZh9" + (bits << -size % 8).to_bytes(-(-size // 8), "big"))
