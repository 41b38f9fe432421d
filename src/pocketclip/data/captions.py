"""Training captions: a word now and then is replaced by one that nobody knows.

A test caption can hold a word that training never showed. Its pieces mean something by accident, and a model that has
only ever seen known words takes them at their word. Unknown words in training captions teach that an unknown word says
nothing, and that a picture of an unknown thing goes with it. This is word dropout (Iyyer et al. 2015, section 3.2) with
two differences: the word is replaced instead of removed, and rare words are the ones replaced, as words that are
missing from training are rare ones.
"""

import string
from collections import Counter
from collections.abc import Iterable

import numpy as np

LETTERS = np.array(list(string.ascii_lowercase))
SHORTEST, LONGEST = 3, 8


class UnknownWords:
    """Replaces one word of a caption, chosen with a probability inverse to its count, by one of random letters."""

    def __init__(self, captions: Iterable[str]) -> None:
        self.counts = Counter(word for caption in captions for word in caption.casefold().split())

    def replace(self, caption: str, random: np.random.Generator) -> str:
        """The caption with one word replaced; the other words stay as they are."""
        words = caption.split()
        if not words:
            return caption
        weights = np.array([1 / max(1, self.counts[word.casefold()]) for word in words])
        place = int(random.choice(len(words), p=weights / weights.sum()))
        length = int(random.integers(SHORTEST, LONGEST + 1))
        words[place] = "".join(LETTERS[random.integers(0, len(LETTERS), length)])
        return " ".join(words)
