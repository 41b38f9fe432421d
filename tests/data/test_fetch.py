"""A table of rows over real HTTP to shards: every reason, any number of kills, always the same bytes."""

import asyncio
import gzip
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from filelock import FileLock
from PIL import Image
from test_download import Host, bomb, broken, endless, gives, leads, picture, settings, slow

from pocketclip.data.download import DEAD_AFTER
from pocketclip.data.fetch import Job, fetch, fetch_shard
from pocketclip.data.outcomes import FETCHED, read_outcomes
from pocketclip.data.shards import Split, read_manifest
from pocketclip.data.spool import Spool
from pocketclip.engine import open_engine
from pocketclip.errors import DataError
from pocketclip.progress import WorkProgress


class Here:
    """An engine that does the work in this process."""

    def map(self, function, pieces, inflight=None):  # noqa: ARG002
        return map(function, pieces)


def table(path, urls, **columns):
    """A table as `join` writes it, a row an address."""
    number = len(urls)
    values = {
        "key": pa.array([f"{n:016x}" for n in range(number)], pa.string()),
        "url": pa.array(urls, pa.string()),
        "captions": pa.array([[f"caption {n}", "ünïcode"] for n in range(number)], pa.list_(pa.string())),
        "queries": pa.array([["dog"]] * number, pa.list_(pa.string())),
        "provider": pa.array(["test"] * number),
        "author": pa.array([None if n % 2 else f"Ann {n}" for n in range(number)], pa.string()),
        "width": pa.array([40] * number, pa.int32()),
    }
    pq.write_table(pa.table(values | columns), path, row_group_size=4)
    return path


def run(rows, folder, console, again=False, side=32, engine=None, **values):
    return fetch(rows, folder, side, settings(**values), engine or Here(), console, again)


def reasons_of(folder):
    return [one.outcome for one in read_outcomes(folder / "outcomes.parquet")]


