"""The three image services, spoken by a real HTTP server on 127.0.0.1, and every trouble that they can give.

    with ImageServer({"dog": 45, "cat": 3}) as server:
        server.trouble("openverse", status(500))  # the next request there gets it, then all is well again
        ...  # search at server.base("openverse")
        server.log  # each request that came

`routes` adds handlers of your own (image files, say), and `address` says where the images of the catalogue lie.
"""

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

Trouble = Callable[[web.Request], Awaitable[web.StreamResponse]]
PROVIDERS = ("unsplash", "openverse", "wikimedia")


@dataclass(frozen=True)
class Asked:
    """A request as it came. page: its number, for wikimedia its offset. at: seconds on a clock that only runs on."""

    provider: str
    query: str
    page: str
    headers: Mapping[str, str]
    at: float


def page_id(query: str) -> int:
    """A number of its own for each query's files, with room for many of them."""
    return 10_000 * int.from_bytes(query.encode()[:4].ljust(4, b"."))


class ImageServer:
    """A catalogue of queries, each with so many images, behind the services' own addresses.

    quota: good answers that a provider gives until its rate limit is reached; None: no limit.
    delay: seconds before each answer. split: wikimedia sends each page's data in two parts, as MediaWiki may.
    """

    def __init__(self, catalogue: Mapping[str, int], routes: Iterable[web.RouteDef] = ()) -> None:
        self.catalogue = dict(catalogue)
        self.log: list[Asked] = []
        self.quota: dict[str, int | None] = dict.fromkeys(PROVIDERS)
        self.delay = 0.0
        self.split = False
        self.always: dict[tuple[str, str], Trouble] = {}  # (provider, query) -> what it gets, each time
        self.when_asked: Callable[[Asked], None] = lambda _: None
        self.address: Callable[[str, int], str] = lambda query, n: f"https://images.example/{quote(query)}-{n}.jpg"
        self._troubles: dict[str, deque[Trouble]] = {name: deque() for name in PROVIDERS}
        self._routes = [
            web.get("/unsplash/search/photos", self._unsplash),
            web.get("/openverse/v1/images/", self._openverse),
            web.get("/wikimedia/w/api.php", self._wikimedia),
            *routes,
        ]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def base(self, provider: str) -> str:
        return f"{self.url}/{provider}"

    def image(self, provider: str, query: str, number: int) -> dict[str, Any]:
        """What a provider says of one image."""
        return IMAGES[provider](self, query, number)

    def trouble(self, provider: str, *troubles: Trouble) -> None:
        """One for each of the next requests."""
        self._troubles[provider].extend(troubles)

    def asked(self, provider: str) -> list[tuple[str, str]]:
        """(query, page) of each request, in order."""
        return [(asked.query, asked.page) for asked in self.log if asked.provider == provider]

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        application = web.Application()
        application.add_routes(self._routes)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _trouble(self, request: web.Request, provider: str, query: str, page: str) -> web.StreamResponse | None:
        """Note a request; answer it where it is to get something else than its page."""
        asked = Asked(provider, query, page, dict(request.headers), time.monotonic())
        self.log.append(asked)
        self.when_asked(asked)
        await asyncio.sleep(self.delay)
        if self._troubles[provider]:
            return await self._troubles[provider].popleft()(request)
        if (provider, query) in self.always:
            return await self.always[provider, query](request)
        return None

    def _spend(self, provider: str) -> int | None:
        """What is left of the quota behind this request: below 0 where there was nothing left for it."""
        left = self.quota[provider]
        if left is not None:
            self.quota[provider] = max(0, left - 1)
            return left - 1
        return None

    async def _unsplash(self, request: web.Request) -> web.StreamResponse:
        query, page = request.query["query"], int(request.query["page"])
        if trouble := await self._trouble(request, "unsplash", query, str(page)):
            return trouble
        if not request.headers.get("Authorization", "").startswith("Client-ID "):
            return web.json_response({"errors": ["OAuth error: The access token is invalid"]}, status=401)
        left = self._spend("unsplash")
        headers = {"X-Ratelimit-Limit": "50", "X-Ratelimit-Remaining": str(50 if left is None else max(0, left))}
        if left is not None and left < 0:
            return web.Response(status=403, text="Rate Limit Exceeded", headers=headers)
        size, total = int(request.query["per_page"]), self.catalogue.get(query, 0)
        photos = [self.image("unsplash", query, n) for n in range(total)[(page - 1) * size : page * size]]
        return web.json_response({"total": total, "total_pages": -(-total // size), "results": photos}, headers=headers)

    async def _openverse(self, request: web.Request) -> web.StreamResponse:
        query, page, size = request.query["q"], int(request.query["page"]), int(request.query["page_size"])
        if trouble := await self._trouble(request, "openverse", query, str(page)):
            return trouble
        if size > 20:
            return web.json_response({"detail": "Authentication credentials were not provided."}, status=401)
        if page * size > 240:
            return web.json_response(
                {"detail": {"page": ["Ensure this value is less than or equal to 12."]}}, status=400
            )
        left = self._spend("openverse")
        available = str(200 if left is None else max(0, left))
        headers = {"X-RateLimit-Limit-anon_sustained": "200/day", "X-RateLimit-Available-anon_sustained": available}
        if left is not None and left < 0:
            headers["Retry-After"] = "3600"
            return web.json_response({"detail": "Request was throttled."}, status=429, headers=headers)
        total = self.catalogue.get(query, 0)
        images = [self.image("openverse", query, n) for n in range(total)[(page - 1) * size : page * size]]
        answer = {"result_count": total, "page_count": min(12, -(-total // size)), "page_size": size, "page": page}
        return web.json_response({**answer, "results": images}, headers=headers)

    async def _wikimedia(self, request: web.Request) -> web.StreamResponse:
        query, offset = request.query["gsrsearch"].removeprefix("filetype:bitmap "), request.query.get("gsroffset", "0")
        second = "iicontinue" in request.query
        if trouble := await self._trouble(request, "wikimedia", query, offset + ("+" if second else "")):
            return trouble
        left = self._spend("wikimedia")
        if left is not None and left < 0:
            return web.Response(status=429, text="Too many requests", headers={"Retry-After": "600"})
        return web.json_response(wikimedia_answer(self, query, int(offset), second))


def unsplash_photo(server: ImageServer, query: str, number: int) -> dict[str, Any]:
    """As https://unsplash.com/documentation#search-photos shows it."""
    return {
        "id": f"{query}_{number}", "slug": f"a-{query}-{number}", "created_at": "2014-11-18T14:35:36-05:00",
        "width": 4000, "height": 3000, "color": "#A7A2A1", "blur_hash": "LaLXMa9Fx[D%~q%MtQM|kDRjtRIU", "likes": number,
        "description": f"A {query} by the {number}th sea" if number % 2 else None,
        "alt_description": f"{query} number {number}",
        "user": {"id": "Ul0QVz12Goo", "username": "ugmonk", "name": "Jeff Sheldon", "links": {}},
        "urls": {"raw": f"{server.address(query, number)}?ixid=x", "regular": server.address(query, number)},
        "links": {"self": "https://api.unsplash.com/photos/x", "html": f"https://unsplash.com/photos/{query}_{number}"},
        "tags": [{"type": "search", "title": query}, {"type": "search", "title": "nature"}],
    }  # fmt: skip


def openverse_image(server: ImageServer, query: str, number: int) -> dict[str, Any]:
    """As https://api.openverse.org/v1/ documents image_search."""
    return {
        "id": f"36537842-b067-4ca0-ad67-{query}-{number}", "title": f"{query.title()} {number}", "indexed_on": "2020",
        "foreign_landing_url": f"https://stocksnap.io/photo/{query}-{number}", "url": server.address(query, number),
        "creator": "Dietmar Hoffmann", "creator_url": "https://www.flickr.com/photos/1@N03", "license": "by-sa",
        "license_version": "2.0", "license_url": "https://creativecommons.org/licenses/by-sa/2.0/",
        "provider": "flickr", "source": "flickr", "category": None, "filesize": None, "filetype": None,
        "tags": [{"name": query, "accuracy": None}, {"name": "animal", "accuracy": 0.9}],
        "attribution": "...", "fields_matched": ["title"], "mature": False, "height": 768, "width": None,
    }  # fmt: skip


def wikimedia_answer(server: ImageServer, query: str, offset: int, second: bool) -> dict[str, Any]:
    """As MediaWiki answers generator=search with prop=imageinfo in formatversion 2, pages in no order."""
    total = server.catalogue.get(query, 0)
    numbers = range(total)[offset : offset + 50]
    pages = [server.image("wikimedia", query, n) for n in reversed(numbers)]
    half = server.split and not second
    if server.split:
        for page in pages:
            if (page["index"] % 2 == 0) == half:
                del page["imageinfo"]
    answer: dict[str, Any] = {"query": {"pages": pages}} if pages else {}
    if half and pages:
        return {"continue": {"gsroffset": offset, "iicontinue": f"{query}|2020", "continue": "gsroffset||"}, **answer}
    onward = {"continue": {"gsroffset": offset + 50, "continue": "gsroffset||"}} if offset + 50 < total else {}
    return {"batchcomplete": True, **onward, **answer}


def wikimedia_page(server: ImageServer, query: str, number: int) -> dict[str, Any]:
    said = {
        "ObjectName": f"{query} {number}",
        "ImageDescription": f'<p>The <b>{query}</b> &amp; <a href="//commons.wikimedia.org">its shadow</a>,<br>at '
        f'noon</p><div style="display: none;">label QS:Len,"{query}"</div>',
        "Categories": f"CC-BY-SA-4.0|Self-published work|{query.title()}s in snow",
        "Artist": '<a href="//commons.wikimedia.org/wiki/User:Ann">Ann</a>',
        "LicenseShortName": "CC BY-SA 4.0",
        "LicenseUrl": "https://creativecommons.org/licenses/by-sa/4.0",
    }
    info = {
        "size": 1234567, "width": 3000, "height": 2000, "mime": "image/jpeg", "url": server.address(query, number),
        "descriptionurl": f"https://commons.wikimedia.org/wiki/File:{query}_{number}.jpg",
        "extmetadata": {key: {"value": value, "source": "commons-desc-page"} for key, value in said.items()},
    }  # fmt: skip
    return {
        "pageid": page_id(query) + number, "ns": 6, "title": f"File:{query} {number}.jpg", "index": number + 1,
        "imagerepository": "local", "imageinfo": [info],
    }  # fmt: skip


IMAGES = {"unsplash": unsplash_photo, "openverse": openverse_image, "wikimedia": wikimedia_page}


def status(code: int, headers: Mapping[str, str] | None = None, text: str = "") -> Trouble:
    """An answer of that status: 500, 429 with Retry-After, 403 with Unsplash's text, ..."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text=text)

    return answer


def body(content: bytes, content_type: str = "application/json", headers: Mapping[str, str] | None = None) -> Trouble:
    """A good status with these bytes: cut JSON, a page of HTML, ..."""

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, content_type=content_type, headers=headers)

    return answer


def lagging() -> Trouble:
    """MediaWiki with maxlag, when its databases are behind: an error with status 200."""
    error = {"error": {"code": "maxlag", "info": "Waiting for 10.64: 5.5 seconds lagged.", "lag": 5.5}}
    headers = {"MediaWiki-API-Error": "maxlag", "Retry-After": "5", "X-Database-Lag": "5"}
    return body(json.dumps(error).encode(), headers=headers)


def slow(seconds: float) -> Trouble:
    """Headers at once, the body much later."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(seconds)
        await response.write(b"{}")
        return response

    return answer


def endless() -> Trouble:
    """A body that never ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b'{"results": [' + b" " * (1 << 18))

    return answer


def dropped() -> Trouble:
    """The connection breaks in the middle of the answer."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b'{"results": [')
        assert request.transport
        request.transport.abort()
        return response

    return answer
