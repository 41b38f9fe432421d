"""CIFAR-10 and CIFAR-100 as their authors publish them for Python: pickles, of which nothing but the arrays is read.

Source: https://www.cs.toronto.edu/~kriz/cifar.html, Krizhevsky 2009, "Learning multiple layers of features from tiny
images". A pickle can run any code when it is loaded; here it can name arrays of bytes and nothing else, and NumPy,
whose own reading of pickles trusts them, has no part in it.
"""

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.data.labelled.kinds import Dropped, Labelled
from pocketclip.errors import DataError

BATCHES = {"test": ("test_batch", "test"), "train": (*(f"data_batch_{number}" for number in range(1, 6)), "train")}
NAMES = {"batches.meta": "label_names", "meta": "fine_label_names"}  # of CIFAR-10, of CIFAR-100
LABELS = ("labels", "fine_labels")
LARGEST = 1 << 28  # bytes of a file; the largest has 155 million
SIDE = 32  # pixels
VALUES = 3 * SIDE**2
MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, since


class CifarImages:
    """The batches of one split in a folder."""

    templates: tuple[str, ...] = ()

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder
        self.batches = [folder / name for name in BATCHES[split] if (folder / name).is_file()]
        if not self.batches:
            raise DataError(f"{folder}: has none of CIFAR's {split} batches ({', '.join(BATCHES[split])})")
        missing = [name for name in BATCHES[split][:-1] if not (folder / name).is_file()]
        if missing and self.batches != [folder / BATCHES[split][-1]]:
            raise DataError(f"{folder}: has no {', '.join(missing)}; fetch CIFAR-10 again")
        self.total: int | None = None
        self.classes = self._names()

    @staticmethod
    def known(folder: Path) -> bool:
        """Whether a folder looks like CIFAR's."""
        return any((folder / name).is_file() for name in NAMES)

    def _names(self) -> tuple[str, ...]:
        for file, key in NAMES.items():
            if (self.folder / file).is_file():
                found = _unpickled(self.folder / file).get(key)
                if not isinstance(found, list) or not all(isinstance(name, str | bytes) for name in found):
                    raise DataError(f"{self.folder / file}: has no list {key!r}; fetch it again")
                return tuple(map(_text, found))
        return ()

    def items(self, dropped: list[Dropped]) -> Iterator[Labelled]:
        """See LabelledImages; raises DataError where a batch is damaged."""
        del dropped  # a batch is whole or damaged
        for path in self.batches:
            content = _unpickled(path)
            array, labels = content.get("data"), next((content[key] for key in LABELS if key in content), None)
            data = array.values if isinstance(array, _Array) else None
            if data is None or data.shape[1:] != (VALUES,):
                raise DataError(f"{path}: its 'data' is no array of {VALUES} bytes an image; fetch it again")
            if not isinstance(labels, list) or len(labels) != len(data):
                raise DataError(f"{path}: has {len(data)} images and no label for each; fetch it again")
            images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # stored channel by channel
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield Labelled(f"{path.name}/{number}", image, label if isinstance(label, int) else -1)


class _Kind:
    """What stands in a pickle for the kind of an array's numbers."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.of_bytes = name == "u1"

    def __setstate__(self, _: Any) -> None:
        """Nothing of it matters for bytes."""


class _Array:
    """What stands in a pickle for an array; values: None where it is none of bytes."""

    values: NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Kind) or not kind.of_bytes or any(length < 0 for length in shape):
            return
        found = np.frombuffer(content.encode("latin-1") if isinstance(content, str) else content, np.uint8)
        self.values = found.reshape(shape, order="F" if by_columns else "C")


class _ArraysAlone(pickle.Unpickler):
    """Knows how to make arrays, and no other word."""

    def find_class(self, module: str, name: str) -> Any:
        if module in MODULES and name == "_reconstruct":
            return _array
        if (module, name) == ("numpy", "dtype"):
            return _Kind
        if (module, name) == ("numpy", "ndarray"):
            return None  # `_array` makes no other kind
        if (module, name) == ("_codecs", "encode"):
            return _latin_1
        raise pickle.UnpicklingError(f"{module}.{name}")


def _array(*_: Any) -> _Array:
    """An array that the pickle fills with what it holds."""
    return _Array()


def _latin_1(text: str, *_: Any) -> bytes:
    """How Python 3 writes bytes into a pickle that Python 2 reads."""
    return text.encode("latin-1")


def _unpickled(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: has more than {LARGEST:,} bytes, which no batch of CIFAR has")
        content = path.read_bytes()
        _check_places(path, content)
        found = _ArraysAlone(io.BytesIO(content), encoding="latin-1").load()
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path}: refused: it holds more than arrays ({error}), and loading that could run code; fetch it again "
            "from its authors"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except DataError:
        raise
    except Exception:  # whatever a damaged pickle makes of its instructions
        raise DataError(f"{path}: damaged or truncated; fetch it again") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds no dictionary, as CIFAR's batches do; fetch it again")
    return {_text(key): value for key, value in found.items()}


def _check_places(path: Path, content: bytes) -> None:
    """Raise DataError where a pickle numbers what it remembers beyond its own size: Python makes room up to there."""
    for word, argument, _ in pickletools.genops(content):
        if "PUT" in word.name and int(argument or 0) > len(content):
            raise DataError(f"{path}: damaged: it remembers something as number {argument:,}; fetch it again")


def _text(name: Any) -> str:
    """A name, which a pickle that was written again by Python 3 holds as bytes."""
    return name.decode("latin-1") if isinstance(name, bytes) else str(name)
