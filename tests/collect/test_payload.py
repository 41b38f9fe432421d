"""Texts, addresses and HTML that someone else wrote."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketclip.collect.payload import LONGEST_TEXT, clean, decode, strip_html, web_address
from pocketclip.errors import CollectError


@settings(max_examples=50, deadline=None)
@given(st.binary() | st.text().map(str.encode))
def test_no_body_raises_anything_but_collect_error(content: bytes) -> None:
    try:
        decode(content, "openverse", "dog")
    except CollectError as error:
        assert str(error).startswith("openverse: dog: ")


@pytest.mark.parametrize("content", [b"[" * 200_000, b"1" * 10_000, b'"\\ud800"', b"\xff", b"", b'{"a": ' * 100_000])
def test_odd_bodies(content: bytes) -> None:
    try:
        assert decode(content, "openverse", "dog") == "\ud800"
    except CollectError as error:
        assert "no JSON" in str(error)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("plain", "plain"),
        ("<p>A <b>do</b>g</p><p>runs</p>", "A dog runs"),
        ("one<br>two<br/>three", "one two three"),
        ("fish &amp; chips &lt;3 &eacute; &#233; &#xD800;", "fish & chips <3 é é \ufffd"),
        ("a<!-- hidden -->b<script>alert('x')</script>c<style>p {}</style>d", "a b c d"),
        ('Mona Lisa<div style="display: none;">title QS:P1476,en:"Mona Lisa"</div>', "Mona Lisa"),
        ('<span style="display:none">x</span>seen', "seen"),
        ("<script>never closed", ""),
        ("<!-- never closed", ""),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("<![foo <!DOCTYPE html>x", "<![foo x"),
        ("&lt;b&gt;", "<b>"),
    ],
)
def test_html_is_stripped(source: str, seen: str) -> None:
    assert strip_html(source) == seen


@pytest.mark.parametrize(
    "unit", ["<", "<script>", "<!--", '<a style="display:none"', "display:none", "<a ", "&", "</p "]
)
def test_the_worst_html_takes_no_longer_than_its_length_asks(unit: str) -> None:
    assert len(strip_html((unit * LONGEST_TEXT)[:LONGEST_TEXT])) <= LONGEST_TEXT


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())) | st.text(alphabet="<>/=!-&;:dispaynoe \"'scrt"))
def test_what_comes_out_can_be_written(text: str) -> None:
    for written in (clean(text), strip_html(text)):
        assert written.encode().decode() == written
        assert "\n" not in written
        assert "\x00" not in written


def test_control_characters_and_halves_of_pairs_become_spaces() -> None:
    assert clean(" a\x00b\ud800c\n\td\x85e\u2028f ") == "a b c d e f"
    assert clean("👩\u200d🚒 café") == "👩\u200d🚒 café"


def test_addresses() -> None:
    good = ["http://a.example/x.jpg", "https://a.example:8080/x?y=z#w", "http://[::1]/x", "https://ä.example/ö.jpg"]
    assert [web_address(address) for address in good] == good
    wrong = [
        "",
        "ftp://a.example/x",
        "javascript:alert(1)",
        "http://",
        "https://[::1",
        "//a.example",
        "http://a b/",
        "x",
    ]
    assert not any(web_address(address) for address in wrong)
