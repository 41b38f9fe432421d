"""Zero-shot classification on a benchmark: which class's prompts an image is nearest to."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.labelled.kinds import Dropped, Labelled, LabelledImages
from pocketclip.data.labelled.source import open_labelled
from pocketclip.errors import DataError
from pocketclip.evaluate.accuracy import by_group, chance, intervals, mean_top_1
from pocketclip.evaluate.benchmarks.catalogue import Benchmark, Place, describe
from pocketclip.evaluate.dropped import NAMED, counted, say, write_dropped
from pocketclip.evaluate.embed import Encoded, embed_images, progress_of
from pocketclip.evaluate.probe import linear_probe, nearest_neighbours
from pocketclip.evaluate.prompts import class_embeddings
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.robustness import Names, evaluate_robustness, some_of
from pocketclip.evaluate.zero_shot import Embeddings, best_captions, ranks, top_k
from pocketclip.files import whole_file

SHOWN = 5


@dataclass(frozen=True)
class EmbeddedImages:
    """A benchmark's images that could be embedded. names, labels: of each. images: [images, width]."""

    names: list[str]
    labels: NDArray[np.int64]
    images: Embeddings
    dropped: list[Dropped]


def measure_classes(bundle: Bundle, place: Place) -> Result:
    """A benchmark's figures, and no files."""
    source = open_labelled(place.path)
    benchmark = describe(place, source)
    classes = class_embeddings(bundle, benchmark.prompts_by_class())
    return _judged(benchmark, embed_labelled(bundle, benchmark, source), classes)[0]


def evaluate_classes(bundle: Bundle, place: Place, output: Path, console: Console, bundle_name: str) -> Result:
    """Evaluate on a benchmark: results.json, NAME-predictions.jsonl, NAME-confusion.csv and NAME-dropped.jsonl.

    What could not be used is counted and named on the console. The embeddings of the classes are kept in
    `output`/classes. Raises DataError where the source cannot be read or has no image of use.
    """
    source = open_labelled(place.path)
    benchmark = describe(place, source)
    classes = class_embeddings(bundle, benchmark.prompts_by_class(), output / "classes")
    embedded = embed_labelled(bundle, benchmark, source, console)
    result, rank = _judged(benchmark, embedded, classes)
    if bundle.recipe.evaluate.probe:
        result = replace(result, further=_probed(bundle, benchmark, place, embedded, console))
    best, cosines = best_captions(embedded.images, classes, SHOWN)
    _write_predictions(output / f"{benchmark.name}-predictions.jsonl", benchmark, embedded, rank, best, cosines)
    _write_confusion(output / f"{benchmark.name}-confusion.csv", benchmark, embedded.labels, best[:, 0])
    write_dropped(output / f"{benchmark.name}-dropped.jsonl", embedded.dropped)
    write_results(output / "results.json", bundle_name, bundle.seal, [result])
    say(benchmark.name, embedded.dropped, console)
    if result.missing:
        more = f" and {len(result.missing) - NAMED:,} more" if len(result.missing) > NAMED else ""
        line = f"{benchmark.name}: no image of {', '.join(result.missing[:NAMED])}{more}"
        console.print(line, highlight=False, markup=False)
    if bundle.recipe.evaluate.robustness:  # it takes longest
        names = Names(benchmark.name, embedded.names, embedded.labels[:, None].tolist(), list(benchmark.classes))
        images = ((item.name, item.image) for item in source.items([]))
        evaluate_robustness(bundle, some_of(bundle, names, classes, images), output, console)
    return result


