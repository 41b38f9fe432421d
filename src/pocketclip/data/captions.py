"""Training captions: a word now and then is replaced by a phrase that nobody knows.

A test caption can hold words that training never showed, or showed in another sense. Their pieces mean something by
accident, and a model that has only ever seen known words takes them at their word. Strange phrases in training captions
teach that such words say nothing, that the others still hold, and that a picture of an unknown thing goes with them.
This is word dropout (Iyyer et al. 2015, section 3.2) with two differences: the word is replaced instead of removed, and
rare words are the ones replaced, as words that are missing from training are rare ones.
"""

import string
from collections import Counter
from collections.abc import Iterable

import numpy as np

LETTERS = np.array(list(string.ascii_lowercase))
SHORTEST, LONGEST = 3, 8
TWO_WORDS_SHARE = 0.4  # of the phrases: what is unknown often has two ("vulcan salute", "folded hands")


class UnknownWords:
    """Replaces one word of a caption, chosen with a probability inverse to its count, with a strange phrase."""

    def __init__(self, captions: Iterable[str]) -> None:
        self.counts = Counter(word for caption in captions for word in caption.casefold().split())
        self.vocabulary = sorted(self.counts)

    def replace(self, caption: str, random: np.random.Generator) -> str:
        """The caption with one word replaced by one or two others; the rest of it stays as it is."""
        words = caption.split()
        if not words:
            return caption
        weights = np.array([1 / max(1, self.counts[word.casefold()]) for word in words])
        place = int(random.choice(len(words), p=weights / weights.sum()))
        length = 2 if random.random() < TWO_WORDS_SHARE else 1
        words[place : place + 1] = [self.invent(random) for _ in range(length)]
        return " ".join(words)

    def invent(self, random: np.random.Generator) -> str:
        """With equal chances: random letters, two known words run together, a known word out of its place.

        Only the first is made of pieces that mean nothing; what is really unknown mostly breaks into familiar ones.
        """
        kind = random.integers(3)
        if kind == 0 or not self.vocabulary:
            return "".join(LETTERS[random.integers(0, len(LETTERS), random.integers(SHORTEST, LONGEST + 1))])
        first, second = (self.vocabulary[int(number)] for number in random.integers(0, len(self.vocabulary), 2))
        if kind == 1:
            return first[: int(random.integers(1, len(first) + 1))] + second[int(random.integers(0, len(second))) :]
        return first
