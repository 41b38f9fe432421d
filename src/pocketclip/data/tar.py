"""Tar members as bytes: what `tarfile` makes, whose own way of writing takes longer than all other work on a row."""

import tarfile

BLOCK = tarfile.BLOCKSIZE
MOST = 8 << 30  # bytes; larger files have another kind of header
EMPTY = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # the header of a file without a name and without content
# The sum of its bytes but for the size; the sum itself counts as eight spaces.
EMPTY_SUM = sum(EMPTY[:124] + EMPTY[136:148] + EMPTY[156:]) + 8 * ord(" ")


def header(name: str, size: int) -> bytes:
    """What stands before a file's content; one block but for names that are long or not ASCII.

    name: inside the tar. size: of the content, bytes.
    """
    if not name.isascii() or len(name) > 100 or size >= MOST:
        info = tarfile.TarInfo(name)
        info.size = size
        return info.tobuf(tarfile.PAX_FORMAT)
    named, sized = name.encode(), b"%011o\0" % size
    total = b"%06o\0 " % (EMPTY_SUM + sum(named) + sum(sized))
    return b"".join((named.ljust(100, b"\0"), EMPTY[100:124], sized, EMPTY[136:148], total, EMPTY[156:]))


def member(name: str, content: bytes) -> bytes:
    """One file of a tar, padded to whole blocks."""
    return b"".join((header(name, len(content)), content, bytes(-len(content) % BLOCK)))


def end(size: int) -> bytes:
    """What ends a tar whose members take `size` bytes: two empty blocks, and more up to a whole record."""
    return bytes(2 * BLOCK + -(size + 2 * BLOCK) % tarfile.RECORDSIZE)