def _probed(
    bundle: Bundle, benchmark: Benchmark, place: Place, embedded: EmbeddedImages, console: Console
) -> dict[str, float]:
    """Accuracies of what learns from the training images, percent; none where there are no such images."""
    try:
        source = open_labelled(place.path, "train")
        known = embed_labelled(bundle, benchmark, source, console)
    except DataError as error:
        console.print(f"{benchmark.name}: no probe: {error}", highlight=False, markup=False)
        return {}
    say(f"{benchmark.name}, training images", known.dropped, console)
    given = known.images, known.labels, embedded.images, len(benchmark.classes), bundle.device.device
    linear, inverse = linear_probe(*given)
    return {
        "probe_images": len(known.labels),
        "probe_inverse_penalty": inverse,
        "linear_top_1": 100 * float(np.mean(linear == embedded.labels)),
        "neighbours_top_1": 100 * float(np.mean(nearest_neighbours(*given) == embedded.labels)),
    }


def embed_labelled(
    bundle: Bundle, benchmark: Benchmark, source: LabelledImages, console: Console | None = None
) -> EmbeddedImages:
    """Embed a source's images, those that have a class of the benchmark; all others are named in `dropped`."""
    dropped: list[Dropped] = []

    def known() -> Iterator[tuple[Labelled, int]]:
        for item in source.items(dropped):
            number = benchmark.number(item.label)
            if number is not None:
                yield item, number
            elif item.label in benchmark.ignored:
                dropped.append(Dropped(item.name, f"class {item.label}, which the benchmark ignores"))
            else:
                dropped.append(Dropped(item.name, f"unknown class {item.label!r}"))

    def image(item: tuple[Labelled, int]) -> Encoded:
        return item[0].image

    def refuse(item: tuple[Labelled, int], reason: str) -> None:
        dropped.append(Dropped(item[0].name, reason))

    def keep(item: tuple[Labelled, int]) -> tuple[str, int]:
        return item[0].name, item[1]

    kept, images = embed_images(
        bundle, known(), image, refuse, keep, progress_of(console, benchmark.title, source.total)
    )
    if not kept:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counted(dropped).items()) or "there is none"
        raise DataError(f"{benchmark.name}: no image can be used: {reasons}")
    labels = np.array([number for _, number in kept], dtype=np.int64)
    return EmbeddedImages([name for name, _ in kept], labels, images, dropped)


def _judged(benchmark: Benchmark, embedded: EmbeddedImages, classes: Embeddings) -> tuple[Result, NDArray[np.int64]]:
    """The figures, and the rank of each image's class."""
    rank = ranks(embedded.images, classes, embedded.labels[:, None].tolist())
    groups = by_group(rank, [benchmark.classes[label] for label in embedded.labels])
    one, count = np.ones(1, np.int64), len(classes)
    result = Result(
        benchmark=benchmark.name,
        images=len(rank),
        candidates=count,
        top_1=top_k(rank, 1),
        top_5=top_k(rank, 5),
        top_10=top_k(rank, 10),
        chance_top_1=chance(one, count, 1),
        chance_top_5=chance(one, count, 5),
        chance_top_10=chance(one, count, 10),
        mean_group_top_1=mean_top_1(groups),
        groups=groups,
        recall={},
        dropped=counted(embedded.dropped),
        kind="classes",
        intervals=intervals(rank, groups),
        missing=tuple(name for name in benchmark.classes if name not in groups),
    )
    return result, rank


def _write_predictions(
    path: Path,
    benchmark: Benchmark,
    embedded: EmbeddedImages,
    rank: NDArray[np.int64],
    best: NDArray[np.int64],
    cosines: Embeddings,
) -> None:
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, name in enumerate(embedded.names):
            shown = zip(best[number], cosines[number], strict=True)
            line = {
                "name": name,
                "class": benchmark.classes[embedded.labels[number]],
                "rank": int(rank[number]),
                "best": [[benchmark.classes[c], round(float(s), 4)] for c, s in shown],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_confusion(path: Path, benchmark: Benchmark, labels: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
    """A row a class: how many of its images were taken for each class."""
    count = len(benchmark.classes)
    table = np.bincount(labels * count + predicted, minlength=count**2).reshape(count, count)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *benchmark.classes])
        writer.writerows([name, *row] for name, row in zip(benchmark.classes, table.tolist(), strict=True))
