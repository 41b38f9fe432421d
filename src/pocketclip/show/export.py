"""Results as tables for other programs and for people, and a bundle's model card.

Source of the card's head: Hugging Face's model cards, whose `model-index` the Hub reads (hub-docs, modelcard.md);
Mitchell et al. 2019, "Model cards for model reporting", for what it should say.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketclip.errors import DataError
from pocketclip.evaluate.results import Result, read_results
from pocketclip.files import whole_file
from pocketclip.show.page import duration
from pocketclip.show.plots import percent
from pocketclip.show.run import FinishedRun, short_names

MARK = "<!-- written by `pocketclip export-results`, {} -->"  # by which a card that nobody has changed is known
COLUMNS = (
    "run", "benchmark", "kind", "images", "candidates", "top_1", "top_1_low", "top_1_high", "top_5", "top_10",
    "chance_top_1", "chance_top_5", "chance_top_10", "mean_group_top_1", "dropped",
)  # fmt: skip
HEAD = "| top-1, % (95 % interval; chance)"


def export_results(sources: Sequence[Path], output: Path) -> list[Path]:
    """Write results.csv and results.md of some runs into a folder, and the model card of each run into its bundle.

    sources: folders of evaluated runs, or results.json files, which get no card. Returns what was written.
    Raises DataError where there are no results, and where a card or a table is not as it was written here.
    """
    names = short_names(sources)
    results = [
        read_results(source / "evaluation" / "results.json" if source.is_dir() else source) for source in sources
    ]
    cards = [(source, card(FinishedRun(source))) for source in sources if source.is_dir()]
    for source, _ in cards:
        _require_untouched(source / "bundle" / "README.md")
    for name, beginning in (("results.csv", ",".join(COLUMNS)), ("results.md", HEAD)):
        _require_own(output / name, beginning)
    written = [(output / "results.csv", _as_csv(names, results)), (output / "results.md", _as_markdown(names, results))]
    written += [(source / "bundle" / "README.md", text) for source, text in cards]
    for path, content in written:
        with whole_file(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [path for path, _ in written]


def _as_csv(names: Sequence[str], results: Sequence[Sequence[Result]]) -> str:
    """A line a run and benchmark; recalls and the rest have columns of their own."""
    lines: list[dict[str, Any]] = []
    for name, some in zip(names, results, strict=True):
        for one in some:
            low, high = one.intervals["top_1"]
            line = {column: getattr(one, column, None) for column in COLUMNS}
            line |= {"run": name, "top_1_low": low, "top_1_high": high, "dropped": sum(one.dropped.values())}
            more = one.recall | {f"chance_{recall}": value for recall, value in one.chance_recall.items()}
            line |= {name: value for name, value in (more | one.further).items() if name not in line}
            for figure, (low, high) in one.intervals.items():
                line |= {f"{figure}_low": low, f"{figure}_high": high}
            lines.append(line)
    columns = dict.fromkeys(column for line in lines for column in line)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _as_markdown(names: Sequence[str], results: Sequence[Sequence[Result]]) -> str:
    """A row a benchmark, a column a run."""
    by_name = [{one.benchmark: one for one in some} for some in results]
    benchmarks = dict.fromkeys(benchmark for some in by_name for benchmark in some)
    rows = [
        [_cell(benchmark), *(_figure(some[benchmark]) if benchmark in some else "" for some in by_name)]
        for benchmark in benchmarks
    ]
    head = [HEAD.strip("| "), *map(_cell, names)]
    return "\n".join([_row(head), _row(["---"] * len(head)), *map(_row, rows)]) + "\n"


def _figure(one: Result) -> str:
    low, high = one.intervals["top_1"]
    text = f"{one.top_1:.1f} ({low:.1f} to {high:.1f}; {one.chance_top_1:.2f})"
    more = [each for each in one.measured if each.name in one.further or one.kind == "retrieval"]
    return "; ".join([text, *(f"{each.title} {each}" for each in more)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def card(run: FinishedRun) -> str:
    """The text of README.md in a bundle: the head that the Hub reads, and what a user should know."""
    head, body = f"---\n{_head(run)}---\n", "\n".join(_body(run)) + "\n"
    return f"{head}{MARK.format(_digest(head + body))}\n{body}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _require_untouched(path: Path) -> None:
    """Raise DataError where somebody has written or changed a card."""
    if not path.exists():
        return
    pattern = re.escape(MARK).replace(r"\{\}", "([0-9a-f]{16})")
    text = path.read_bytes().decode("utf-8", errors="replace")
    found = re.fullmatch(f"(.*?)^{pattern}\n(.*)", text, flags=re.M | re.S)
    if not found or _digest(found[1] + found[3]) != found[2]:
        raise DataError(f"{path}: is not as PocketCLIP wrote it; move it away, and take your words over afterwards")


def _require_own(path: Path, beginning: str) -> None:
    """Raise DataError where a table of another hand has the name of one that is to be written."""
    if path.exists() and not path.read_bytes().startswith(beginning.encode()):
        raise DataError(f"{path}: is there, and no table of PocketCLIP's; choose another --output")


def _head(run: FinishedRun) -> str:
    """YAML, of which JSON is a part: values are written as JSON."""
    lines = [
        'library_name: "pocketclip"',
        'pipeline_tag: "zero-shot-image-classification"',
        'tags: ["clip", "zero-shot", "pocketclip"]',
    ]
    if run.recipe.train.start_from:
        lines.append('base_model_relation: "finetune"')
    lines += ["model-index:", f"- name: {json.dumps(run.recipe.name)}", "  results:"]
    for one in run.results:
        task = "zero-shot-image-classification" if one.kind != "retrieval" else "image-text-retrieval"
        metrics = {"top-1": one.top_1, "top-5": one.top_5} | (one.recall if one.kind == "retrieval" else {})
        lines += [
            "  - task:",
            f"      type: {json.dumps(task)}",
            "    dataset:",
            f"      name: {json.dumps(one.benchmark, ensure_ascii=False)}",
            f"      type: {json.dumps(one.benchmark, ensure_ascii=False)}",
            "    metrics:",
        ]
        for name, value in metrics.items():
            kind = "accuracy" if name.startswith("top") else "recall"
            lines += [
                f"    - type: {json.dumps(kind)}",
                f"      value: {round(value, 2)}",
                f"      name: {json.dumps(name)}",
            ]
    return "\n".join(lines) + "\n"


def _body(run: FinishedRun) -> Iterator[str]:
    recipe, training = run.recipe, run.training
    size = "" if run.parameters is None else f" of {run.parameters:,} parameters"
    origin = f"fine-tuned from `{recipe.train.start_from}`" if recipe.train.start_from else "trained from scratch"
    yield f"\n# {recipe.name}\n"
    yield (
        f"A CLIP{size} (images of {recipe.image.size} pixels, captions of up to {recipe.text_tower.context_length} "
        f"tokens), {origin} with PocketCLIP in {duration(training['seconds'])} on "
        f"{run.environment.get('device', 'an unknown device')}: {training['pairs']:,} image-caption pairs seen, seed "
        f"{recipe.seed}.\n"
    )
    yield "## Use\n"
    yield '```python\nimport pocketclip\n\nmodel = pocketclip.load("FOLDER")  # where this file lies'
    yield 'images = model.encode_images(["photo.jpg"])\ntexts = model.encode_texts(["a dog", "a cat"])'
    yield "print(images @ texts.T)\n```\n"
    yield "## Data\n"
    yield f"Trained on split `{recipe.data.split}` of `{recipe.data.folder}`. {_rights(run)}\n"
    yield "## Results\n"
    yield "| on | images | against | top-1 | 95 % interval | top-5 | chance, top-1 | could not be used |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in run.results:
        low, high = one.intervals["top_1"]
        trained = " (trained on)" if one.kind == "captions" and one.benchmark == recipe.data.split else ""
        yield _row(
            [
                _cell(one.benchmark) + trained, f"{one.images:,}", f"{one.candidates:,} {one.against}",
                percent(one.top_1), f"{low:.1f} to {high:.1f} %", percent(one.top_5), percent(one.chance_top_1),
                f"{sum(one.dropped.values()):,}",
            ]
        )  # fmt: skip
    yield "\nIntervals are by bootstrap over the images; they say nothing of other training seeds. Every figure:\n"
    for one in run.results:
        yield f"- {_cell(one.benchmark)}: {', '.join(f'{each.title} {each}' for each in one.measured)}"
    yield ""
    yield "## Limits\n"
    yield (
        "It knows what its data showed and little else. Like every model of images and captions it repeats the "
        "associations of its data; `pocketclip evaluate BUNDLE --bias FILE` measures some of them. It is no ground for "
        "decisions about people.\n"
    )
    yield "## The recipe\n"
    yield f"```toml\n{run.recipe_text.strip()}\n```"


def _rights(run: FinishedRun) -> str:
    given = run.manifest.get("attribution")
    if not given:
        return "Its manifest names no author and no licence: whoever publishes this has to know both."
    facts = given if isinstance(given, dict) else {"attribution": given}
    return " ".join(f"{str(name).replace('_', ' ').capitalize()}: {value}." for name, value in facts.items())
