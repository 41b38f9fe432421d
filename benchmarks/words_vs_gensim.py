"""`pocketclip words` beside gensim's WikiCorpus: the same dump, the same number of processes, in turns.

    pip install gensim mwparserfromhell
    python benchmarks/words_vs_gensim.py DUMP.xml.bz2

DUMP: any pages-articles dump; without one the shortened English Wikipedia in gensim's own test data. Both sides read,
decompress, strip the markup, cut into words and count them. A third count, by mwparserfromhell's parser and a regular
expression, says how far ours is right. Needs gensim, and mwparserfromhell for --check.
"""

import argparse
import bz2
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console

from pocketclip.collect.words import count_words
from pocketclip.engine import open_engine
from pocketclip.recipe.collecting import WordsSettings


def ours(dump: Path, processes: int) -> tuple[float, Counter[str]]:
    """Seconds until PocketCLIP's words.tsv is written, and what is in it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "words.tsv"
        began = time.perf_counter()
        with open_engine("local", processes) as engine:
            count_words(dump, output, WordsSettings(), engine, Console(quiet=True))
        seconds = time.perf_counter() - began
        lines = output.read_text().splitlines()[1:]
        return seconds, Counter({word: int(count) for word, count in (line.split("\t") for line in lines)})


def gensims(dump: Path, processes: int) -> tuple[float, Counter[str]]:
    """Seconds until gensim's words are counted, short articles included, and the counts."""
    from gensim.corpora.wikicorpus import WikiCorpus

    began = time.perf_counter()
    corpus = WikiCorpus(str(dump), processes=processes, dictionary={}, article_min_tokens=0)
    words: Counter[str] = Counter()
    for text in corpus.get_texts():
        words.update(text)
    return time.perf_counter() - began, words


def independent(dump: Path) -> Counter[str]:
    """Count with a real parser of wikitext, slowly."""
    import mwparserfromhell

    words: Counter[str] = Counter()
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            space = page.tag.removesuffix("page")
            if page.findtext(f"{space}ns") == "0" and page.find(f"{space}redirect") is None:
                text = page.findtext(f"{space}revision/{space}text") or ""
                code = mwparserfromhell.parse(text)
                for tag in code.filter_tags(matches=lambda node: str(node.tag) in ("ref", "math", "gallery")):
                    try:
                        code.remove(tag)
                    except ValueError:
                        continue  # it went with one around it
                plain = code.strip_code(normalize=True, collapse=True).replace("\u2019", "'").lower()
                words.update(word.removesuffix("'s") for word in re.findall(r"(?<!\w)[a-z][a-z']*[a-z](?!\w)", plain))
            page.clear()
    return words


def timed(side: str, dump: Path, processes: int) -> tuple[float, Counter[str]]:
    """Seconds of one side, in a process of its own and without its imports, and what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counted.json"
        command = [sys.executable, __file__, str(dump), "--processes", str(processes), "--side", side, str(output)]
        subprocess.run(command, check=True)
        seconds, words = json.loads(output.read_text())
        return float(seconds), Counter(words)


def count_alone(side: str, output: Path, dump: Path, processes: int) -> None:
    """What `timed` starts."""
    count: Callable[[Path, int], tuple[float, Counter[str]]] = ours if side == "ours" else gensims
    output.write_text(json.dumps(count(dump, processes)))


def bundled_dump() -> Path:
    """The piece of Wikipedia that gensim carries."""
    import gensim

    folder = Path(gensim.__file__).parent / "test" / "test_data"
    return folder / "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dump", type=Path, nargs="?", help="a pages-articles dump, .xml.bz2")
    parser.add_argument("--processes", type=int, default=2, help="of each side")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--check", action="store_true", help="count a third time with a real parser, and compare")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.side:
        count_alone(settings.side[0], Path(settings.side[1]), settings.dump, settings.processes)
        return
    dump = settings.dump or bundled_dump()
    with bz2.open(dump) as file:
        megabytes = sum(len(block) for block in iter(lambda: file.read(1 << 20), b"")) / 1e6
    ratios, rates = [], []
    for number in range(settings.rounds):
        our_seconds, counted = timed("ours", dump, settings.processes)
        their_seconds, _ = timed("gensim", dump, settings.processes)
        ratios.append(their_seconds / our_seconds)
        rates.append((megabytes / our_seconds, megabytes / their_seconds))
        print(f"round {number + 1}: ours {rates[-1][0]:.1f}, gensim {rates[-1][1]:.1f} MB/s, ratio {ratios[-1]:.1f}")
    print(f"{dump.name}: {megabytes:.1f} MB of XML, {settings.processes} processes; medians: ours", end=" ")
    print(f"{statistics.median(ours for ours, _ in rates):.1f} MB/s, gensim", end=" ")
    print(f"{statistics.median(theirs for _, theirs in rates):.1f} MB/s, ratio {statistics.median(ratios):.1f}")
    print("most frequent:", ", ".join(f"{word} {count:,}" for word, count in counted.most_common(10)))
    if settings.check:
        other = independent(dump)
        print("a parser's:   ", ", ".join(f"{word} {count:,}" for word, count in other.most_common(10)))
        for word in ("history", "water", "anarchism", "language", "computer"):
            print(
                f"{word}: ours {counted[word]:,}, a parser's {other[word]:,} ({counted[word] / other[word] - 1:+.2%})"
            )


if __name__ == "__main__":
    main()
