import bz2
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pocketclip.collect import words
from pocketclip.collect.wikitext import LINK, SILENT_ELEMENT, TEMPLATE, visible_text
from pocketclip.collect.word_list import Nouns, chosen_words, common_words, read_word_list, write_word_list
from pocketclip.collect.words import count_words, count_xml, fold
from pocketclip.engine import open_engine
from pocketclip.errors import CollectError
from pocketclip.recipe.collecting import WordsSettings

ALL = WordsSettings(minimum=0)


class InProcess:
    """An engine without processes."""

    def map(self, function, pieces, inflight=None):  # noqa: ARG002
        return map(function, pieces)


def page(text: str, namespace: int = 0, redirect: bool = False) -> str:
    target = '<redirect title="x" />' if redirect else ""
    return (
        f"  <page>\n    <title>T</title>\n    <ns>{namespace}</ns>\n    <id>1</id>\n    {target}\n    <revision>\n"
        f'      <text bytes="9" xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


HEAD = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">\n  <siteinfo></siteinfo>\n'
TAIL = "</mediawiki>\n"


def numbered_pages(count: int) -> list[str]:
    return [page(f"dog '''cat''' number{'abc'[n % 3]} " + f"w{chr(97 + n % 26)}x " * (n % 7)) for n in range(count)]


def expected(count: int) -> Counter[str]:
    return Counter(
        word
        for n in range(count)
        for word in f"dog cat number{'abc'[n % 3]} {f'w{chr(97 + n % 26)}x ' * (n % 7)}".split()
    )


def counts(path: Path) -> dict[str, int]:
    lines = path.read_text().splitlines()
    assert lines[0] == "word\tcount"
    return {word: int(count) for word, count in (line.split("\t") for line in lines[1:])}


def multistream(pages: list[str], per_stream: int) -> bytes:
    parts = [HEAD, *("".join(pages[n : n + per_stream]) for n in range(0, len(pages), per_stream)), TAIL]
    return b"".join(bz2.compress(part.encode()) for part in parts)


def write_dump(kind: str, pages: list[str], folder: Path) -> Path:
    path = folder / ("dump.xml" if kind == "xml" else "dump.xml.bz2")
    whole = (HEAD + "".join(pages) + TAIL).encode()
    middle = len(whole) // 2 + 5  # inside a page
    path.write_bytes(
        {
            "xml": whole,
            "plain": bz2.compress(whole, 1),  # in blocks of 100 kB
            "joined": bz2.compress(whole[:middle], 1) + bz2.compress(whole[middle:], 1),
            "multistream": multistream(pages, 10),
        }[kind]
    )
    return path


KINDS = ["xml", "plain", "joined", "multistream"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PIECE_BYTES", 700)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_a_plain_count_whatever_the_dump_looks_like(kind: str, tmp_path: Path, console: Console) -> None:
    dump = write_dump(kind, numbered_pages(3000), tmp_path)
    number, read = count_words(dump, tmp_path / "words.tsv", ALL, InProcess(), console)
    found = counts(tmp_path / "words.tsv")
    assert found == expected(3000)
    assert list(found) == sorted(found, key=lambda word: (-found[word], word))
    assert (number, read.pages, read.articles) == (len(found), 3000, 3000)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([dump.name, "words.tsv"])


@pytest.mark.parametrize("size", [5, 97, 1000])
def test_pages_and_their_tags_may_lie_across_pieces(
    size: int, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "PIECE_BYTES", size)
    dump = write_dump("xml", [*numbered_pages(9), page("long " * 3000), *numbered_pages(2)], tmp_path)
    _, read = count_words(dump, tmp_path / "words.tsv", ALL, InProcess(), console)
    assert counts(tmp_path / "words.tsv") == expected(9) + expected(2) + Counter({"long": 3000})
    assert (read.pages, read.articles, read.xml_bytes) == (12, 12, dump.stat().st_size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_that_holds_few_words_changes_nothing(
    kind: str, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "DISTINCT_WORDS", 5)
    count_words(write_dump(kind, numbered_pages(3000), tmp_path), tmp_path / "words.tsv", ALL, InProcess(), console)
    assert counts(tmp_path / "words.tsv") == expected(3000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_that_was_stopped_goes_on_and_counts_nothing_twice(
    kind: str, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "RUN_SECONDS", 0.0)
    dump = write_dump(kind, numbered_pages(5000), tmp_path)

    class Stopping(InProcess):
        def map(self, function, pieces, inflight=None):  # noqa: ARG002
            for number, piece in enumerate(pieces):
                if number == 3:
                    raise KeyboardInterrupt
                yield function(piece)

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            count_words(dump, tmp_path / "words.tsv", ALL, Stopping(), console)
        assert not (tmp_path / "words.tsv").exists()
    seen: list[int] = []

    class Watching(InProcess):
        def map(self, function, pieces, inflight=None):  # noqa: ARG002
            for piece in pieces:
                seen.append(piece.start)
                yield function(piece)

    count_words(dump, tmp_path / "words.tsv", ALL, Watching(), console)
    assert counts(tmp_path / "words.tsv") == expected(5000)
    assert seen[0] > 0


def test_a_killed_process_goes_on(tmp_path: Path) -> None:
    """A real `kill -9`, and two real workers."""
    dump = write_dump("multistream", numbered_pages(20_000), tmp_path)
    script = (
        "import sys; from pathlib import Path; from rich.console import Console\n"
        "from pocketclip.collect import words; from pocketclip.engine import open_engine\n"
        "from pocketclip.recipe.collecting import WordsSettings\n"
        "words.RUN_SECONDS = 0.0\n"
        "if __name__ == '__main__':\n"
        "    with open_engine('local', 2) as engine:\n"
        "        words.count_words(Path(sys.argv[1]), Path(sys.argv[2]), WordsSettings(minimum=0), engine, Console())\n"
    )
    (tmp_path / "run.py").write_text(script)
    command = [sys.executable, str(tmp_path / "run.py"), str(dump), str(tmp_path / "words.tsv")]
    state = tmp_path / "words.tsv.part"
    for kill in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(state.glob("run-*.tsv"))) < 3 * (kill + 1) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.poll() is None, "it was to be killed while it worked"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert counts(tmp_path / "words.tsv") == expected(20_000)
    assert not state.exists()


def test_two_processes_count_what_one_does(tmp_path: Path, console: Console) -> None:
    dump = write_dump("multistream", numbered_pages(2000), tmp_path)
    with open_engine("local", 2) as engine:
        count_words(dump, tmp_path / "words.tsv", ALL, engine, console)
    assert counts(tmp_path / "words.tsv") == expected(2000)


def test_only_articles_and_frequent_words_are_kept(tmp_path: Path, console: Console) -> None:
    pages = [page("often often often rare twice twice"), page("talk " * 9, 1), page("moved " * 9, redirect=True)]
    dump = write_dump("plain", pages, tmp_path)
    count_words(dump, tmp_path / "words.tsv", WordsSettings(minimum=1), InProcess(), console)
    assert counts(tmp_path / "words.tsv") == {"often": 3, "twice": 2}
    count_words(dump, tmp_path / "words.tsv", WordsSettings(minimum=0, most=1), InProcess(), console)
    assert counts(tmp_path / "words.tsv") == {"often": 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.97])
def test_a_truncated_dump_is_named(kind: str, share: float, tmp_path: Path, console: Console) -> None:
    dump = write_dump(kind, numbered_pages(3000), tmp_path)
    content = dump.read_bytes()
    dump.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CollectError, match=rf"{dump.name}: .*download it again"):
        count_words(dump, tmp_path / "words.tsv", ALL, InProcess(), console)
    assert not (tmp_path / "words.tsv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.xml.bz2", bz2.compress((HEAD + "".join(numbered_pages(50)))[:-200].encode()), "ends inside the XML"),
        ("no.xml.bz2", b"BZh9 this is no bzip2 at all", "damaged or truncated"),
        ("empty.xml", b"", "is empty"),
        ("other.xml", b"<html><body>no dump</body></html>" * 99, "holds no article"),
        ("talk.xml", (HEAD + page("x", 1) + TAIL).encode(), "holds no article"),
    ],
)
def test_what_is_no_whole_dump_is_named(
    name: str, content: bytes, message: str, tmp_path: Path, console: Console
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CollectError, match=message):
        count_words(tmp_path / name, tmp_path / "words.tsv", ALL, InProcess(), console)
    with pytest.raises(CollectError, match=r"nowhere\.xml: cannot be read"):
        count_words(tmp_path / "nowhere.xml", tmp_path / "words.tsv", ALL, InProcess(), console)


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_counting(noise: bytes) -> None:
    xml = HEAD.encode() + b"<page><ns>0</ns><text>" + noise.replace(b"</text>", b"") + b"</text></page>"
    for word in fold(count_xml(xml).words):
        assert re.fullmatch(r"[a-z']{2,30}", word)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a {{template|b {{inner}} c}} d", "a d"),
        ("a {{{parameter|x}}} b", "a b"),
        ("see [[Dog]], [[Cat|the cats]] and [[:Category:Pets|pets]]", "see Dog, the cats and pets"),
        ("[[File:X.jpg|thumb|left|200px|A [[red]] '''house''']] after", "A red house after"),
        ("[[File:X.jpg]] [[Image:Y.png|thumb|120px]] after", "after"),
        ("before [[Category:Pets]]", "before"),
        ("text\n[[de:Hund]]\n[[simple:Dog]]", "text"),
        ("word<ref name=a>not {{this}}</ref> more<ref name=b /> end", "word more end"),
        ("x <math>\\frac{a}{b}</math> y <!-- not --> z", "x y z"),
        ("[http://example.org the site] and https://example.org/page end", "the site and end"),
        ("a<br />b &nbsp; c", "a b c"),
        (
            'text\n{| class="wikitable"\n|-\n! style="x" | head\n| one || two\n|}\nafter',
            "text head | one || two after",
        ),
        ("__NOTOC__ start", "start"),
        ("unclosed {{template and [[link", "unclosed {{template and [[link"),
    ],
)
def test_what_readers_see_is_kept(source: str, text: str) -> None:
    assert visible_text(source.encode()).split() == text.encode().split()


