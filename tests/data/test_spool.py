"""What a killed process leaves is read back to its last whole row, wherever it was cut."""

import io
import json
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pocketclip.data import spool as module
from pocketclip.data.outcomes import FETCHED, Outcome, join_outcomes, read_outcomes, write_outcomes
from pocketclip.data.spool import Spool, Tally, count_path, read_count
from pocketclip.errors import DataError
from pocketclip.progress import WorkProgress


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


def test_a_spool_says_how_many_rows_it_holds(tmp_path, monkeypatch):
    path = tmp_path / "rows.spool"
    fill(path, [70, None, 8])
    assert read_count(count_path(path)) == {FETCHED: 2, "HTTP 404": 1}
    with Spool(path) as spool:  # as another process would after a kill
        spool.add(outcome(50, fetched=False), None)
        assert read_count(count_path(path))["HTTP 404"] == 1, "not for each row"
        monkeypatch.setattr(module, "SAID_EVERY", 0)
        spool.add(outcome(51, fetched=False), None)
        assert read_count(count_path(path)) == {FETCHED: 2, "HTTP 404": 3}
    count_path(path).write_text("{")
    assert read_count(count_path(path)) == Counter()
    assert read_count(tmp_path / "none.count") == Counter()


def test_progress_moves_inside_of_shards_and_never_back(tmp_path):
    """Two shards of 100 rows, 300 others were done before. One had 10 rows when it was killed, one is tried anew."""
    one, two = tmp_path / ".a.spool", tmp_path / ".b.spool"
    one.touch()
    count_path(one).write_text(json.dumps({FETCHED: 10}))
    count_path(two).write_text(json.dumps({FETCHED: 100}))
    output = io.StringIO()
    console = Console(file=output, width=300)
    tally = Tally({one: 100, two: 100}, 500)
    seen = [tally.rows]
    with WorkProgress(console, "fetch", "rows", 500, tally.rows) as progress:

        def look():
            tally.show(progress)
            seen.append(tally.rows)
            assert progress.done == tally.rows

        count_path(one).write_text(json.dumps({FETCHED: 30, "HTTP 404": 2, "timed out": 3}))
        look()
        count_path(two).write_text(json.dumps({FETCHED: 40}))
        look()
        count_path(one).write_text("{")  # just being written
        look()
        count_path(two).write_text(json.dumps({FETCHED: 30}))  # the machine was lost, and some rows with it
        look()
        tally.finish(two, Counter({FETCHED: 99, "HTTP 404": 1}))
        progress._said -= 60
        look()
        tally.finish(one, Counter({FETCHED: 90, "HTTP 404": 10}))
        look()
    assert seen == [310, 335, 375, 375, 375, 435, 500]
    assert "435 of 500 rows" in output.getvalue()
    assert "129 images  HTTP 404 3, timed out 3" in output.getvalue()
    assert "s left" in output.getvalue()


def test_progress_is_shown_from_time_to_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_EVERY", 0.01)
    path = tmp_path / ".a.spool"
    tally = Tally({path: 100}, 100)
    with WorkProgress(Console(quiet=True), "fetch", "rows", 100) as progress, tally.shown(progress):
        with Spool(path) as spool:
            spool.add(outcome(0), b"image", "png")
        end = time.monotonic() + 10
        while progress.done != 1 and time.monotonic() < end:
            time.sleep(0.005)
        assert progress.done == 1
        tally.finish(path, Counter({FETCHED: 100}))
    assert progress.done == 100


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
