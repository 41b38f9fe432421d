"""The best weights of a run so far: best/step-00000120.safetensors.

One file a step, so that a run that goes on from an older checkpoint still finds those that were the best then.
"""

from pathlib import Path

from safetensors.torch import load_file

from pocketclip.bundle import weights_of
from pocketclip.errors import CheckpointError
from pocketclip.files import sha256, whole_file
from pocketclip.model.clip import CLIP


def save_best(folder: Path, step: int, model: CLIP) -> str:
    """Write a model's weights whole or not at all; returns their SHA-256.

    Raises CheckpointError if the disk refuses.
    """
    path = _path(folder, step)
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(weights_of(model))
        return sha256(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); make room, then the same command goes on"
        ) from None


def load_best(folder: Path, step: int, seal: str, model: CLIP) -> None:
    """Give a model the weights of a step; raises CheckpointError unless they are those with this SHA-256."""
    path = _path(folder, step)
    if not path.is_file() or sha256(path) != seal:
        raise CheckpointError(
            f"{path}: {'damaged' if path.is_file() else 'missing'}; it holds the best weights of the run, and cannot "
            f"be made again but by the whole run: delete {folder.parent} to start it anew"
        )
    model.load_state_dict(load_file(path))


def forget_others(folder: Path, step: int) -> None:
    """Remove the weights of all steps but one; for when a checkpoint has been written that knows of it."""
    for path in folder.glob("step-*.safetensors"):
        if path != _path(folder, step):
            path.unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"
