"""What `join` makes of rows, held against the same done in plain Python."""

import csv
import hashlib
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pocketclip.collect import join, merge
from pocketclip.collect.found import Found
from pocketclip.collect.join import join_lists
from pocketclip.errors import CollectError

QUIET = Console(quiet=True)
URLS = ["http://a.org/1", "HTTP://A.org:80/1#top", "https://a.org/1", "https://B.org:443/2?q=1", "https://b.org/2?q=1"]
URLS += [
    "https://b.org/2?q=2",
    "http://c.org",
    "http://c.org/",
    "http://c.org:8080/",
    "http://User@C.org/",
    " http://d.org/x ",
]
URLS += ["http://d.org/X", "http://d.org/x", "", "ftp://e.org/", "http:///nothing", "no url"]
rows_made = st.builds(
    Found,
    url=st.sampled_from(URLS),
    captions=st.lists(
        st.sampled_from(["one", "two ", " three", "", "  ", "a, \"b\"\n'c'", "ünï", "[]"]), max_size=4
    ).map(tuple),
    queries=st.lists(st.sampled_from(["dog", "cat"]), max_size=2).map(tuple),
    provider=st.sampled_from(["", "p", "q"]),
    id=st.sampled_from(["", "1", "2", "3", "4"]),
    author=st.sampled_from(["", "Ann"]),
    width=st.sampled_from([None, 1, 640]),
)


def write_jsonl(path: Path, rows: list[Found]) -> Path:
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return path


def normal(url: str) -> str | None:
    """The URL as it is compared; None for one that is left out."""
    found = re.match(r"(https?)://([^/?#]*)([^#]*)", url.strip(), flags=re.IGNORECASE)
    if not found:
        return None
    scheme, user, at, host = found[1].lower(), *("", "", found[2])
    if "@" in host:
        user, at, host = host.rpartition("@")
    host = host.lower().removesuffix(":80" if scheme == "http" else ":443").removesuffix(":")
    rest = found[3] if found[3].startswith("/") else "/" + found[3]
    return f"{scheme}://{user}{at}{host}{rest}" if host else None


def joined_in_python(rows: list[Found]) -> list[dict[str, object]]:
    """Union-find over all pairs that share a URL or an id."""
    kept = []
    for row in rows:
        captions = [caption.strip() for caption in row.captions if caption.strip()]
        if (url := normal(row.url)) and (captions or row.queries):
            kept.append(row.to_json() | {"url": url, "captions": captions, "queries": list(row.queries)})
    head = list(range(len(kept)))

    def find(row: int) -> int:
        return row if head[row] == row else find(head[row])

    first: dict[object, int] = {}
    for place, row in enumerate(kept):
        names = [row["url"]] + ([(row["provider"], row["id"])] if row["provider"] and row["id"] else [])
        for name in names:
            one, other = sorted((find(place), find(first.setdefault(name, place))))
            head[other] = one
    images = {}
    for place, row in enumerate(kept):
        image = images.setdefault(find(place), row | {"captions": {}, "queries": {}})
        image["captions"] |= dict.fromkeys(row["captions"])
        image["queries"] |= dict.fromkeys(row["queries"])
    listed = [image | {name: list(image[name]) for name in ("captions", "queries")} for image in images.values()]
    keyed = [{"key": hashlib.md5(image["url"].encode()).hexdigest()[:16]} | image for image in listed]
    return sorted(keyed, key=lambda image: image["key"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.lists(rows_made, max_size=12), min_size=1, max_size=3))
def test_joined_as_in_plain_python(parts: list[list[Found]], tmp_path: Path) -> None:
    lists = [write_jsonl(tmp_path / f"{place}.jsonl", rows) for place, rows in enumerate(parts)]
    rows = [row for part in parts for row in part]
    expected = joined_in_python(rows)
    output = tmp_path / "rows.parquet"
    if not expected:
        with pytest.raises(CollectError, match=r"no image|none of"):
            join_lists(lists, output, QUIET)
        return
    summary = join_lists(lists, output, QUIET)
    assert pq.read_table(output).to_pylist() == expected
    assert summary.images == len(expected)
    assert summary.read == len(rows) == summary.images + summary.merged + summary.left_out.total()


@pytest.mark.parametrize("order", ["rising", "falling", "random"])
def test_a_long_chain_of_ids_and_urls_is_one_image(order: str, tmp_path: Path) -> None:
    rows = [
        Found(f"http://h/{step + way}", (f"caption {step + way}",), provider="p", id=str(step))
        for step in range(300)
        for way in (0, 1)
    ]
    rows.append(Found("http://h/alone", ("alone",), provider="p", id="alone"))
    if order == "falling":
        rows.reverse()
    elif order == "random":
        rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    output = tmp_path / "rows.parquet"
    assert join_lists([write_jsonl(tmp_path / "chain.jsonl", rows)], output, QUIET).images == 2
    assert pq.read_table(output).to_pylist() == joined_in_python(rows)


