"""What providers ask, and what they make of good, wrong and hostile answers."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server import ImageServer, openverse_image, page_id, unsplash_photo, wikimedia_answer

from pocketclip.collect.found import Found
from pocketclip.collect.providers import Openverse, Page, Provider, Unsplash, Wikimedia, choose_providers
from pocketclip.errors import CollectError
from pocketclip.recipe.collecting import SearchSettings

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
UNSPLASH, OPENVERSE, WIKIMEDIA = Unsplash("https://u.example", "key"), Openverse("https://o"), Wikimedia("https://w")
PROVIDERS: tuple[Provider, ...] = (UNSPLASH, OPENVERSE, WIKIMEDIA)


def answer(provider: Provider, images: int = 3) -> dict[str, Any]:
    """A good answer with so many images of dogs; there is no server behind it."""
    catalogue = ImageServer({"dog": images})
    if provider is WIKIMEDIA:
        return wikimedia_answer(catalogue, "dog", 0, second=False)
    one = unsplash_photo if provider is UNSPLASH else openverse_image
    pages = {"total_pages": 1, "page_count": 1}
    return {**pages, "results": [one(catalogue, "dog", n) for n in range(images)]}


def images_in(payload: dict[str, Any]) -> list[dict[str, Any]]:
    return payload["results"] if "results" in payload else payload["query"]["pages"]


def test_requests_are_the_documented_ones() -> None:
    url, params, headers = UNSPLASH.request("red fox", "")
    assert (url, params) == ("https://u.example/search/photos", {"query": "red fox", "page": "1", "per_page": "30"})
    assert headers == {"Authorization": "Client-ID key", "Accept-Version": "v1"}
    assert UNSPLASH.request("red fox", "7").params["page"] == "7"
    url, params, _ = OPENVERSE.request("red fox", "2")
    assert (url, params) == ("https://o/v1/images/", {"q": "red fox", "page": "2", "page_size": "20"})
    url, params, _ = WIKIMEDIA.request("red fox", "gsroffset=50&continue=gsroffset%7C%7C")
    assert url == "https://w/w/api.php"
    assert params["gsrsearch"] == "filetype:bitmap red fox"
    assert (params["gsroffset"], params["continue"]) == ("50", "gsroffset||")
    assert (params["gsrnamespace"], params["gsrlimit"], params["maxlag"]) == ("6", "50", "5")
    assert params["iiprop"] == "url|size|mime|extmetadata"


def test_an_unsplash_photo() -> None:
    page = UNSPLASH.parse(answer(UNSPLASH), "dog", "")
    assert page.rows[1] == Found(
        url="https://images.example/dog-1.jpg",
        captions=("A dog by the 1th sea", "dog number 1", "dog, nature"),
        queries=("dog",),
        provider="unsplash",
        id="dog_1",
        page="https://unsplash.com/photos/dog_1",
        author="Jeff Sheldon",
        licence="Unsplash License",
        licence_url="https://unsplash.com/license",
        width=4000,
        height=3000,
    )
    assert page.rows[0].captions == ("dog number 0", "dog, nature")


def test_an_openverse_image() -> None:
    assert OPENVERSE.parse(answer(OPENVERSE), "dog", "").rows[0] == Found(
        url="https://images.example/dog-0.jpg",
        captions=("Dog 0", "dog, animal"),
        queries=("dog",),
        provider="openverse",
        id="36537842-b067-4ca0-ad67-dog-0",
        page="https://stocksnap.io/photo/dog-0",
        author="Dietmar Hoffmann",
        licence="CC BY-SA 2.0",
        licence_url="https://creativecommons.org/licenses/by-sa/2.0/",
        width=None,
        height=768,
    )


@pytest.mark.parametrize(
    ("licence", "version", "written"),
    [("cc0", "1.0", "CC0 1.0"), ("pdm", "1.0", "Public Domain Mark 1.0"), ("by", None, "CC BY"), (None, None, "")],
)
def test_openverse_licences(licence: str | None, version: str | None, written: str) -> None:
    payload = answer(OPENVERSE, 1)
    payload["results"][0] |= {"license": licence, "license_version": version}
    assert OPENVERSE.parse(payload, "dog", "").rows[0].licence == written


def test_a_wikimedia_file_in_the_searchs_order_and_without_its_html() -> None:
    page = WIKIMEDIA.parse(answer(WIKIMEDIA), "dog", "")
    assert [row.id for row in page.rows] == [str(page_id("dog") + n) for n in range(3)]
    assert page.rows[0] == Found(
        url="https://images.example/dog-0.jpg",
        captions=("The dog & its shadow, at noon", "dog 0", "Dogs in snow"),
        queries=("dog",),
        provider="wikimedia",
        id=str(page_id("dog")),
        page="https://commons.wikimedia.org/wiki/File:dog_0.jpg",
        author="Ann",
        licence="CC BY-SA 4.0",
        licence_url="https://creativecommons.org/licenses/by-sa/4.0",
        width=3000,
        height=2000,
    )


def test_a_wikimedia_file_without_metadata_is_known_by_its_title() -> None:
    payload = answer(WIKIMEDIA, 1)
    payload["query"]["pages"][0]["imageinfo"][0]["extmetadata"] = []  # PHP's empty object
    (row,) = WIKIMEDIA.parse(payload, "dog", "").rows
    assert (row.captions, row.author, row.licence) == (("dog 0",), "", "")


@pytest.mark.parametrize(
    ("provider", "page", "changes", "following"),
    [
        (UNSPLASH, "", {"total_pages": 2}, "2"),
        (UNSPLASH, "2", {"total_pages": 2}, None),
        (UNSPLASH, "2", {"total_pages": 9, "results": []}, None),
        (OPENVERSE, "11", {"page_count": 500}, "12"),
        (OPENVERSE, "12", {"page_count": 500}, None),
        (OPENVERSE, "", {"page_count": 500, "results": []}, None),
        (WIKIMEDIA, "", {"continue": {"gsroffset": 50, "continue": "-||"}}, "gsroffset=50&continue=-%7C%7C"),
        (WIKIMEDIA, "", {"continue": {"gsroffset": 50, "action": "edit"}}, "gsroffset=50"),
        (WIKIMEDIA, "", {"continue": {"iicontinue": "A&b|1"}}, "iicontinue=A%26b%7C1"),
        (WIKIMEDIA, "", {"continue": {"gsroffset": 10_000}}, None),
        (WIKIMEDIA, "", {"continue": {"gsroffset": "x"}}, None),
        (WIKIMEDIA, "", {"continue": {}}, None),
        (WIKIMEDIA, "", {}, None),
    ],
)  # fmt: skip
def test_the_page_behind(provider: Provider, page: str, changes: dict[str, Any], following: str | None) -> None:
    assert provider.parse(answer(provider) | changes, "dog", page).next == following


def test_a_query_without_images_is_an_empty_page() -> None:
    assert UNSPLASH.parse({"total": 0, "total_pages": 0, "results": []}, "x", "") == Page((), 0, None)
    assert OPENVERSE.parse({"result_count": 0, "page_count": 0, "results": []}, "x", "") == Page((), 0, None)
    assert WIKIMEDIA.parse({"batchcomplete": True}, "x", "") == Page((), 0, None)


HOUR, DAY = timedelta(hours=1), timedelta(days=1)
BURST = {"X-RateLimit-Limit-anon_burst": "20/min", "X-RateLimit-Available-anon_burst": "0"}
SUSTAINED = {"X-RateLimit-Limit-anon_sustained": "200/day", "X-RateLimit-Available-anon_sustained": "0"}


@pytest.mark.parametrize(
    ("provider", "code", "headers", "body", "holds"),
    [
        (UNSPLASH, 200, {"X-Ratelimit-Remaining": "1"}, b"", None),
        (UNSPLASH, 200, {"x-ratelimit-remaining": "0"}, b"", HOUR),
        (UNSPLASH, 200, {}, b"Rate Limit Exceeded", None),
        (UNSPLASH, 403, {}, b"Rate Limit Exceeded\n", HOUR),
        (UNSPLASH, 403, {}, b'{"errors": ["no permission"]}', None),
        (UNSPLASH, 403, {"X-Ratelimit-Remaining": "0"}, b"", HOUR),
        (UNSPLASH, 429, {"Retry-After": "7"}, b"", timedelta(seconds=7)),
        (OPENVERSE, 200, {}, b"", None),
        (OPENVERSE, 200, {"X-RateLimit-Available-anon_burst": "10"}, b"", None),
        (OPENVERSE, 200, BURST, b"", timedelta(minutes=1)),
        (OPENVERSE, 200, BURST | SUSTAINED, b"", DAY),
        (
            OPENVERSE,
            200,
            {"X-RateLimit-Available-odd": "0", "X-RateLimit-Limit-odd": "many"},
            b"",
            timedelta(minutes=1),
        ),
        (OPENVERSE, 429, SUSTAINED | {"retry-after": "30"}, b"", timedelta(seconds=30)),
        (OPENVERSE, 429, {}, b"", timedelta(minutes=1)),
        (OPENVERSE, 429, {"Retry-After": "-5"}, b"", timedelta(minutes=1)),
        (OPENVERSE, 429, {"Retry-After": "9" * 400}, b"", timedelta(minutes=1)),
        (OPENVERSE, 429, {"Retry-After": format_datetime(NOW + HOUR)}, b"", HOUR),
        (OPENVERSE, 429, {"Retry-After": format_datetime(NOW - HOUR)}, b"", timedelta(0)),
        (OPENVERSE, 429, {"Retry-After": "Wed, 01 May 2024 13:00:00 -0000"}, b"", HOUR),
        (OPENVERSE, 503, {"Retry-After": "30"}, b"", None),
        (WIKIMEDIA, 200, {"MediaWiki-API-Error": "maxlag", "Retry-After": "5"}, b"", None),
        (WIKIMEDIA, 200, {"MediaWiki-API-Error": "ratelimited", "Retry-After": "5"}, b"", timedelta(seconds=5)),
        (WIKIMEDIA, 429, {"Retry-After": "600"}, b"", timedelta(minutes=10)),
    ],
)
def test_how_long_a_rate_limit_holds(
    provider: Provider, code: int, headers: dict[str, str], body: bytes, holds: timedelta | None
) -> None:
    assert provider.limited_until(code, headers, body, NOW) == (holds if holds is None else NOW + holds)


@given(st.sampled_from(PROVIDERS), st.integers(100, 599), st.dictionaries(st.text(), st.text()), st.text(), st.binary())
def test_no_header_is_too_odd(provider: Provider, code: int, headers: dict[str, str], value: str, body: bytes) -> None:
    odd = dict.fromkeys(
        ("Retry-After", "X-RateLimit-Remaining", "X-RateLimit-Limit-a", "X-RateLimit-Available-a"), value
    )
    until = provider.limited_until(code, headers | odd, body, NOW)
    assert until is None or until >= NOW


LONG = "a" * 10_000_000
WRONG = {
    "urls": [
        None, 5, "", "ftp://a.example/x.jpg", "javascript:alert(1)", "file:///etc/passwd", "http://", "https://[::1",
        "//a.example/x", "http://a b/x.jpg", "https://a.example:p/", "http://a.example:0/", f"https://a/{'x' * 5000}",
    ],
    "texts": [5, 1.5, True, [], {}, ["x"], LONG],
    "sizes": [-1, 1.5, "100", True, [1], 10**12, float("nan")],
}  # fmt: skip


def spoiled(provider: Provider, path: tuple[str | int, ...], value: object) -> Page:
    """What three images give, where that value stands in the second one."""
    payload = answer(provider)
    node: Any = images_in(payload)[1]
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return provider.parse(json.loads(json.dumps(payload)), "dog", "")


INFO = ("imageinfo", 0)


@pytest.mark.parametrize(
    ("provider", "path", "values"),
    [
        (UNSPLASH, ("urls", "regular"), "urls"), (OPENVERSE, ("url",), "urls"), (WIKIMEDIA, (*INFO, "url"), "urls"),
        (UNSPLASH, ("description",), "texts"), (UNSPLASH, ("id",), "texts"), (UNSPLASH, ("user", "name"), "texts"),
        (UNSPLASH, ("tags", 0, "title"), "texts"), (OPENVERSE, ("title",), "texts"), (OPENVERSE, ("id",), "texts"),
        (OPENVERSE, ("tags", 1, "name"), "texts"), (OPENVERSE, ("foreign_landing_url",), "texts"),
        (WIKIMEDIA, (*INFO, "extmetadata", "ImageDescription", "value"), "texts"), (WIKIMEDIA, ("title",), "texts"),
        (WIKIMEDIA, (*INFO, "extmetadata", "Artist", "value"), "texts"), (WIKIMEDIA, (*INFO, "mime"), "texts"),
        (UNSPLASH, ("width",), "sizes"), (OPENVERSE, ("height",), "sizes"), (WIKIMEDIA, (*INFO, "width"), "sizes"),
    ],
)  # fmt: skip
def test_an_image_with_something_wrong_in_it_is_counted_and_the_others_stay(
    provider: Provider, path: tuple[str | int, ...], values: str
) -> None:
    for value in WRONG[values]:
        page = spoiled(provider, path, value)
        assert (len(page.rows), page.skipped) == (2, 1), value


@pytest.mark.parametrize(
    ("provider", "path", "value"),
    [
        (UNSPLASH, ("urls",), None), (UNSPLASH, ("urls",), []), (UNSPLASH, ("user",), "Ann"), (UNSPLASH, ("tags",), {}),
        (UNSPLASH, ("tags",), ["x"]), (UNSPLASH, ("premium",), True),
        (OPENVERSE, ("id",), None), (OPENVERSE, ("tags",), [{"name": f"{n}" * 400} for n in range(400)]),
        (WIKIMEDIA, ("imageinfo",), []), (WIKIMEDIA, (*INFO,), None), (WIKIMEDIA, (*INFO, "mime"), "video/webm"),
        (WIKIMEDIA, (*INFO, "extmetadata"), [1]), (WIKIMEDIA, (*INFO, "extmetadata", "Artist"), "Ann"),
        (WIKIMEDIA, ("pageid",), -1),
    ],
)  # fmt: skip
def test_an_image_of_another_shape_is_counted(provider: Provider, path: tuple[str | int, ...], value: object) -> None:
    page = spoiled(provider, path, value)
    assert (len(page.rows), page.skipped) == (2, 1)


def test_what_an_image_may_lack() -> None:
    bare = {"id": "1", "urls": {"regular": "http://a.example/1.jpg"}, "url": "http://a.example/1.jpg"}
    pages = {"total_pages": 1, "page_count": 1}
    for provider in (UNSPLASH, OPENVERSE):
        (row,) = provider.parse({**pages, "results": [bare]}, "dog", "").rows
        assert (row.url, row.captions, row.queries, row.author) == ("http://a.example/1.jpg", (), ("dog",), "")
        assert (row.width, row.height, row.page) == (None, None, "")
    page = spoiled(OPENVERSE, ("foreign_landing_url",), "javascript:alert(1)")
    assert (page.rows[1].page, page.skipped) == ("", 0)


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize(
    "payload",
    [
        None, 1, "x", [], {}, {"results": None}, {"query": 5}, {"query": {"pages": {}}}, {"results": []},
        {"total_pages": "9", "page_count": "9", "results": []},
    ],
)  # fmt: skip
def test_no_page_of_images_is_an_error_that_names_provider_and_query(provider: Provider, payload: object) -> None:
    with pytest.raises(CollectError, match=f"^{provider.name}: dog: "):
        provider.parse(payload, "dog", "")


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
def test_a_page_of_which_nothing_can_be_used_is_a_changed_format_and_not_the_end(provider: Provider) -> None:
    payload = answer(provider, 20)
    for image in images_in(payload):
        image.pop("url", None)
        image.pop("urls", None)
        image["imageinfo"] = [{"mime": "image/png", "address": "https://a.example/x.png"}]
    with pytest.raises(CollectError, match=r"none of 20 images .* format"):
        provider.parse(payload, "dog", "")
    del images_in(payload)[4:]
    assert provider.parse(payload, "dog", "")[:2] == ((), 4)


def test_mediawikis_errors_are_named() -> None:
    for error, named in (({"code": "maxlag"}, "maxlag"), ("x", "without a code"), ({"code": LONG}, "aaa")):
        with pytest.raises(CollectError, match=named) as caught:
            WIKIMEDIA.parse({"error": error}, "dog", "")
        assert len(str(caught.value)) < 200


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def nodes(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in nodes(child, (*path, key)))]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(PROVIDERS))
def test_no_answer_raises_anything_but_collect_error(data: st.DataObject, provider: Provider) -> None:
    payload: Any = answer(provider, 2) | {"continue": {"gsroffset": 50, "continue": "-||"}}
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(nodes(payload)))
        value = data.draw(ANY_JSON)
        if not path:
            payload = value
            break
        node = payload
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
    try:
        page = provider.parse(payload, "dog", "")
    except CollectError as error:
        assert str(error).startswith(f"{provider.name}: dog: ")
        return
    assert page.next is None or provider.request("dog", page.next).url
    for row in page.rows:
        assert row.url.startswith(("http://", "https://"))
        line = json.dumps(row.to_json(), ensure_ascii=False).encode()
        assert b"\n" not in line
        assert all(caption.strip() == caption != "" for caption in row.captions)


def test_providers_are_chosen_by_the_recipe() -> None:
    names = ("unsplash", "openverse", "wikimedia", "openverse")
    chosen = choose_providers(SearchSettings(providers=names, openverse="http://x/"), {"UNSPLASH_ACCESS_KEY": " k-1 "})
    assert [provider.name for provider in chosen] == ["unsplash", "openverse", "wikimedia"]
    assert chosen[0].request("dog", "").headers["Authorization"] == "Client-ID k-1"
    assert chosen[1].request("dog", "").url == "http://x/v1/images/"
    assert chosen[2].request("dog", "").url == "https://commons.wikimedia.org/w/api.php"
    assert "k-1" not in repr(chosen)
    assert len(choose_providers(SearchSettings(), {})) == 2


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
def test_a_missing_or_odd_key_is_named_with_where_to_get_one(key: str) -> None:
    with pytest.raises(CollectError, match=r"UNSPLASH_ACCESS_KEY: .*https://unsplash\.com/developers") as caught:
        choose_providers(SearchSettings(providers=("unsplash",)), {"UNSPLASH_ACCESS_KEY": key})
    assert not key or key not in str(caught.value)
