"""All that a recipe says a bundle is to be evaluated on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.labelled.captioned import open_captioned
from pocketclip.data.labelled.source import open_labelled
from pocketclip.data.shards import splits_in
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import Place, describe, find
from pocketclip.evaluate.classes import evaluate_classes, measure_classes
from pocketclip.evaluate.results import Result, require_own_results
from pocketclip.evaluate.retrieval import evaluate_captioned, measure_captioned
from pocketclip.evaluate.splits import evaluate_splits, measure_splits
from pocketclip.recipe.schema import Recipe


def evaluate_all(bundle: Bundle, output: Path, console: Console, bundle_name: str) -> Iterator[Result]:
    """Evaluate on the recipe's splits and benchmarks; each result is in `output`/results.json when it is given.

    Raises DataError where a split or a benchmark is missing or of no use, and where results.json is of another hand;
    all that is looked for before the first begins.
    """
    settings = bundle.recipe.evaluate
    places = find_all(bundle.recipe)
    require_own_results(output / "results.json")
    if settings.splits:
        folder = Path(bundle.recipe.data.folder)
        yield from evaluate_splits(bundle, folder, settings.splits, output, console, bundle_name)
    for place in places:
        yield evaluate_place(bundle, place, output, console, bundle_name)


def find_all(recipe: Recipe) -> list[Place]:
    """Where a recipe's benchmarks lie; raises DataError where one is missing, or two would be one in the results.

    The data's splits count among them, whether they are evaluated this time or another.
    """
    settings = recipe.evaluate
    places = [find(asked, Path(settings.folder)) for asked in settings.benchmarks]
    splits = {recipe.data.split, *settings.splits, *splits_in(Path(recipe.data.folder))}
    names = [*splits, *(place.name for place in places)]
    for place in places:
        if names.count(place.name) > 1:
            raise DataError(
                f"{place.path}: something else is called {place.name!r} too; give it another name: NAME={place.path}"
            )
    return places


def usable_places(recipe: Recipe) -> list[Place]:
    """The same, each opened once: what is wrong with one shall not be found in the middle of a long training."""
    places = find_all(recipe)
    for place in places:
        if place.kind == "captions":
            open_captioned(place.path, place.name)
        else:
            describe(place, open_labelled(place.path))
    return places


def evaluate_place(bundle: Bundle, place: Place, output: Path, console: Console, bundle_name: str) -> Result:
    """Evaluate on one benchmark; its own files lie in `output`, its figures in `output`/results.json."""
    evaluate = evaluate_captioned if place.kind == "captions" else evaluate_classes
    return evaluate(bundle, place, output, console, bundle_name)


def measure_all(bundle: Bundle, places: Sequence[Place]) -> list[Result]:
    """The figures that `evaluate_all` gives, and no files. places: of the recipe's benchmarks."""
    found = measure_splits(bundle, Path(bundle.recipe.data.folder), bundle.recipe.evaluate.splits)
    for place in places:
        found.append((measure_captioned if place.kind == "captions" else measure_classes)(bundle, place))
    return found