MARKUP = [
    "<ref>",
    "<REF name=a/>",
    "<ref name=b>",
    "</ref>",
    "</Ref >",
    "<math>",
    "</math>",
    "<mathx>",
    "<b>",
    "<",
    ">",
    "/",
]
MARKUP += ["[[", "]]", "|", "{{", "}}", "{", "a", " word ", "\n"]


@given(st.lists(st.sampled_from(MARKUP), max_size=40).map("".join))
def test_quick_patterns_find_what_plain_ones_do(source: str) -> None:
    text = source.encode()
    silent = re.compile(rb"<(ref|math|gallery)\b(?:[^<>]*/>|[^<>]*>.*?(?:</\1\s*>|\Z))", re.DOTALL | re.IGNORECASE)
    for quick, plain in (
        (SILENT_ELEMENT, silent),
        (LINK, re.compile(rb"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]")),
        (TEMPLATE, re.compile(rb"\{\{[^{}]*\}\}")),
    ):
        found = [(one.span(), one.groups()) for one in quick.finditer(text)]
        assert found == [(one.span(), one.groups()) for one in plain.finditer(text)]


def test_words_are_english_whole_and_lower_case() -> None:
    text = "Dog's DOGS’ naïve über Straße—word rock-climbing don't 'tis 1999 a e\u0301t\u00e9 日本 x" + " " + "z" * 31
    xml = page(text).encode()
    found = fold(count_xml(xml).words)
    assert found == {"dog": 1, "dogs": 1, "word": 1, "rock": 1, "climbing": 1, "don't": 1, "tis": 1}
    assert fold(Counter({b"dog": 2, b"dog's": 3, b"'dog'": 1})) == {"dog": 6}


