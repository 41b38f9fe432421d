"""One address -> the bytes of an image, or the reason why not.

The address comes from a list that anyone may have written, so the network around this machine is closed to it: each
name is resolved once, only public addresses of it are connected to, and redirects go the same way. Bytes are counted as
they come; nothing is decompressed.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

from pocketclip.errors import DataError

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from aiohttp.abc import AbstractResolver

    from pocketclip.recipe.schema import FetchSettings

MOST_REDIRECTS = 5
MAY_PASS = {408, 425, 429, 500, 502, 503, 504}  # statuses after which another try makes sense
OPT_OUT = {"noai", "noimageai", "noindex", "noimageindex", "none"}
DEAD_AFTER = 20  # failures to connect in a row; then a host's further rows are given up untried
LONGEST_RETRY_AFTER = 30.0  # seconds; a host that asks for more is left for --retry-failed
NAT64 = ipaddress.ip_network("64:ff9b::/96")
USER_AGENT = "PocketCLIP/0.1 (image-text data set; honours X-Robots-Tag)"


class Failed(Exception):
    """A row that gives no image; reason: what outcomes count it under."""

    def __init__(self, reason: str, may_pass: bool = False, status: int | None = None, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.reason, self.may_pass, self.status, self.wait = reason, may_pass, status, wait


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
    return ip.is_global and not ip.is_multicast


def host_of(url: str) -> str:
    """HOST[:PORT] in lower case, "" where an address has none."""
    try:
        parts = urlsplit(url)
        return parts.netloc.rpartition("@")[2].lower() if parts.hostname else ""
    except ValueError:
        return ""


def opted_out(tags: list[str]) -> bool:
    """Whether X-Robots-Tag headers forbid the use, for all or for us; "googlebot: noindex" is not about us."""
    for tag in tags:
        agent, colon, rules = tag.rpartition(":")
        if colon and agent.strip().lower() not in ("", "*", "pocketclip", "unavailable_after"):
            continue
        if OPT_OUT & {rule.strip().lower() for rule in rules.split(",")}:
            return True
    return False


class Downloader:
    """Downloads over one pool of connections; `async with` opens and closes it."""

    def __init__(self, settings: "FetchSettings") -> None:
        self.settings = settings
        self._places = asyncio.Semaphore(settings.connections)
        self._refused: Counter[str] = Counter()
        self._why: dict[str, Failed] = {}

    async def __aenter__(self) -> Self:
        try:
            import aiohttp
        except ImportError:
            raise DataError("fetching needs the extra: pip install 'pocketclip[collect]'") from None
        self._aiohttp = aiohttp
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=0, resolver=_resolver(self.settings.allow_private), ttl_dns_cache=600
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
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
            unreachable = failed.status is None and failed.may_pass
            self._refused[host] = self._refused[host] + 1 if unreachable else 0
            self._why[host] = failed
            if not failed.may_pass or attempt > self.settings.retries or failed.wait > LONGEST_RETRY_AFTER:
                break
            await asyncio.sleep(max(failed.wait, self.settings.backoff * 2 ** (attempt - 1)))
        return Download(failed.reason, failed.may_pass, failed.status, attempt)

    async def _follow(self, url: str) -> bytes:
        """One try: the answer's bytes, at the end of its redirects."""
        for _ in range(MOST_REDIRECTS + 1):
            self._check(url)
            try:
                async with self._session.get(url, allow_redirects=False) as response:
                    if response.status in (301, 302, 303, 307, 308):
                        url = urljoin(url, response.headers.get("Location", ""))
                        continue
                    return await self._read(response)
            except TimeoutError:
                raise Failed("timed out", may_pass=True) from None
            except self._aiohttp.InvalidURL:
                raise Failed("invalid URL") from None
            except self._aiohttp.ClientConnectorDNSError:
                raise Failed("no such host", may_pass=True) from None
            except self._aiohttp.ClientConnectorCertificateError:
                raise Failed("bad certificate") from None
            except self._aiohttp.ClientConnectorError:
                raise Failed("cannot connect", may_pass=True) from None
            except (self._aiohttp.ClientError, OSError):
                raise Failed("connection broken", may_pass=True) from None
            except ValueError:
                raise Failed("invalid URL") from None
        raise Failed("too many redirects")

    def _check(self, url: str) -> None:
        """Raise Failed where an address is none, or names a private machine outright (names are judged when resolved)."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Failed("invalid URL") from None
        if parts.scheme not in ("http", "https") or not host:
            raise Failed("invalid URL")
        if self.settings.allow_private:
            return
        try:
            public = is_public(host)
        except ValueError:
            return
        if not public:
            raise Failed("private address")

    async def _read(self, response: "ClientResponse") -> bytes:
        if response.status != 200:
            wait = response.headers.get("Retry-After", "")
            raise Failed(
                f"HTTP {response.status}",
                response.status in MAY_PASS,
                response.status,
                float(wait) if wait.isdecimal() else 0.0,
            )
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
