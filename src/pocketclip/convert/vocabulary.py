"""Tokenizers of other projects: found, read, and held against the model whose captions they encode.

Sources: OpenAI's CLIP, `simple_tokenizer.py`; Hugging Face's `CLIPTokenizer`.
"""

import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pocketclip.convert.weights import read_json
from pocketclip.errors import ConvertError, TokenizerError
from pocketclip.tokenizer import END, START, CaptionTokenizer, load_tokenizer

TOKENIZER, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
OPENAI_MERGES = "bpe_simple_vocab_16e6.txt.gz"  # in the packages of OpenAI's CLIP and of OpenCLIP
OPENAI_ENTRIES = 49408
OPENAI_SHA256 = "88090f1273a5322f16b5289e86fc42c42b1eb43da00372fa2ae7fdbde1aaf5dd"  # of what `_digest` hashes
LARGEST = 64 * 2**20  # bytes of an unpacked vocabulary; OpenAI's has three million

WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
# OpenAI's pattern ignores case, and the long s is an s then.
OPENAI_WORDS = WORDS.replace("'s|", "'[sſ]|")


def find_tokenizer(places: Sequence[Path]) -> Tokenizer | None:
    """The first tokenizer in some folders or files, or None.

    A folder is looked through for tokenizer.json, for vocab.json with merges.txt, and for OpenAI's list of merges.
    Raises ConvertError or TokenizerError for a damaged one.
    """
    for place in places:
        for path in (place,) if place.is_file() else (place / TOKENIZER, place / VOCABULARY, place / OPENAI_MERGES):
            if path.is_file():
                return _read(path)
    return None


def installed_places() -> list[Path]:
    """Folders of installed packages that hold OpenAI's list of merges; nothing of them is imported."""
    found = [PathFinder.find_spec(package) for package in ("open_clip", "clip")]
    return [Path(folder) for spec in found if spec for folder in spec.submodule_search_locations or ()]


def check_vocabulary(tokenizer: CaptionTokenizer, rows: int, end: int | None, name: str) -> None:
    """Raise ConvertError if a tokenizer is not the one that a model was trained with.

    rows: of the model's token embedding. end: the id at which the model reads a caption; None: at the highest one.
    name: of the model, for messages.
    """
    highest = max(tokenizer.tokenizer.get_vocab().values())
    ids = _tried(tokenizer)
    if highest >= rows:
        reason = f"has ids up to {highest}, the model knows {rows}"
    elif tokenizer.end != (rows - 1 if end is None else end):
        reason = f"ends captions with id {tokenizer.end}, the model reads them at id {rows - 1 if end is None else end}"
    elif len(ids) < 3 or ids[0] != tokenizer.start or ids[-1] != tokenizer.end:
        reason = f"does not put {START} and {END} around captions"
    else:
        return
    raise ConvertError(f"{name}: its tokenizer is of another vocabulary: it {reason}; name the right one: --tokenizer")


def _tried(tokenizer: CaptionTokenizer) -> list[int]:
    """The ids of a short caption; none where its file contradicts itself."""
    try:
        return list(tokenizer.tokenizer.encode("a").ids)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # the library's Rust can panic, which is no Exception
        return []


def is_openais(tokenizer: CaptionTokenizer) -> bool:
    """Whether a vocabulary is the one that OpenAI's CLIP and OpenCLIP have built in."""
    return tokenizer.vocabulary_size == OPENAI_ENTRIES and _digest(tokenizer.tokenizer) == OPENAI_SHA256


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _read(path: Path) -> Tokenizer:
    if path.name == VOCABULARY:
        lines = _unpacked(path.with_name(MERGES)).split("\n")
        merges = [line for line in lines if line.strip() and not line.startswith("#version")]
        return _clip_tokenizer(read_json(path), merges, path, openais=False)
    if path.suffix == ".json":
        return load_tokenizer(path, 3).tokenizer
    # The list is longer than what is used of it.
    merges = _unpacked(path).split("\n")[1 : OPENAI_ENTRIES - 512 - 2 + 1]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    return _clip_tokenizer({word: i for i, word in enumerate([*words, START, END])}, merges, path, openais=True)


def _unpacked(path: Path) -> str:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return str(file.read(LARGEST), encoding="utf-8")
    except FileNotFoundError:
        raise ConvertError(f"{path}: missing beside {VOCABULARY}; copy the whole folder") from None
    except (gzip.BadGzipFile, EOFError, ValueError, OSError) as error:
        raise ConvertError(f"{path}: no list of merges ({error}); copy it again") from None


def _clip_tokenizer(vocabulary: dict[str, int], merges: Sequence[str], path: Path, openais: bool) -> Tokenizer:
    """Byte pairs inside words whose last letter is marked with `</w>`.

    merges: two pieces a line, the first line first. openais: as OpenAI's own code splits captions, which it has mended
    before; else as Hugging Face's does.
    """
    split = [merge.split() for merge in merges]
    ids = all(isinstance(number, int) and 0 <= number < 2**31 for number in vocabulary.values())
    if not ids or any(len(pair) != 2 for pair in split) or START not in vocabulary or END not in vocabulary:
        raise ConvertError(f"{path}: no vocabulary of CLIP's; name its tokenizer.json or {OPENAI_MERGES}: --tokenizer")
    pairs = [(first, second) for first, second in split]
    try:
        tokenizer = Tokenizer(models.BPE(vocabulary, pairs, end_of_word_suffix="</w>", unk_token=END))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path}: its merges do not fit its vocabulary ({error}); copy both again") from None
    lower = normalizers.Lowercase()
    composed = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), lower]
    tokenizer.normalizer = lower if openais else normalizers.Sequence(composed)
    words = pre_tokenizers.Split(Regex(OPENAI_WORDS if openais else WORDS), behavior="removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    tokenizer.add_special_tokens([START, END])
    special = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=special)
    return tokenizer
