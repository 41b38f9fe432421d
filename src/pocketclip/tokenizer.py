"""Captions <-> token ids: a byte-level byte-pair vocabulary, learned from the captions themselves.

Source: Sennrich et al. 2016 (byte pairs); Radford et al. 2019 (bytes). The work is done by the `tokenizers` library;
the files load in `transformers.AutoTokenizer`.
"""

import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pocketclip.errors import TokenizerError
from pocketclip.files import whole_file
from pocketclip.recipe.schema import TokenizerSettings

START, END = "<|startoftext|>", "<|endoftext|>"


class CaptionTokenizer:
    """A vocabulary together with the length to which captions are cut.

    mend: whether captions are first mended as OpenAI's tokenizer does it.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int, mend: bool = False) -> None:
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise TokenizerError(f"the vocabulary lacks {START} or {END}; learn one with `pocketclip tokenizer`")
        self.tokenizer, self.context_length, self.mend = tokenizer, context_length, mend
        self.start, self.end = start, end
        tokenizer.no_padding()
        tokenizer.enable_truncation(context_length)

    @property
    def vocabulary_size(self) -> int:
        """The number of entries."""
        return int(self.tokenizer.get_vocab_size())

    @property
    def lowercase(self) -> bool:
        """Whether capitals are folded."""
        return self.tokenizer.normalizer is not None and self.tokenizer.normalizer.normalize_str("A") == "a"

    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and how it is applied."""
        return hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def encode(self, captions: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Captions -> ids [captions, longest of them] and the position of each one's first end token [captions].

        Shorter captions are filled up with the end token; a longer one than the context length is cut and still ends
        with it. A caption that has the end token's name in it ends there, as it does for OpenCLIP and Hugging Face.
        """
        texts = mended(captions, self.lowercase) if self.mend else captions
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        tokens = np.full((len(ids), max(map(len, ids), default=0)), self.end, dtype=np.int64)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = one
        ends = (tokens == self.end).argmax(axis=1) if ids else np.zeros(0)
        return tokens, ends.astype(np.int64)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, for `AutoTokenizer.from_pretrained(folder)`."""
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "clean_up_tokenization_spaces": False,
        }
        save_tokenizer(self.tokenizer, folder / "tokenizer.json")
        with whole_file(folder / "tokenizer_config.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def mended(captions: Iterable[str], lowercase: bool) -> Iterator[str]:
    """Give captions as OpenAI's CLIP and OpenCLIP clean them first (`basic_clean`, `whitespace_clean`).

    Raises TokenizerError if the package ftfy is missing.
    """
    try:
        from ftfy import fix_text
    except ImportError:
        raise TokenizerError(
            "tokenizer.mend: needs the package ftfy; install it with: pip install 'pocketclip[convert]'"
        ) from None
    for caption in captions:
        text = " ".join(html.unescape(html.unescape(fix_text(caption))).split())
        yield text.lower() if lowercase else text


def learn_tokenizer(captions: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """Learn a vocabulary of at most `vocabulary_size` entries; fewer where the captions hold fewer merges.

    Raises TokenizerError if there are no captions.
    """
    tokenizer = Tokenizer(models.BPE())
    cleaning = [normalizers.NFC(), *([normalizers.Lowercase()] if settings.lowercase else [])]
    tokenizer.normalizer = normalizers.Sequence(cleaning)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    counted = _Counted(mended(captions, settings.lowercase) if settings.mend else captions)
    tokenizer.train_from_iterator(counted, trainer)
    if not counted.seen:
        raise TokenizerError("there are no captions to learn a tokenizer from")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 0), (END, 1)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write the vocabulary alone."""
    with whole_file(path) as temporary:
        temporary.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def load_tokenizer(path: Path, context_length: int, mend: bool = False) -> CaptionTokenizer:
    """Read tokenizer.json; raises TokenizerError if it is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: missing; `pocketclip tokenizer RECIPE` learns one from the captions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
    try:
        return CaptionTokenizer(Tokenizer.from_str(text), context_length, mend)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception for a damaged file
        raise TokenizerError(f"{path}: not a tokenizer file ({error}); learn it again") from None


class _Counted:
    """An iterable that knows whether it gave anything."""

    def __init__(self, items: Iterable[str]) -> None:
        self.items, self.seen = items, 0

    def __iter__(self) -> Iterator[str]:
        for item in self.items:
            self.seen += 1
            yield item
