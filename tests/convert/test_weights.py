import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pocketclip.convert.weights import read_json, read_sharded, read_weights
from pocketclip.errors import ConvertError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.5, dtype=torch.float16)}


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_come_back_from_whatever_holds_them(prefix: str, tmp_path: Path) -> None:
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(OrderedDict(state), tmp_path / "a.pt")
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1.0}}, tmp_path / "training.pt")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.pt", "training.pt", "old.bin"):
        assert_same(read_weights(tmp_path / name))


class Runs:
    """Unpickled with Python's own unpickler it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (os.mknod, (str(self.path),))


@pytest.mark.parametrize("form", ["zip", "legacy", "plain", "protocol 0"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(form: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "it ran"
    content = {"a": Runs(trace)}
    if form in ("plain", "protocol 0"):
        path.write_bytes(pickle.dumps(content, protocol=0 if form == "protocol 0" else 4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ConvertError, match=r"weights\.pt: refused: it holds more than tensors") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    if form == "zip":
        assert "mknod" in str(caught.value)
        torch.load(path, weights_only=False)
        assert trace.exists()  # so it would have


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ConvertError, match=r"refused: it holds more than tensors \(torch.*Linear\)"):
        read_weights(tmp_path / "module.pt")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "old.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.99])
def test_truncated_files_are_one_clear_line(name: str, kept: float, tmp_path: Path) -> None:
    if name == "a.safetensors":
        save_file(STATE, tmp_path / name)
    else:
        torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=name == "a.pt")
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ConvertError, match=rf"{name}: (damaged|refused)") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[STATE], {"state_dict": STATE, "x": 1} | {"state_dict": 3}, {"a": 1}, 5])
def test_something_else_than_weights(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ConvertError, match=r"a\.pt: holds no state dict"):
        read_weights(tmp_path / "a.pt")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"none\.pt: missing"):
        read_weights(tmp_path / "none.pt")
    with pytest.raises(ConvertError, match=r"none\.json: missing"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_json_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ConvertError, match=r"a\.json: (no valid JSON|holds no JSON object)"):
        read_json(tmp_path / "a.json")


def test_weights_in_several_files(tmp_path: Path) -> None:
    for number, name in enumerate(STATE):
        save_file({name: STATE[name]}, tmp_path / f"part{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": {name: f"part{number}.safetensors" for number, name in enumerate(STATE)}})
    )
    assert_same(read_sharded(index))
    for elsewhere in ("../part0.safetensors", "/etc/passwd", ""):
        index.write_text(json.dumps({"weight_map": {"a": elsewhere}}))
        with pytest.raises(ConvertError, match="names no files beside it"):
            read_sharded(index)