def test_word_lists_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    assert write_word_list([("dog", 3), ("cat", 2)], path) == 2
    assert read_word_list(path) == ["dog", "cat"]
    path.write_text("\ufeffred car\r\n\r\ndog\r\ndog\r\n", encoding="utf-8")
    assert read_word_list(path) == ["red car", "dog"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CollectError, match="cannot be read"):
        read_word_list(path)
    with pytest.raises(CollectError, match="missing; `pocketclip words` writes it"):
        read_word_list(tmp_path / "none.tsv")
    path.write_text("word\tcount\n")
    with pytest.raises(CollectError, match="holds no words"):
        read_word_list(path)


def test_common_words_come_most_frequent_first() -> None:
    found = list(islice(common_words(), 500))
    assert len(found) == 500
    assert found[0][0] == "the"
    assert [count for _, count in found] == sorted((count for _, count in found), reverse=True)


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    """Lines as WordNet 3.0 has them."""
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(
        "  1 This software and database is being provided to you\n"
        "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis\n"
        "10114209 18 n 01 dog 0 001 @ 10 n 0000 | informal term for a man\n"
        "13951444 26 n 01 freedom 0 001 @ 13 n 0000 | the condition of being free\n"
    )
    (folder / "index.noun").write_text(
        "  1 This software and database is being provided to you\n"
        "dog n 2 5 @ ~ #m #p %p 2 1 02084071 10114209\n"
        "freedom n 1 3 @ ~ + 1 1 13951444\n"
    )
    return folder


def test_nouns_that_can_be_seen(wordnet: Path, tmp_path: Path, console: Console) -> None:
    nouns = Nouns(wordnet)
    assert [word for word in ("dog", "dogs", "freedom", "freedoms", "the", "s") if word in nouns] == ["dog", "dogs"]
    dump = write_dump("plain", [page("the dog has freedom of dogs")], tmp_path)
    chosen = WordsSettings(minimum=0, nouns=str(wordnet))
    count_words(dump, tmp_path / "words.tsv", chosen, InProcess(), console)
    assert counts(tmp_path / "words.tsv") == {"dog": 1, "dogs": 1}
    assert [word for word, _ in chosen_words(chosen)] == ["dog", "dogs"]
    with pytest.raises(CollectError, match=r"data\.noun: cannot be read"):
        Nouns(tmp_path)
    (wordnet / "index.noun").write_text("dog n 1 0 9 0 99999999\n")
    with pytest.raises(CollectError, match=r"index\.noun: is not WordNet's"):
        Nouns(wordnet)


def test_damage_in_a_later_stream_of_a_piece_is_named(tmp_path: Path, console: Console) -> None:
    """bz2.decompress takes what follows a good stream for rubbish and says nothing."""
    pages = numbered_pages(200)
    dump = write_dump("multistream", pages, tmp_path)
    data = bytearray(dump.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    dump.write_bytes(bytes(data))
    with pytest.raises(CollectError, match="damaged or truncated"):
        count_words(dump, tmp_path / "words.tsv", ALL, InProcess(), console)
