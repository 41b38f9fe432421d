"""Several runs side by side: in what they differ, and what came of it, on one page."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError
from pocketclip.evaluate.results import Result, read_results
from pocketclip.files import whole_file, whole_folder
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import differences, load_resolved
from pocketclip.show import curves, plots
from pocketclip.show.crossing import crossings, last_of_each_pair
from pocketclip.show.page import Drawing, Picture, document, duration, figure
from pocketclip.show.pictures import require_own_pictures
from pocketclip.show.report import evaluation_line
from pocketclip.show.run import count_parameters, json_object, read_evaluations, read_metrics, short_names

SENTENCES = 10  # on crossings, under their figure
OWN, BEGINNING = "runs.csv", "run of PocketCLIP"  # by which a folder of a comparison is known
SHOWN = ("step", "pairs", "seconds", "loss")


@dataclass(frozen=True)
class ComparedRun:
    """What is known of a run, finished or not, or of results alone, whose recipe nobody knows.

    metrics: SHOWN of each line of its log. evaluations: as `evaluation_line` gives them. results: of its bundle, by
    split; empty where it was not evaluated.
    """

    name: str
    recipe: Recipe | None
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    results: dict[str, Result]
    parameters: int | None
    device: str

    def last(self, show: Callable[[dict[str, Any]], str]) -> str:
        """What is to be shown of the last line of its log; nothing where it has none."""
        return show(self.metrics[-1]) if self.metrics else ""


def write_comparison(sources: Sequence[Path], page: Path) -> Path:
    """Compare runs on one page, and write the figures and their numbers into the folder beside it that has its name.

    sources: folders of runs that have logged something, finished and evaluated or not; results.json files of anybody's,
        or folders of them.
    Earlier comparisons among them, as `runs/*` gives, are passed over. page: an .html file.
    Raises DataError naming the file that is missing or damaged.
    """
    sources = [source for source in sources if source.suffix != ".html" and not _is_comparison(source)]
    if not sources:
        raise DataError("no run's folder was named; `pocketclip runs` lists them")
    if page.suffix != ".html":
        raise DataError(f"{page}: the page's name has to end in .html; its figures go into a folder of that name")
    runs = [_read(source, name) for source, name in zip(sources, short_names(sources), strict=True)]
    facts, pictures = dict(_facts(runs)), list(_pictures(runs))
    beside = page.with_suffix("")
    _require_own(page, beside)
    with whole_folder(beside) as folder:
        (folder / OWN).write_text(_as_csv(runs, facts), encoding="utf-8")
        for picture in pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
            (folder / picture.data_name).write_text(picture.data, encoding="utf-8")
    with whole_file(page) as temporary:
        temporary.write_text(_page(runs, facts, pictures, beside.name), encoding="utf-8")
    return page


def _require_own(page: Path, beside: Path) -> None:
    """Raise DataError where a page, or the folder of its figures, would replace what is no earlier comparison."""
    for there in (beside, page):
        if there.exists() and not _is_comparison(beside):
            raise DataError(f"{there}: is there and holds no comparison; choose another --output")
    require_own_pictures(beside, OWN)


def _is_comparison(folder: Path) -> bool:
    table = folder / OWN
    return table.is_file() and table.read_bytes().startswith(BEGINNING.encode())


def _read(folder: Path, name: str) -> ComparedRun:
    alone = folder if folder.is_file() else folder / "results.json"
    if alone.is_file():
        return ComparedRun(name, None, [], [], {one.benchmark: one for one in read_results(alone)}, None, "")
    recipe = load_resolved(folder / "recipe.toml")
    results, environment = folder / "evaluation" / "results.json", folder / "environment.json"
    bundle = folder / "bundle" / "bundle.json"
    seal = str(json_object(bundle, "train the run anew").get("seal", "")) if bundle.exists() else None
    metrics = [{column: line[column] for column in SHOWN} for line in read_metrics(folder)]
    evaluations = [evaluation_line(name, line) for line in read_evaluations(folder)]
    return ComparedRun(
        name=name,
        recipe=recipe,
        metrics=metrics,
        evaluations=evaluations,
        results={one.benchmark: one for one in read_results(results, seal or None)} if results.exists() else {},
        parameters=count_parameters(folder / "bundle" / "model.safetensors"),
        device=str(json_object(environment, "train the run anew").get("device", "")) if environment.exists() else "",
    )


def _facts(runs: Sequence[ComparedRun]) -> Iterator[tuple[str, list[str]]]:
    """What the table says: a name, and the value of each run as text."""

    def row(name: str, of: Callable[[ComparedRun], str]) -> tuple[str, list[str]]:
        return name, [of(run) for run in runs]

    yield row("Pairs seen", lambda run: run.last(lambda line: f"{line['pairs']:,}"))
    yield row("Steps", lambda run: run.last(lambda line: f"{line['step']:,}"))
    yield row("Training time", lambda run: run.last(lambda line: duration(line["seconds"])))
    yield row("Speed", lambda run: run.last(_speed))
    yield row("Loss at the end", lambda run: run.last(lambda line: f"{line['loss']:.3f}"))
    for split in dict.fromkeys(split for run in runs for split in run.results):
        results = [run.results.get(split) for run in runs]
        found = [{one.title: str(one) for one in result.measured} if result else {} for result in results]
        yield row(f"Images of {split}", partial(_images, split=split))
        for title in dict.fromkeys(title for some in found for title in some):
            yield f"{title[0].upper()}{title[1:]} on {split}", [some.get(title, "") for some in found]
    yield row("Parameters", lambda run: "" if run.parameters is None else f"{run.parameters:,}")
    yield row("Device", lambda run: run.device)


def _speed(line: dict[str, Any]) -> str:
    return f"{line['pairs'] / max(1e-9, line['seconds']):,.0f} pairs/s"


def _images(run: ComparedRun, split: str) -> str:
    result = run.results.get(split)
    return f"{result.images:,} against {result.candidates:,} {result.against}" if result else ""


def different_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Each key in which any two of the recipes differ, with the value of each run."""
    recipes = [run.recipe for run in runs if run.recipe]
    keys = dict.fromkeys(key for recipe in recipes for key in differences(recipes[0], recipe) if key != "name")
    return {key: [_setting(run.recipe, key) if run.recipe else "" for run in runs] for key in sorted(keys)}


