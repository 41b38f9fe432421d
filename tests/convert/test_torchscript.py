"""Archives as torch.jit saves them, and ones that try to do more than hold tensors."""

import io
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketclip.convert.torchscript import is_torchscript, read_torchscript
from pocketclip.convert.weights import read_weights
from pocketclip.errors import ConvertError


class Inner(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.table = torch.nn.Parameter(torch.randn(5, 6).t())  # not contiguous
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.Sequential(Inner(), torch.nn.LayerNorm(4))
        self.halves = torch.nn.Parameter(torch.randn(2, 2).half())
        self.brains = torch.nn.Parameter(torch.randn(3).bfloat16())
        self.size = 224

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    module, path = Outer(), tmp_path_factory.mktemp("jit") / "ViT.pt"
    with warnings.catch_warnings(action="ignore"):  # torch.jit is deprecated, its files are not
        torch.jit.script(module).save(path)
    return path, module


def test_the_tensors_are_those_of_the_module(archive: tuple[Path, torch.nn.Module]) -> None:
    path, module = archive
    assert is_torchscript(path)
    found, wanted = read_weights(path), module.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_file_of_torch_save_is_none(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    (tmp_path / "text").write_text("text")
    assert not is_torchscript(tmp_path / "a.pt")
    assert not is_torchscript(tmp_path / "text")


def changed(archive: Path, path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(archive) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.namelist():
            after.writestr(entry, content if entry.endswith(f"/{name}") else before.read(entry))
    return path


class Runs:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> object:
        function, *arguments = self.call
        return (function, tuple(arguments))


@pytest.mark.parametrize("function", [os.mknod, eval, getattr, torch.load, pickle.loads, io.open])
def test_whatever_the_pickle_calls_is_refused(
    function: object, archive: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    trace = tmp_path / "it ran"
    path = changed(archive[0], tmp_path / "evil.pt", "data.pkl", pickle.dumps(Runs(function, str(trace))))
    with pytest.raises(ConvertError, match=r"evil\.pt: a TorchScript archive that cannot be read \(it names "):
        read_weights(path)
    assert not trace.exists()


def storage(count: int, name: str = "0") -> bytes:
    """A pickle of a module with one tensor of `count` elements on a storage of ours, written by hand."""
    number = b"I%d\n" % count
    return (
        b"c__torch__.M\nM\n)\x81}(V" + b"a\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV"
        + name.encode() + b"\nVcpu\nI2\ntQI0\n(" + number + b"t(I0\ntI00\nNtRub."
    )  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (storage(2**40), "larger than what is stored"),
        (storage(2, "9"), "no item named"),
        (storage(2)[:-6], "truncated|ran out"),
        (pickle.dumps({"a": 1}), "no tree of modules"),
        (b"", "Ran out of input"),
    ],
)
def test_tensors_that_are_not_there(
    content: bytes, reason: str, archive: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    assert read_torchscript(changed(archive[0], tmp_path / "good.pt", "data.pkl", storage(2)))["a"].shape == (2,)
    path = changed(archive[0], tmp_path / "bad.pt", "data.pkl", content)
    with pytest.raises(ConvertError, match=f"(?i)cannot be read .*({reason})"):
        read_torchscript(path)


def test_a_truncated_storage_is_named(archive: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    path = changed(archive[0], tmp_path / "short.pt", "data/0", b"12")
    with pytest.raises(ConvertError, match=r"data/0 is truncated"):
        read_torchscript(path)


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_any_changed_byte_gives_tensors_or_one_clear_line(
    place: float, value: int, archive: tuple[Path, torch.nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with zipfile.ZipFile(archive[0]) as whole:
        (name,) = (entry for entry in whole.namelist() if entry.endswith("/data.pkl"))
        content = bytearray(whole.read(name))
    content[int(place * len(content))] = value
    path = changed(archive[0], tmp_path_factory.mktemp("changed") / "a.pt", "data.pkl", bytes(content))
    try:
        found = read_torchscript(path)
    except ConvertError:
        pass
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    shutil.rmtree(path.parent)
