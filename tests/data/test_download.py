"""One address at a time against a real server: each failure has its own reason, and private machines stay closed."""

import asyncio
import gzip
import io
import ipaddress
import socket
import struct
import threading
import time
import zlib
from collections import Counter

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pocketclip.data import download
from pocketclip.data.download import (
    DEAD_AFTER,
    Downloader,
    host_of,
    is_public,
    literal_address,
    opted_out,
    retry_after,
)
from pocketclip.recipe.collecting import FetchSettings


def picture(width: int = 40, height: int = 30, kind: str = "PNG", colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, kind)
    return buffer.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of side x side grey pixels, almost nothing as a file."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(200_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Host:
    """A web server in a thread: `handlers` answer by path; `asked` counts requests, `most` those at once, by host."""

    def __init__(self, handlers) -> None:
        self.handlers = handlers
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
        await server.setup()
        await web.TCPSite(server, "127.0.0.1", 0).start()
        self.port = server.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._ready.set()
        await self._stop.wait()
        await server.cleanup()

    async def _answer(self, request):
        self.asked[request.path] += 1
        self.order.append(request.path)
        groups = (request.host, "all")
        for group in groups:
            self.now[group] += 1
            self.most[group] = max(self.most[group], self.now[group])
        try:
            name = request.path.split("/")[1]
            handler = self.handlers.get(name)
            return await handler(request) if handler else web.Response(status=404)
        finally:
            for group in groups:
                self.now[group] -= 1


def gives(content: bytes, kind: str = "image/png", status: int = 200, **headers: str):
    async def answer(_):
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(body=content, status=status, headers={"Content-Type": kind, **named})

    return answer


def leads(target):
    async def answer(request):
        return web.Response(status=302, headers={"Location": target(request) if callable(target) else target})

    return answer


async def slow(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"\x89PNG")
    await asyncio.sleep(30)
    return response


async def endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


async def broken(request):
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"\x89PNG")
    request.transport.abort()
    return response


async def silent(request):
    request.transport.abort()
    return web.Response()


async def lie(request):
    """Promises more than it sends."""
    request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1500\r\n\r\n" + picture())
    request.transport.close()
    return web.Response()


async def garbage(request):
    request.transport.write(b"\x00\x01 what is HTTP?\r\n\r\n")
    request.transport.close()
    return web.Response()


ZIPPED = gzip.compress(picture())


def settings(**values) -> FetchSettings:
    return FetchSettings(**{"allow_private": True, "timeout": 5, "retries": 1, "backoff": 0.01, **values})


def get(*urls: str, **values):
    """What becomes of the addresses, asked for one after the other, and the bytes that came."""
    came: list[bytes] = []

    async def use(data: bytes) -> None:
        came.append(data)

    async def run():
        async with Downloader(settings(**values)) as downloader:
            return [await downloader.get(url, use) for url in urls]

    return asyncio.run(run()), came


@pytest.fixture(scope="module")
def host():
    handlers = {
        "good": gives(picture()),
        "gone": gives(b"", status=410),
        "error": gives(b"", status=500),
        "busy": gives(b"", status=429),
        "later": gives(b"", status=429, Retry_After="3600"),
        "tomorrow": gives(b"", status=503, Retry_After="Wed, 01 Jan 2125 00:00:00 GMT"),
        "slow": slow,
        "endless": endless,
        "broken": broken,
        "silent": silent,
        "lie": lie,
        "garbage": garbage,
        "big": gives(bytes(5000)),
        "zip": gives(ZIPPED, Content_Encoding="gzip"),
        "moved": leads("/good"),
        "twice": leads("/moved"),
        "loop": leads("/loop"),
        "nowhere": gives(b"", status=302),
        "ftp": leads("ftp://127.0.0.1/a.png"),
        "brackets": leads("http://["),
        "noai": gives(picture(), X_Robots_Tag="noai"),
        "drip": leads("/slow"),
    }
    with Host(handlers) as server:
        yield server


