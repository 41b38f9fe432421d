"""words.tsv: the words that images are searched for, and which of them can be seen."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from pocketclip.errors import CollectError
from pocketclip.files import whole_file
from pocketclip.recipe.collecting import WordsSettings

HEADER = "word\tcount"
PER = 1_000_000_000  # words: `wordfreq` gives frequencies, its counts are per so many words
# WordNet's lexicographer files (lexnames(5WN)) whose things have a look: animal, artifact, body, food, object, person,
# plant, shape, substance.
VISIBLE = {"05", "06", "08", "13", "17", "18", "20", "25", "27"}
# Endings of plurals and what WordNet puts in their place (morphy(7WN)).
PLURALS = (
    ("ches", "ch"),
    ("shes", "sh"),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ies", "y"),
    ("men", "man"),
    ("s", ""),
)


def write_word_list(words: Iterable[tuple[str, int]], path: Path) -> int:
    """Write words with their counts, whole or not at all; returns how many they are."""
    number = 0
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f"{HEADER}\n")
        for word, count in words:
            file.write(f"{word}\t{count}\n")
            number += 1
    return number


def read_word_list(path: Path) -> list[str]:
    """The words of a file that `write_word_list` wrote, or of one with a word a line, in its order, each once.

    Raises CollectError where the file is missing, empty or no text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise CollectError(f"{path}: missing; `pocketclip words` writes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CollectError(f"{path}: cannot be read ({error}); it should be UTF-8 text, a word a line") from None
    words = [line.partition("\t")[0].strip() for line in (lines[1:] if lines[:1] == [HEADER] else lines)]
    found = list(dict.fromkeys(filter(None, words)))
    if not found:
        raise CollectError(f"{path}: holds no words")
    return found


def common_words() -> Iterator[tuple[str, int]]:
    """The most frequent English words of `wordfreq` (Speer 2022), with their count in a billion; letters only."""
    try:
        import wordfreq
    except ImportError:
        raise CollectError("word lists without a dump need the extra: pip install 'pocketclip[collect]'") from None
    for word in wordfreq.iter_wordlist("en", wordlist="large"):
        if word.isascii() and word.isalpha() and len(word) > 1:
            yield word, round(wordfreq.word_frequency(word, "en", wordlist="large") * PER)


def chosen_words(settings: WordsSettings) -> Iterator[tuple[str, int]]:
    """The words of `wordfreq` that the settings ask for."""
    nouns = Nouns(Path(settings.nouns)) if settings.nouns else None
    words = (pair for pair in common_words() if nouns is None or pair[0] in nouns)
    return islice(words, settings.most)


class Nouns:
    """The nouns of a WordNet database whose most frequent sense is a thing that can be seen.

    folder: with WordNet 3's files index.noun and data.noun (Debian's `wordnet-base` and NLTK's corpus have them).
    Raises CollectError where one is missing or is not WordNet's.
    """

    def __init__(self, folder: Path) -> None:
        kinds = {line[:8]: line[9:11] for line in _lines(folder / "data.noun")}
        self._visible: dict[str, bool] = {}
        try:
            for line in _lines(folder / "index.noun"):
                fields = line.split()
                first_sense = fields[-int(fields[2])]
                self._visible[fields[0]] = kinds[first_sense] in VISIBLE
        except (IndexError, ValueError, KeyError):
            raise CollectError(
                f"{folder / 'index.noun'}: is not WordNet's index of nouns, or not that of data.noun"
            ) from None

    def __contains__(self, word: str) -> bool:
        if word in self._visible:
            return self._visible[word]
        stems = (word.removesuffix(ending) + stem for ending, stem in PLURALS if word.endswith(ending))
        return any(self._visible.get(stem, False) for stem in stems)


def _lines(path: Path) -> Iterator[str]:
    """A WordNet file's lines behind its licence, which is indented."""
    try:
        with path.open(encoding="utf-8") as file:
            yield from (line for line in file if not line.startswith(" "))
    except (OSError, UnicodeDecodeError) as error:
        raise CollectError(
            f"{path}: cannot be read ({error}); words.nouns is the folder of WordNet's database"
        ) from None
