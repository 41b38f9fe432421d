"""Fewer of what there is plenty of: balancing over a word list (Xu et al. 2024, "Demystifying CLIP Data", section 3.4).

Each word keeps about t of the rows whose captions hold it: a row is kept with probability t / count for each of its
words, independently. Rows of rare words are all kept; rows without any word of the list are not kept. All this is for
rows that are trained on: what is evaluated on is not balanced.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

TOKEN = re.compile(r"[^\W_]+")


class WordList:
    """Finds the words of a list in captions; entries may be phrases.

    words: in any case; a word's number is its place in the list.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.numbers: dict[str, int] = {}
        for number, word in enumerate(words):
            self.numbers.setdefault(" ".join(TOKEN.findall(word.casefold())), number)
        self.longest = max((word.count(" ") + 1 for word in self.numbers), default=0)

    def find(self, captions: Iterable[str]) -> list[int]:
        """The numbers of the words that stand in any of the captions, each once, in order."""
        found = set()
        for caption in captions:
            tokens = TOKEN.findall(caption.casefold())
            for length in range(1, self.longest + 1):
                for start in range(len(tokens) - length + 1):
                    number = self.numbers.get(" ".join(tokens[start : start + length]))
                    if number is not None:
                        found.add(number)
        return sorted(found)


def keep_probabilities(counts: NDArray[np.int64], most: int) -> NDArray[np.float64]:
    """For each word the probability with which it keeps a row that has it: t / count, at most 1; float64 [words]."""
    return np.minimum(1.0, most / np.maximum(counts, 1))


def row_probability(words: Sequence[int], probabilities: NDArray[np.float64]) -> float:
    """The probability that at least one of a row's words keeps it."""
    return float(1 - np.prod(1 - probabilities[np.asarray(words, dtype=np.int64)])) if len(words) else 0.0


def draw(seed: int, key: str) -> float:
    """A row's lot, 0 to below 1: the same on every machine and in every order."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def drawn_for_test(seed: int, key: str, share: float) -> bool:
    """Whether a row is one of the share that becomes the split `test`; its lot is not the one it is balanced by."""
    return draw(seed, f"test\0{key}") < share
