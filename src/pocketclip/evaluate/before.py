"""The bundle that training started from, evaluated on the same splits, once, and what has changed since."""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from pocketclip.bundle import Bundle, load, seal_of
from pocketclip.data.shards import Split, splits_in
from pocketclip.errors import BundleError
from pocketclip.evaluate.changes import BEFORE, read_changes, what_it_has_forgotten
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.files import whole_file

SUBJECT = "subject.json"  # what the results beside it are of


def compare_with_start(bundle: Bundle, output: Path, console: Console) -> None:
    """Say how a bundle that has just been evaluated into `output` differs from the one that it was trained from.

    The start's evaluation is kept in `output`/before, and made where it is not there or of something else. Where the
    start is no longer to be had, that is said instead.
    """
    try:
        evaluate_start(bundle, output / BEFORE, console)
    except BundleError as error:
        if (output / BEFORE / SUBJECT).exists():  # else it is somebody's own folder
            shutil.rmtree(output / BEFORE)
        console.print(f"not compared with what it was before: {error}", highlight=False, markup=False)
    for change in (changes := read_changes(output)):
        console.print(str(change), highlight=False, markup=False)
    if forgotten := what_it_has_forgotten(changes):
        console.print(f"[yellow]warning:[/] {escape(forgotten)}", highlight=False)


def evaluate_start(bundle: Bundle, folder: Path, console: Console) -> None:
    """Evaluate the bundle that a bundle was trained from, on the splits that the latter's recipe names, into a folder.

    It sees images as it did before, with its own preprocessing. Raises BundleError where it is missing, damaged, or
    another than training started from.
    """
    settings, trained_from = bundle.recipe, bundle.description["training"].get("start")
    start, data, splits = Path(settings.train.start_from), Path(settings.data.folder), settings.evaluate.splits
    if seal_of(start) != trained_from:
        raise BundleError(f"{start}: is not the bundle any more that training started from")
    rows = {name: Split(data, name).fingerprint() for name in splits_in(data)}
    subject = {"start": trained_from, "splits": list(splits), "rows": rows}
    if _read(folder / SUBJECT) == subject:
        return
    (folder / SUBJECT).unlink(missing_ok=True)
    loaded = load(start)
    plain = settings.evaluate.model_copy(update={"explained": 0, "robustness": False})  # only figures are compared
    loaded.recipe = loaded.recipe.model_copy(update={"evaluate": plain})
    evaluate_splits(loaded, data, splits, folder, console, str(start))
    (folder / "embeddings.npz").unlink()  # nobody reads these
    with whole_file(folder / SUBJECT) as temporary:
        temporary.write_text(json.dumps(subject, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
