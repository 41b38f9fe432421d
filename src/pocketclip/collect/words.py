"""A Wikipedia dump -> words.tsv: how often each English word stands in its articles.

The dump (`pages-articles`, .xml or .xml.bz2, plain or multistream) is read as it was downloaded. Counting is exact and
memory bounded: when a count of distinct words grows large it is written out sorted, as a run, and the runs are merged
at the end. Runs and the position reached are what a stopped count goes on from.
"""

import heapq
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TextIO

from rich.console import Console

from pocketclip.collect.bzip2 import Block, find_blocks, read_block
from pocketclip.collect.wikitext import unescape, visible_text
from pocketclip.collect.word_list import Nouns, write_word_list
from pocketclip.engine import Engine
from pocketclip.errors import CollectError
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.collecting import WordsSettings

PIECE_BYTES = 1 << 20  # of a dump that is not compressed; else a piece is a block, 900 kB
LONGEST_PAGE = 64 << 20  # bytes of XML; MediaWiki's own limit is 2 MB
DISTINCT_WORDS = 2_000_000  # held in memory before a run is written, about 200 MB
RUN_SECONDS = 60.0  # at most so much work is lost when a count is killed
LONGEST_WORD = 30
PAGE, PAGE_END, DUMP_END = b"<page>", b"</page>", b"</mediawiki>"
ARTICLE, REDIRECT = b"<ns>0</ns>", b"<redirect "

# Bytes that end a word become spaces; letters are lowered; what may belong to a word of another script stays, so that
# such a word is seen whole and left out instead of giving its ASCII letters.
WORD_BYTES = bytes(
    byte if byte >= 0x80 or byte == ord("'") or chr(byte).isalpha() else ord(" ") for byte in range(256)
).lower()
PUNCTUATION = re.compile(rb"\xe2\x80[\x80-\xbf]|\xc2[\x80-\xbf]")  # U+2000 to 203F, U+0080 to 00BF


class Piece(NamedTuple):
    """A part of a dump that a worker reads for itself: some bytes of XML, or a block of bzip2.

    path: of the dump, absolute, as workers need not have this process's working folder. start, end: bytes, of XML or of
    the dump as it lies on disk.
    """

    path: str
    start: int
    end: int
    block: Block | None


class Counted(NamedTuple):
    """What one piece held. head, tail: its XML before its first page and behind its last whole one; a page that another
    piece begins or ends lies there. tail: None where no page begins in the piece.
    """

    words: Counter[bytes]
    pages: int
    articles: int
    head: bytes
    tail: bytes | None
    xml_bytes: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Position:
    """How far a count has come; kept beside its runs."""

    dump: str
    size: int
    modified: int
    done: int = 0
    runs: int = 0
    pages: int = 0
    articles: int = 0
    xml_bytes: int = 0
    rest: str = ""  # of the XML, from a page on that ends behind `done`; each character is a byte


def count_words(
    dump: Path, output: Path, settings: WordsSettings, engine: Engine, console: Console
) -> tuple[int, Position]:
    """Count the words of a dump's articles and write the frequent ones that `settings` asks for to `output`.

    output: a TSV with the columns word and count, most frequent first. Returns how many words, and what was read.
    Raises CollectError where the dump is damaged or ends early; what was counted stays beside `output`, so that the
    same command goes on.
    """
    state = output.with_name(output.name + ".part")
    position = _restore(dump, state)
    held: Counter[bytes] = Counter()
    written = time.monotonic()
    with WorkProgress(console, "words", "MB", position.size / 1e6, position.done / 1e6) as progress:
        for counted in engine.map(count_piece, _pieces(dump, position)):
            progress.advance((counted.end - position.done) / 1e6, f"{position.articles:,} articles")
            position = _add(counted, position, held)
            if len(held) > DISTINCT_WORDS or time.monotonic() - written > RUN_SECONDS:
                position = _write_run(held, position, state)
                held, written = Counter(), time.monotonic()
    if not position.articles:
        raise CollectError(f"{dump}: holds no article; is it a MediaWiki dump (pages-articles.xml.bz2)?")
    if DUMP_END.decode() not in position.rest:
        position = _write_run(held, position, state)
        raise CollectError(
            f"{dump}: ends inside the XML, after {position.pages:,} pages; the dump is truncated: download it again"
        )
    words = write_word_list(_frequent_words(held, state, position.runs, settings), output)
    shutil.rmtree(state, ignore_errors=True)
    return words, position


def _add(counted: Counted, position: Position, held: Counter[bytes]) -> Position:
    """Take in what a piece held, and the pages that it completes."""
    rest = position.rest.encode("latin-1") + counted.head
    between = count_xml(rest)
    for words in (between.words, counted.words):
        held.update(words)
    if counted.tail is not None:
        rest = counted.tail
    elif between.tail is not None:
        rest = between.tail
    if len(rest) > LONGEST_PAGE:
        raise CollectError(f"{position.dump}: no page ends within {LONGEST_PAGE >> 20} MB; is it a MediaWiki dump?")
    return replace(
        position,
        done=counted.end,
        pages=position.pages + between.pages + counted.pages,
        articles=position.articles + between.articles + counted.articles,
        xml_bytes=position.xml_bytes + counted.xml_bytes,
        rest=rest.decode("latin-1"),
    )


