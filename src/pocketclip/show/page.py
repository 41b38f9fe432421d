"""The report's page: HTML with its style and pictures inside, so that one file can be mailed, printed and kept."""

import base64
import csv
import io
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from pocketclip.errors import DataError
from pocketclip.evaluate.results import RECALLS_AT_1, Result
from pocketclip.show import plots
from pocketclip.show.plots import percent
from pocketclip.show.run import FinishedRun
from pocketclip.show.tuning import changes_section

TITLE_END = ": PocketCLIP</title>"  # by which a page of ours is known
# The policy forbids scripts and every other host, whatever the data may say.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 0 auto; padding: 1rem }
body { color: #111; background: #fff }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem }
h1 { margin-top: 0 }
.wide { overflow-x: auto; margin: 1rem 0 }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top }
td { white-space: nowrap }
th:first-child, td:first-child, .facts td { text-align: left }
.facts th, .compared th:first-child { text-align: left; white-space: nowrap }
.compared td { text-align: right; white-space: normal }
.facts td { white-space: normal; overflow-wrap: anywhere }
figure { margin: 1.5rem 0 2.5rem }
figure img { display: block; width: 672px; max-width: none; height: auto }
figcaption { font-size: .9375rem; color: #333 }
pre { overflow-x: auto; background: #f4f4f4; padding: .75rem; font-size: .8125rem }
summary { cursor: pointer; font-weight: 600 }
@media screen and (max-width: 700px) {
  figure .wide::before { content: "swipe sideways →"; color: #666; font-size: .8125rem }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt }
  figure, tr, pre { break-inside: avoid }
  h2, h3 { break-after: avoid }
  figure img { max-width: 100% }
  .wide { overflow: visible }
  pre { white-space: pre-wrap; overflow-wrap: anywhere }
}
"""


@dataclass(frozen=True)
class Picture:
    """A figure with its numbers.

    name: the stem of its file. reading: one sentence that says how to read it.
    data_name, data: the file beside it with the numbers that it shows.
    """

    name: str
    title: str
    reading: str
    png: bytes
    data_name: str
    data: str


@dataclass(frozen=True)
class Drawing:
    """A figure still to be named and explained."""

    table: plots.Table
    draw: Callable[[], Figure]

    def picture(self, name: str, title: str, reading: str) -> Picture:
        """Draw, and keep the table as CSV."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.table)
        return Picture(name, title, reading, plots.png(self.draw), f"{name}.csv", text.getvalue())


def page(run: FinishedRun, pictures: Sequence[Picture]) -> str:
    """The whole page of a run; all that comes from files is escaped."""
    return document(
        run.recipe.name,
        f"""<p>{escape(_sentence(run))}</p>
{_results(run.results)}
{_dropped(run.results)}
{changes_section(run.changes)}
<h2>Training facts</h2>
{_facts(_training(run))}
<h2>Figures</h2>
{"".join(figure(picture, "figures") for picture in pictures)}
<h2>The recipe</h2>
<details><summary>All settings of this run</summary><pre>{escape(run.recipe_text)}</pre></details>
<h2>The data</h2>
{_attribution(run.manifest)}
<h2>To make it again</h2>
<p>With the recipe above saved as <code>recipe.toml</code>:</p>
<pre>{escape(_commands(run))}</pre>""",
    )


def evaluation_page(name: str, results: Sequence[Result], pictures: Sequence[Picture]) -> str:
    """The whole page of an evaluation alone."""
    return document(
        name,
        f"""{_results(results) if results else ""}
{_dropped(results)}
<h2>Figures</h2>
{"".join(figure(picture, "figures") for picture in pictures)}""",
    )


def require_own_page(path: Path) -> None:
    """Raise DataError where a page of another hand has the name of one that is to be written."""
    if path.exists() and TITLE_END.encode() not in path.read_bytes():
        raise DataError(f"{path}: no report wrote it; move it away")


def document(name: str, body: str) -> str:
    """A page with the style of all pages. name: plain text, which is escaped; body: HTML."""
    name = escape(name)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name}{TITLE_END}
<style>{STYLE}</style>
</head>
<body>
<h1>{name}</h1>
{body}
</body>
</html>
"""


def _sentence(run: FinishedRun) -> str:
    recipe, training = run.recipe, run.training
    size = "" if run.parameters is None else f" of {_counted(run.parameters)} parameters"
    count, unit = (recipe.train.steps, "step") if recipe.train.steps else (recipe.train.epochs, "epoch")
    length = f"{count:,} {unit}{'s' * (count > 1)}"
    length = f"of {length} that were planned," if "ended_early" in training else f"{length} of"
    start = f"fine-tuned from {recipe.train.start_from}" if recipe.train.start_from else "trained from scratch"
    return (
        f"A CLIP{size}, {start} on {training['pairs']:,} image-caption pairs seen ({length} "
        f"split “{recipe.data.split}” of {recipe.data.folder}) in {duration(training['seconds'])} on "
        f"{run.environment.get('device', 'an unknown device')}."
    )


def _results(results: Sequence[Result]) -> str:
    heads = ("Split", "Images", "Captions", "Top-1", "Top-5", "Image → caption", "Caption → image", "Dropped")
    units = ("or benchmark", "", "or classes", "accuracy", "accuracy", "recall@1", "recall@1", "images")
    lines = []
    for result in results:
        cells = [
            escape(result.benchmark),
            f"{result.images:,}",
            f"{result.candidates:,}",
            f"{percent(result.top_1)}<br><small>chance {percent(result.chance_top_1)}</small>",
            f"{percent(result.top_5)}<br><small>chance {percent(result.chance_top_5)}</small>",
            *(percent(result.recall[way]) if result.recall else "" for way in RECALLS_AT_1),
            f"{sum(result.dropped.values()):,}",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    pairs = zip(heads, units, strict=True)
    head = "".join(f'<th scope="col">{name}<br><small>{unit}</small></th>' for name, unit in pairs)
    return f"""<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
{_every_figure(results)}"""


def _every_figure(results: Sequence[Result]) -> str:
    """With intervals and chance, for those who look for them."""
    lines = []
    for result in results:
        for one in result.measured:
            low, high = one.interval or ("", "")
            cells = (result.benchmark, one.title, one.value, low, high, "" if one.chance is None else one.chance)
            shown = (f"{cell:.2f}" if isinstance(cell, float) else escape(cell) for cell in cells)
            lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>")
    heads = ("Split or benchmark", "Figure", "%", "95 % interval: from", "to", "Chance")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"""<details><summary>Every figure, with its interval over the images and its chance</summary>
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div></details>"""


def _dropped(results: Iterable[Result]) -> str:
    lines = [f"<li>{escape(result.benchmark)}: {_reasons(result.dropped)}</li>" for result in results if result.dropped]
    return f"<p>Images that could not be evaluated:</p>\n<ul>{''.join(lines)}</ul>" if lines else ""


def _reasons(dropped: dict[str, int]) -> str:
    return escape(", ".join(f"{count:,} × {reason}" for reason, count in dropped.items()))


def _training(run: FinishedRun) -> dict[str, Any]:
    """What to know about the run, as escaped text or HTML; what the files do not say is left out."""
    training, environment, settings = run.training, run.environment, run.recipe.train
    best, watching = training.get("best"), training.get("evaluation_seconds")
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    facts = {
        "Weights": best and f"those after step {best['step']:,}, the best by {best['by']}",
        "Ended early": training.get("ended_early"),
        "Time": f"{duration(training['seconds'])} for {training['steps']:,} steps of {settings.batch_size:,} pairs",
        "Evaluation meanwhile": watching and duration(watching),
        "Speed": f"{training['pairs'] / training['seconds']:,.0f} pairs/s" if training["seconds"] else None,
        "Loss at the end": f"{training['loss']:.3f}" + (f" (chance: {run.chance_loss:.3f})" if run.chance_loss else ""),
        "Parameters": None if run.parameters is None else f"{run.parameters:,}",
        "Device": environment.get("device"),
        "Precision": environment.get("precision"),
        "Memory in use": f"{max(line['memory_mb'] for line in run.metrics):,.0f} MB at most",
        "Machine": ", ".join(str(environment[key]) for key in ("processor", "system") if environment.get(key)),
        "Cores": environment.get("cores"),
        "Threads used": environment.get("threads"),
        "Versions": f"Python {environment.get('python', 'unknown')}, {versions}",
    }
    known = {name: escape(str(value)) for name, value in facts.items() if value}
    return known | {"Dropped rows": _reasons(training.get("dropped") or {}) or "none"}


def figure(picture: Picture, folder: str) -> str:
    """A figure as HTML, with the picture inside. folder: where its files lie, beside the page."""
    encoded = base64.b64encode(picture.png).decode()
    title, reading = escape(picture.title), escape(picture.reading)
    return f"""<figure>
<h3>{title}</h3>
<div class="wide"><img src="data:image/png;base64,{encoded}" alt="{title}. {reading}"></div>
<figcaption>{reading} <small>({escape(folder)}/{escape(picture.data_name)})</small></figcaption>
</figure>
"""


def _attribution(manifest: dict[str, Any]) -> str:
    given = manifest.get("attribution")
    if not given:
        return "<p>The data folder's manifest.json names no author and no licence.</p>"
    facts = given if isinstance(given, dict) else {"attribution": given}
    rows = {str(name).replace("_", " ").capitalize(): escape(str(value)) for name, value in facts.items()}
    return f"<p>The pictures in the figures come from the data set and stay under its licence.</p>\n{_facts(rows)}"


def _commands(run: FinishedRun) -> str:
    where = run.folder if run.folder.name else run.folder.resolve()  # `report .`
    folder = shlex.quote(str(where))
    data = shlex.quote(run.recipe.data.folder)
    lines = [f"# the shards go into {run.recipe.data.folder}"]
    source = str(run.manifest.get("source"))
    if source.startswith("openmoji"):
        cut = " --validation" if "validation" in source else ""
        lines = [f"pocketclip pack openmoji {data} --size {shlex.quote(str(run.manifest.get('image_size', 72)))}{cut}"]
    runs = shlex.quote(str(where.parent))
    elsewhere = "" if runs == "runs" else f" --runs {runs}"
    lines += [] if run.recipe.train.start_from else ["pocketclip tokenizer recipe.toml"]
    lines += [
        f"pocketclip train recipe.toml{elsewhere}",
        f"pocketclip evaluate {folder}/bundle",
        f"pocketclip report {folder}",
    ]
    return "\n".join(lines)


def _facts(rows: dict[str, str]) -> str:
    """A table of names and already escaped values."""
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in rows.items())
    return f'<table class="facts">{body}</table>'


def duration(seconds: float) -> str:
    """Seconds in words: 42 seconds, 3.5 minutes, 2.0 hours."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _counted(number: int) -> str:
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number:,}"
