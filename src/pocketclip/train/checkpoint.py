"""What a run needs to go on exactly where it was: checkpoint/step-00000120/{state.pt, checkpoint.json}.

A checkpoint appears whole or not at all (a folder renamed into place), and the one before it is removed only then.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pocketclip.errors import CheckpointError
from pocketclip.files import sha256, whole_folder

STATE, DESCRIPTION = "state.pt", "checkpoint.json"


@dataclass
class Checkpoint:
    """The state after `step` steps.

    tensors: model and optimizer state, as torch saves them; random numbers follow from the seed and the step.
    description: what a person or another program may want to know without torch: step, loss, seconds, dropped rows.
    """

    step: int
    tensors: dict[str, Any]
    description: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove the older ones; raises CheckpointError if the disk refuses."""
    path = folder / f"step-{checkpoint.step:08d}"
    try:
        with whole_folder(path) as temporary:
            with (temporary / STATE).open("wb") as file:
                torch.save(checkpoint.tensors, file)
            description = {**checkpoint.description, "step": checkpoint.step, "sha256": sha256(temporary / STATE)}
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as error:  # torch covers the file's OSError with a RuntimeError of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        kept = _saved(folder)
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); "
            + (f"{kept[-1].name} is kept: make room, then the same command goes on" if kept else "make room first")
        ) from None
    unfinished = folder.glob(".step-*.part")  # a killed process leaves one
    for older in (*_saved(folder)[:-1], *unfinished):
        shutil.rmtree(older, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint, or None where there is none; raises CheckpointError for a damaged one."""
    saved = _saved(folder)
    if not saved:
        return None
    path = saved[-1]
    try:
        description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        whole = description["sha256"] == sha256(path / STATE)
        tensors = torch.load(path / STATE, map_location="cpu", weights_only=True) if whole else {}
    except Exception as error:
        raise CheckpointError(f"{path}: damaged ({error}); delete this folder to start the run anew") from None
    if not whole:
        raise CheckpointError(
            f"{path / STATE}: damaged (its SHA-256 is not the one in {DESCRIPTION}); "
            f"delete {path.name} to start the run anew"
        )
    return Checkpoint(int(description["step"]), tensors, description)


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-????????"))
