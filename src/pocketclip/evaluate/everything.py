"""All that a recipe says a bundle is to be evaluated on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.evaluate.benchmarks.catalogue import Place, find
from pocketclip.evaluate.classes import evaluate_classes, measure_classes
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.retrieval import evaluate_captioned, measure_captioned
from pocketclip.evaluate.splits import evaluate_splits, measure_splits


def evaluate_all(bundle: Bundle, output: Path, console: Console, bundle_name: str) -> Iterator[Result]:
    """Evaluate on the recipe's splits and benchmarks; each result is in `output`/results.json when it is given.

    Raises DataError where a split or a benchmark is missing or of no use; all are looked for before the first begins.
    """
    settings = bundle.recipe.evaluate
    places = [find(asked, Path(settings.folder)) for asked in settings.benchmarks]
    if settings.splits:
        folder = Path(bundle.recipe.data.folder)
        yield from evaluate_splits(bundle, folder, settings.splits, output, console, bundle_name)
    for place in places:
        evaluate = evaluate_captioned if place.kind == "captions" else evaluate_classes
        result = evaluate(bundle, place, output, console)
        write_results(output / "results.json", bundle_name, bundle.seal, [result])
        yield result


def measure_all(bundle: Bundle, places: Sequence[Place]) -> list[Result]:
    """The figures that `evaluate_all` gives, and no files. places: of the recipe's benchmarks."""
    found = measure_splits(bundle, Path(bundle.recipe.data.folder), bundle.recipe.evaluate.splits)
    for place in places:
        found.append((measure_captioned if place.kind == "captions" else measure_classes)(bundle, place))
    return found