def _pieces(dump: Path, position: Position) -> Iterator[Piece]:
    """The parts of a dump that are still to be counted."""
    path, done = str(dump.resolve()), position.done
    if not position.size:
        raise CollectError(f"{dump}: is empty; download it again")
    try:
        with dump.open("rb") as file:
            packed = file.read(3) == b"BZh"
        if not packed:
            for start in range(done, position.size, PIECE_BYTES):
                yield Piece(path, start, min(start + PIECE_BYTES, position.size), None)
            return
        for block in find_blocks(dump, done):
            yield Piece(path, done, block.end // 8, block)
            done = block.end // 8
    except (OSError, EOFError) as error:
        raise _damaged(path, done, position.size, error) from None
    if not done:
        raise _damaged(path, done, position.size, "no block of bzip2")


def count_piece(piece: Piece) -> Counted:
    """The words of one part of a dump; runs in a worker."""
    path = Path(piece.path)
    try:
        if piece.block:
            xml = read_block(path, piece.block)
        else:
            with path.open("rb") as file:
                file.seek(piece.start)
                xml = file.read(piece.end - piece.start)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno:
            raise CollectError(
                f"{path}: cannot be read: {error.strerror}; a cluster's machines all need the dump at this path"
            ) from None
        raise _damaged(piece.path, piece.start, piece.end, error) from None
    return count_xml(xml)._replace(xml_bytes=len(xml), end=piece.end)


def _damaged(path: str, start: int, end: int, why: object) -> CollectError:
    return CollectError(f"{path}: damaged or truncated between bytes {start:,} and {end:,} ({why}); download it again")


def count_xml(xml: bytes) -> Counted:
    """The words of the whole pages of some XML."""
    first = xml.find(PAGE)
    if first < 0:
        return Counted(Counter(), 0, 0, xml, None)
    last = xml.rfind(PAGE_END, first)
    last = first if last < 0 else last + len(PAGE_END)
    words: Counter[bytes] = Counter()
    pages = articles = 0
    for page in xml[first:last].split(PAGE)[1:]:
        pages += 1
        head, found, rest = page.partition(b"<text")
        source, closed, _ = rest.partition(b"</text>")
        if not found or not closed or ARTICLE not in head or REDIRECT in head:
            continue
        articles += 1
        visible = visible_text(unescape(source.partition(b">")[2])).replace(b"\xe2\x80\x99", b"'")
        words.update(visible.translate(WORD_BYTES).split())
    return Counted(words, pages, articles, xml[:first], xml[last:])


def fold(tokens: Counter[bytes], minimum: int = 0) -> dict[str, int]:
    """Tokens -> English words: quotes and the possessive 's off, ASCII only, 2 to 30 letters, above `minimum`."""
    words = {token: count for token, count in tokens.items() if token.isalpha()}  # of bytes: ASCII letters alone
    for token, count in tokens.items():
        if token.isalpha():
            continue
        # Dashes and quotes beyond ASCII are looked for here, in distinct tokens, not in the whole text.
        for part in (token,) if token.isascii() else PUNCTUATION.split(token):
            word = part.strip(b"'").removesuffix(b"'s").strip(b"'")
            if word.isascii():
                words[word] = words.get(word, 0) + count
    return {word.decode(): n for word, n in words.items() if n > minimum and 1 < len(word) <= LONGEST_WORD}


def _restore(dump: Path, state: Path) -> Position:
    """Where an earlier run of the same dump stopped, or its beginning."""
    try:
        status = dump.stat()
    except OSError as error:
        raise CollectError(f"{dump}: cannot be read: {error.strerror}") from None
    fresh = Position(str(dump.resolve()), status.st_size, status.st_mtime_ns)
    try:
        found = Position(**json.loads((state / "position.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return fresh
    return found if (found.dump, found.size, found.modified) == (fresh.dump, fresh.size, fresh.modified) else fresh


def _write_run(tokens: Counter[bytes], position: Position, state: Path) -> Position:
    """Put counts on the disk, sorted by word, then the position that they reach."""
    words = fold(tokens)
    with whole_file(state / f"run-{position.runs:05d}.tsv") as temporary, temporary.open("w", encoding="ascii") as file:
        file.writelines(f"{word}\t{words[word]}\n" for word in sorted(words))
    position = replace(position, runs=position.runs + 1)
    with whole_file(state / "position.json") as temporary:
        temporary.write_text(json.dumps(asdict(position)), encoding="utf-8")
    return position


def _frequent_words(held: Counter[bytes], state: Path, runs: int, settings: WordsSettings) -> list[tuple[str, int]]:
    """Merge the runs with what is still held and choose among their words, most frequent first."""
    nouns = Nouns(Path(settings.nouns)) if settings.nouns else None
    with ExitStack() as files:
        opened = [files.enter_context((state / f"run-{run:05d}.tsv").open(encoding="ascii")) for run in range(runs)]
        sums: Iterable[tuple[str, int]] = fold(held, 0 if opened else settings.minimum).items()
        if opened:
            merged = groupby(heapq.merge(sorted(sums), *map(_read_run, opened)), key=itemgetter(0))
            sums = ((word, sum(count for _, count in group)) for word, group in merged)
        kept = [pair for pair in sums if pair[1] > settings.minimum and (nouns is None or pair[0] in nouns)]
    kept.sort(key=itemgetter(0))
    kept.sort(key=itemgetter(1), reverse=True)  # stable: words of the same count stay in alphabetical order
    return kept[: settings.most]


def _read_run(file: TextIO) -> Iterator[tuple[str, int]]:
    for line in file:
        word, _, count = line.rstrip("\n").partition("\t")
        yield word, int(count)
