"""A run's folder in; its figures, the numbers behind them and one page that needs nothing else out."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pocketclip.evaluate.results import Result
from pocketclip.files import whole_file, whole_folder
from pocketclip.show import curves, plots
from pocketclip.show.evaluation import (
    accuracy_picture,
    evaluation_pictures,
    group_table,
    read_evaluation,
    recall_pictures,
)
from pocketclip.show.examples import best_and_worst, ranking, spread_images
from pocketclip.show.page import Drawing, Picture, evaluation_page, page, require_own_page
from pocketclip.show.pictures import require_own_pictures
from pocketclip.show.run import EVALUATED, EvaluatedSplit, FinishedRun
from pocketclip.show.tuning import changes_table, draw_changes

MATRIX_IMAGES = 10
RANKED_IMAGES = 5
GROUPS = 20


def write_report(run: Path) -> Path:
    """Write RUN/figures (each figure as PNG, with its numbers as CSV or JSON beside it) and RUN/report.html.

    run: the folder of a run that was trained and evaluated; the shards that its recipe names are read for thumbnails.
    Figures of an earlier report are replaced. Returns the page's path.

    Raises DataError naming the file that is missing or damaged, and the command that writes it; and a page, or a file
    in RUN/figures, that no report wrote.
    """
    finished = FinishedRun(run)
    return _write(run, _pictures(finished), partial(page, finished))


def write_evaluation_report(folder: Path) -> Path:
    """The same of an evaluation alone, whose bundle may come from anywhere: FOLDER/figures and FOLDER/report.html.

    Raises DataError naming the file that is damaged, and a page, or a file in FOLDER/figures, of another hand.
    """
    seal, results = read_evaluation(folder)
    return _write(folder, _evaluated(folder, results, seal), partial(evaluation_page, folder.resolve().name, results))


def _evaluated(folder: Path, results: Sequence[Result], seal: str) -> Iterator[Picture]:
    if results:
        yield accuracy_picture(results, "")
    yield from recall_pictures(results)
    yield from evaluation_pictures(folder, results, seal)


def _write(folder: Path, drawn: Iterator[Picture], page_of: Callable[[Sequence[Picture]], str]) -> Path:
    path = folder / "report.html"
    require_own_pictures(folder / "figures")
    require_own_page(path)
    pictures = list(drawn)
    with whole_folder(folder / "figures") as temporary:
        for picture in pictures:
            (temporary / f"{picture.name}.png").write_bytes(picture.png)
            (temporary / picture.data_name).write_text(picture.data, encoding="utf-8")
    with whole_file(path) as temporary:
        temporary.write_text(page_of(pictures), encoding="utf-8")
    return path


def _pictures(run: FinishedRun) -> Iterator[Picture]:
    splits = run.test_splits()
    yield _training(run)
    if run.evaluations:
        yield _accuracy_in_training(run)
    yield accuracy_picture(run.results, f"split “{run.recipe.data.split}” was trained on, and ")
    yield from _changes(run)
    for split in splits:
        yield from _groups(split)
    yield from recall_pictures(run.results)
    for split in splits:
        yield _cosines(split, run.recipe.image.size)
    for split in splits:
        yield from _rankings(split, run.recipe.image.size)
    yield from evaluation_pictures(run.folder / "evaluation", run.results, run.seal)


def _training(run: FinishedRun) -> Picture:
    smooth = plots.smoothed([line["loss"] for line in run.metrics])
    table = [
        {
            "step": line["step"],
            "pairs": line["pairs"],
            "loss": line["loss"],
            "smoothed_loss": value,
            "learning_rate": line["learning_rate"],
        }
        for line, value in zip(run.metrics, smooth, strict=True)
    ]
    return Drawing(table, partial(plots.training, table, run.chance_loss)).picture(
        "training",
        "Training",
        "The lower the loss, the better a batch's images and captions are told apart; a model that has learned nothing "
        "stays on the dashed line.",
    )


def _accuracy_in_training(run: FinishedRun) -> Picture:
    table = [evaluation_line(run.recipe.name, line) for line in run.evaluations]
    splits = list(dict.fromkeys(line["split"] for line in table))
    return Drawing(table, partial(curves.accuracies, table, "split", splits)).picture(
        "accuracy-in-training",
        "Zero-shot accuracy during training",
        "How often a right caption was the model's first choice, at each evaluation (dots) during training.",
    )


def evaluation_line(run: str, line: dict[str, Any]) -> dict[str, Any]:
    """What figures and their tables use of a line of evaluations.jsonl."""
    return {"run": run} | {name: line[name] for name in EVALUATED}


def _changes(run: FinishedRun) -> Iterator[Picture]:
    """One picture, or none of a run from scratch."""
    table = changes_table(run.changes)
    if table:
        yield Drawing(table, partial(draw_changes, table)).picture(
            "before-and-after",
            "Accuracy before and after",
            "How often the right caption came first with the bundle that training started from, and with what it has "
            "become; of a difference two standard errors are given.",
        )


def _groups(split: EvaluatedSplit) -> Iterator[Picture]:
    """One picture, or none where the data names no groups."""
    groups = sorted(split.result.groups.items(), key=lambda item: -item[1].images)
    if len(groups) < 2:
        return
    table = group_table(split.result, groups)
    shown = f"its {GROUPS} largest" if len(groups) > GROUPS else "its"
    yield Drawing(table, partial(plots.groups, table[:GROUPS])).picture(
        f"groups-{split.name}",
        f"Accuracy by group: {split.name}",
        f"The same accuracy for {shown} groups of images, the largest first; the fewer images a group has (in "
        "brackets), the more its bars owe to luck; the black marks are blind guessing.",
    )


def _cosines(split: EvaluatedSplit, size: int) -> Picture:
    numbers = spread_images(split, MATRIX_IMAGES)
    captions = [split.predictions[number]["captions"][0] for number in numbers]
    matrix = split.captions.cosines(split.images[numbers], captions).T
    table = [
        {
            "row": split.predictions[numbers[image]]["row"],
            "caption": caption,
            "cosine": round(float(matrix[number, image]), 4),
            "right": image == number,
        }
        for number, caption in enumerate(captions)
        for image in range(len(numbers))
    ]
    thumbnails = [split.thumbnail(number, size) for number in numbers]
    return Drawing(
        table, partial(plots.cosines, thumbnails, captions, np.asarray(matrix), [(n, n) for n in range(len(numbers))])
    ).picture(
        f"cosines-{split.name}",
        f"Images and captions: {split.name}",
        "Evenly spaced images of the split with their first captions; a good model has its highest value in each "
        "column, in bold, on the framed diagonal.",
    )


def _rankings(split: EvaluatedSplit, size: int) -> Iterator[Picture]:
    readings = {
        "best": "The images whose right caption came first by the largest margin, or else nearest to the first place",
        "worst": "The images whose right caption came last",
    }
    for (kind, reading), numbers in zip(readings.items(), best_and_worst(split, RANKED_IMAGES), strict=True):
        if not numbers:
            continue
        shown = [ranking(split, number) for number in numbers]
        thumbnails = [split.thumbnail(number, size) for number in numbers]
        name = f"{kind}-{split.name}"
        yield Picture(
            name,
            f"{kind.capitalize()} predictions: {split.name}",
            f"{reading}: the true captions in bold, below them the five that the model prefers; a blue bar with "
            f"a {plots.RIGHT} is a right one, added at the end where the five miss it.",
            plots.png(partial(plots.rankings, thumbnails, shown, split.result.candidates)),
            f"{name}.json",
            json.dumps(shown, indent=2, ensure_ascii=False) + "\n",
        )
