"""Balancing, against a brute-force search and the expected counts of MetaCLIP's paper."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clean.test_duplicates import picture
from clean.test_passes import SIZE, Here, outcomes, row, run
from pocketclip.clean.balance import WordList, draw, drawn_for_test, keep_probabilities, row_probability
from pocketclip.clean.choose import Part, Rows
from pocketclip.clean.features import Look, look_at_shard
from pocketclip.data.rows import Row
from pocketclip.data.shards import write_shards
from pocketclip.recipe.collecting import CleanSettings

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


def pictures(split: str, rows: int, first: int) -> list[Row]:
    """Mostly of dogs; every tenth of something that no word is listed for."""
    said = ["sunset over mountains" if number % 10 == 0 else "a dog on the grass" for number in range(rows)]
    return [row(f"{split}-{number:03d}", picture(first + number, SIZE), said[number]) for number in range(rows)]


def test_what_is_evaluated_on_is_not_balanced(tmp_path: Path) -> None:
    for split, rows, first in (("train", 200, 0), ("test", 60, 1000), ("unseen", 20, 2000)):
        write_shards(pictures(split, rows, first), tmp_path / "raw", split, rows_per_shard=50)
    manifest = run(tmp_path / "raw", tmp_path / "out", Here(), ("dog",), balance=30)
    assert manifest["rows"]["test"] == 60
    assert manifest["rows"]["unseen"] == 20
    assert manifest["dropped"]["no word of the list"] == 20
    assert 15 < manifest["rows"]["train"] < 45  # 30 of the 180 training rows with the word: others are not counted


def test_a_split_that_is_drawn_is_not_balanced_and_not_counted(tmp_path: Path) -> None:
    rows = pictures("train", 400, 0)
    write_shards(rows, tmp_path / "raw", "train", rows_per_shard=150)
    manifest = run(tmp_path / "raw", tmp_path / "out", Here(), ("dog",), balance=1000, test=0.25)
    drawn = {one.key for one in rows if drawn_for_test(0, one.key, 0.25)}
    became = outcomes(tmp_path / "out")
    assert {became[key] for key in drawn} == {"kept"}
    assert manifest["rows"]["test"] == len(drawn)
    rest = {one.key for one in rows} - drawn
    unlisted = {one.key for one in rows if one.captions == ("sunset over mountains",)}
    assert all(became[key] == ("no word of the list" if key in unlisted else "kept") for key in rest)
    thinned = run(tmp_path / "raw", tmp_path / "thinned", Here(), ("dog",), balance=len(rest - unlisted), test=0.25)
    assert thinned["rows"] == manifest["rows"]  # the word stands in just as many training rows: all of them stay


def test_keys_lie_in_one_piece(tmp_path: Path) -> None:
    """Each of many shards takes some of them, which copies a column of many pieces as a whole."""
    write_shards(pictures("train", 8, 0), tmp_path, "train", rows_per_shard=2)
    parts = [Part(tar, tar.with_suffix(".parquet")) for tar in sorted(tmp_path.glob("*.tar"))]
    for part in parts:
        look_at_shard(Look(str(part.tar), str(part.features), CleanSettings(), 1))
    keys = Rows(parts, "train").keys
    assert isinstance(keys, pa.LargeStringArray)
    assert keys.to_pylist() == [f"train-{number:03d}" for number in range(8)]