TRUTH = {
    "good": ("", 200, 1),
    "missing": ("HTTP 404", 404, 1),
    "gone": ("HTTP 410", 410, 1),
    "error": ("HTTP 500", 500, 2),
    "busy": ("HTTP 429", 429, 2),
    "later": ("HTTP 429", 429, 1),
    "tomorrow": ("HTTP 503", 503, 1),
    "slow": ("timed out", None, 2),
    "drip": ("timed out", None, 2),
    "endless": ("more than 2000 bytes", 200, 1),
    "big": ("more than 2000 bytes", 200, 1),
    "broken": ("connection broken", None, 2),
    "silent": ("connection broken", None, 2),
    "lie": ("connection broken", None, 2),
    "garbage": ("connection broken", None, 2),
    "moved": ("", 200, 1),
    "twice": ("", 200, 1),
    "loop": ("too many redirects", None, 1),
    "nowhere": ("HTTP 302", 302, 1),
    "ftp": ("invalid URL", None, 1),
    "brackets": ("invalid URL", None, 1),
    "zip": ("", 200, 1),
    "noai": ("opted out", 200, 1),
}


@pytest.mark.parametrize("path", TRUTH)
def test_each_failure_has_its_reason_and_its_number_of_requests(host, path):
    before = host.asked[f"/{path}"]
    timeout = 0.3 if path in ("slow", "drip") else 5
    [[found], came] = get(f"{host.url}/{path}", most_bytes=2000, timeout=timeout)
    assert (found.reason, found.status, found.attempts) == TRUTH[path]
    expected = {"loop": 6, "silent": 4}  # the second: aiohttp asks once more where a connection ends without an answer
    asked = host.asked[f"/{path}"] - before
    if found.reason == "timed out":  # on a busy machine before the server has heard of it
        assert asked <= found.attempts
    else:
        assert asked == expected.get(path, found.attempts)
    assert found.may_pass == (found.reason in ("timed out", "connection broken", "HTTP 500", "HTTP 503", "HTTP 429"))
    assert bool(came) == (not found.reason)
    if came:
        assert found.size == len(came[0])
        assert came[0] == (ZIPPED if path == "zip" else picture())


def test_nothing_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        [[found], _] = get(f"http://127.0.0.1:{port}/a.png")
    assert (found.reason, found.may_pass, found.attempts) == ("cannot connect", True, 2)


def test_a_name_that_nobody_has(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    [[found], _] = get("http://pictures.example/a.png")
    assert (found.reason, found.may_pass) == ("no such host", True)


def test_an_unforeseen_exception_is_a_reason_and_no_crash(host, monkeypatch):
    async def read(*_):
        raise LookupError("who knows")

    monkeypatch.setattr(Downloader, "_read", read)
    [[found], _] = get(f"{host.url}/good")
    assert (found.reason, found.attempts) == ("unexpected LookupError", 1)


DATE = "Tue, 24 Nov 2026 12:00:00 GMT"


@pytest.mark.parametrize(
    ("header", "date", "seconds"),
    [
        ("", "", 0), ("7", "", 7), (" 7 ", "", 7), ("0", DATE, 0), ("soon", DATE, 0), ("-5", DATE, 0), ("1.5", DATE, 0),
        ("Tue, 24 Nov 2026 12:00:25 GMT", DATE, 25), ("Tuesday, 24-Nov-26 12:01:00 GMT", DATE, 60),
        ("Tue Nov 24 12:00:01 2026", DATE, 1), ("Tue, 24 Nov 2026 11:00:00 GMT", DATE, 0), (DATE, DATE, 0),
        ("Tue, 99 Nov 2026 12:00:25 GMT", DATE, 0),
    ],
)  # fmt: skip
def test_retry_after_in_seconds_or_as_a_date(header, date, seconds):
    assert retry_after(header, date) == seconds


def test_without_the_servers_clock_ours_counts(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1795521600.0)  # 24 Nov 2026, 12:00 GMT
    for date in ("", "now", "Tue, 99 Nov 2026"):
        assert retry_after("Tue, 24 Nov 2026 12:00:25 GMT", date) == 25


@given(st.text(max_size=40), st.text(max_size=40))
@example("Fri, 31 Dec 9999 23:59:59 -2300", "Mon, 01 Jan 0001 00:00:00 +2300")
def test_any_text_asks_for_some_seconds(header, date):
    assert retry_after(header, date) >= 0


def test_retry_after_is_waited_for_by_all_rows_of_the_host():
    times = []

    async def busy_once(_):
        times.append(time.monotonic())
        return web.Response(status=429, headers={"Retry-After": "1"}) if len(times) == 1 else web.Response(body=b"x")

    with Host({"a": busy_once}) as server:

        async def run():
            async with Downloader(settings()) as downloader:

                async def use(_):
                    pass

                first = asyncio.create_task(downloader.get(f"{server.url}/a/1", use))
                while not times:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                return [await downloader.get(f"{server.url}/a/2", use), await first]

        found = asyncio.run(run())
    assert [one.reason for one in found] == ["", ""]
    assert sorted(one.attempts for one in found) == [1, 2]
    assert min(times[1:]) - times[0] > 0.95


def test_a_host_that_asks_for_an_hour_is_left_alone(host):
    before = host.asked["/later"]
    [found, _] = get(*[f"{host.url}/later"] * 3)
    assert [(one.reason, one.may_pass, one.attempts) for one in found] == [
        ("HTTP 429", True, 1),
        ("HTTP 429", True, 0),
        ("HTTP 429", True, 0),
    ]
    assert host.asked["/later"] - before == 1


def test_a_dead_host_is_given_up_and_no_other(host):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
        [found, _] = get(*[dead] * 30, f"{host.url}/good", retries=0)
    assert [one.attempts for one in found] == [1] * DEAD_AFTER + [0] * (30 - DEAD_AFTER) + [1]
    assert {(one.reason, one.may_pass) for one in found[:-1]} == {("cannot connect", True)}
    assert not found[-1].reason


def test_a_host_that_only_redirects_to_dead_ones_is_not_dead_itself():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with Host({"away": leads(dead), "good": gives(picture())}) as server:
            [found, _] = get(*[f"{server.url}/away"] * 25, f"{server.url}/good", retries=0)
    assert [one.attempts for one in found] == [1] * 26
    assert not found[-1].reason


@pytest.mark.parametrize(
    "url",
    [
        "", "no scheme", "//host/a.png", "ftp://host/a.png", "file:///etc/passwd", "data:image/png;base64,AA==",
        "http://", "http:///a.png", "http://host:99999/", "http://host:port/", "http://[", "http://[::1", "http://]/",
        "http://[zz::1]/", "http://a b/", "http://1.2.3.4.5/", "http://127.0.0.1./", "http://999999999999/",
        "javascript:alert(1)", "http://\u2488\u2488/", "http://xn--a\u0300\u0301/", "http://" + "a" * 300 + "/", "\x00",
    ],
)  # fmt: skip
def test_what_is_no_address_is_said_to_be_none(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror(-2, "unknown")))
    [[found], _] = get(url, allow_private=False, retries=0)
    assert found.reason in ("invalid URL", "no such host")
    if len(url) < 300 and "xn--" not in url and "\u2488" not in url:
        assert (found.reason, found.may_pass, found.attempts) == ("invalid URL", False, 1)


