from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.data.captions import LONGEST, SHORTEST, TWO_WORDS_SHARE, UnknownWords

CAPTIONS = ["red circle"] * 9 + ["red koala"]


def test_rare_words_are_replaced_most_and_the_others_stay() -> None:
    unknown = UnknownWords(CAPTIONS)
    random = np.random.default_rng(0)
    gone, lengths = Counter[str](), Counter[int]()
    for _ in range(4000):
        words = unknown.replace("Red Koala", random).split()
        kept = words[0] == "Red"
        assert kept or words[-1] == "Koala"
        gone["Koala" if kept else "Red"] += 1
        lengths[len(words) - 1] += 1
    assert 0.88 < gone["Koala"] / 4000 < 0.94  # counts are 10 and 1: koala goes in 10 of 11
    assert lengths.keys() == {1, 2}
    assert abs(lengths[2] / 4000 - TWO_WORDS_SHARE) < 0.03


def test_a_third_is_letters_a_third_is_run_together_a_third_is_known() -> None:
    unknown = UnknownWords(CAPTIONS)
    random = np.random.default_rng(0)
    invented = [unknown.invent(random) for _ in range(3000)]
    known = sum(word in unknown.counts for word in invented)
    joined = {a[:i] + b[j:] for a in unknown.counts for b in unknown.counts for i in range(1, 7) for j in range(6)}
    letters = [word for word in invented if word not in joined]
    assert 0.31 < known / 3000 < 0.45  # two words run together give a known one now and then
    assert abs(len(letters) / 3000 - 1 / 3) < 0.03
    assert len(set(letters)) > 900
    assert all(word.isalpha() and SHORTEST <= len(word) <= LONGEST for word in letters)


@given(st.lists(st.text(), max_size=5), st.text(), st.integers(0, 2**32))
def test_any_text_gives_words(captions: list[str], caption: str, seed: int) -> None:
    before, after = caption.split(), UnknownWords(captions).replace(caption, np.random.default_rng(seed)).split()
    assert len(after) - len(before) in ((0, 1) if before else (0,))
    assert sum((Counter(before) - Counter(after)).values()) <= 1
