"""Which captions are dropped, on real ones: the names of emoji in fourteen languages."""

import re
from timeit import repeat

import emoji
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.clean.captions import _BOILERPLATE, BOILERPLATE, LANGUAGE, TOO_LONG, WHOLE, why_not
from pocketclip.errors import DataError
from pocketclip.recipe.collecting import CleanSettings

OTHERS = ("es", "pt", "it", "fr", "de", "fa", "id", "zh", "ja", "ko", "ru", "tr", "ar")
DEFAULT = CleanSettings()


def names(language: str, least: int = 1, most: int = 99) -> list[str]:
    emoji.config.load_language(language)
    found = {one[language].strip(":").replace("_", " ") for one in emoji.EMOJI_DATA.values() if language in one}
    return sorted(name for name in found if least <= len(name.split()) <= most)[::7]


def dropped(language: str, least: int, most: int) -> float:
    captions = names(language, least, most)
    return sum(why_not(caption, DEFAULT) == LANGUAGE for caption in captions) / max(1, len(captions))


@pytest.mark.parametrize(("least", "most"), [(1, 1), (2, 2), (3, 4), (5, 99)])
def test_english_stays_however_short(least: int, most: int) -> None:
    assert dropped("en", least, most) <= 0.02  # "Uzbekistan", "Tanzania"


@pytest.mark.parametrize("language", OTHERS)
def test_other_languages_go_where_they_can_be_told(language: str) -> None:
    if language in {"fa", "zh", "ja", "ko", "ru", "ar"}:  # another alphabet
        assert dropped(language, 1, 1) > 0.8
        assert dropped(language, 2, 2) > 0.95
    else:
        assert dropped(language, 5, 99) > 0.6


def test_other_languages_can_be_wanted() -> None:
    german = "eine Frau sitzt mit ihrem Hund auf der Bank und liest die Zeitung"
    assert why_not(german, DEFAULT) == LANGUAGE
    assert why_not(german, CleanSettings(languages=("en", "de"))) == ""
    assert why_not(german, CleanSettings(languages=())) == ""
    with pytest.raises(DataError, match=r"'english' is not known; known: .*en"):
        why_not("a dog", CleanSettings(languages=("english",)))


@pytest.mark.parametrize(
    "caption",
    [
        "IMG_1234", "DSC00012.JPG", "dsc_0001 (2)", "photo.jpeg", "some-holiday-picture.webp", "Untitled", "untitled 3",
        "https://example.com/a.jpg", "www.example.com", "me@example.com", "image", "Photo", "no description", "n/a",
        "Photo by Somebody on Unsplash", "stock photo", "Royalty-free stock images", "click to enlarge",
        "View larger image", "This image has an empty alt attribute; its file name is a.png", "12345", "...", "-- 3 --",
        "File:Some page.jpg", "© 2019 Somebody", "(c) Somebody", "Somebody. All rights reserved.", "alt text",
        "Screen Shot 2019-01-02", "IMG 20190102_123456", "Image may contain: ", "placeholder.", "buy now",
    ],
)  # fmt: skip
def test_boilerplate_goes(caption: str) -> None:
    assert why_not(caption, DEFAULT) == BOILERPLATE
    assert why_not(caption, CleanSettings(boilerplate=False, languages=())) == ""


@pytest.mark.parametrize(
    "caption",
    [
        "a dog", "dog", "A photo of a cat", "the image of a saint", "picture frame on a wall", "a man taking a photo",
        "logo of a football club", "icon of a house", "stock market", "test tube", "a page of text", "title page",
        "image of the Virgin Mary, 1420", "buy one get one free sign", "three 3D dice", "a sign: click to win",
        "default risk chart", "an avatar movie poster", "File cabinet", "copyright law books", "p. 3 of a book",
        "banner waving", "no parking", "null island map", "scan of a passport", "samurai", "gallery of modern art",
    ],
)  # fmt: skip
def test_captions_that_look_like_it_stay(caption: str) -> None:
    assert why_not(caption, DEFAULT) == ""


# The same without possessive and atomic groups: it tries all ways to share out the characters, and stays readable.
PLAIN = re.compile(
    "(?:"
    + WHOLE.replace(r"[\W\d_]*+", r"[\W\d_]*")
    .replace(r"(?:[\d_.\s()-]++[a-z]?)?+", r"[\s_.-]*(?:[\d_.\s()-]+[a-z]?)?")
    .replace(r"\S++", r"\S+")
    .replace(r"(?>\S+?@)\S+\.\w++", r"\S+@\S+\.\w+")
    + r")[\s.!:…]*",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
PIECES = st.sampled_from(
    ["image", "IMG", "p", "photo", "by", "www.", "http://", "@", ".", ".png", ":", "…", "!", " ", "_", "-", "(", ")",
     "1", "a", "é", "\n", "this", "click", "to", "image may contain", "buy now", "all rights reserved", "©", "file:"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=7).map("".join) | st.text("imgp@.w1 a…-é(", max_size=9))
def test_the_quick_pattern_finds_what_the_plain_one_does(caption: str) -> None:
    assert not any(sign in PLAIN.pattern for sign in ("*+", "++", "?+", "(?>"))
    assert bool(_BOILERPLATE.fullmatch(caption)) == bool(PLAIN.fullmatch(caption))


@pytest.mark.parametrize(
    ("start", "more", "end"),
    [("image", ".", "é"), ("img", " .", "é"), ("", ".", "é"), ("www", ".", " é"), ("", "@.a", " é"), ("a@", ".a", "@"),
     ("", "a@", " "), ("img", "(.", "é"), ("a", ".png", "é"), ("image may contain", ".", "é"), ("http://", ":", "\té")],
)  # fmt: skip
def test_a_hostile_caption_costs_its_length(start: str, more: str, end: str) -> None:
    """Twenty times the length, about twenty times the time; a quadratic pattern would take 400 times, a cubic 8,000."""

    def seconds(length: int, times: int) -> float:
        caption = (start + more * length)[: length - len(end)] + end
        return min(repeat(lambda: _BOILERPLATE.fullmatch(caption), number=1, repeat=times))

    assert seconds(1000, times=3) < 100 * seconds(50, times=20)


def test_too_long() -> None:
    words = CleanSettings(most_words=5, languages=())
    assert why_not("one two three four five", words) == ""
    assert why_not("one two three four five six", words) == TOO_LONG
    assert why_not("word " * 10_000, CleanSettings(most_words=0, languages=())) == ""


@given(st.text(max_size=3000))
def test_any_text_gets_an_answer(caption: str) -> None:
    assert why_not(caption, DEFAULT) in {"", TOO_LONG, BOILERPLATE, LANGUAGE}
