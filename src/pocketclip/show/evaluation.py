"""What an evaluation left beside results.json -> figures of benchmarks, of damage and of bias."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.errors import DataError
from pocketclip.evaluate.results import GroupResult, Result, parts_of_recall, read_results
from pocketclip.show import benchmarks, plots
from pocketclip.show.benchmarks import pixels_of
from pocketclip.show.explanation import explained
from pocketclip.show.page import Drawing, Picture

RESULTS, BIAS = "results.json", "*-bias.json"
EXPLAINED = 10  # images in a figure
SHOWN = 20  # classes, mistakes or attributes in a figure


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what an evaluation leaves, rather than a run."""
    return (folder / RESULTS).is_file() or any(folder.glob(BIAS))


def read_evaluation(folder: Path) -> tuple[str, list[Result]]:
    """The seal of the bundle that was evaluated, and the results; none where its bias alone was measured.

    Raises DataError where a file is damaged.
    """
    path = folder / RESULTS
    results = read_results(path) if path.exists() else []
    if not results:
        path = min(folder.glob(BIAS), default=path)
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["seal"]), results
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); evaluate again") from None


def evaluation_pictures(folder: Path, results: Sequence[Result], seal: str) -> Iterator[Picture]:
    """The figures of all that is there of a bundle; what another bundle left is passed over.

    folder: of its evaluation. seal: the bundle's.
    """
    for result in results:
        if result.kind == "classes":
            yield from _classes(result, folder)
        yield from _explained(result, folder, seal)
        yield from _robustness(result, folder, seal)
    for path in sorted(folder.glob(BIAS)):
        yield from _bias(path, seal)


def accuracy_picture(results: Sequence[Result], trained_on: str) -> Picture:
    """Top-1 and top-5 of all. trained_on: what is to be said of that; may be empty."""
    table = [
        {"split": result.benchmark, "k": k, "accuracy": right, "chance": chance}
        for result in results
        for k, right, chance in ((1, result.top_1, result.chance_top_1), (5, result.top_5, result.chance_top_5))
    ]
    return Drawing(table, partial(plots.accuracy, table)).picture(
        "accuracy",
        "Zero-shot accuracy",
        "How often a right caption is the model's first choice, or among its first five, out of all captions of the "
        f"data set, or all classes of a benchmark; {trained_on}the black marks are blind guessing.",
    )


def recall_pictures(results: Sequence[Result]) -> Iterator[Picture]:
    """One picture, or none where nothing was retrieved."""
    table = [
        {
            "split": result.benchmark,
            "direction": way,
            "k": k,
            "recall": recall,
            "chance": result.chance_recall[name],
        }
        for result in results
        for name, recall in result.recall.items()
        for way, k in [parts_of_recall(name)]
    ]
    if table:
        yield Drawing(table, partial(plots.recall, table)).picture(
            "recall",
            "Retrieval",
            "How often one of an image's captions, or one of a caption's images, is among the first k that the model "
            "finds within the same split; small splits are easier, as the black marks of blind guessing show.",
        )


def group_table(result: Result, groups: Iterable[tuple[str, GroupResult]]) -> plots.Table:
    """A line a group or class; chance is that of all images, which of captions differs a little from group to group."""
    chances = {"chance_top_1": result.chance_top_1, "chance_top_5": result.chance_top_5}
    return [
        {"group": name, "images": one.images, "top_1": one.top_1, "top_5": one.top_5} | chances for name, one in groups
    ]


