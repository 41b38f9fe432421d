"""A run's folder: whose it is, what it says of its start, and that one process trains in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pocketclip.device import Device, describe_environment
from pocketclip.errors import TrainingError
from pocketclip.files import remove_unfinished, whole_file
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import differences, load_resolved, to_toml
from pocketclip.train.ranks import Ranks

LOCK = "training.lock"
# Settings that cannot change the weights.
CHANGEABLE = ("data.workers", "train.checkpoint_minutes", "train.tensorboard", "evaluate.")
CHOOSING = ("evaluate.every", "evaluate.splits")  # but where the best of them are chosen


def check_folder(folder: Path, recipe: Recipe) -> None:
    """Raise TrainingError if a folder holds a run of another recipe, or something else than a run."""
    kept = folder / "recipe.toml"
    if kept.exists():
        fixed = CHOOSING if recipe.train.best_by else ()
        different = differences(load_resolved(kept), recipe)
        changed = [key for key in different if not key.startswith(CHANGEABLE) or key in fixed]
        if changed:
            raise TrainingError(
                f"{folder}: holds a run of another recipe ({', '.join(changed)} differ); choose another name=..., "
                f"or delete the folder"
            )
    elif folder.exists() and any(file.name != LOCK and not file.name.endswith(".part") for file in folder.iterdir()):
        raise TrainingError(f"{folder}: is not empty and holds no run; choose another name=...")


def prepare_folder(folder: Path, recipe: Recipe, device: Device, ranks: int = 1) -> None:
    """Write recipe.toml and environment.json, as they are for this start; a killed process's leftovers go."""
    texts = {
        "recipe.toml": to_toml(recipe),
        "environment.json": json.dumps(describe_environment(device) | {"ranks": ranks}, indent=2) + "\n",
    }
    try:
        remove_unfinished(folder, "*")
        for name, text in texts.items():
            with whole_file(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another run folder") from None


@contextmanager
def alone_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run's folder; raises TrainingError while another process trains in it.

    The first rank holds it for all. The system lets go of the lock when its process ends, however that happens.
    """
    lock = FileLock(folder / LOCK, timeout=1)  # seconds: `pocketclip runs` holds it for a moment, to see if it is free

    def hold() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            raise TrainingError(
                f"{folder}: another process is training in it; wait for it, or choose another name=..."
            ) from None
        except OSError as error:
            raise TrainingError(f"{folder}: cannot be written: {error.strerror}; choose another run folder") from None

    ranks.first_does(hold)
    try:
        yield
    finally:
        lock.release()