PRIVATE = (
    "127.0.0.1", "127.1", "0x7f000001", "0x7f.0.0.1", "2130706433", "0177.0.0.1", "017700000001", "0", "0.0.0.0",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::1]", "[2002:7f00:1::]", "[fe80::1]", "[fe80::1%25lo]", "[fec0::1]", "[fc00::1]", "[ff02::1]",
    "169.254.169.254", "10.0.0.1", "10.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "224.0.0.1", "255.255.255.255",
    "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1", "user:pass@127.0.0.1",
)  # fmt: skip


@pytest.mark.parametrize("spelling", PRIVATE)
def test_private_addresses_are_refused_in_every_spelling(host, spelling):
    before = host.asked.total()
    [[found], _] = get(f"http://{spelling}:{host.port}/good", allow_private=False, timeout=1, retries=0)
    assert (found.reason, found.may_pass, found.attempts) == ("private address", False, 1)
    assert host.asked.total() == before


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.sampled_from([str, hex, "{:#o}".format]))
def test_a_spelled_out_address_is_the_one_that_sockets_take(number, parts, spell):
    octets = number.to_bytes(4, "big")
    values = [*octets[: parts - 1], int.from_bytes(octets[parts - 1 :], "big")]
    spelled = ".".join((spell(value).replace("0o", "0") if value else "0") for value in values)
    assert literal_address(spelled) == str(ipaddress.IPv4Address(number))


@given(st.ip_addresses(v=4))
def test_wrapped_in_ipv6_an_address_is_as_private_as_it_was(ip):
    packed = f"{int(ip) >> 16:x}:{int(ip) & 0xFFFF:x}"
    for wrapped in (f"::ffff:{packed}", f"64:ff9b::{packed}", f"2002:{packed}::1"):
        assert is_public(wrapped) == is_public(str(ip))
    assert is_public(str(ip)) == (ip.is_global and not ip.is_multicast)


@given(st.ip_addresses(v=6))
def test_of_ipv6_only_global_unicast_is_public(ip):
    if is_public(str(ip)):
        networks = ("2000::/3", "64:ff9b::/96", "::ffff:0:0/96")  # the last two: IPv4, wrapped
        assert any(ip in ipaddress.ip_network(network) for network in networks)