def _classes(result: Result, folder: Path) -> Iterator[Picture]:
    """Accuracy by class, and what is taken for what."""
    name = result.benchmark
    classes = sorted(result.groups.items(), key=lambda item: -item[1].top_1)
    table = group_table(result, classes)
    shown = table if len(table) <= SHOWN else table[: SHOWN // 2] + table[-SHOWN // 2 :]
    which = "each class" if len(table) <= SHOWN else f"the {SHOWN // 2} best and the {SHOWN // 2} worst classes"
    yield Drawing(table, partial(plots.groups, shown)).picture(
        f"classes-{name}",
        f"Accuracy by class: {name}",
        f"How often {which} came first, or among the first five, for its own images; the black marks are blind "
        "guessing.",
    )
    path = folder / f"{name}-confusion.csv"
    if not path.exists():
        return
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    names, counts = head[1:], np.array([row[1:] for row in rows], dtype=np.int64)
    frequent = _mistakes(names, counts)
    if len(names) <= benchmarks.READABLE:
        yield Picture(
            f"confusion-{name}",
            f"What is taken for what: {name}",
            "Of each class's images (row) the share that was taken for each class (column); a good model has its "
            "highest values on the diagonal.",
            plots.png(partial(benchmarks.confusion, names, counts)),
            f"confusion-{name}.csv",
            path.read_text(encoding="utf-8"),
        )
    elif frequent:
        yield Drawing(frequent, partial(benchmarks.mistakes, frequent[:SHOWN])).picture(
            f"confusion-{name}",
            f"What is taken for what: {name}",
            "The most frequent mistakes: the share of a class's images that was taken for another class.",
        )


def _mistakes(names: list[str], counts: "np.ndarray[Any, np.dtype[np.int64]]") -> plots.Table:
    wrong = counts - np.diag(np.diag(counts))
    totals = counts.sum(axis=1)
    pairs = zip(*np.nonzero(wrong), strict=True)
    table = [
        {
            "true": names[row],
            "taken_for": names[column],
            "images": int(wrong[row, column]),
            "share": 100 * float(wrong[row, column] / totals[row]),
        }
        for row, column in pairs
    ]
    return sorted(table, key=lambda line: -line["share"])


def _robustness(result: Result, folder: Path, seal: str) -> Iterator[Picture]:
    name = result.benchmark
    about = _read(folder / f"{name}-robustness.json", seal)
    if about is None:
        return
    with (folder / f"{name}-robustness.csv").open(encoding="utf-8", newline="") as file:
        table: plots.Table = [
            {key: value if key in ("kind", "detail") else float(value or 0) for key, value in line.items()}
            for line in csv.DictReader(file)
        ]
    whole = [line for line in table if line["kind"] == "as it is"]
    damaged = [line for line in table if line["strength"]]
    written = [line for line in table if line not in whole and line not in damaged]
    images = f"{about['images']:,} images"
    yield Drawing(whole + damaged, partial(benchmarks.damages, whole + damaged, result.chance_top_1)).picture(
        f"damage-{name}",
        f"Damaged images: {name}",
        f"Top-1 of the same {images} the more they are damaged; how much each strength is stands beside its figure.",
    )
    chances = result.chance_top_1, 100 / result.candidates
    yield Drawing(written, partial(benchmarks.writings, written, whole[0]["top_1"], chances)).picture(
        f"writing-{name}",
        f"Words written on images: {name}",
        "What it costs to write a word of a wrong class on each image, and how often that class then comes first; the "
        "same letters scrambled show what is due to the label that hides a part, and only the rest is reading.",
    )
    examples = about["examples"]
    yield Picture(
        f"written-{name}",
        f"Before and after: {name}",
        "Images that were told right, with their nearest classes or captions before and after a wrong word was written "
        "on them.",
        plots.png(partial(benchmarks.before_and_after, examples)),
        f"written-{name}.json",
        json.dumps(
            [{key: _without_image(value) for key, value in one.items()} for one in examples],
            indent=2,
            ensure_ascii=False,
        )
        + "\n",
    )


def _explained(result: Result, folder: Path, seal: str) -> Iterator[Picture]:
    name = result.benchmark
    about = _read(folder / f"{name}-explained.json", seal)
    if about is None:
        return
    images = [pixels_of(one["image"]) for one in about["images"]]
    captions = [one["captions"] for one in about["images"]]
    yield Picture(
        f"explained-{name}",
        f"What counts in an image: {name}",
        "Which patches the cosine with an image's own caption comes from, and that with the nearest wrong one; what "
        "all patches add is the cosine less that of an image of nothing but the mean colour.",
        plots.png(partial(explained, images[:EXPLAINED], captions[:EXPLAINED])),
        f"explained-{name}.json",
        json.dumps(captions, indent=2, ensure_ascii=False) + "\n",
    )


def _without_image(value: Any) -> Any:
    return {"best": value["best"]} if isinstance(value, dict) else value


def _bias(path: Path, seal: str) -> Iterator[Picture]:
    about = _read(path, seal)
    if about is None:
        return
    name = about["name"]
    for by in about["groups"]:
        lines = [line for line in about["associations"] if line["by"] == by]
        table = sorted(lines, key=lambda line: -abs(line["effect_size"]))
        yield Drawing(table, partial(benchmarks.associations, table[:SHOWN])).picture(
            f"associations-{name}-{_file(by)}",
            f"Associations: {name}, by {by}",
            f"To which group's images an attribute lies nearer; of {len(table)} associations {0.05 * len(table):.1f} "
            f"would be filled by chance alone. The strongest{f' {SHOWN}' if len(table) > SHOWN else ''} are shown.",
        )
        found = sorted(
            (line for line in about["searches"] if line["by"] == by), key=lambda line: -float(line["max_skew"])
        )
        yield Drawing(found, partial(benchmarks.searches, found[:SHOWN])).picture(
            f"searches-{name}-{_file(by)}",
            f"Whom a search returns: {name}, by {by}",
            "By how much the group that has most of a search's first results has more than its share (the logarithm "
            "of the ratio); 0 would be fair, and few results are uneven by chance alone.",
        )
    accuracies = about["accuracies"]
    if accuracies:
        yield Drawing(accuracies, partial(benchmarks.group_accuracies, accuracies)).picture(
            f"group-accuracy-{name}",
            f"Accuracy by group: {name}",
            "How often the right attribute is the first choice, for each group's images.",
        )


def _file(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text)


def _read(path: Path, seal: str) -> dict[str, Any] | None:
    """A file of figures; None where there is none, or it is of another bundle."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return dict(about) if about["seal"] == seal else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({error}); evaluate again") from None