def _setting(recipe: Recipe, key: str) -> str:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _pictures(runs: Sequence[ComparedRun]) -> Iterator[Picture]:
    table: plots.Table = []
    for run in runs:
        smooth = plots.smoothed([line["loss"] for line in run.metrics])
        for line, value in zip(run.metrics, smooth, strict=True):
            table.append({"run": run.name, **line, "smoothed_loss": value})
    kinds = ("batch_size", "loss", "label_smoothing", "distillation")
    like = {tuple(getattr(run.recipe.train, kind) for kind in kinds) for run in runs if run.recipe}
    unlike = (
        " These runs differ in batch size or kind of loss: their losses are not to be compared, their accuracies are."
    )
    if table:
        yield Drawing(table, partial(curves.losses, table)).picture(
            "loss",
            "Loss",
            "The loss of each run over the pairs that it has seen and over its training time; pale what was logged, "
            "strong its smoothed course." + (unlike if len(like) > 1 else ""),
        )
    accuracy = [line for run in runs for line in run.evaluations]
    names = [run.name for run in runs]
    if accuracy:
        yield Drawing(accuracy, partial(curves.accuracies, accuracy, "run", names)).picture(
            "accuracy-in-training",
            "Zero-shot accuracy during training",
            "How often a right caption was the first choice, at each evaluation (dots) of the runs that have some."
            + "".join(f" {one}." for one in last_of_each_pair(crossings(accuracy))[:SENTENCES]),
        )


def _as_csv(runs: Sequence[ComparedRun], facts: dict[str, list[str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([BEGINNING, *(run.name for run in runs)])
    writer.writerows([name, *values] for name, values in (facts | different_settings(runs)).items())
    return text.getvalue()


def _page(runs: Sequence[ComparedRun], facts: dict[str, list[str]], pictures: Sequence[Picture], beside: str) -> str:
    names = [run.name for run in runs]
    settings = different_settings(runs)
    differing = _table(names, settings) if settings else "<p>None: these runs have the same recipe.</p>"
    return document(
        " and ".join(names) if len(names) < 4 else f"{len(names)} runs",
        f"""<h2>What came of them</h2>
{_table(names, facts)}
<h2>Settings that differ</h2>
{differing}
<h2>Figures</h2>
{"".join(figure(picture, beside) for picture in pictures)}""",
    )


def _cell(value: str) -> str:
    """What is in brackets behind a figure, its interval and chance, stands below it."""
    shown, about, below = escape(value).partition(" % (")
    return f"{shown} %<br><small>{below.removesuffix(')').replace('; ', '<br>')}</small>" if about else shown


def _table(names: Sequence[str], rows: dict[str, list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *names))
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{_cell(value)}</td>" for value in values)}</tr>'
        for name, values in rows.items()
    )
    return (
        f'<div class="wide"><table class="compared"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )
