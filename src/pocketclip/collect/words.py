"""A Wikipedia dump -> words.tsv: how often each English word stands in its articles.

The dump (`pages-articles`, .xml or .xml.bz2, plain or multistream) is read as it was downloaded. Counting is exact and
memory bounded: when a count of distinct words grows large it is written out sorted, as a run, and the runs are merged
at the end. Runs and the position reached are what a stopped count goes on from.
"""

import bz2
import heapq
import json
import mmap
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
from typing import BinaryIO, NamedTuple, TextIO, cast

from rich.console import Console

from pocketclip.collect.wikitext import unescape, visible_text
from pocketclip.collect.word_list import Nouns, write_word_list
from pocketclip.engine import Engine
from pocketclip.errors import CollectError
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.collecting import WordsSettings

PIECE_BYTES = 1 << 20  # of a dump as it lies on disk; bzip2 shrinks wikitext about 3.5 times
XML_PIECE_BYTES = 1 << 20  # of a dump that the parent has to decompress
LONGEST_PAGE = 64 << 20  # bytes of XML; MediaWiki's own limit is 2 MB
DISTINCT_WORDS = 2_000_000  # held in memory before a run is written, about 200 MB
RUN_SECONDS = 60.0  # at most so much work is lost when a count is killed
LONGEST_WORD = 30
STREAM = b"1AY&SY"  # follows "BZh9" at the start of each bzip2 stream that holds anything
PAGE, PAGE_END, DUMP_END = b"<page>", b"</page>", b"</mediawiki>"
ARTICLE, REDIRECT = b"<ns>0</ns>", b"<redirect "

# Bytes that end a word become spaces; letters are lowered; what may belong to a word of another script stays, so that
# such a word is seen whole and left out instead of giving its ASCII letters.
WORD_BYTES = bytes(
    byte if byte >= 0x80 or byte == ord("'") or chr(byte).isalpha() else ord(" ") for byte in range(256)
).lower()
PUNCTUATION = re.compile(rb"\xe2\x80[\x80-\xbf]|\xc2[\x80-\xbf]")  # U+2000 to 203F, U+0080 to 00BF


class Piece(NamedTuple):
    """A part of a dump: bzip2 streams to read from `start`, or XML that was read already.

    path: of the dump, absolute, as workers need not have this process's working folder.
    """

    path: str
    start: int
    length: int
    xml: bytes | None


class Counted(NamedTuple):
    """What one piece held, and where it ends."""

    words: Counter[bytes]
    pages: int
    articles: int
    xml_bytes: int
    ended: bool
    end: int


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
    ended: bool = False


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
    pieces, total = _pieces(dump, position.done)
    with WorkProgress(console, "words", "MB", total and total / 1e6, position.done / 1e6) as progress:
        for counted in engine.map(count_piece, pieces):
            held.update(counted.words)
            progress.advance((counted.end - position.done) / 1e6, f"{position.articles:,} articles")
            position = replace(
                position,
                done=counted.end,
                pages=position.pages + counted.pages,
                articles=position.articles + counted.articles,
                xml_bytes=position.xml_bytes + counted.xml_bytes,
                ended=position.ended or counted.ended,
            )
            if len(held) > DISTINCT_WORDS or time.monotonic() - written > RUN_SECONDS:
                position = _write_run(held, position, state)
                held, written = Counter(), time.monotonic()
    if not position.articles:
        raise CollectError(f"{dump}: holds no article; is it a MediaWiki dump (pages-articles.xml.bz2)?")
    if not position.ended:
        position = _write_run(held, position, state)
        raise CollectError(
            f"{dump}: ends inside the XML, after {position.pages:,} pages; the dump is truncated: download it again"
        )
    words = write_word_list(_frequent_words(held, state, position.runs, settings), output)
    shutil.rmtree(state, ignore_errors=True)
    return words, position


def _pieces(dump: Path, done: int) -> tuple[Iterator[Piece], int | None]:
    """The parts of a dump from position `done` on, and how much there is in all, if that is known."""
    try:
        size = dump.stat().st_size
        with dump.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise CollectError(f"{dump}: cannot be read: {error.strerror}") from None
    if not size:
        raise CollectError(f"{dump}: is empty; download it again")
    if head[:3] != b"BZh":
        return _xml_pieces(dump, dump.open("rb"), done), size
    streams = _streams(dump)
    if next(streams, None) is not None and next(streams, None) is not None:
        return _stream_pieces(dump, done, size), size
    return _xml_pieces(dump, _open_parallel(dump), done), None


def _streams(dump: Path) -> Iterator[int]:
    """Where the bzip2 streams of a file begin; ten fixed bytes mark each."""
    with dump.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        found = view.find(STREAM)
        while found >= 0:
            if view[found - 4 : found - 1] == b"BZh" and view[found - 1] in b"123456789":
                yield found - 4
            found = view.find(STREAM, found + 1)


def _stream_pieces(dump: Path, done: int, size: int) -> Iterator[Piece]:
    start, path = done, str(dump.resolve())
    for stream in _streams(dump):
        if stream - start >= PIECE_BYTES:
            yield Piece(path, start, stream - start, None)
            start = stream
    if start < size:
        yield Piece(path, start, size - start, None)


def _open_parallel(dump: Path) -> BinaryIO:
    """A bzip2 file of one stream, its blocks decompressed on all cores where rapidgzip is there."""
    try:
        from rapidgzip import IndexedBzip2File
    except ImportError:
        return cast("BinaryIO", bz2.open(dump, "rb"))
    return cast("BinaryIO", IndexedBzip2File(str(dump), parallelization=0))


def _xml_pieces(dump: Path, file: BinaryIO, done: int) -> Iterator[Piece]:
    """Cut XML behind whole pages."""
    rest, start, path = b"", done, str(dump.resolve())
    with file:
        try:
            file.seek(done)
            while block := file.read(XML_PIECE_BYTES):
                rest += block
                cut = rest.rfind(PAGE_END) + len(PAGE_END)
                if cut >= len(PAGE_END):
                    yield Piece(path, start, cut, rest[:cut])
                    start, rest = start + cut, rest[cut:]
                elif len(rest) > LONGEST_PAGE:
                    raise CollectError(f"{dump}: no page ends within {LONGEST_PAGE >> 20} MB; is it a MediaWiki dump?")
        except (EOFError, OSError, RuntimeError, ValueError) as error:
            raise CollectError(
                f"{dump}: damaged or truncated after {start:,} bytes of XML ({error}); download it again"
            ) from None
    yield Piece(path, start, len(rest), rest)


def count_piece(piece: Piece) -> Counted:
    """The words of one part of a dump; runs in a worker."""
    xml = _decompress(piece) if piece.xml is None else piece.xml
    words: Counter[bytes] = Counter()
    pages = articles = 0
    for page in xml.split(PAGE)[1:]:
        pages += 1
        head, found, rest = page.partition(b"<text")
        source, closed, _ = rest.partition(b"</text>")
        if not found or not closed or ARTICLE not in head or REDIRECT in head:
            continue
        articles += 1
        visible = visible_text(unescape(source.partition(b">")[2])).replace(b"\xe2\x80\x99", b"'")
        words.update(visible.translate(WORD_BYTES).split())
    ended = DUMP_END in xml[-200:]
    return Counted(words, pages, articles, len(xml), ended, piece.start + piece.length)


def _decompress(piece: Piece) -> bytes:
    """The XML of a piece's streams; not by `bz2.decompress`, which stops at a damaged one without saying so."""
    parts = []
    try:
        with Path(piece.path).open("rb") as file:
            file.seek(piece.start)
            packed = file.read(piece.length)
    except OSError as error:
        raise CollectError(
            f"{piece.path}: cannot be read: {error.strerror}; a cluster's machines all need the dump at this path"
        ) from None
    try:
        while packed:
            stream = bz2.BZ2Decompressor()
            parts.append(stream.decompress(packed))
            if not stream.eof:
                raise EOFError("a stream ends early")
            packed = stream.unused_data
    except (OSError, ValueError, EOFError) as error:
        raise CollectError(
            f"{piece.path}: damaged or truncated between bytes {piece.start:,} and {piece.start + piece.length:,} "
            f"({error}); download it again"
        ) from None
    return b"".join(parts)


def fold(tokens: Counter[bytes]) -> Counter[str]:
    """Tokens -> English words: quotes and the possessive 's off, ASCII only, 2 to 30 letters."""
    words: Counter[bytes] = Counter()
    for token, count in tokens.items():
        if token.isalpha():  # of bytes: ASCII letters alone
            words[token] = words.get(token, 0) + count
            continue
        # Dashes and quotes beyond ASCII are looked for here, in distinct tokens, not in the whole text.
        for part in (token,) if token.isascii() else PUNCTUATION.split(token):
            word = part.strip(b"'").removesuffix(b"'s").strip(b"'")
            if word.isascii():
                words[word] = words.get(word, 0) + count
    return Counter({word.decode(): count for word, count in words.items() if 1 < len(word) <= LONGEST_WORD})


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
        sums: Iterable[tuple[str, int]] = fold(held).items()
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
