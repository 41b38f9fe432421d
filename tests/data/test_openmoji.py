import pytest

from pocketclip.data import openmoji
from pocketclip.data.images import Pixels, open_image, to_square
from pocketclip.data.rows import Row

WOMAN, MAN, PERSON, MEDIUM, DARK, ROCKET = 0x1F469, 0x1F468, 0x1F9D1, 0x1F3FD, 0x1F3FF, 0x1F680


SIZE = 72


def pixels_of(data: bytes, size: int) -> Pixels:
    return to_square(open_image(data), size)


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return openmoji.rows(SIZE)


def words(row: Row) -> set[str]:
    return {word.casefold() for caption in row.captions for word in caption.split()}


def test_no_picture_crosses_a_split_and_none_appears_twice(splits: dict[str, list[Row]]) -> None:
    pixels = [pixels_of(row.image, SIZE).tobytes() for rows in splits.values() for row in rows]
    assert len(set(pixels)) == len(pixels)


def test_the_splits_are_fixed(splits: dict[str, list[Row]]) -> None:
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 3296, "compositions": 304, "unseen": 131}
    keys = [row.key for rows in splits.values() for row in rows]
    assert len(set(keys)) == len(keys)


def test_compositions_are_new_combinations_of_known_words(splits: dict[str, list[Row]]) -> None:
    known = set().union(*map(words, splits["train"]))
    bases = {row.metadata["base"] for row in splits["train"]}
    captions = {caption.casefold() for row in splits["train"] for caption in row.captions}
    for row in splits["compositions"]:
        assert words(row) <= known
        assert row.metadata["base"] in bases
        assert row.captions[0].casefold() not in captions


def test_unseen_bases_have_no_variant_in_train(splits: dict[str, list[Row]]) -> None:
    unseen = {row.metadata["base"] for row in splits["unseen"]}
    assert not unseen & {row.metadata["base"] for name in ("train", "compositions") for row in splits[name]}


def test_validation_cuts_train_alone_by_the_same_rules(splits: dict[str, list[Row]]) -> None:
    cut = openmoji.rows(SIZE, validation=True)
    assert {name: len(rows) for name, rows in cut.items()} == {"train": 2908, "compositions": 266, "unseen": 122}
    assert {row.key for rows in cut.values() for row in rows} == {row.key for row in splits["train"]}
    bases = {name: {row.metadata["base"] for row in rows} for name, rows in cut.items()}
    assert not bases["unseen"] & (bases["train"] | bases["compositions"])
    assert set().union(*map(words, cut["compositions"])) <= set().union(*map(words, cut["train"]))


def test_licence_and_captions_travel_with_the_rows(splits: dict[str, list[Row]]) -> None:
    assert openmoji.licence()["licence"] == "CC BY-SA 4.0"
    for rows in splits.values():
        for row in rows:
            assert row.captions
            assert all(caption.strip() and ":" not in caption and "_" not in caption for caption in row.captions)


@pytest.mark.parametrize(
    ("sequence", "base", "modified"),
    [
        ((WOMAN, MEDIUM, 0x200D, ROCKET), "1F9D1", True),
        ((PERSON,), "1F9D1", False),
        ((WOMAN, 0x200D, 0x1F9B0), "1F9D1", True),
        ((ROCKET,), "1F680", False),
        ((0x1F44B, DARK), "1F44B", True),
        ((0x1F3C3, 0x200D, 0x2640, 0xFE0F, 0x200D, 0x27A1, 0xFE0F), "1F3C3", True),
        ((MAN, 0x200D, WOMAN, 0x200D, 0x1F467), "1F46A", True),
        ((WOMAN, 0x200D, 0x2764, 0xFE0F, 0x200D, 0x1F48B, 0x200D, MAN), "1F48F", True),
        ((0x1F48F, DARK), "1F48F", True),
        ((0x1F46D, DARK), "1F46B", True),
        ((0x2764, 0xFE0F), "2764", False),
        ((DARK,), "1F3FF", False),
        ((0x1F3F3, 0xFE0F, 0x200D, 0x1F308), "1F3F3-1F308", False),
    ],
)
def test_base_of(sequence: tuple[int, ...], base: str, modified: bool) -> None:
    assert openmoji.base_of(sequence) == (base, modified)


def test_unicodes_name_comes_first(splits: dict[str, list[Row]]) -> None:
    row = next(row for rows in splits.values() for row in rows if "ng woman" in row.captions)
    assert row.captions == ("woman gesturing NO", "ng woman", "no good woman")


def test_a_name_that_promises_an_undrawn_tone_is_left_out(splits: dict[str, list[Row]]) -> None:
    yellow = next(row for rows in splits.values() for row in rows if "people wrestling" in row.captions)
    assert not any("skin tone" in caption for caption in yellow.captions)


def test_pictures_show_what_their_captions_say(splits: dict[str, list[Row]]) -> None:
    by_caption = {caption: row for rows in splits.values() for row in rows for caption in row.captions}
    red = pixels_of(by_caption["red circle"].image, 32)[16, 16]
    green = pixels_of(by_caption["green circle"].image, 32)[16, 16]
    assert red[0] > 180 > red[1]
    assert green[1] > green[0] + 20
    assert (pixels_of(by_caption["red circle"].image, 32)[0, 0] == 255).all()
