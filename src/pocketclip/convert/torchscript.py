"""The tensors of a TorchScript archive, read without running its code. OpenAI publishes its CLIP models in this format.

An archive is a zip of a pickle that describes the module's attributes, a file of raw bytes for each tensor, and code.
torch.jit.load would run that code; here the pickle may name nothing but tensors, and the code is left alone.
"""

import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from torch import Tensor

from pocketclip.errors import ConvertError

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
LARGEST_PICKLE = 64 * 2**20  # bytes; of OpenAI's models it is below one


def is_torchscript(path: Path) -> bool:
    """Whether a file is such an archive: torch.save writes no constants.pkl."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The module's tensors under their dotted names; raises ConvertError if there is anything but tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
            if archive.getinfo(name).file_size > LARGEST_PICKLE:
                raise ValueError("its description is too large")
            with archive.open(name) as file:
                module = _Reader(file, archive, name.removesuffix(".pkl")).load()
        return dict(_tensors(module, "", set()))
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise ConvertError(f"{path}: a TorchScript archive that cannot be read ({error}); copy it again") from None


class _Module:
    """Stands for a module of any class: its attributes alone."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Reader(pickle.Unpickler):
    """Unpickles modules and tensors; whatever else a pickle names is refused."""

    def __init__(self, file: IO[bytes], archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _as_they_are
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, reference: Any) -> Tensor:
        """("storage", type, name, device, number of elements) -> the elements, as one vector."""
        _, kind, name, _, count = reference
        stored = self.archive.getinfo(f"{self.folder}/{name}")
        if stored.file_size != count * kind.itemsize:
            raise pickle.UnpicklingError(f"{stored.filename} is truncated")
        return torch.frombuffer(bytearray(self.archive.read(stored)), dtype=kind) if count else torch.empty(0)


def _rebuilt(stored: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    if math.prod(size) > stored.numel():  # as_strided checks that they lie inside, but not that none is repeated
        raise pickle.UnpicklingError("a tensor is larger than what is stored of it")
    return stored.as_strided(size, stride, offset)


def _as_they_are(items: Any) -> Any:
    return items


def _tensors(module: Any, prefix: str, above: set[int]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, _Module) or id(module) in above:
        raise ValueError("it is no tree of modules")
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", above | {id(module)})
