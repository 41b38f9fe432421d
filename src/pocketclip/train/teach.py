"""A teacher's embeddings of all images and captions of a split, computed once and kept beside the shards.

Training then learns from any teacher, however large, at the price of reading a row.
Source: Vasu et al. 2024, "MobileCLIP", section 3 (a data set reinforced by stored embeddings).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import DESCRIPTION as BUNDLE
from pocketclip.bundle import Bundle, load
from pocketclip.data.shards import Split
from pocketclip.data.teacher import CAPTIONS, DESCRIPTION, IMAGES, OFFSETS, Teacher
from pocketclip.errors import BundleError, DataError, RecipeError, TrainingError
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import Recipe
from pocketclip.train.features import Embedded, fill, image_embeddings


def teacher_folder(recipe: Recipe, split: Split) -> Path:
    """data.folder/teacher/SPLIT-FINGERPRINT: another teacher or other rows are another folder.

    Raises BundleError where the teacher is no bundle.
    """
    path = Path(recipe.train.teacher) / BUNDLE
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(
            f"train.teacher = {recipe.train.teacher!r}: no bundle ({path} cannot be read); training writes "
            "runs/NAME/bundle, and `pocketclip convert` makes one of others' weights"
        ) from None
    said = json.dumps([files, split.fingerprint()])
    return Path(split.folder) / "teacher" / f"{split.name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def open_teacher(recipe: Recipe, split: Split) -> Teacher:
    """What `teach` has computed; raises TrainingError where it has not."""
    folder = teacher_folder(recipe, split)
    if not (folder / DESCRIPTION).exists():
        raise TrainingError(
            f"{folder}: the teacher's embeddings are missing there, or not all are computed; run `pocketclip teach` "
            "with this recipe"
        )
    return Teacher(folder)


def teach(recipe: Recipe, console: Console) -> Path:
    """Embed all images and captions of the training split by the recipe's teacher, or go on with that.

    Each is embedded as the teacher's own recipe says: its preprocessing, its tokenizer. Returns the folder, see
    data/teacher.py. Raises RecipeError, DataError or BundleError where there is nothing to teach or to teach by, and
    TrainingError where it cannot be written.
    """
    if not recipe.train.teacher:
        raise RecipeError("train.teacher is empty: name the bundle to learn from")
    split = Split(recipe.data.folder, recipe.data.split)
    folder = teacher_folder(recipe, split)
    if (folder / DESCRIPTION).exists():
        return folder
    bundle = load(recipe.train.teacher, recipe.train.device)
    try:
        offsets = _offsets(folder / OFFSETS, split, console)
        _fill_both(folder, bundle, split, offsets, recipe, console)
        description = {
            "teacher": recipe.train.teacher,
            "sha256": bundle.description["sha256"],
            "scale": bundle.model.scale().item(),
        }
        with whole_file(folder / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written ({error.strerror}); make room there") from None
    return folder


def _offsets(path: Path, split: Split, console: Console) -> NDArray[np.int64]:
    """Where each row's captions begin among those of all rows, int64 [rows + 1]."""
    if not path.exists():
        ends = np.zeros(len(split) + 1, dtype=np.int64)
        with WorkProgress(console, "captions", "rows", len(split)) as progress:
            for row in range(len(split)):
                ends[row + 1] = ends[row] + len(split.captions(row))
                progress.advance(1)
        if not ends[-1]:
            raise DataError(f"{split.folder}: no row of split {split.name} has a caption")
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, ends)
    found: NDArray[np.int64] = np.load(path)
    return found


def _fill_both(
    folder: Path, bundle: Bundle, split: Split, offsets: NDArray[np.int64], recipe: Recipe, console: Console
) -> None:
    images = image_embeddings(bundle, split, bundle.recipe.image, recipe.data.workers)
    captions = _caption_embeddings(bundle, split, offsets)
    each, width = recipe.evaluate.batch_size, bundle.recipe.model.embedding_width
    for name, unit, count, embedded in (
        (IMAGES, "images", len(split), images),
        (CAPTIONS, "captions", int(offsets[-1]), captions),
    ):
        if not (folder / name).exists():
            fill(folder / name, (count, width), embedded, each, console, unit)


def _caption_embeddings(bundle: Bundle, split: Split, offsets: NDArray[np.int64]) -> Embedded:
    """What a bundle makes of ranges of a split's captions, for `fill`."""

    def embedded(ranges: Sequence[range]) -> Iterator[NDArray[np.float32]]:
        for some in ranges:
            first, last = np.searchsorted(offsets, (some.start, some.stop - 1), side="right") - 1
            captions = [caption for row in range(first, last + 1) for caption in split.captions(row)]
            start = some.start - int(offsets[first])
            yield bundle.encode_texts(captions[start : start + len(some)]).numpy()

    return embedded
