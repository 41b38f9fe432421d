from collections import Counter

import numpy as np

from pocketclip.data.captions import UnknownWords

CAPTIONS = ["red circle"] * 9 + ["red koala"]


def test_one_word_is_replaced_and_rare_words_are_replaced_most() -> None:
    unknown = UnknownWords(CAPTIONS)
    random = np.random.default_rng(0)
    replaced = Counter()
    for _ in range(2000):
        words = unknown.replace("Red Koala", random).split()
        assert len(words) == 2
        (kept,) = [word for word in words if word in ("Red", "Koala")]
        replaced[kept] += 1
    assert 0.85 < replaced["Red"] / 2000 < 0.96  # counts are 10 and 1: koala goes in 10 of 11


def test_invented_words_differ_and_are_words() -> None:
    unknown = UnknownWords(CAPTIONS)
    random = np.random.default_rng(0)
    invented = {unknown.replace("koala", random) for _ in range(200)}
    assert len(invented) > 190
    assert all(word.isalpha() and 3 <= len(word) <= 8 for word in invented)
    assert unknown.replace("", random) == ""
