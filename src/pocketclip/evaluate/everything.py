"""All that a recipe says a bundle is to be evaluated on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.labelled.captioned import open_captioned
from pocketclip.data.labelled.source import open_labelled
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import Place, describe, find
from pocketclip.evaluate.classes import evaluate_classes, measure_classes
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.retrieval import evaluate_captioned, measure_captioned
from pocketclip.evaluate.splits import evaluate_splits, measure_splits
from pocketclip.recipe.training import EvaluateSettings


def evaluate_all(bundle: Bundle, output: Path, console: Console, bundle_name: str) -> Iterator[Result]:
    """Evaluate on the recipe's splits and benchmarks; each result is in `output`/results.json when it is given.

    Raises DataError where a split or a benchmark is missing or of no use; all are looked for before the first begins.
    """
    settings = bundle.recipe.evaluate
    places = find_all(settings)
    if settings.splits:
        folder = Path(bundle.recipe.data.folder)
        yield from evaluate_splits(bundle, folder, settings.splits, output, console, bundle_name)
    for place in places:
        result = evaluate_place(bundle, place, output, console)
        write_results(output / "results.json", bundle_name, bundle.seal, [result])
        yield result


def find_all(settings: EvaluateSettings) -> list[Place]:
    """Where a recipe's benchmarks lie; raises DataError where one is missing, or two would be one in the results."""
    places = [find(asked, Path(settings.folder)) for asked in settings.benchmarks]
    names = [*settings.splits, *(place.name for place in places)]
    for place in places:
        if names.count(place.name) > 1:
            raise DataError(
                f"{place.path}: something else is called {place.name!r} too; give it another name: NAME={place.path}"
            )
    return places


def usable_places(settings: EvaluateSettings) -> list[Place]:
    """The same, each opened once: what is wrong with one shall not be found in the middle of a long training."""
    places = find_all(settings)
    for place in places:
        if place.kind == "captions":
            open_captioned(place.path, place.name)
        else:
            describe(place, open_labelled(place.path))
    return places


def evaluate_place(bundle: Bundle, place: Place, output: Path, console: Console) -> Result:
    """Evaluate on one benchmark; its own files lie in `output`."""
    return (evaluate_captioned if place.kind == "captions" else evaluate_classes)(bundle, place, output, console)


def measure_all(bundle: Bundle, places: Sequence[Place]) -> list[Result]:
    """The figures that `evaluate_all` gives, and no files. places: of the recipe's benchmarks."""
    found = measure_splits(bundle, Path(bundle.recipe.data.folder), bundle.recipe.evaluate.splits)
    for place in places:
        found.append((measure_captioned if place.kind == "captions" else measure_classes)(bundle, place))
    return found