def tars(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def litter(folder):
    return [path.name for path in folder.rglob(".*")]


def each(number):
    """Handlers of that many small pictures, told apart by their colour."""
    return {f"{n}.png": gives(picture(colour=f"#{n:02x}{(n * 7) % 256:02x}80")) for n in range(number)}


def sometimes(content, bad):
    """A good answer, or 503 where the set `bad` has the path."""

    async def answer(request):
        return web.Response(status=503) if request.path in bad else web.Response(body=content)

    return answer


JPEG = picture(300, 200, "JPEG")
TRUTH = {
    "good.png": (gives(picture()), FETCHED),
    "named.html": (gives(picture(), "text/html"), FETCHED),
    "good.webp": (gives(picture(kind="WEBP")), FETCHED),
    "moved": (leads("/good.png"), FETCHED),
    "page.jpg": (gives(b"<html><body>gone</body></html>", "image/jpeg"), "no JPEG, PNG or WebP"),
    "text.png": (gives(b"hello"), "no JPEG, PNG or WebP"),
    "empty.png": (gives(b""), "no JPEG, PNG or WebP"),
    "moving.gif": (gives(picture(kind="GIF")), "no JPEG, PNG or WebP"),
    "cut.jpg": (gives(JPEG[: len(JPEG) // 2]), "damaged image"),
    "bomb.png": (gives(bomb()), "more than 50000000 pixels"),
    "strip.png": (gives(picture(34, 75_000)), "more than 65500 pixels long"),
    "packed.png": (gives(gzip.compress(picture()), Content_Encoding="gzip"), "no JPEG, PNG or WebP"),
    "missing.png": (gives(b"", status=404), "HTTP 404"),
    "error.png": (gives(b"", status=500), "HTTP 500"),
    "slow.png": (slow, "timed out"),
    "broken.png": (broken, "connection broken"),
    "loop": (leads("/loop"), "too many redirects"),
    "endless.png": (endless, "more than 200000 bytes"),
    "private": (leads("http://10.0.0.1/a.png"), "private address"),
    "noai.png": (gives(picture(), X_Robots_Tag="otherbot: all, *: noai"), "opted out"),
}


def test_every_outcome_has_its_reason(tmp_path, console, monkeypatch):
    monkeypatch.setattr("pocketclip.data.download.is_public", lambda address: address == "127.0.0.1")
    with socket.socket() as free, Host({name: answer for name, (answer, _) in TRUTH.items()}) as server:
        free.bind(("127.0.0.1", 0))
        truth = [(f"{server.url}/{name}", reason) for name, (_, reason) in TRUTH.items()]
        truth += [
            (f"http://127.0.0.1:{free.getsockname()[1]}/a.png", "cannot connect"),
            ("http://[", "invalid URL"),
            ("nothing", "invalid URL"),
            (None, "invalid URL"),
            ("http://[::1]/a.png", "private address"),
        ]
        random.Random(1).shuffle(truth)
        rows = table(tmp_path / "rows.parquet", [url for url, _ in truth])
        found = run(
            rows, tmp_path / "data", console, allow_private=False, most_bytes=200_000, rows_per_shard=7, timeout=1
        )
    outcomes = read_outcomes(tmp_path / "data" / "outcomes.parquet")
    assert [(one.url, one.outcome) for one in outcomes] == [(url or "", reason) for url, reason in truth]
    assert [one.row for one in outcomes] == list(range(len(truth)))
    assert found.reasons == Counter(reason for _, reason in truth)
    assert found.hosts.total() == sum(reason != FETCHED for _, reason in truth)
    assert found.hosts[f"127.0.0.1:{server.port}", "opted out"] == 1
    assert {one.host for one in outcomes if one.outcome == "invalid URL"} == {""}
    by_reason = {one.outcome: one for one in outcomes}
    assert (by_reason["HTTP 500"].attempts, by_reason["HTTP 404"].attempts) == (2, 1)
    assert server.asked["/error.png"] == 2
    assert by_reason["damaged image"].bytes == len(JPEG) // 2
    manifest = read_manifest(tmp_path / "data")
    assert manifest["rows"] == {"train": 4}
    assert manifest["outcomes"] == dict(found.reasons)
    assert len(Split(tmp_path / "data", "train")) == 4
    assert not litter(tmp_path / "data")


def test_shards_hold_what_the_table_says_in_its_order(tmp_path, console):
    large, wide, small = picture(400, 300, "JPEG"), picture(500, 80), picture(40, 32, "WEBP")
    handlers = {"large": gives(large), "wide": gives(wide), "small": gives(small)}
    with Host(handlers) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/{n}" for n in ("small", "gone", "wide", "large")] * 3)
        run(rows, tmp_path / "data", console, side=64, rows_per_shard=5)
    split, wanted = Split(tmp_path / "data", "train"), pq.read_table(rows).to_pylist()
    wanted = [row for row in wanted if not row["url"].endswith("gone")]
    assert len(split) == len(wanted) == 9
    assert sorted(tars(tmp_path / "data")) == [f"train-0000{n}.tar" for n in range(3)]
    for number, row in enumerate(wanted):
        assert (split.key(number), split.captions(number)) == (row["key"], row["captions"])
        facts = {name: row[name] for name in ("url", "queries", "provider", "author") if row[name]}
        assert split.metadata(number) == {"captions": row["captions"], **facts}
        name = row["url"].rpartition("/")[2]
        size = {"small": (40, 32), "wide": (400, 64), "large": (85, 64)}[name]
        with Image.open(io.BytesIO(split.image(number))) as image:
            assert (image.size, image.format) == (size, "WEBP" if name == "small" else "JPEG")
        if name == "small":
            assert split.image(number) == small


def test_rows_without_a_caption_or_a_usable_key_are_counted_and_not_asked_for(tmp_path, console):
    keys = ["../../etc/passwd", "/etc/passwd", "", None, "a/b", "..", "a\0b", "same", "same", "x" * 300, "ok.1", "bare"]
    captions = [["words"]] * 10 + [[], [" ", None]]
    queries = [["dog"]] * 10 + [["a query"], None]
    texts = pa.list_(pa.string())
    columns = {"key": pa.array(keys), "captions": pa.array(captions, texts), "queries": pa.array(queries, texts)}
    with Host({"a.png": gives(picture())}) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/a.png"] * 12, **columns)
        run(rows, tmp_path / "data", console)
        assert server.asked == {"/a.png": 2}
    none = "key names no file"
    expected = [none] * 7 + [FETCHED, "key of another row", none, FETCHED, "no caption"]
    assert reasons_of(tmp_path / "data") == expected
    split = Split(tmp_path / "data", "train")
    assert [(split.key(n), split.captions(n)) for n in range(2)] == [("same", ["words"]), ("ok.1", ["a query"])]


def test_two_fetches_are_byte_identical_and_a_third_asks_nothing(tmp_path, console):
    with Host(each(30)) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/{n}.png" for n in range(30)])
        run(rows, tmp_path / "one", console, rows_per_shard=8)
        with open_engine("local", 2) as engine:
            run(rows, tmp_path / "two", console, engine=engine, rows_per_shard=8)
        assert len(tars(tmp_path / "one")) == 4
        assert tars(tmp_path / "one") == tars(tmp_path / "two")
        asked = server.asked.total()
        assert asked == 60
        run(rows, tmp_path / "one", console, rows_per_shard=8)
        run(rows, tmp_path / "one", console, rows_per_shard=8, again=True)
        assert server.asked.total() == asked
        (tmp_path / "one" / "train-00001.tar").unlink()
        run(rows, tmp_path / "one", console, rows_per_shard=8)
        assert server.asked.total() == asked + 8, "only the shard that somebody deleted"
    assert tars(tmp_path / "one") == tars(tmp_path / "two")


CHILD = """
import sys
from pathlib import Path
from rich.console import Console
from pocketclip.data.fetch import fetch
from pocketclip.engine import open_engine
from pocketclip.recipe.collecting import FetchSettings

if __name__ == "__main__":
    rows, folder, again = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "again"
    settings = FetchSettings(allow_private=True, timeout=5, retries=0, rows_per_shard=20, connections_per_host=4)
    with open_engine("local", 2) as engine:
        fetch(rows, folder, 32, settings, engine, Console(quiet=True), again)
"""


def finished(folder):
    """The keys of rows that a killed fetch has finished: in a spool, or in a shard with outcomes."""
    rows = set()
    for spool in folder.glob("outcomes/.*.spool"):
        copy = folder.parent / "copy.spool"
        copy.write_bytes(spool.read_bytes())
        with Spool(copy) as opened:
            rows |= {one.url for one in opened.outcomes.values()}
    for part in folder.glob("outcomes/*.parquet"):
        rows |= {one.url for one in read_outcomes(part)}
    return rows


def kill_at(server, script, rows, folder, requests, again=""):
    """Start a fetch, kill -9 it after so many more requests, and see its workers end."""
    before = server.asked.total()
    child = subprocess.Popen([sys.executable, script, rows, folder, again])
    while server.asked.total() - before < requests and child.poll() is None:
        time.sleep(0.002)
    workers = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.send_signal(signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    alive = [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert not alive, "workers outlived their parent"
    return child.returncode


def test_killed_at_random_it_goes_on_to_the_same_bytes_and_asks_no_finished_row_again(tmp_path, console):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    pictures = each(120)

    async def lag(request):
        await asyncio.sleep(0.02)
        return await pictures[request.path.split("/")[2]](request)

    with Host({"lag": lag}) as server:
        urls = [f"{server.url}/lag/{n}.png" for n in range(119)] + [f"{server.url}/gone.png"]
        rows = table(tmp_path / "rows.parquet", urls)
        folder = tmp_path / "killed"
        killed = 0
        for requests in random.Random(os.urandom(4)).choices(range(5, 30), k=3):
            killed += kill_at(server, script, rows, folder, requests) == -signal.SIGKILL
            for path in folder.glob("*.tar"):
                with tarfile.open(path) as tar:
                    assert tar.getmembers(), "only whole shards"
            done, before = finished(folder), server.asked.copy()
            if killed == 3:
                break
        assert killed == 3
        assert done
        run(rows, folder, console, retries=0, rows_per_shard=20)
        asked_again = server.asked - before
        assert not {f"{server.url}{path}" for path in asked_again} & done
        assert set(server.asked) == {url.removeprefix(server.url) for url in urls}
        run(rows, tmp_path / "calm", console, retries=0, rows_per_shard=20)
    assert tars(folder) == tars(tmp_path / "calm")
    assert reasons_of(folder) == reasons_of(tmp_path / "calm") == [FETCHED] * 119 + ["HTTP 404"]
    assert not litter(folder)


class Killed(BaseException):
    """Stands for kill -9 at one exact place: nothing behind it runs, but for what `with` closes."""


@pytest.mark.parametrize("place", ["write_shard", "_save_index", "write_outcomes", "end"])
@pytest.mark.parametrize("again_after", [False, True])
def test_killed_at_the_worst_moments_of_a_second_try(tmp_path, console, monkeypatch, place, again_after):
    """The tar is new and its index or its outcomes are old; nothing is lost, nothing asked again."""
    from pocketclip.data import fetch as module
    from pocketclip.data import shards

    bad = {"/some/3", "/some/5"}
    with Host({"some": sometimes(picture(), bad)}) as server:
        urls = [f"{server.url}/some/{n}" for n in range(8)]
        rows = table(tmp_path / "rows.parquet", urls)
        run(rows, tmp_path / "data", console, retries=0)
        bad.clear()

        def killed(*_, **__):
            raise Killed

        with monkeypatch.context() as patch:
            if place == "end":
                patch.setattr("pathlib.Path.unlink", killed)
            else:
                patch.setattr(shards if place == "_save_index" else module, place, killed)
            with pytest.raises(Killed):
                run(rows, tmp_path / "data", console, retries=0, again=True)
        asked = server.asked.total()
        assert asked == 10
        found = run(rows, tmp_path / "data", console, retries=0, again=again_after)
        assert server.asked.total() == asked
        assert found.reasons == {FETCHED: 8}
        run(rows, tmp_path / "calm", console, retries=0)
    assert tars(tmp_path / "data") == tars(tmp_path / "calm")
    assert len(Split(tmp_path / "data", "train")) == 8
    assert not litter(tmp_path / "data")


def test_again_tries_what_may_pass_and_merges_it_in_order(tmp_path, console):
    bad = {"/some/1", "/some/5", "/some/11"}
    with Host({"some": sometimes(picture(), bad)}) as server:
        urls = [f"{server.url}/some/{n}" for n in range(12)] + [f"{server.url}/gone"]
        rows = table(tmp_path / "rows.parquet", urls)
        folder = tmp_path / "data"
        run(rows, folder, console, retries=0, rows_per_shard=5)
        assert Counter(reasons_of(folder)) == {FETCHED: 9, "HTTP 503": 3, "HTTP 404": 1}
        bad -= {"/some/1", "/some/11"}
        run(rows, folder, console, retries=0, rows_per_shard=5)
        assert server.asked.total() == 13, "not asked to try again"
        run(rows, folder, console, retries=0, rows_per_shard=5, again=True)
        assert server.asked - Counter(dict.fromkeys(server.asked, 1)) == {f"/some/{n}": 1 for n in (1, 5, 11)}
        assert Counter(reasons_of(folder)) == {FETCHED: 11, "HTTP 503": 1, "HTTP 404": 1}
        bad.clear()
        found = run(rows, folder, console, retries=0, rows_per_shard=5, again=True)
        assert found.reasons == {FETCHED: 12, "HTTP 404": 1}
        assert server.asked["/gone"] == 1
        run(rows, tmp_path / "calm", console, retries=0, rows_per_shard=5)
    assert tars(folder) == tars(tmp_path / "calm")
    assert reasons_of(folder) == reasons_of(tmp_path / "calm")
    assert len(Split(folder, "train")) == 12


def test_a_shard_that_an_engine_does_twice_asks_nothing_the_second_time(tmp_path, console):
    """As Ray does where a machine is lost between the last byte and the answer."""

    class Twice:
        def map(self, function, pieces, inflight=None):  # noqa: ARG002
            for piece in pieces:
                first = function(piece)
                assert function(piece) == first
                yield first

    with Host({"some": sometimes(picture(), {"/some/1"})}) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/some/{n}" for n in range(3)])
        run(rows, tmp_path / "data", console, engine=Twice(), retries=0)
        assert server.asked == {f"/some/{n}": 1 for n in range(3)}


def test_what_killed_processes_had_half_written_is_removed(tmp_path, console):
    (tmp_path / "data" / "outcomes").mkdir(parents=True)
    for name in ("train-00000.tar", "train-00000.index.npz", "outcomes/.train-00000.parquet", "manifest.json"):
        path = tmp_path / "data" / (name if "/" in name else f".{name}")
        path.with_name(f"{path.name}.99999.part").write_bytes(b"half")
    run(table(tmp_path / "rows.parquet", ["nothing"]), tmp_path / "data", console)
    assert not litter(tmp_path / "data")


def test_a_slow_host_holds_up_no_other_and_limits_are_kept(tmp_path, console):
    """The slow host answers only when all rows of the other have been asked for."""
    quick_asked = asyncio.Event()
    count = Counter()

    async def quick(_):
        count["quick"] += 1
        await asyncio.sleep(0.005)
        if count["quick"] == 40:
            quick_asked.set()
        return web.Response(body=picture())

    async def waiting(_):
        await quick_asked.wait()
        return web.Response(body=picture())

    with Host({"quick": quick, "slow": waiting}) as server:
        slow_urls = [f"http://localhost:{server.port}/slow/{n}" for n in range(20)]
        quick_urls = [f"{server.url}/quick/{n}" for n in range(40)]
        rows = table(tmp_path / "rows.parquet", slow_urls + quick_urls)
        run(rows, tmp_path / "data", console, connections=6, connections_per_host=3, timeout=20, retries=0)
        assert reasons_of(tmp_path / "data") == [FETCHED] * 60
        split = Split(tmp_path / "data", "train")
        assert [split.key(n) for n in range(60)] == [f"{n:016x}" for n in range(60)], "not as they were finished"
        assert server.most[f"localhost:{server.port}"] == server.most[f"127.0.0.1:{server.port}"] == 3
        assert server.most["all"] <= 6
        run(rows, tmp_path / "few", console, connections=2, connections_per_host=30, retries=0)
        server.most.clear()
        run(rows, tmp_path / "fewer", console, connections=2, connections_per_host=30, retries=0)
        assert server.most["all"] == 2


def test_progress_moves_with_the_rows_of_a_shard(tmp_path, console, monkeypatch):
    monkeypatch.setattr("pocketclip.data.spool.SAID_EVERY", 0)
    monkeypatch.setattr("pocketclip.data.spool.LOOK_EVERY", 0.005)
    moves = []
    advance = WorkProgress.advance
    monkeypatch.setattr(WorkProgress, "advance", lambda *values: (moves.append(values[1]), advance(*values)))

    async def lag(_):
        await asyncio.sleep(0.02)
        return web.Response(body=picture())

    with Host({"lag": lag}) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/lag/{n}" for n in range(20)] + ["nothing"])
        run(rows, tmp_path / "data", console, connections=2)
    assert sum(moves) == 21
    assert min(moves) == 0 < max(moves) < 21, "all at once, at the end"
    assert not litter(tmp_path / "data")


def test_a_host_behind_redirects_has_its_limit_too(tmp_path, console):
    async def target(_):
        await asyncio.sleep(0.02)
        return web.Response(body=picture())

    with Host({"picture": target}) as store, Host({"a": leads(f"{store.url}/picture")}) as here:
        urls = [f"http://{name}:{here.port}/a/{n}" for n in range(8) for name in ("localhost", "127.0.0.1")]
        run(table(tmp_path / "rows.parquet", urls), tmp_path / "data", console, connections_per_host=3)
        assert store.most["all"] == 3
        assert reasons_of(tmp_path / "data") == [FETCHED] * 16


def test_a_dead_host_is_given_up_and_the_others_are_not(tmp_path, console):
    with socket.socket() as free, Host(each(5)) as server:
        free.bind(("127.0.0.1", 0))
        dead = [f"http://127.0.0.1:{free.getsockname()[1]}/{n}.png" for n in range(60)]
        rows = table(tmp_path / "rows.parquet", dead + [f"{server.url}/{n}.png" for n in range(5)])
        run(rows, tmp_path / "data", console, retries=0, connections_per_host=2)
    outcomes = read_outcomes(tmp_path / "data" / "outcomes.parquet")
    assert [one.outcome for one in outcomes] == ["cannot connect"] * 60 + [FETCHED] * 5
    assert all(one.may_pass for one in outcomes[:60])
    tried = [one.row for one in outcomes[:60] if one.attempts]
    assert DEAD_AFTER <= len(tried) <= DEAD_AFTER + 1


def test_another_table_or_other_settings_need_another_folder(tmp_path, console):
    with Host(each(3)) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/{n}.png" for n in range(3)])
        folder = tmp_path / "data"
        run(rows, folder, console)
        before = tars(folder)
        for change in ({"side": 48}, {"quality": 50}, {"rows_per_shard": 2}, {"most_bytes": 9}, {"opt_out": False}):
            name = "short_side" if "side" in change else next(iter(change))
            with pytest.raises(DataError, match=rf"data: was begun with another {name}"):
                run(rows, folder, console, **change)
        other = table(tmp_path / "other.parquet", [f"{server.url}/2.png"])
        with pytest.raises(DataError, match=r"was begun with another table"):
            run(other, folder, console)
        run(rows, folder, console, timeout=3, connections=2)
        assert tars(folder) == before
        for damaged in ("", "[1]", "{", "null"):
            (folder / "fetch.json").write_text(damaged)
            with pytest.raises(DataError, match=r"fetch\.json: damaged"):
                run(rows, folder, console)
        (folder / "fetch.json").unlink()
        with pytest.raises(DataError, match="holds shards that were not fetched here"):
            run(rows, folder, console)


def test_a_second_process_is_refused(tmp_path, console):
    rows = table(tmp_path / "rows.parquet", ["nothing"])
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / "fetch.lock"), pytest.raises(DataError, match="another process is fetching"):
        run(rows, tmp_path / "data", console)


def test_a_folder_that_is_none(tmp_path, console):
    rows = table(tmp_path / "rows.parquet", ["nothing"])
    (tmp_path / "data").write_text("a file")
    for folder in (tmp_path / "data", tmp_path / "data" / "deeper"):
        with pytest.raises(DataError, match="cannot be written to"):
            run(rows, folder, console)


def test_tables_that_cannot_be_used(tmp_path, console):
    path = tmp_path / "rows.parquet"
    with pytest.raises(DataError, match=r"rows\.parquet: missing"):
        run(path, tmp_path / "data", console)
    path.write_text("key,url\n1,http://a\n")
    with pytest.raises(DataError, match=r"rows\.parquet: not a Parquet file"):
        run(path, tmp_path / "data", console)
    table(path, [])
    with pytest.raises(DataError, match=r"rows\.parquet: holds no rows"):
        run(path, tmp_path / "data", console)
    for name in ("key", "url", "captions", "queries"):
        table(path, ["nothing"])
        pq.write_table(pq.read_table(path).drop_columns([name]), path)
        with pytest.raises(DataError, match=rf"rows\.parquet: has no column {name}"):
            run(path, tmp_path / "data", console)
        table(path, ["nothing"], **{name: pa.array([7])})
        with pytest.raises(DataError, match=rf"rows\.parquet: column {name} is int64"):
            run(path, tmp_path / "data", console)
    table(path, ["http://pictures.example/" + "a" * 50 + str(n) for n in range(40)])
    content = bytearray(path.read_bytes())
    content[30:600] = bytes(570)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"rows\.parquet: damaged"):
        run(path, tmp_path / "damaged", console)


def test_a_machine_of_a_cluster_without_the_table_says_so(tmp_path):
    job = Job(str(tmp_path / "rows.parquet"), 0, 1, str(tmp_path / "data"), 0, 32, settings(), False)
    with pytest.raises(DataError, match=r"rows\.parquet: not there on .*; a cluster's machines all need it"):
        fetch_shard(job)


@pytest.mark.parametrize("damage", ["outcomes", "other rows", "tar", "cut tar"])
def test_damaged_files_are_named(tmp_path, console, damage):
    bad = {"/some/1"}
    with Host({"some": sometimes(picture(), bad)}) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/some/{n}" for n in range(6)])
        run(rows, tmp_path / "data", console, retries=0, rows_per_shard=3)
        bad.clear()
        tar, outcomes = tmp_path / "data" / "train-00000.tar", tmp_path / "data" / "outcomes" / "train-00000.parquet"
        damaged = tar if "tar" in damage else outcomes
        content = {
            "outcomes": outcomes.read_bytes()[:-5],
            "other rows": outcomes.with_name("train-00001.parquet").read_bytes(),
            "tar": b"nothing" * 500,
            "cut tar": tar.read_bytes()[:600],
        }
        damaged.write_bytes(content[damage])
        with pytest.raises(DataError, match=rf"{damaged.name}: damaged"):
            run(rows, tmp_path / "data", console, retries=0, rows_per_shard=3, again=True)
        damaged.unlink()  # as the message says
        run(rows, tmp_path / "data", console, retries=0, rows_per_shard=3, again=True)
    assert reasons_of(tmp_path / "data") == [FETCHED] * 6
    assert len(Split(tmp_path / "data", "train")) == 6


def test_the_details_of_a_shard_are_json(tmp_path, console):
    """Other kinds of columns than `join` has are left out instead of ending the fetch."""
    with Host(each(1)) as server:
        rows = table(tmp_path / "rows.parquet", [f"{server.url}/0.png"], licence=pa.array([1], pa.timestamp("s")))
        run(rows, tmp_path / "data", console)
    with tarfile.open(tmp_path / "data" / "train-00000.tar") as tar:
        details = json.loads(tar.extractfile(tar.getmembers()[2]).read())
    assert set(details) == {"captions", "url", "queries", "provider", "author"}
