"""Balancing, against a brute-force search and the expected counts of MetaCLIP's paper."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.clean.balance import WordList, draw, keep_probabilities, row_probability

LETTERS = st.text("ab ", max_size=12)


@given(
    st.lists(LETTERS.map(str.split).filter(bool).map(" ".join), min_size=1, max_size=8), st.lists(LETTERS, max_size=3)
)
def test_words_are_found_as_paper_s_padded_substrings(words: list[str], captions: list[str]) -> None:
    padded = [f" {' '.join(caption.split())} " for caption in captions]
    first = {word: number for number, word in reversed(list(enumerate(words)))}
    expected = sorted(number for word, number in first.items() if any(f" {word} " in caption for caption in padded))
    assert WordList(words).find(captions) == expected


def test_case_signs_and_phrases() -> None:
    listed = WordList(["Dog", "new york", "café", "cat"])
    assert listed.find(["The DOG's basket", "New-York, at night."]) == [0, 1]
    assert listed.find(["Café au lait", "york new concatenate"]) == [2]
    assert listed.find([]) == []


def test_each_frequent_word_keeps_about_its_share() -> None:
    """Of n > t rows with one word t stay on average (Xu et al. 2024, section 3.4); a rare word's rows all stay."""
    counts, most = np.array([50, 2_000, 40_000]), 1_000
    probabilities = keep_probabilities(counts, most)
    assert probabilities == pytest.approx([1, 0.5, 0.025])
    for word, count in enumerate(counts):
        kept = sum(draw(7, f"{word}-{row}") < row_probability([word], probabilities) for row in range(count))
        expected = min(count, most)
        assert abs(kept - expected) <= 4 * np.sqrt(expected * (1 - probabilities[word])) + 1e-9


def test_several_words_are_independent_draws() -> None:
    probabilities = np.array([0.5, 0.2, 1.0])
    assert row_probability([0, 1], probabilities) == pytest.approx(1 - 0.5 * 0.8)
    assert row_probability([0, 2], probabilities) == 1
    assert row_probability([], probabilities) == 0


def test_a_lot_is_the_same_everywhere_and_evenly_spread() -> None:
    assert draw(0, "key") == draw(0, "key")
    assert draw(0, "key") != draw(1, "key")
    lots = [draw(0, f"{number:016x}") for number in range(20_000)]
    assert np.histogram(lots, 10, (0, 1))[0] == pytest.approx(2_000, abs=200)