def many_rows() -> list[Found]:
    return [
        Found(f"http://h{n % 97}/{n * 7919 % 3001}", (f"caption {n % 1009}", f"other {n}"), ("q",), "p", str(n % 2503))
        for n in range(4000)
    ]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_the_bytes_depend_on_the_rows_alone(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = many_rows()
    lists = [write_jsonl(tmp_path / "a.jsonl", rows[:1500]), write_jsonl(tmp_path / "b.jsonl", rows[1500:])]
    monkeypatch.setattr(join, "GROUP_ROWS", 700)
    outputs = []
    for chunk, memory in ((50, 1 << 28), (333, 1 << 30), (1 << 16, 1 << 31)):
        monkeypatch.setattr(join, "CHUNK_ROWS", chunk)
        outputs.append(tmp_path / f"rows-{chunk}.{suffix}")
        join_lists(lists, outputs[-1], QUIET, memory=memory)
    first, *others = [output.read_bytes() for output in outputs]
    assert all(other == first for other in others)
    if suffix == "parquet":
        assert pq.read_table(outputs[0]).to_pylist() == joined_in_python(rows)
        groups = pq.read_metadata(outputs[0])
        assert [groups.row_group(place).num_rows for place in range(groups.num_row_groups - 1)] == [700] * (
            groups.num_row_groups - 1
        )


def test_a_csv_holds_the_same_and_is_read_back(tmp_path: Path) -> None:
    rows = [
        Found("http://a/1", ('say "hi",\nyou', "[x]"), ("dog",), "p", "1", "", "Ann", "CC0", "", 3, None),
        *many_rows(),
    ]
    listed = write_jsonl(tmp_path / "a.jsonl", rows)
    for name in ("rows.parquet", "rows.csv"):
        join_lists([listed], tmp_path / name, QUIET)
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["key"] for row in read] == [row["key"] for row in table]
    assert [json.loads(row["captions"]) for row in read] == [row["captions"] for row in table]
    assert [row["width"] for row in read] == ["" if row["width"] is None else str(row["width"]) for row in table]
    for name in ("rows.parquet", "rows.csv"):
        join_lists([tmp_path / name], tmp_path / "again.parquet", QUIET)
        assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "rows.parquet").read_bytes()


