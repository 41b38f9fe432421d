"""What a killed process leaves is read back to its last whole row, wherever it was cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.data.outcomes import FETCHED, Outcome, join_outcomes, read_outcomes, write_outcomes
from pocketclip.data.spool import Spool
from pocketclip.errors import DataError


def outcome(row: int, fetched: bool = True) -> Outcome:
    if fetched:
        return Outcome(row, f"key{row}", f"http://host/{row}", "host", FETCHED, False, 200, 1, 300 * row)
    return Outcome(row, f"key{row}", f"http://höst/{row}\n\0", "höst", "HTTP 404", True, 404, 3)


def fill(path, sizes):
    """A spool of rows with images of these sizes (None: none), rows in no order; where it ends after each row."""
    numbers = list(range(10, 10 + len(sizes)))
    random.Random(0).shuffle(numbers)
    rows, ends = {}, []
    with Spool(path) as spool:
        for number, size in zip(numbers, sizes, strict=True):
            image = None if size is None else random.Random(number).randbytes(size)
            spool.add(outcome(number, image is not None), image, "png")
            rows[number] = image
            ends.append(path.stat().st_size)
    return rows, ends


def check(spool, rows):
    assert spool.outcomes == {row: outcome(row, image is not None) for row, image in rows.items()}
    for row, image in rows.items():
        assert spool.image(row) == (None if image is None else (image, "png"))


@given(st.lists(st.none() | st.integers(0, 3000), max_size=8))
@settings(max_examples=30, deadline=None)
def test_rows_come_back(tmp_path_factory, sizes):
    path = tmp_path_factory.mktemp("spool") / "deeper" / "rows.spool"
    rows, _ = fill(path, sizes)
    for _ in range(2):
        with Spool(path) as spool:
            check(spool, rows)
    assert Spool(path).image(99) is None


def test_cut_at_every_byte_whole_rows_remain_and_it_goes_on(tmp_path):
    whole = tmp_path / "whole"
    rows, ends = fill(whole, [70, None])
    content = whole.read_bytes()
    assert ends[-1] == len(content)
    cut = tmp_path / "cut"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with Spool(cut) as spool:
            # Rows whose last bytes are only padding count as whole: nothing of them is missing.
            least = sum(end <= length for end in ends)
            assert least <= len(spool.outcomes) <= least + 1
            kept = dict(list(rows.items())[: len(spool.outcomes)])
            check(spool, kept)
            spool.add(outcome(99), b"new", "png")
            check(spool, kept | {99: b"new"})
        if length % 64 == 0:
            with Spool(cut) as spool:
                check(spool, kept | {99: b"new"})


@pytest.mark.parametrize("tail", [bytes(512), bytes(5000), b"\xff" * 512, b"garbage", b"[]" * 400])
def test_what_else_stands_at_the_end_is_dropped(tmp_path, tail):
    """As a machine that lost its power may leave it."""
    path = tmp_path / "rows.spool"
    rows, _ = fill(path, [700, None])
    with path.open("ab") as file:
        file.write(tail)
    with Spool(path) as spool:
        check(spool, rows)
        spool.add(outcome(99), b"new", "png")
    with Spool(path) as spool:
        check(spool, rows | {99: b"new"})


@given(st.binary(max_size=3000))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_an_empty_spool(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("spool") / "rows.spool"
    path.write_bytes(content)
    with Spool(path) as spool:
        assert not spool.outcomes
        spool.add(outcome(1), b"new", "png")
    with Spool(path) as spool:
        check(spool, {1: b"new"})


def test_a_file_that_shrinks_under_way_is_an_error_and_no_wrong_image(tmp_path):
    path = tmp_path / "rows.spool"
    fill(path, [700])
    with Spool(path) as spool:
        path.write_bytes(b"")
        with pytest.raises(DataError, match=r"rows\.spool: damaged"):
            spool.image(10)


def test_outcomes_come_back_and_are_joined_and_counted(tmp_path):
    parts = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    first = [outcome(0), outcome(1, False), Outcome(2, "k", "", "", "invalid URL", attempts=30_000)]
    write_outcomes(first, parts[0])
    write_outcomes([outcome(3, False)], parts[1])
    assert read_outcomes(parts[0]) == first
    reasons, hosts = join_outcomes(parts, tmp_path / "all.parquet")
    assert reasons == {FETCHED: 1, "HTTP 404": 2, "invalid URL": 1}
    assert hosts == {("höst", "HTTP 404"): 2, ("", "invalid URL"): 1}
    assert read_outcomes(tmp_path / "all.parquet") == [*first, outcome(3, False)]


def test_damaged_outcomes_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    write_outcomes([outcome(0)], path)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-1], b"PAR1" + content[9:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.parquet: damaged"):
            read_outcomes(path)
        with pytest.raises(DataError, match=r"a\.parquet: damaged"):
            join_outcomes([path], tmp_path / "all.parquet")
    pq.write_table(pa.table({"row": [1], "key": ["x"]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: damaged"):
        read_outcomes(path)
    with pytest.raises(DataError, match=r"b\.parquet: damaged"):
        read_outcomes(tmp_path / "b.parquet")
    assert not (tmp_path / "all.parquet").exists()
