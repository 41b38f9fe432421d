import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import CAPTIONS, clip_vocabulary, import_open_clip, write_vocabulary
from tokenizers import Tokenizer

from pocketclip.convert.vocabulary import OPENAI_MERGES, check_vocabulary, find_tokenizer, is_openais
from pocketclip.errors import ConvertError, TokenizerError
from pocketclip.recipe.schema import TokenizerSettings
from pocketclip.tokenizer import END, START, CaptionTokenizer, learn_tokenizer

ASSIGNED = st.characters(exclude_categories=["Cn", "Cs"])  # what others are, versions of Unicode disagree about
WORDS = [
    "don't",
    "it's",
    "I'LL",
    "'s's",
    "''s",
    "'ſ",
    "São",
    "Cafe\u0301",
    "17",
    "½",
    "Ⅷ",
    "犬",
    "👩‍🚒",
    "a_b",
    "!?",
    "\u3000",
    "\x85",
]
TEXTS = st.one_of(st.text(ASSIGNED), st.lists(st.sampled_from(WORDS), max_size=10).map(" ".join))


def ids_of(tokenizer: CaptionTokenizer, text: str) -> list[int]:
    tokens, ends = tokenizer.encode([text])
    return [int(one) for one in tokens[0][: ends[0] + 1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary as transformers saves it, in every form."""
    import transformers

    path = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(path)
    theirs = transformers.CLIPTokenizer.from_pretrained(path)
    assert theirs.vocab_size > 530
    (path / "saved").mkdir()
    theirs.save_pretrained(path / "saved")
    assert (path / "saved" / "tokenizer.json").is_file()
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    import transformers

    return transformers.CLIPTokenizer.from_pretrained(folder)


@given(text=TEXTS)
@pytest.mark.parametrize("form", ["", "saved", "vocab.json", "saved/tokenizer.json"])
def test_ids_are_those_of_hugging_faces_tokenizer(form: str, text: str, folder: Path, theirs: Any) -> None:
    found = find_tokenizer([folder / form])
    assert found is not None
    wanted = theirs(text, truncation=True, max_length=20).input_ids
    cut = wanted[: wanted.index(theirs.eos_token_id) + 1]  # a text can hold the special tokens' names
    assert ids_of(CaptionTokenizer(found, 20), text) == cut


def test_words_come_back(folder: Path) -> None:
    found = find_tokenizer([folder])
    assert found is not None
    assert found.decode(found.encode("Two DOGS on a table").ids).strip() == "two dogs on a table"


@pytest.mark.parametrize("packed", [True, False])
def test_openais_list_of_merges_is_read_packed_or_not(packed: bool, tmp_path: Path) -> None:
    vocabulary, merges = clip_vocabulary()
    text = "\n".join(['"version', *merges]).encode()
    path = tmp_path / (OPENAI_MERGES if packed else "merges.txt")
    path.write_bytes(gzip.compress(text) if packed else text)
    found = find_tokenizer([tmp_path if packed else path])
    assert found is not None
    assert found.get_vocab() == vocabulary
    assert not is_openais(CaptionTokenizer(found, 77))
    assert ids_of(CaptionTokenizer(found, 77), "two  Dogs")[1:-1] == [vocabulary["two</w>"], vocabulary["dogs</w>"]]


def test_the_first_place_with_a_tokenizer_wins(folder: Path, tmp_path: Path) -> None:
    assert find_tokenizer([]) is None
    assert find_tokenizer([tmp_path, tmp_path / "nowhere"]) is None
    found = find_tokenizer([tmp_path, folder / "saved", folder])
    assert found is not None
    whole = json.loads((folder / "saved" / "tokenizer.json").read_text())
    assert json.loads(found.to_str())["model"] == whole["model"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"{}", "not a tokenizer file"),
        ("vocab.json", b'{"a": 1}', "no vocabulary of CLIP's"),
        ("vocab.json", b"[]", "no JSON object"),
        ("merges.txt", b"a b c", "no vocabulary of CLIP's"),
        ("merges.txt", b"q unknown", "do not fit"),
        ("merges.txt", b"\xff", "no list of merges"),
        ("merges.txt", None, r"merges\.txt: missing"),
        (OPENAI_MERGES, b"text", "no list of merges"),
        (OPENAI_MERGES, gzip.compress(b"a b\na b", mtime=0)[:-9], "no list of merges"),
    ],
)
def test_damaged_vocabularies_are_named(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if name != OPENAI_MERGES:
        write_vocabulary(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ConvertError, TokenizerError), match=f"(?s){reason}") as caught:
        find_tokenizer([tmp_path])
    assert str(caught.value).startswith(str(tmp_path))


def test_a_tokenizer_of_another_vocabulary_is_refused(folder: Path) -> None:
    found = find_tokenizer([folder])
    assert found is not None
    tokenizer = CaptionTokenizer(found, 20)
    size, end = tokenizer.vocabulary_size, tokenizer.end
    for rows, read_at in ((size, None), (size, end), (size + 5, end)):
        check_vocabulary(tokenizer, rows, read_at, "model")
    for rows, read_at, reason in (
        (size - 1, None, f"has ids up to {size - 1}, the model knows {size - 1}"),
        (size + 1, None, f"ends captions with id {end}, the model reads them at id {size}"),
        (size, 49407, "the model reads them at id 49407"),
        (size, [end], "the model reads them at id"),
    ):
        with pytest.raises(ConvertError, match=r"model: its tokenizer is of another vocabulary.*--tokenizer") as caught:
            check_vocabulary(tokenizer, rows, read_at, "model")  # type: ignore[arg-type]
        assert reason in str(caught.value)
    ours = CaptionTokenizer(learn_tokenizer(CAPTIONS, TokenizerSettings(vocabulary_size=300)), 20)
    with pytest.raises(ConvertError, match="the model reads them at id 299"):
        check_vocabulary(ours, 300, None, "model")
    whole = json.loads(found.to_str())
    frame = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    unknown = {"type": "TemplateProcessing", "single": frame, "pair": frame, "special_tokens": {}}  # the library panics
    for framing in (None, unknown):
        other = CaptionTokenizer(Tokenizer.from_str(json.dumps({**whole, "post_processor": framing})), 20)
        with pytest.raises(ConvertError, match="does not put"):
            check_vocabulary(other, size, end, "model")


@pytest.mark.peer
@given(text=TEXTS)
def test_ids_are_those_of_open_clips_tokenizer(text: str) -> None:
    """On OpenAI's whole vocabulary, mending included; but for texts that name special tokens, which differ there."""
    import unicodedata

    from hypothesis import assume

    from pocketclip.convert.vocabulary import installed_places
    from pocketclip.tokenizer import mended

    theirs = import_open_clip().get_tokenizer("ViT-B-32")
    found = find_tokenizer(installed_places())
    assert found is not None
    tokenizer = CaptionTokenizer(found, 77, mend=True)
    assert is_openais(tokenizer)
    (clean,) = mended([text], lowercase=True)
    assume(not any(name in clean for name in (START, END, "<start_of_text>", "<end_of_text>")))
    assume(all(unicodedata.category(letter) != "Cn" for letter in clean))  # mending can make such ones
    ids = ids_of(tokenizer, text)
    assert theirs([text])[0].tolist() == ids + [0] * (77 - len(ids))
