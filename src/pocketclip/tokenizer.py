"""Captions <-> token ids: a byte-level byte-pair vocabulary, learned from the captions themselves.

Source: Sennrich et al. 2016 (byte pairs); Radford et al. 2019 (bytes). The work is done by the `tokenizers` library;
the files load in `transformers.AutoTokenizer`.
"""

import hashlib
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
    """A vocabulary together with the length to which captions are cut."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
        if start is None or end is None:
            raise TokenizerError(f"the vocabulary lacks {START} or {END}; learn one with `pocketclip tokenizer`")
        self.tokenizer, self.context_length, self.end = tokenizer, context_length, end
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
        """Captions -> ids [captions, longest of them] and the position of each one's end token [captions].

        Shorter captions are filled up with the end token; a longer one than the context length is cut and still ends
        with it.
        """
        ids = [encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))]
        lengths = np.array([len(one) for one in ids], dtype=np.int64)
        tokens = np.full((len(ids), int(lengths.max(initial=0))), self.end, dtype=np.int64)
        for row, one in enumerate(ids):
            tokens[row, : len(one)] = one
        return tokens, lengths - 1

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
    counted = _Counted(captions)
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


def load_tokenizer(path: Path, context_length: int) -> CaptionTokenizer:
    """Read tokenizer.json; raises TokenizerError if it is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TokenizerError(f"{path}: missing; `pocketclip tokenizer RECIPE` learns one from the captions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}") from None
    try:
        return CaptionTokenizer(Tokenizer.from_str(text), context_length)
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
