"""The verb search, over real HTTP; what the server saw is the truth about what was asked."""

import _thread
import io
import json
import os
import random
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from filelock import FileLock
from rich.console import Console
from server import ImageServer, Trouble, body, dropped, endless, lagging, slow, status

from pocketclip.collect import search
from pocketclip.collect.found import Found
from pocketclip.collect.providers import Openverse, Page, Provider, Unsplash, Wikimedia
from pocketclip.collect.search import FoundFiles, Searched, search_images
from pocketclip.errors import CollectError, Stopped
from pocketclip.recipe.collecting import SearchSettings

CATALOGUE = {"dog": 130, "cat": 3, "red fox": 30}
WORDS = ("dog", "cat", "nothing", "red fox")
PAGES = {
    "unsplash": [("dog", str(page)) for page in range(1, 6)] + [("cat", "1"), ("nothing", "1"), ("red fox", "1")],
    "openverse": [("dog", str(page)) for page in range(1, 8)]
    + [("cat", "1"), ("nothing", "1"), ("red fox", "1"), ("red fox", "2")],
    "wikimedia": [("dog", "0"), ("dog", "50"), ("dog", "100"), ("cat", "0"), ("nothing", "0"), ("red fox", "0")],
}


@pytest.fixture
def server():
    with ImageServer(CATALOGUE) as running:
        yield running


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "BACKOFF", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a killed process needs none, and a thousand of them take long


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The rows' files of a search that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    with ImageServer(CATALOGUE) as server:
        run(server, folder)
    return {f"{name}.jsonl": (folder / f"{name}.jsonl").read_bytes() for name in PAGES}


def services(base, names=("unsplash", "openverse", "wikimedia")) -> list[Provider]:
    """`base`: a provider's name -> where its service is."""
    made = {
        "unsplash": lambda: Unsplash(base("unsplash"), "secret-key", pause=0),
        "openverse": lambda: Openverse(base("openverse"), pause=0),
        "wikimedia": lambda: Wikimedia(base("wikimedia"), pause=0),
    }
    return [made[name]() for name in names]


def run(server: ImageServer, folder: Path, *names: str, words=WORDS, console=None, **settings) -> dict[str, Searched]:
    providers = services(server.base, names or ("unsplash", "openverse", "wikimedia"))
    console = console or Console(file=io.StringIO(), width=200)
    done = search_images(words, providers, folder, SearchSettings(**settings), console)
    return {searched.provider: searched for searched in done}


