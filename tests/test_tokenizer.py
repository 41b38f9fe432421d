import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.errors import TokenizerError
from pocketclip.recipe.schema import TokenizerSettings
from pocketclip.tokenizer import END, START, CaptionTokenizer, learn_tokenizer, load_tokenizer, mended

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


def test_a_caption_that_names_the_end_token_ends_there(tokenizer: CaptionTokenizer) -> None:
    """As it does for Hugging Face and OpenCLIP, which look for the first one."""
    tokens, ends = tokenizer.encode([f"man{END} firefighter", "man", END, ""])
    assert ends.tolist() == [2, 2, 1, 1]
    assert (tokens[0, :3] == tokens[1, :3]).all()


@pytest.mark.parametrize(
    ("broken", "clean"),
    [
        ("caf&eacute; &amp;amp; bar", "café & bar"),
        ("“red”  \n circle’s\u3000", '"red" circle\'s'),
        ("SchÃ¶n ﬁne", "Schön fine"),
        ("ＲＥＤ\x07", "RED"),
        ("ΟΔΟΣ", "οδος"),  # as Python folds it, not letter by letter
    ],
)
def test_captions_are_mended_where_the_recipe_says_so(broken: str, clean: str) -> None:
    learned = learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=320))
    mending = CaptionTokenizer(learned, 50, mend=True)
    (found,), (wanted,) = mending.encode([broken])[0], mending.encode([clean])[0]
    assert found.tolist() == wanted.tolist()
    assert CaptionTokenizer(learned, 50).encode([broken])[0].tolist() != [wanted.tolist()]
    assert list(mended([broken.upper()], lowercase=False)) != list(mended([broken.upper()], lowercase=True))


def test_a_vocabulary_is_learned_from_mended_captions() -> None:
    settings = TokenizerSettings(vocabulary_size=300, mend=True)
    broken = learn_tokenizer(["SchÃ¶n &amp; gut"] * 3, settings)
    assert broken.get_vocab() == learn_tokenizer(["schön & gut"] * 3, settings).get_vocab()


def test_without_ftfy_mending_is_refused(monkeypatch: pytest.MonkeyPatch, tokenizer: CaptionTokenizer) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(TokenizerError, match=r"tokenizer\.mend: needs the package ftfy.*pocketclip\[convert\]"):
        CaptionTokenizer(tokenizer.tokenizer, 12, mend=True).encode(["man"])
    tokenizer.encode(["man"])