def test_the_file_is_sorted_so_that_hosts_alternate(tmp_path: Path) -> None:
    rows = [Found(f"http://host{n // 100}.org/{n}", ("x",)) for n in range(1000)]
    join_lists([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "rows.parquet", QUIET)
    table = pq.read_table(tmp_path / "rows.parquet").to_pydict()
    assert table["key"] == sorted(table["key"])
    hosts = [url.split("/")[2] for url in table["url"]]
    assert sum(one == other for one, other in pairwise(hosts)) < 200  # 900 as they were listed


def test_rows_are_left_out_with_their_reason(tmp_path: Path) -> None:
    good = "http://a/1"
    rows = [
        Found("", ("x",)),
        Found("file:///etc/passwd", ("x",)),
        Found("http://a b/", ("x",)),
        Found("http://a/\x01", ("x",)),
        Found("http://a/" + "x" * 5000, ("x",)),
        Found(good, ()),
        Found(good, (" ",)),
        Found(good, ("x" * 20_000,)),
        Found(good, ("nul\0nul",)),
        Found(good, ("x",), author="x" * 5000),
        Found(good, ("kept", "x" * 20_000, "\0")),
    ]
    summary = join_lists([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "rows.parquet", QUIET)
    assert summary.left_out == {
        "no URL": 1,
        "URL not http or https": 2,
        "control character in URL": 1,
        "URL too long": 1,
        "no caption": 2,
        "caption too long or with a NUL": 2,
        "provenance too long": 1,
    }
    assert (summary.images, summary.captions_left_out) == (1, 2)
    assert pq.read_table(tmp_path / "rows.parquet").to_pydict()["captions"] == [["kept"]]


def test_captions_beyond_the_most_are_cut_and_their_image_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "CHUNK_ROWS", 7)
    for module in (join, merge):
        monkeypatch.setattr(module, "MOST_CAPTIONS", 5)
    rows = [Found("http://a/1", (f"caption {n}",)) for n in range(50)]
    rows += [Found("http://b/1", (f"caption {n % 5}",)) for n in range(50)]
    summary = join_lists([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "rows.parquet", QUIET)
    assert (summary.images, summary.captions_cut) == (2, 1)
    assert pq.read_table(tmp_path / "rows.parquet").to_pydict()["captions"] == [[f"caption {n}" for n in range(5)]] * 2


def test_ids_without_a_provider_join_nothing(tmp_path: Path) -> None:
    rows = [Found("http://a/1", ("x",), id="1"), Found("http://a/2", ("x",), id="1")]
    assert join_lists([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "rows.parquet", QUIET).images == 2


@pytest.mark.parametrize("fails", ["reading", "linking", "writing", "stopped"])
def test_a_join_that_fails_leaves_what_was_there(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write_jsonl(tmp_path / "a.jsonl", many_rows())
    output = tmp_path / "out" / "rows.parquet"
    join_lists([listed], output, QUIET)
    before = output.read_bytes()
    sources, expected = [listed], CollectError
    if fails == "reading":
        (tmp_path / "b.csv").write_text("neither,nor\n1,2\n", encoding="utf-8")
        sources = [listed, tmp_path / "b.csv"]
    elif fails == "linking":
        monkeypatch.setattr(join, "LINKS", "SELECT no_such_column FROM rows")
    elif fails == "writing":
        monkeypatch.setattr(join, "found_schema", lambda _: pa.schema([]))
        expected = Exception
    else:
        monkeypatch.setattr(join, "merge_neighbours", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        expected = KeyboardInterrupt
    with pytest.raises(expected):
        join_lists(sources, output, QUIET)
    assert output.read_bytes() == before
    assert sorted(path.name for path in output.parent.iterdir()) == [".rows.parquet.lock", "rows.parquet"]


KILLED = """
import sys, time
from pathlib import Path
from rich.console import Console
from pocketclip.collect import join
join._unique = lambda *_: print("writing", flush=True) or time.sleep(600)
join.join_lists([Path(sys.argv[1])], Path(sys.argv[2]), Console(quiet=True))
"""


def test_what_a_killed_join_left_goes_with_the_next_one_and_two_at_a_time_are_refused(tmp_path: Path) -> None:
    listed, output = write_jsonl(tmp_path / "a.jsonl", many_rows()), tmp_path / "out" / "rows [1].parquet"
    command = [sys.executable, "-c", KILLED, str(listed), str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout
            assert child.stdout.readline() == "writing\n"
            with pytest.raises(
                CollectError, match=r"rows \[1\]\.parquet: another process is joining into it; wait for"
            ):
                join_lists([listed], output, QUIET)
        finally:
            child.kill()
    left = [path.is_dir() for path in output.parent.glob("*.part")]
    assert sorted(left) == [False, True], "a half-written table and a database"
    others = output.with_name(".rows [1].parquet.old.parquet.x1.part")
    others.touch()
    join_lists([listed], output, QUIET)
    assert {path.name for path in output.parent.iterdir()} == {".rows [1].parquet.lock", output.name, others.name}


def test_another_output_may_be_joined_at_the_same_time(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".a.parquet.lock"):
        join_lists([write_jsonl(tmp_path / "a.jsonl", many_rows())], tmp_path / "b.parquet", QUIET)


def test_nothing_to_join_is_named_and_what_finds_something(tmp_path: Path) -> None:
    found, output = tmp_path / "found", tmp_path / "rows.parquet"
    with pytest.raises(CollectError, match=r"found: missing; run `pocketclip search`"):
        join_lists([found], output, QUIET)
    found.mkdir()
    with pytest.raises(CollectError, match=r"found: holds no \.jsonl, .* file; `pocketclip search` writes"):
        join_lists([found], output, QUIET)
    for name in ("openverse", "wikimedia"):
        (found / f"{name}.jsonl").touch()
        (found / f"{name}.requests.jsonl").touch()
    with pytest.raises(
        CollectError, match=r"openverse\.jsonl and 1 more: no image in it; let `pocketclip search` find"
    ):
        join_lists([found], output, QUIET)
    write_jsonl(found / "openverse.jsonl", [Found("", ("x",)), Found("http://a/1", ())])
    with pytest.raises(CollectError, match=r"more: none of 2 rows can be used; left out: 1 no URL, 1 no caption$"):
        join_lists([found], output, QUIET)
    assert not output.exists()


def test_two_urls_with_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join, "CLEAN", join.CLEAN.replace("md5(url)", "(left(md5('x'), 16) || right(md5(url), 16))"))
    rows = [Found("http://a/1", ("x",)), Found("http://a/2", ("x",))]
    with pytest.raises(CollectError, match="same key"):
        join_lists([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "rows.parquet", QUIET)


def test_too_little_memory_says_so(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="memory"):
        join_lists([write_jsonl(tmp_path / "a.jsonl", many_rows())], tmp_path / "rows.parquet", QUIET, memory=1 << 20)


def test_the_output_must_be_parquet_or_csv(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match=r"\.parquet or \.csv"):
        join_lists([tmp_path], tmp_path / "rows.json", QUIET)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(CollectError, match=r"pip install 'pocketclip\[collect\]'"):
        join_lists([tmp_path], tmp_path / "rows.parquet", QUIET)