def rows(folder: Path, provider: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{provider}.jsonl").read_text(encoding="utf-8").splitlines()]


def log(folder: Path, provider: str) -> list[dict[str, object]]:
    """Whole lines of the requests' file."""
    lines = (folder / f"{provider}.requests.jsonl").read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def test_every_page_of_every_provider_is_read_once_and_in_order(server: ImageServer, tmp_path: Path) -> None:
    done = run(server, tmp_path)
    for name, pages in PAGES.items():
        assert server.asked(name) == pages
        found = rows(tmp_path, name)
        expected = [
            f"https://images.example/{quote(query)}-{n}.jpg" for query in WORDS for n in range(CATALOGUE.get(query, 0))
        ]
        assert [row["url"] for row in found] == expected
        assert [row["queries"] for row in found[:131:130]] == [["dog"], ["cat"]]
        assert done[name] == Searched(name, len(pages), len(expected), 0, 0, finished=4, queries=4)
        assert sum(line["rows"] for line in log(tmp_path, name)) == len(expected)
    assert all("PocketCLIP/" in asked.headers["User-Agent"] for asked in server.log)
    assert {asked.headers.get("Authorization") for asked in server.log} == {None, "Client-ID secret-key"}


def test_a_second_search_asks_for_nothing_and_a_longer_list_of_words_only_for_the_new_ones(
    server: ImageServer, tmp_path: Path
) -> None:
    run(server, tmp_path, words=WORDS[:2])
    server.log.clear()
    done = run(server, tmp_path, words=WORDS[:2])
    assert not server.log
    assert done["openverse"] == Searched("openverse", 0, 0, 0, 0, finished=2, queries=2)
    run(server, tmp_path, words=("red fox", *WORDS, "", " cat "))
    assert {asked.query for asked in server.log} == {"red fox", "nothing"}


def test_images_per_word_is_kept_to_and_raising_it_goes_on_inside_the_last_page(
    server: ImageServer, tmp_path: Path
) -> None:
    run(server, tmp_path, "openverse", words=["dog"], images_per_word=30)
    assert server.asked("openverse") == [("dog", "1"), ("dog", "2")]
    assert len(rows(tmp_path, "openverse")) == 30
    server.log.clear()
    run(server, tmp_path, "openverse", words=["dog"], images_per_word=50)
    assert server.asked("openverse") == [("dog", "2"), ("dog", "3")]
    assert len(rows(tmp_path, "openverse")) == 50


@pytest.mark.parametrize(("name", "split"), [*((name, False) for name in PAGES), ("wikimedia", True)])
@pytest.mark.parametrize(
    "limits", [(10, 1000), (1, 2, 3, 1000), (50, 20, 55, 129, 130), (20, 60, 100, 1000), (30, 131)]
)
def test_however_images_per_word_is_raised_every_image_comes_once_and_in_order(
    server: ImageServer, tmp_path: Path, name: str, split: bool, limits: tuple[int, ...]
) -> None:
    server.split = split
    run(server, tmp_path / "whole", name, words=["dog"])
    expected = (tmp_path / "whole" / f"{name}.jsonl").read_bytes().splitlines()
    for most in limits:
        run(server, tmp_path, name, words=["dog"], images_per_word=most)
        taken = min(130, max(limits[: limits.index(most) + 1]))
        assert (tmp_path / f"{name}.jsonl").read_bytes().splitlines() == expected[:taken]
        server.log.clear()
        run(server, tmp_path, name, words=["dog"], images_per_word=most)
        assert not server.log


def test_a_cut_page_that_has_fewer_images_by_now_is_done(server: ImageServer, tmp_path: Path) -> None:
    run(server, tmp_path, "openverse", words=["dog"], images_per_word=30)
    server.catalogue["dog"] = 25
    done = run(server, tmp_path, "openverse", words=["dog"])["openverse"]
    assert (done.requests, done.rows, done.finished) == (1, 0, 1)
    assert len(rows(tmp_path, "openverse")) == 30


def test_what_cannot_be_used_of_a_cut_page_is_counted_once(server: ImageServer, tmp_path: Path) -> None:
    images = [server.image("openverse", "dog", n) for n in range(9)] + [{"id": "no address"}]
    answer = {"page_count": 1, "results": images}
    server.always["openverse", "dog"] = body(json.dumps(answer).encode())
    for most in (3, 5, 100):
        run(server, tmp_path, "openverse", words=["dog"], images_per_word=most)
    lines = [(line["rows"], line["skipped"], line["next"]) for line in log(tmp_path, "openverse")]
    assert lines == [(3, 1, ""), (2, 0, ""), (4, 0, None)]


def test_openverse_is_not_asked_deeper_than_it_answers(tmp_path: Path) -> None:
    with ImageServer({"dog": 1000}) as server:
        done = run(server, tmp_path, "openverse", words=["dog"])
    assert len(server.log) == 12
    assert done["openverse"].rows == 240


def test_an_answer_of_wikimedia_in_two_parts_gives_each_image_once(server: ImageServer, tmp_path: Path) -> None:
    server.split = True
    done = run(server, tmp_path, "wikimedia")
    assert server.asked("wikimedia")[:3] == [("dog", "0"), ("dog", "0+"), ("dog", "50")]
    assert len({row["url"] for row in rows(tmp_path, "wikimedia")}) == done["wikimedia"].rows == 163
    assert done["wikimedia"].skipped == 0


def small_search(folder: Path) -> list[tuple[str, str, Page]]:
    """Three requests as they are written, the second one without rows."""
    made = [Found(f"https://x.example/{n}.jpg", (f"caf\u00e9 {n}",), ("dog",), "openverse", str(n)) for n in range(2)]
    pages = [
        ("dog", "", Page(tuple(made[:1]), 1, "2")),
        ("cat", "", Page((), 0, None)),
        ("dog", "2", Page(tuple(made[1:]), 0, None)),
    ]
    folder.mkdir()
    with FoundFiles(folder, "openverse") as files:
        for query, page, answer in pages:
            files.finish(query, page, answer, None)
    return pages


def test_files_cut_at_any_byte_are_restored_to_the_last_finished_request(tmp_path: Path) -> None:
    pages = small_search(tmp_path / "whole")
    whole_rows = (tmp_path / "whole" / "openverse.jsonl").read_bytes()
    whole_log = (tmp_path / "whole" / "openverse.requests.jsonl").read_bytes()
    ends = [line["length"] for line in log(tmp_path / "whole", "openverse")]
    path, requests = tmp_path / "openverse.jsonl", tmp_path / "openverse.requests.jsonl"
    # Rows are written first, so a kill leaves a log that ends in or before the line of the last rows that are whole.
    states = {(length, len(whole_rows)) for length in range(len(whole_log) + 1)}
    lines = whole_log.splitlines(keepends=True)
    for done in range(len(lines)):
        start, end = ([0, *ends])[done], ends[done]
        states |= {(len(b"".join(lines[:done])), length) for length in range(start, end + 1)}
    for log_length, rows_length in sorted(states):
        path.write_bytes(whole_rows[:rows_length])
        requests.write_bytes(whole_log[:log_length])
        done = whole_log[:log_length].count(b"\n")
        with FoundFiles(tmp_path, "openverse") as files:
            assert path.read_bytes() == whole_rows[: ([0, *ends])[done]]
            assert requests.read_bytes() == b"".join(lines[:done])
            for query, page, answer in pages[done:]:
                assert files.of(query).next == page
                files.finish(query, page, answer, None)
        assert (path.read_bytes(), requests.read_bytes()) == (whole_rows, whole_log)


def test_rows_lost_with_the_power_are_asked_for_again(
    server: ImageServer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    run(server, tmp_path, "openverse")
    server.log.clear()
    path = tmp_path / "openverse.jsonl"
    os.truncate(path, len(whole[path.name]) // 2)
    lost = [line for line in log(tmp_path, "openverse") if line["length"] > path.stat().st_size]
    run(server, tmp_path, "openverse")
    assert path.read_bytes() == whole[path.name]
    assert [query for query, _ in server.asked("openverse")] == [line["query"] for line in lost]


def test_a_search_cut_anywhere_goes_on_to_the_same_rows_and_repeats_no_finished_request(
    server: ImageServer, tmp_path: Path
) -> None:
    words = ("red fox", "cat")
    run(server, tmp_path / "whole", "openverse", words=words)
    whole_rows = (tmp_path / "whole" / "openverse.jsonl").read_bytes()
    lines = (tmp_path / "whole" / "openverse.requests.jsonl").read_bytes().splitlines(keepends=True)
    whole_log = b"".join(lines)
    asked = [("red fox", "1"), ("red fox", "2"), ("cat", "1")]
    near_ends = {len(b"".join(lines[:n])) + step for n in range(len(lines) + 1) for step in (-1, 0, 1)}
    cuts = sorted({*near_ends, *range(0, len(whole_log), 23)} & set(range(len(whole_log) + 1)))
    for cut in cuts:
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "openverse.requests.jsonl").write_bytes(whole_log[:cut])
        (folder / "openverse.jsonl").write_bytes(whole_rows)
        server.log.clear()
        run(server, folder, "openverse", words=words)
        assert server.asked("openverse") == asked[whole_log[:cut].count(b"\n") :]
        assert (folder / "openverse.jsonl").read_bytes() == whole_rows


def test_what_is_finished_is_on_the_disk_before_the_next_request(server: ImageServer, tmp_path: Path) -> None:
    seen = []
    server.when_asked = lambda _: seen.append(
        ((tmp_path / "openverse.jsonl").stat().st_size, log(tmp_path, "openverse"))
    )
    run(server, tmp_path, "openverse", words=("cat", "nothing", "red fox"))
    assert [len(lines) for _, lines in seen] == [0, 1, 2, 3]
    assert all(size == lines[-1]["length"] for size, lines in seen if lines)


CHILD = """
import sys
from pathlib import Path
from rich.console import Console
from pocketclip.collect.providers import Openverse, Unsplash, Wikimedia
from pocketclip.collect.search import search_images
from pocketclip.recipe.collecting import SearchSettings
folder, url, *words = sys.argv[1:]
providers = [Unsplash(f"{url}/unsplash", "key", 0), Openverse(f"{url}/openverse", 0), Wikimedia(f"{url}/wikimedia", 0)]
search_images(words, providers, Path(folder), SearchSettings(), Console())
"""


def kill_a_search(folder: Path, server: ImageServer, chance: random.Random) -> None:
    """Start a search in a process of its own, and kill it after some requests."""
    requests = chance.randint(1, 6)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), server.url, *WORDS], stdout=subprocess.DEVNULL)
    while len(server.log) < requests:
        assert child.poll() is None
        time.sleep(0.001)
    time.sleep(chance.random() * 0.01)
    child.kill()
    child.wait()


