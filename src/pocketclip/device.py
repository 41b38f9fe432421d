"""Which chip to run on, in which precision, and a description of both."""

import os
import platform
import shutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from pocketclip.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Device:
    """A chip and whether matrix products run in bfloat16 on it."""

    device: torch.device
    bfloat16: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for the forward pass, where it is in use."""
        if not self.bfloat16:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """Resolve "auto": CUDA, then Apple's GPU, then the CPU; bfloat16 where the chip has units for it.

    Raises TrainingError for a device that this machine lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device == "cuda":  # `torchrun` gives each of its processes a number on its machine
        device += f":{os.environ.get('LOCAL_RANK', 0)}"
    kind, _, number = device.partition(":")
    if not (number or "0").isdecimal() or int(number or 0) >= available.get(kind, 0):
        raise TrainingError(f'device {device!r}: this machine (or this build of torch) has none; use "auto"')
    chosen = torch.device(device)
    return Device(chosen, has_bfloat16(chosen) if precision == "auto" else precision == "bfloat16")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the chip multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def require_compiler(device: torch.device) -> None:
    """Raise TrainingError where torch has no compiler for what it writes: C++ for a CPU, launchers in C for a GPU."""
    if device.type == "cpu":
        usual = {"Windows": "cl", "Darwin": "clang++"}.get(platform.system(), "g++")
        names = [os.environ.get("CXX", usual)]
    else:
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc", "cl"]
    if not any(map(shutil.which, names)):
        raise TrainingError(
            f"train.compile: needs a compiler, and this machine has no {' or '.join(names)}; install one, or set "
            "train.compile = false"
        )


def describe_environment(device: Device) -> dict[str, Any]:
    """What a reader needs to place a run's figures: versions, chip, threads, precision."""
    packages = ("pocketclip", "torch", "numpy", "pillow", "tokenizers")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.device.type == "cuda" else device.device.type,
        "precision": "bfloat16" if device.bfloat16 else "float32",
        "packages": {name: version(name) for name in packages},
    }