def test_names_of_private_machines_are_refused(host):
    before = host.asked.total()
    [found, _] = get(*[f"http://localhost:{host.port}/good"] * 2, allow_private=False)
    assert [(one.reason, one.may_pass, one.attempts) for one in found] == [("private address", False, 1)] * 2
    assert host.asked.total() == before
    [[found], _] = get(f"http://localhost:{host.port}/good")
    assert not found.reason


def test_many_at_once_for_one_private_name(host):
    async def run():
        async def use(_):
            raise AssertionError

        async with Downloader(settings(allow_private=False)) as downloader:
            return await asyncio.gather(*[downloader.get(f"http://localhost:{host.port}/{n}", use) for n in range(20)])

    assert {one.reason for one in asyncio.run(run())} == {"private address"}


def test_of_a_name_with_private_and_public_addresses_only_the_public_are_connected_to(host, monkeypatch):
    """The name stands for 10.x (private) and for the test's server, which counts as public here."""
    asked = []

    def resolve(name, port, *_, **__):
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("127.0.0.9", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1")
    [found, _] = get(*[f"http://pictures.example:{host.port}/good"] * 3, allow_private=False)
    assert [one.reason for one in found] == [""] * 3
    assert asked == ["pictures.example"], "resolved once: a second answer could be another one"


@pytest.mark.parametrize("target", ["localhost", "127.0.0.2", "127.2", "[::1]", "2130706434"])
def test_redirects_to_private_machines_are_refused(monkeypatch, target):
    monkeypatch.setattr(download, "is_public", lambda address: address == "127.0.0.1" and not strict[0])
    strict = [False]

    def target_of(request):
        strict[0] = target == "localhost"  # which is the server's own address too
        return f"http://{target}:{request.url.port}/secret"

    with Host({"start": leads(target_of), "secret": gives(picture())}) as server:
        [[found], came] = get(f"{server.url}/start", allow_private=False)
        assert server.asked == {"/start": 1}
    assert (found.reason, found.may_pass, came) == ("private address", False, [])


@pytest.mark.parametrize(
    ("tags", "out"),
    [
        ([], False), (["all"], False), (["nofollow, noarchive"], False), (["max-snippet:50"], False),
        (["noai"], True), (["NoImageAI"], True), (["nofollow, noindex"], True), (["noimageindex"], True),
        (["none"], True), (["all", "noai"], True), (["noai, max-snippet:50"], True), (["max-snippet: 50, noai"], True),
        (["googlebot: noindex"], False), (["googlebot: nofollow, noindex"], False), (["pocketclip: noai"], True),
        (["PocketCLIP:noai"], True), (["*: noai"], True), (["googlebot: noindex, pocketclip: noai"], True),
        (["googlebot: noindex", "noai"], True), (["pocketclip: all, otherbot: noai"], False),
        (["noai, unavailable_after: 25 Jun 2030 15:00:00 PST"], True), ([": noai"], True), (["", ","], False),
        (["unavailable_after: Tuesday, 25 Jun 2030 15:00:00 PST, noai"], True), (["noai: noai"], False),
        (["noairplanes"], False),
    ],
)  # fmt: skip
def test_opt_out_tags(tags, out):
    assert opted_out(tags) == out


def test_opting_out_is_heard_unless_told_otherwise(host):
    [[found], came] = get(f"{host.url}/noai", opt_out=False)
    assert not found.reason
    assert came == [picture()]


def test_hosts_are_told_apart_by_name_and_port():
    assert host_of("http://User@Example.ORG:80/a") == "example.org:80"
    assert host_of("http://[") == host_of("nothing") == host_of("") == host_of("http://:80/") == ""


@given(st.text(max_size=40))
def test_any_text_has_a_host_or_none(text):
    assert isinstance(host_of(text), str)
    assert isinstance(host_of("http://" + text), str)


def test_the_agent_says_who_it_is_and_asks_for_plain_bytes():
    seen = []

    async def note(request):
        seen.append(request.headers)
        return web.Response(body=b"x", headers={"Set-Cookie": "a=b"})

    with Host({"a": note}) as server:
        get(f"{server.url}/a", f"{server.url}/a")
    assert all("PocketCLIP" in headers["User-Agent"] for headers in seen)
    assert all(headers["Accept-Encoding"] == "identity" and "Cookie" not in headers for headers in seen)
