"""Weights out of a file, without running anything that the file holds."""

import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pocketclip.convert.torchscript import is_torchscript, read_torchscript
from pocketclip.errors import ConvertError

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a file, as they were saved, on the CPU.

    path: safetensors; or what torch.save wrote: a state dict, or a training checkpoint with one under "state_dict"; or
        a TorchScript archive, of which only the tensors are read. Names lose the prefixes of wrappers.
    Raises ConvertError for a file that is missing, damaged, holds something else or would run code on loading.
    """
    if not path.is_file():
        raise ConvertError(f"{path}: missing; give the folder or the file that holds the weights")
    if path.suffix == ".safetensors":
        try:
            found: Any = load_file(path)
        except SafetensorError as error:
            raise ConvertError(f"{path}: damaged or truncated ({error}); copy it again") from None
    elif is_torchscript(path):
        found = read_torchscript(path)
    else:
        found = _unpickled(path)
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ConvertError(f"{path}: holds no state dict; save one with torch.save(model.state_dict(), ...)")
    return _unwrapped({str(name): tensor for name, tensor in found.items()})


def read_sharded(index: Path) -> dict[str, Tensor]:
    """The same of weights in several files beside each other, which an index names (Hugging Face's large models)."""
    content = read_json(index)
    names = content.get("weight_map")
    files = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    if not files or any(not name or Path(name).name != name for name in files):
        raise ConvertError(f"{index}: names no files beside it; copy the folder again")
    return {key: tensor for name in files for key, tensor in read_weights(index.parent / name).items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ConvertError if the file is missing or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConvertError(f"{path}: missing; copy the whole folder") from None
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: no valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ConvertError(f"{path}: holds no JSON object; copy it again")
    return content


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of unusual pickles, refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise ConvertError(
            f"{path}: refused: it holds more than tensors{f' ({named[1]})' if named else ''}, and loading that could "
            "run code; save the weights alone, with torch.save(model.state_dict(), ...) or as safetensors"
        ) from None
    except Exception:  # RuntimeError, EOFError, KeyError, ...
        raise ConvertError(f"{path}: damaged, truncated or no file of weights; copy it again") from None


def _unwrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPERS * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