def test_a_search_killed_at_random_moments_ends_with_the_files_of_an_undisturbed_one(
    server: ImageServer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    folder, chance = tmp_path / "killed", random.Random(3)
    server.delay = 0.005
    for last in (False, False, False, True):
        finished = {
            (path.name.split(".")[0], line["query"], line["page"])
            for path in folder.glob("*.requests.jsonl")
            for line in log(folder, path.name.split(".")[0])
        }
        server.log.clear()
        if last:
            run(server, folder)
        else:
            kill_a_search(folder, server, chance)
        now = {(asked.provider, asked.query, first_page(asked.provider, asked.page)) for asked in server.log}
        assert not now & {(provider, query, plain(page)) for provider, query, page in finished}
    assert {name: (folder / name).read_bytes() for name in whole} == whole


def first_page(provider: str, page: str) -> str:
    """The name of a page in the requests' file, without what differs in form."""
    return "" if page == {"wikimedia": "0"}.get(provider, "1") else page


def plain(page: str) -> str:
    return page.removeprefix("gsroffset=").partition("&")[0]


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(
    server: ImageServer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    server.when_asked = lambda _: _thread.interrupt_main() if len(server.log) == 8 else None
    with pytest.raises(Stopped, match="goes on"):
        run(server, tmp_path)
    for name in PAGES:
        lengths = [line["length"] for line in log(tmp_path, name)]
        assert (tmp_path / f"{name}.jsonl").stat().st_size == max(lengths, default=0)
    run(server, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole


def later(monkeypatch: pytest.MonkeyPatch, **time_passed: int) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(**time_passed)

    monkeypatch.setattr(search, "datetime", Later)


@pytest.mark.parametrize(("name", "lifts"), [("unsplash", {"hours": 1}), ("openverse", {"days": 1})])
def test_the_last_request_of_a_limit_is_known_and_no_refusal_is_provoked(
    server: ImageServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, bytes],
    name: str,
    lifts: dict[str, int],
) -> None:
    server.quota[name] = 3
    console = Console(file=io.StringIO(), width=200)
    before = datetime.now(UTC)
    done = run(server, tmp_path, name, console=console)[name]
    assert server.asked(name) == PAGES[name][:3]
    assert "rate limit" in done.stopped_because
    assert "goes on at" in console.file.getvalue()
    assert before + timedelta(**lifts) <= done.goes_on_at <= datetime.now(UTC) + timedelta(**lifts)
    again = run(server, tmp_path, name)[name]
    assert len(server.log) == 3
    assert again.goes_on_at == done.goes_on_at
    later(monkeypatch, days=1, seconds=1)
    server.quota[name] = None
    run(server, tmp_path, name)
    assert server.asked(name) == PAGES[name]
    assert (tmp_path / f"{name}.jsonl").read_bytes() == whole[f"{name}.jsonl"]


@pytest.mark.parametrize(
    ("name", "refusal", "seconds"),
    [
        ("openverse", status(429, {"Retry-After": "90"}), 90),
        ("unsplash", status(403, text="Rate Limit Exceeded"), 3600),
        ("wikimedia", status(429), 60),
        ("wikimedia", body(b'{"error": {"code": "ratelimited"}}', headers={"MediaWiki-API-Error": "ratelimited"}), 60),
    ],
)
def test_a_limit_that_lasts_too_long_stops_that_provider_alone(
    server: ImageServer, tmp_path: Path, name: str, refusal: Trouble, seconds: int
) -> None:
    server.always[name, "cat"] = refusal
    done = run(server, tmp_path)
    for other in PAGES.keys() - {name}:
        assert (done[other].finished, done[other].stopped_because) == (4, "")
    assert server.asked(name) == PAGES[name][: PAGES[name].index(("cat", "0" if name == "wikimedia" else "1")) + 1]
    assert (done[name].finished, done[name].failed) == (1, 0)
    assert abs((done[name].goes_on_at - datetime.now(UTC)).total_seconds() - seconds) < 60
    server.always.clear()
    assert run(server, tmp_path)[name].finished == 4


def test_a_limit_that_lifts_soon_is_waited_for(server: ImageServer, tmp_path: Path) -> None:
    server.trouble("openverse", status(429, {"Retry-After": "1"}))
    console = Console(file=io.StringIO(), width=200)
    done = run(server, tmp_path, "openverse", words=["cat"], longest_wait=1, console=console)
    first, second = server.log
    assert second.at - first.at > 0.9
    assert "waiting until" in console.file.getvalue()
    assert (done["openverse"].rows, done["openverse"].stopped_because) == (3, "")


def test_a_limit_behind_the_last_request_of_all_stops_nothing(server: ImageServer, tmp_path: Path) -> None:
    server.quota["unsplash"] = len(PAGES["unsplash"])
    done = run(server, tmp_path, "unsplash")["unsplash"]
    assert (done.finished, done.stopped_because, done.goes_on_at) == (4, "", None)


@pytest.mark.parametrize(
    "trouble",
    [
        status(500), status(503, {"Retry-After": "1"}), body(b'{"results": ['), body(b"<html>", "text/html"),
        body(b"[" * 100_000), body(b"\xff\xfe"), body(b"null"), body(b'{"results": {}}'), dropped(), lagging(),
        body(b"{}", headers={"Content-Encoding": "gzip"}),
    ],
)  # fmt: skip
def test_what_may_pass_is_tried_again(
    server: ImageServer, tmp_path: Path, trouble: Trouble, whole: dict[str, bytes]
) -> None:
    for name in PAGES:
        server.trouble(name, trouble)
    done = run(server, tmp_path)
    for name, pages in PAGES.items():
        assert server.asked(name) == [pages[0], *pages]
        assert (done[name].failed, done[name].finished) == (0, 4)
        assert (tmp_path / f"{name}.jsonl").read_bytes() == whole[f"{name}.jsonl"]


ELSEWHERE = status(302, {"Location": "/openverse/v1/images/?q=cat&page=1&page_size=20"})  # would get the key as well


@pytest.mark.parametrize(
    ("trouble", "tries"), [(status(500), 4), (body(b"{"), 4), (status(404), 1), (ELSEWHERE, 1), (endless(), 1)]
)
def test_a_query_that_fails_is_left_for_the_next_run_and_the_others_go_on(
    server: ImageServer, tmp_path: Path, trouble: Trouble, tries: int
) -> None:
    server.always["openverse", "cat"] = trouble
    console = Console(file=io.StringIO(), width=200)
    done = run(server, tmp_path, "openverse", console=console)["openverse"]
    assert (done.failed, done.finished, done.stopped_because) == (1, 3, "")
    assert server.asked("openverse").count(("cat", "1")) == tries
    assert "openverse: cat: answered" in console.file.getvalue()
    server.always.clear()
    server.log.clear()
    assert run(server, tmp_path, "openverse")["openverse"].finished == 4
    assert server.asked("openverse") == [("cat", "1")]


def test_a_slow_answer_is_not_waited_for(server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TIMEOUT", 0.2)
    server.trouble("openverse", slow(30))
    done = run(server, tmp_path, "openverse", words=["cat"])["openverse"]
    assert (done.requests, done.rows, done.failed) == (2, 3, 0)


def test_a_dead_host_is_left_alone_after_some_failures(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    words = [f"word{n}" for n in range(20)]
    provider = Openverse(nobody, pause=0)
    (done,) = search_images(words, [provider], tmp_path, SearchSettings(), Console(file=io.StringIO()))
    assert done.failed == search.FAILURES
    assert done.requests == search.FAILURES * (search.RETRIES + 1)
    assert "in a row" in done.stopped_because
    assert done.goes_on_at is None


def test_failures_in_a_row_are_counted_only_in_a_row(server: ImageServer, tmp_path: Path) -> None:
    words = [word for n in range(8) for word in (f"bad{n}", f"good{n}")]
    for word in words[::2]:
        server.always["openverse", word] = status(404)
    done = run(server, tmp_path, "openverse", words=words)["openverse"]
    assert (done.failed, done.finished, done.stopped_because) == (8, 8, "")


def test_a_wrong_key_stops_at_once_and_is_not_shown(server: ImageServer, tmp_path: Path) -> None:
    server.always["unsplash", "dog"] = status(401, text='{"errors": ["OAuth error: The access token is invalid"]}')
    console = Console(file=io.StringIO(), width=200)
    done = run(server, tmp_path, "unsplash", console=console)["unsplash"]
    assert len(server.log) == 1
    assert "401" in done.stopped_because
    assert "secret" not in console.file.getvalue() + repr(services(server.base))


def test_requests_keep_their_distance(server: ImageServer, tmp_path: Path) -> None:
    provider, began = Openverse(server.base("openverse"), pause=0.2), time.monotonic()
    search_images(["dog"], [provider], tmp_path, SearchSettings(), Console(file=io.StringIO()))
    assert len(server.log) > 2
    assert time.monotonic() - began >= 0.2 * (len(server.log) - 1)


def test_pages_that_lead_nowhere_end(server: ImageServer, tmp_path: Path) -> None:
    loop = {"batchcomplete": True, "continue": {"gsroffset": 50}, "query": {"pages": []}}
    server.always["wikimedia", "dog"] = body(json.dumps(loop).encode())
    assert run(server, tmp_path, "wikimedia")["wikimedia"].finished == 4
    assert server.asked("wikimedia").count(("dog", "50")) == 0


def test_words_and_answers_are_no_markup(server: ImageServer, tmp_path: Path) -> None:
    server.always["openverse", "[/red] \udce4"] = status(404)
    console = Console(file=io.StringIO(), width=200)
    run(server, tmp_path, "openverse", words=["[/red]", "[/b]\x00x"], console=console)
    server.always["openverse", "[/i]"] = status(404)
    run(server, tmp_path, "openverse", words=["[/i]", "half \ud800"], console=console)
    assert "openverse: [/i]: answered" in console.file.getvalue()
    assert server.asked("openverse")[-1] == ("half", "1")


def test_two_searches_never_write_one_folder(server: ImageServer, tmp_path: Path) -> None:
    with FileLock(tmp_path / "search.lock"), pytest.raises(CollectError, match="another search"):
        run(server, tmp_path)
    assert not server.log


def test_a_provider_named_twice_is_refused(server: ImageServer, tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="twice"):
        run(server, tmp_path, "openverse", "openverse")


def log_line(**changes: object) -> bytes:
    line = {"query": "a", "page": "", "rows": 0, "skipped": 0, "next": None, "length": 9999}
    return json.dumps(line | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n", b"{}\n", b"[1]\n", b"\xff\n", b"\n", log_line(more=1), log_line(query=1), log_line(next=2),
        log_line(rows="1"), log_line(length=-5), log_line(limited_until="2020-01-01"), log_line(limited_until="soon"),
    ],
)  # fmt: skip
def test_a_log_that_someone_damaged_is_named_and_nothing_is_lost(
    server: ImageServer, tmp_path: Path, line: bytes, whole: dict[str, bytes]
) -> None:
    run(server, tmp_path, "openverse")
    server.log.clear()
    path = tmp_path / "openverse.requests.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["length"] < 9999 < json.loads(lines[1])["length"]
    path.write_bytes(b"".join([lines[0], line, *lines[1:]]))
    with pytest.raises(CollectError, match=r"requests\.jsonl: line 2"):
        run(server, tmp_path, "openverse")
    path.unlink()
    with pytest.raises(CollectError, match="is missing"):
        run(server, tmp_path, "openverse")
    assert (tmp_path / "openverse.jsonl").read_bytes() == whole["openverse.jsonl"]
    assert not server.log


def test_without_aiohttp_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(CollectError, match=r"pip install 'pocketclip\[collect\]'"):
        search_images(["dog"], [], tmp_path, SearchSettings(), Console(file=io.StringIO()))


def test_a_full_disk_stops_with_the_file_named(
    server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CollectError, match=r"\.jsonl: cannot be written: No space left"):
        run(server, tmp_path)
    assert not any(log(tmp_path, name) for name in PAGES)  # no line for rows that are not safe


def test_a_file_that_cannot_grow_is_named_and_the_same_command_goes_on(
    server: ImageServer, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(CollectError, match=r"openverse\.jsonl: cannot be written: File too large"):
            run(server, tmp_path, "openverse")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run(server, tmp_path, "openverse")
    assert (tmp_path / "openverse.jsonl").read_bytes() == whole["openverse.jsonl"]
