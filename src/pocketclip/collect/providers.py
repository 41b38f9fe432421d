"""Image-search services: how each is asked, what it answers, when it wants to be left alone. No network.

Whatever a service sends is taken for hostile: payload.py reads it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, NamedTuple, Protocol
from urllib.parse import parse_qsl, urlencode

from pocketclip.collect.found import Found
from pocketclip.collect.payload import (
    Unusable,
    answer_number,
    answer_object,
    clean,
    read_address,
    read_names,
    read_needed,
    read_needed_address,
    read_number,
    read_object,
    read_rows,
    read_text,
    strip_html,
    web_address,
)
from pocketclip.errors import CollectError
from pocketclip.recipe.collecting import SearchSettings

KEY = "UNSPLASH_ACCESS_KEY"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
# Rates as Django REST framework writes them, 200/day or 20/min: the first letter of the period counts.
PERIODS = {"s": timedelta(seconds=1), "m": MINUTE, "h": HOUR, "d": timedelta(days=1)}

# Categories on Commons that speak of the file page, not of the picture.
BOOKKEEPING = re.compile(
    r"CC[- ]|PD[- ]|GFDL|Public domain|Licen[sc]e|Self-published|Attribution|Upload|Flickr|(All )?Media |Files? "
    r"|Pages? |Artworks? with|Images? (from|by|with|uploaded)|Photographs? by User|Taken with|Template|Cc-|Pd-",
)


class Request(NamedTuple):
    """What to GET."""

    url: str
    params: dict[str, str]
    headers: dict[str, str]


class Page(NamedTuple):
    """One page of images. skipped: images that could not be used. next: the page behind it, None behind the last."""

    rows: tuple[Found, ...]
    skipped: int
    next: str | None


class Provider(Protocol):
    """An image-search service.

    name: of its files. notice: what its owners ask of users, told before a search.
    A page is named by a string that only its provider understands; "" is the first one.
    """

    name: ClassVar[str]
    notice: ClassVar[str]

    @property
    def pause(self) -> float:
        """Seconds from one request to the next, at least."""

    def request(self, query: str, page: str) -> Request:
        """How to ask for a page of a query's images."""

    def parse(self, payload: Any, query: str, page: str) -> Page:
        """Read the JSON that was answered. Raises CollectError where it is no page of images."""

    def limited_until(self, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> datetime | None:
        """Until when no further request is welcome, judged by any answer, also a good one; None: no limit holds."""


@dataclass(frozen=True)
class Unsplash:
    """https://unsplash.com/documentation: search photos by keyword.

    50 requests an hour, 5,000 for applications that Unsplash has approved. The address kept is of the photo 1,080
    pixels wide; width and height are the original's.
    """

    base: str
    key: str = field(repr=False)
    pause: float = 0.5
    name: ClassVar[str] = "unsplash"
    notice: ClassVar[str] = (
        "Unsplash's API guidelines exclude data mining and training models: search it only with Unsplash's consent"
    )
    per_page: ClassVar[int] = 30  # the most it gives

    def request(self, query: str, page: str) -> Request:
        """See Provider."""
        params = {"query": query, "page": page or "1", "per_page": str(self.per_page)}
        headers = {"Authorization": f"Client-ID {self.key}", "Accept-Version": "v1"}
        return Request(f"{self.base}/search/photos", params, headers)

    def parse(self, payload: Any, query: str, page: str) -> Page:
        """See Provider."""
        answer = answer_object(payload, self.name, query)
        rows, skipped = read_rows(answer.get("results"), self._row, self.name, query)
        pages = answer_number(answer, "total_pages", self.name, query)
        return Page(rows, skipped, _page_after(page, pages) if answer["results"] else None)

    def limited_until(self, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> datetime | None:
        """The last request of an hour is answered with 0 remaining, those behind it with 403 and a line of text."""
        lower = {name.lower(): value for name, value in headers.items()}
        refused = status == 429 or (status == 403 and b"rate limit exceeded" in body[:1000].lower())
        if refused or lower.get("x-ratelimit-remaining", "").strip() == "0":
            return _retry_after(lower, now, HOUR)
        return None

    def _row(self, photo: Mapping[str, Any], query: str) -> Found:
        if photo.get("premium") or photo.get("plus"):  # Unsplash+ is sold under another licence
            raise Unusable("premium")
        return Found(
            url=read_needed_address(read_object(photo, "urls"), "regular"),
            captions=_captions(
                read_text(photo, "description"), read_text(photo, "alt_description"), read_names(photo, "tags", "title")
            ),
            queries=(query,),
            provider=self.name,
            id=read_needed(photo, "id"),
            page=read_address(read_object(photo, "links"), "html"),
            author=read_text(read_object(photo, "user"), "name"),
            licence="Unsplash License",
            licence_url="https://unsplash.com/license",
            width=read_number(photo, "width"),
            height=read_number(photo, "height"),
        )


@dataclass(frozen=True)
class Openverse:
    """https://api.openverse.org/v1/: openly licensed pictures of many sources.

    Anonymously 20 requests a minute and 200 a day. The pause keeps below the limit of a minute, so that only the day's
    can stop a search.
    """

    base: str
    pause: float = 3.5
    name: ClassVar[str] = "openverse"
    notice: ClassVar[str] = (
        "Openverse's terms of service exclude scraping its catalogue: keep to searches of a modest size"
    )
    page_size: ClassVar[int] = 20  # the most that an anonymous request may ask for
    deepest: ClassVar[int] = 240  # images of a query that can be reached

    def request(self, query: str, page: str) -> Request:
        """See Provider."""
        params = {"q": query, "page": page or "1", "page_size": str(self.page_size)}
        return Request(f"{self.base}/v1/images/", params, {})

    def parse(self, payload: Any, query: str, page: str) -> Page:
        """See Provider."""
        answer = answer_object(payload, self.name, query)
        rows, skipped = read_rows(answer.get("results"), self._row, self.name, query)
        pages = min(answer_number(answer, "page_count", self.name, query), self.deepest // self.page_size)
        return Page(rows, skipped, _page_after(page, pages) if answer["results"] else None)

    def limited_until(self, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> datetime | None:  # noqa: ARG002
        """X-RateLimit-Limit-SCOPE is a rate such as 200/day, X-RateLimit-Available-SCOPE what is left of it.

        A window slides: a limit reached on a good answer lifts within a period at the latest, a 429 says exactly when.
        """
        lower = {name.lower(): value for name, value in headers.items()}
        if status == 429:
            return _retry_after(lower, now, MINUTE)
        prefix = "x-ratelimit-available-"
        spent = [name.removeprefix(prefix) for name, left in lower.items() if name.startswith(prefix) and left == "0"]
        rates = [lower.get(f"x-ratelimit-limit-{scope}", "") for scope in spent]
        periods = [PERIODS.get(rate.partition("/")[2][:1], MINUTE) for rate in rates]
        return now + max(periods) if periods else None

    def _row(self, image: Mapping[str, Any], query: str) -> Found:
        name = read_text(image, "license").lower()
        label = {"": "", "cc0": "CC0", "pdm": "Public Domain Mark"}.get(name, f"CC {name.upper()}")
        return Found(
            url=read_needed_address(image, "url"),
            captions=_captions(read_text(image, "title"), read_names(image, "tags", "name")),
            queries=(query,),
            provider=self.name,
            id=read_needed(image, "id"),
            page=read_address(image, "foreign_landing_url"),
            author=read_text(image, "creator"),
            licence=f"{label} {read_text(image, 'license_version')}".strip(),
            licence_url=read_address(image, "license_url"),
            width=read_number(image, "width"),
            height=read_number(image, "height"),
        )


@dataclass(frozen=True)
class Wikimedia:
    """https://commons.wikimedia.org/w/api.php: full-text search over the file pages of Wikimedia Commons.

    A page's name is MediaWiki's own continuation, sent back as it came: it may split one page of results in two.
    """

    base: str
    pause: float = 0.5
    name: ClassVar[str] = "wikimedia"
    notice: ClassVar[str] = ""
    deepest: ClassVar[int] = 10_000  # results of a query that can be reached (CirrusSearch, MAX_OFFSET_LIMIT)

    def request(self, query: str, page: str) -> Request:
        """See Provider. maxlag: servers that are behind may refuse, as API:Etiquette asks of programs."""
        params = {
            "action": "query", "format": "json", "formatversion": "2", "maxlag": "5",
            "generator": "search", "gsrnamespace": "6", "gsrsearch": f"filetype:bitmap {query}", "gsrlimit": "50",
            "prop": "imageinfo", "iiprop": "url|size|mime|extmetadata",
        }  # fmt: skip
        return Request(f"{self.base}/w/api.php", params | dict(parse_qsl(page)), {})

    def parse(self, payload: Any, query: str, page: str) -> Page:
        """See Provider. Raises CollectError also for MediaWiki's own errors, which come with status 200."""
        answer = answer_object(payload, self.name, query)
        if "error" in answer:
            code = answer["error"].get("code") if isinstance(answer["error"], dict) else None
            named = clean(code)[:80] if isinstance(code, str) else "without a code"
            raise CollectError(f"{self.name}: {query}: answered with an error: {named}")
        # Where nothing was found, there is no query in it.
        found = answer.get("query", {"pages": []} if "batchcomplete" in answer else None)
        images = found.get("pages") if isinstance(found, dict) else None
        if isinstance(images, list):
            # A file's data may come with an earlier or later part of the same page of results.
            whole = answer.get("batchcomplete") is True and "iicontinue" not in page
            images = [image for image in images if whole or not isinstance(image, dict) or "imageinfo" in image]
            images.sort(key=_rank)
        rows, skipped = read_rows(images, self._row, self.name, query)
        return Page(rows, skipped, self._next(answer, query))

    def limited_until(self, status: int, headers: Mapping[str, str], body: bytes, now: datetime) -> datetime | None:  # noqa: ARG002
        """MediaWiki names its errors in a header as well; a lagging server is no limit, it is asked again soon."""
        lower = {name.lower(): value for name, value in headers.items()}
        if status == 429 or lower.get("mediawiki-api-error") == "ratelimited":
            return _retry_after(lower, now, MINUTE)
        return None

    def _next(self, answer: Mapping[str, Any], query: str) -> str | None:
        onward = answer.get("continue")
        if onward is None:
            return None
        values = list(onward.values()) if isinstance(onward, dict) else [onward]
        if not isinstance(onward, dict) or not all(isinstance(value, str | int) for value in values):
            raise CollectError(f"{self.name}: {query}: answered JSON whose 'continue' says nothing")
        names = ("gsroffset", "iicontinue", "continue")
        params = {name: clean(str(onward[name])) for name in names if name in onward}
        offset = params.get("gsroffset", "0")
        past = not re.fullmatch(r"[0-9]{1,9}", offset) or int(offset) >= self.deepest
        return None if past or not params else urlencode(params)

    def _row(self, image: Mapping[str, Any], query: str) -> Found:
        infos = image.get("imageinfo")
        info = infos[0] if isinstance(infos, list) and infos else None
        if not isinstance(info, dict) or not read_text(info, "mime").startswith("image/"):
            raise Unusable("imageinfo")
        said = info.get("extmetadata") or {}  # PHP writes an empty object as []
        if not isinstance(said, dict):
            raise Unusable("extmetadata")
        title = read_text(image, "title").removeprefix("File:").rpartition(".")[0]
        categories = (name.strip() for name in _metadata(said, "Categories").split("|"))
        licence_url = _metadata(said, "LicenseUrl")
        return Found(
            url=read_needed_address(info, "url"),
            captions=_captions(
                _metadata(said, "ImageDescription"),
                _metadata(said, "ObjectName"),
                title,
                ", ".join(name for name in categories if name and not BOOKKEEPING.match(name)),
            ),
            queries=(query,),
            provider=self.name,
            id=str(read_number(image, "pageid", most=1 << 53) or read_needed(image, "title")),
            page=read_address(info, "descriptionurl"),
            author=_metadata(said, "Artist"),
            licence=_metadata(said, "LicenseShortName"),
            licence_url=web_address(f"https:{licence_url}" if licence_url.startswith("//") else licence_url),
            width=read_number(info, "width"),
            height=read_number(info, "height"),
        )


def choose_providers(settings: SearchSettings, environment: Mapping[str, str] = os.environ) -> tuple[Provider, ...]:
    """The services that the recipe names. Raises CollectError where one needs a key that is not there."""
    chosen: list[Provider] = []
    for name in dict.fromkeys(settings.providers):
        if name == "unsplash":
            key = environment.get(KEY, "").strip()
            if not re.fullmatch(r"[\w-]+", key, re.ASCII):
                found = "is not an access key (letters, digits, - and _)" if key else "is not set"
                raise CollectError(
                    f"{KEY}: {found}; register an application at https://unsplash.com/developers and put its access "
                    "key into this environment variable, or leave unsplash out of search.providers"
                )
            chosen.append(Unsplash(settings.unsplash.rstrip("/"), key))
        elif name == "openverse":
            chosen.append(Openverse(settings.openverse.rstrip("/")))
        else:
            chosen.append(Wikimedia(settings.wikimedia.rstrip("/")))
    return tuple(chosen)


def _metadata(said: Mapping[str, Any], key: str) -> str:
    return strip_html(read_text(read_object(said, key), "value"))


def _page_after(page: str, pages: int) -> str | None:
    number = int(page or 1)
    return str(number + 1) if number < pages else None


def _captions(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, texts)))


def _rank(image: Any) -> int:
    """A generator's pages come in no order; `index` is the search's."""
    index = image.get("index") if isinstance(image, dict) else None
    return index if isinstance(index, int) else 1 << 30


def _retry_after(headers: Mapping[str, str], now: datetime, otherwise: timedelta) -> datetime:
    """Retry-After in seconds or as a date (RFC 9110, 10.2.3), or a time of our own."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,8}", value):
        return now + timedelta(seconds=int(value))
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return now + otherwise
    return max(now, date if date.tzinfo else date.replace(tzinfo=UTC))
