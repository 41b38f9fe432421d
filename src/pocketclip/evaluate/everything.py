"""All that a recipe says a bundle is to be evaluated on."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.evaluate.benchmarks.catalogue import find
from pocketclip.evaluate.classes import evaluate_benchmark
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.splits import evaluate_splits


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
        result = evaluate_benchmark(bundle, place, output, console)
        write_results(output / "results.json", bundle_name, bundle.seal, [result])
        yield result
