"""One address -> the bytes of an image, or the reason why not.

The address comes from a list that anyone may have written, so the network around this machine is closed to it: each
name is resolved once, only public addresses of it are connected to, and redirects go the same way. Bytes are counted as
they come; nothing is decompressed. A host that says when to come again is left alone until then.
"""

import asyncio
import ipaddress
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

from pocketclip.errors import DataError

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from aiohttp.abc import AbstractResolver
    from yarl import URL

    from pocketclip.recipe.collecting import FetchSettings

MOST_REDIRECTS = 5
MAY_PASS = {408, 425, 429, 500, 502, 503, 504}  # statuses after which another try makes sense
REDIRECTS = {301, 302, 303, 307, 308}
OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "none"}
VALUED = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}  # rules that are NAME: VALUE
DEAD_AFTER = 20  # tries in a row without an answer; then a host's further rows are given up untried
LONGEST_RETRY_AFTER = 30.0  # seconds; a host that asks for more is given up at once
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that is assigned of IPv6 for one public machine
NAT64 = ipaddress.ip_network("64:ff9b::/96")
READ_BUFFER = 1 << 18  # bytes; most images come whole into it, without the connection being stopped and started
USER_AGENT = "PocketCLIP/0.1 (image-text data set; honours X-Robots-Tag)"


