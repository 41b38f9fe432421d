from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.errors import TokenizerError
from pocketclip.recipe.schema import TokenizerSettings
from pocketclip.tokenizer import END, START, CaptionTokenizer, learn_tokenizer, load_tokenizer

CAPTIONS = ["woman firefighter medium skin tone", "man firefighter", "medium-dark skin tone", "red circle"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> CaptionTokenizer:
    return CaptionTokenizer(learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=320)), 12)


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_any_text_has_ids_and_comes_back(texts: list[str]) -> None:
    import unicodedata

    tokenizer = CaptionTokenizer(learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=320)), 10_000)
    tokens, ends = tokenizer.encode(texts)
    for text, ids, end in zip(texts, tokens, ends, strict=True):
        if START in text or END in text:
            continue
        back = tokenizer.tokenizer.decode(ids[1:end].tolist())
        assert back.removeprefix(" ") == unicodedata.normalize("NFC", text).lower().removeprefix(" ")
        assert (ids[end:] == tokenizer.end).all()
        assert (ids < tokenizer.vocabulary_size).all()


def test_captions_are_framed_padded_to_the_longest_and_cut(tokenizer: CaptionTokenizer) -> None:
    start = tokenizer.tokenizer.token_to_id(START)
    tokens, ends = tokenizer.encode(["man firefighter", "red circle " * 30])
    assert tokens.shape == (2, 12)
    assert (tokens[:, 0] == start).all()
    assert ends[1] == 11
    assert tokens[1, 11] == tokenizer.end
    assert (tokens[0, ends[0] :] == tokenizer.end).all()
    assert not (tokens[0, 1 : ends[0]] == tokenizer.end).any()
    assert tokenizer.encode(["man firefighter"])[0].shape == (1, ends[0] + 1)
    assert tokenizer.encode([])[0].shape == (0, 0)


def test_frequent_words_become_single_tokens_and_capitals_are_folded(tokenizer: CaptionTokenizer) -> None:
    assert len(tokenizer.tokenizer.encode("firefighter", add_special_tokens=False).ids) == 1
    assert (tokenizer.encode(["Woman FIREFIGHTER"])[0] == tokenizer.encode(["woman firefighter"])[0]).all()
    kept = learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=320, lowercase=False))
    assert kept.encode("A").ids != kept.encode("a").ids


def test_the_folder_loads_in_transformers(tokenizer: CaptionTokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    captions = ["woman firefighter", "Größe 字 👩‍🚒", "red circle " * 30]
    tokens, ends = tokenizer.encode(captions)
    found = theirs(captions, padding=True, truncation=True, max_length=12)
    assert (np.array(found["input_ids"]) == tokens).all()
    assert (np.array(found["attention_mask"]).sum(1) - 1 == ends).all()


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no captions"):
        learn_tokenizer([], TokenizerSettings())
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: missing"):
        load_tokenizer(path, 10)
    path.write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer file"):
        load_tokenizer(path, 10)
    path.write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot be read"):
        load_tokenizer(path, 10)
