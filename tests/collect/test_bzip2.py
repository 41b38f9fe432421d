import bz2
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.collect import bzip2
from pocketclip.collect.bzip2 import find_blocks, read_block


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def whole(path: Path) -> bytes:
    return b"".join(read_block(path, block) for block in find_blocks(path))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bzip2") / "file.bz2"


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 9)), max_size=4))
def test_blocks_of_any_streams_together_are_what_was_compressed(path: Path, streams: list[tuple[bytes, int]]) -> None:
    path.write_bytes(b"".join(bz2.compress(data, level) for data, level in streams))
    assert whole(path) == b"".join(data for data, _ in streams)


@pytest.mark.parametrize("window", [7, 100, 1000, bzip2.WINDOW])
def test_a_stream_of_many_blocks(path: Path, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks lie across the ends of windows, at every shift."""
    monkeypatch.setattr(bzip2, "WINDOW", window)
    data = b"".join(bytes([65 + n % 20]) * (n % 300) + noise(10, n) for n in range(9000))
    path.write_bytes(bz2.compress(data, 1) + bz2.compress(data[::-1], 1))
    blocks = list(find_blocks(path))
    assert len(blocks) > 2 * len(data) // 1_000_000
    assert whole(path) == data + data[::-1]
    third = blocks[3]
    assert list(find_blocks(path, third.start // 8)) == blocks[3:]


def test_a_file_that_ends_within_a_block_or_is_damaged_is_named(path: Path) -> None:
    data = bytearray(bz2.compress(noise(250_000, 0), 1))
    path.write_bytes(data[:-20])
    with pytest.raises(EOFError):
        list(find_blocks(path))
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    blocks = list(find_blocks(path))
    assert len(blocks) == 3
    read_block(path, blocks[0])
    with pytest.raises((OSError, ValueError)):
        read_block(path, blocks[1])