class Failed(Exception):
    """A row that gives no image.

    reason: what outcomes count it under. wait: seconds that the host asks for. silent: its host gave no answer at all.
    """

    def __init__(self, reason: str, may_pass: bool = False, status: int | None = None, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.may_pass, self.status, self.wait, self.silent = reason, may_pass, status, wait, False


@dataclass(slots=True)
class Download:
    """What became of one address. reason: why it failed, else "". size: bytes that came."""

    reason: str = ""
    may_pass: bool = False
    status: int | None = None
    attempts: int = 0
    size: int = 0


def is_public(address: str) -> bool:
    """Whether an IP address, also one wrapped in IPv6, is reachable for everyone: not private, loopback, link-local."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip not in GLOBAL_UNICAST:
            return False
    return ip.is_global and not ip.is_multicast


def host_of(url: str) -> str:
    """HOST[:PORT] in lower case, "" where an address has none."""
    try:
        parts = urlsplit(url)
        return parts.netloc.rpartition("@")[2].lower() if parts.hostname else ""
    except ValueError:
        return ""


def literal_address(host: str) -> str | None:
    """The IP address that a URL's host spells out, in whichever way sockets take: 127.1, 0x7f000001; None for a name.

    Raises ValueError for a host of digits and dots that is no address; aiohttp would pass it on without resolving it.
    """
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, UnicodeError):
        if host.replace(".", "").isdigit():
            raise ValueError(f"{host}: no address") from None
        return None


def opted_out(tags: list[str]) -> bool:
    """Whether X-Robots-Tag headers forbid the use, for all or for us; "googlebot: noindex" is not about us.

    A user agent goes before the rules that are meant for it, up to the next one.
    """
    for tag in tags:
        agent = ""
        for part in tag.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and (name in VALUED or " " in name):  # the latter: a date of unavailable_after
                continue
            agent, rule = (name, rest) if colon else (agent, name)
            if agent in ("", "*", "pocketclip") and rule in OPT_OUT:
                return True
    return False


def retry_after(header: str, date: str = "") -> float:
    """The seconds that a Retry-After header asks for, given as such or as a date; 0 where it says nothing.

    date: the same answer's Date header, as the server's clock may be wrong; this machine's where there is none.
    """
    if header.strip().isdecimal():
        return float(header)
    try:
        until = parsedate_to_datetime(header).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    try:
        now = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        now = time.time()
    return max(0.0, until - now)


class Downloader:
    """Downloads over one pool of connections; `async with` opens and closes it."""

    def __init__(self, settings: "FetchSettings") -> None:
        self.settings = settings
        self._places = asyncio.Semaphore(settings.connections)
        self._refused: Counter[str] = Counter()
        self._why: dict[str, Failed] = {}
        self._until: defaultdict[str, float] = defaultdict(float)  # when a host may be asked again, on the loop's clock

    async def __aenter__(self) -> Self:
        try:
            import aiohttp
            from yarl import URL
        except ImportError:
            raise DataError("fetching needs the extra: pip install 'pocketclip[collect]'") from None
        self._aiohttp, self._url = aiohttp, URL
        # Rows wait for their host in `fetch`; the limit here is for the hosts that they are redirected to.
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=self.settings.connections_per_host,
            resolver=_resolver(self.settings.allow_private),
            ttl_dns_cache=600,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # ours is for all hops of a try together
            headers={"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def get(self, url: str, use: Callable[[bytes], Awaitable[None]]) -> Download:
        """Give the bytes behind `url`, after redirects and retries, to `use`.

        Each try, and what `use` does, fills one of `settings.connections` places, so that at most so many files are in
        memory; waiting for the next try fills none.
        """
        host = host_of(url)
        await self._pause(host)
        if self._refused[host] >= DEAD_AFTER:
            failed = self._why[host]
            return Download(failed.reason, failed.may_pass, failed.status, 0)
        for attempt in range(1, self.settings.retries + 2):
            try:
                async with self._places:
                    data = await self._follow(url)
                    await use(data)
            except Failed as error:
                failed = error
            else:
                self._refused[host] = 0
                return Download(status=200, attempts=attempt, size=len(data))
            self._note(host, failed)
            if not failed.may_pass or attempt > self.settings.retries or failed.wait > LONGEST_RETRY_AFTER:
                break
            await asyncio.sleep(self.settings.backoff * 2 ** (attempt - 1))
            await self._pause(host)
        return Download(failed.reason, failed.may_pass, failed.status, attempt)

    async def _pause(self, host: str) -> None:
        """Wait until the host may be asked."""
        while (left := self._until[host] - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left)

    def _note(self, host: str, failed: Failed) -> None:
        """Remember what a failure says about its host."""
        self._why[host] = failed
        if failed.wait > LONGEST_RETRY_AFTER:
            self._refused[host] = DEAD_AFTER
            return
        self._refused[host] = self._refused[host] + 1 if failed.silent else 0
        self._until[host] = max(self._until[host], asyncio.get_running_loop().time() + failed.wait)

    async def _follow(self, url: str) -> bytes:
        """One try: the answer's bytes, at the end of its redirects."""
        deadline = asyncio.get_running_loop().time() + self.settings.timeout
        for hop in range(MOST_REDIRECTS + 1):
            target = self._checked(url)
            try:
                async with asyncio.timeout_at(deadline), self._session.get(target, allow_redirects=False) as response:
                    if response.status not in REDIRECTS or "Location" not in response.headers:
                        return await self._read(response)
                    url = urljoin(str(target), response.headers["Location"])
            except Exception as error:
                failed = self._failure(error)
                failed.silent = failed.may_pass and failed.status is None and hop == 0
                raise failed from None
        raise Failed("too many redirects")

    def _failure(self, error: Exception) -> Failed:
        """An exception of one try as the reason that it is counted under; what nobody foresaw goes by its name."""
        if isinstance(error, Failed):
            return error
        http = self._aiohttp
        kinds: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, bool], ...] = (
            (TimeoutError, "timed out", True),
            (http.InvalidURL, "invalid URL", False),
            (http.ClientConnectorDNSError, "no such host", True),
            (http.ClientConnectorCertificateError, "bad certificate", False),
            (http.ClientConnectorError, "cannot connect", True),
            ((http.ClientError, OSError), "connection broken", True),
            (ValueError, "invalid URL", False),
        )
        for kind, reason, may_pass in kinds:
            if isinstance(error, kind):
                return Failed(reason, may_pass)
        return Failed(f"unexpected {type(error).__name__}")

    def _checked(self, url: str) -> "URL":
        """The address as it is asked for; raises Failed where it is none, or names a private machine outright.

        Names are judged when they are resolved. The host is judged as aiohttp sees it, not as another parser would.
        """
        try:
            target = self._url(url)
            literal = literal_address(target.raw_host or "")
            private = literal is not None and not self.settings.allow_private and not is_public(literal)
        except (ValueError, TypeError):
            raise Failed("invalid URL") from None
        if target.scheme not in ("http", "https") or not target.raw_host or " " in target.raw_host:
            raise Failed("invalid URL")
        if private:
            raise Failed("private address")
        return target

    async def _read(self, response: "ClientResponse") -> bytes:
        if response.status != 200:
            wait = retry_after(response.headers.get("Retry-After", ""), response.headers.get("Date", ""))
            raise Failed(f"HTTP {response.status}", response.status in MAY_PASS, response.status, wait)
        if self.settings.opt_out and opted_out(response.headers.getall("X-Robots-Tag", [])):
            raise Failed("opted out", status=200)
        most = self.settings.most_bytes
        if (response.content_length or 0) > most:
            raise Failed(f"more than {most} bytes", status=200)
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > most:
                raise Failed(f"more than {most} bytes", status=200)
        return bytes(data)


def _resolver(allow_private: bool) -> "AbstractResolver":
    """A resolver that gives only public addresses; these are what is connected to, so no second answer counts."""
    from aiohttp.abc import ResolveResult
    from aiohttp.resolver import ThreadedResolver

    class PublicResolver(ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = await super().resolve(host, port, family)
            public = [address for address in found if is_public(address["host"])]
            if found and not public:
                raise Failed("private address")
            return public

    return ThreadedResolver() if allow_private else PublicResolver()
