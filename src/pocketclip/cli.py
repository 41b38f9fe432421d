"""The command line: one short function a verb; each imports its stage only when it runs."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from pocketclip.errors import CollectError, PocketCLIPError, RecipeError, Stopped

EngineName = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Where the work is done: this machine's processes, or Ray.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless said.", show_default=False)]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that is running; else one starts here.", show_default=False)
]

app = typer.Typer(
    name="pocketclip",
    help="Train a CLIP of your own, from scratch, on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FIRST_RANK = os.environ.get("RANK", "0") == "0"  # of the processes that `torchrun` starts one speaks
console = Console(soft_wrap=True, quiet=not FIRST_RANK)
errors = Console(stderr=True, soft_wrap=True)

RecipeFile = Annotated[str, typer.Argument(help="Recipe file (TOML), or the name of one that comes with PocketCLIP.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that differ, as key=value.", show_default=False)]
RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]


@app.command()
def words(
    recipe: RecipeFile,
    overrides: Overrides = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Make the list of words that images are searched for: data.folder/words.tsv."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    path = Path(settings.data.folder) / "words.tsv"
    if path.exists():
        raise CollectError(f"{path}: is there already; delete it to make it anew")
    from pocketclip.collect.word_list import chosen_words, write_word_list
    from pocketclip.collect.words import count_words
    from pocketclip.engine import open_engine

    if not settings.words.dump:
        count = write_word_list(chosen_words(settings.words), path)
        console.print(f"{path}: {count:,} words of wordfreq's list", highlight=False)
        return
    with open_engine(engine, workers, address) as opened:
        count, read = count_words(Path(settings.words.dump), path, settings.words, opened, console)
    console.print(f"{path}: {count:,} words of {read.articles:,} articles", highlight=False)


@app.command()
def search(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Ask image services for images of each word: data.folder/found/*.jsonl."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.collect.providers import choose_providers
    from pocketclip.collect.search import search_images
    from pocketclip.collect.word_list import read_word_list

    folder = Path(settings.data.folder)
    queries = read_word_list(folder / "words.tsv")
    for one in search_images(queries, choose_providers(settings.search), folder / "found", settings.search, console):
        console.print(
            f"{one.provider}: {one.rows:,} images by {one.requests:,} requests; {one.finished:,} of {one.queries:,} "
            f"words are done, {one.failed:,} failed"
            + (f"; stopped: {one.stopped_because}" if one.stopped_because else ""),
            highlight=False,
        )


@app.command()
def join(
    recipe: RecipeFile,
    sources: Annotated[
        list[Path] | None, typer.Argument(help="Lists of images, or folders of lists; else data.folder/found.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A .parquet or .csv file; else data.folder/rows.parquet.")] = None,
    url_column: Annotated[str, typer.Option(help="Column with the images' addresses, if it has an unusual name.")] = "",
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Column with captions, if it has an unusual name; may be repeated.")
    ] = None,
) -> None:
    """Join lists of found images into one table without repeats: data.folder/rows.parquet."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe)
    from pocketclip.collect.join import join_lists
    from pocketclip.collect.layouts import Asked

    folder = Path(settings.data.folder)
    asked = Asked(url_column=url_column, caption_columns=tuple(caption_column or ()))
    join_lists(sources or [folder / "found"], output or folder / "rows.parquet", console, asked=asked)


@app.command()
def fetch(
    recipe: RecipeFile,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try rows once more whose failure may have passed.")
    ] = False,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Download the images of data.folder/rows.parquet into data.folder/fetched, with one outcome a row."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.engine import open_engine

    with open_engine(engine, workers, address) as opened:
        from pocketclip.data.fetch import fetch as run

        folder, size = Path(settings.data.folder), settings.image.size
        fetched = run(folder / "rows.parquet", folder / "fetched", size, settings.fetch, opened, console, retry_failed)
    for reason, count in fetched.reasons.most_common():
        console.print(f"{count:>12,} {reason}", highlight=False)
    for (host, reason), count in fetched.hosts.most_common(10):
        console.print(f"{count:>12,} {reason} at {host}", highlight=False)


@app.command()
def clean(
    recipe: RecipeFile,
    overrides: Overrides = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of shards; else data.folder/fetched.", show_default=False)
    ] = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Keep what is of use of the fetched shards: no duplicates, no leaks, captions that say something."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.collect.word_list import read_word_list
    from pocketclip.engine import open_engine

    folder = Path(settings.data.folder)
    listed = tuple(read_word_list(folder / "words.tsv")) if settings.clean.balance else ()
    with open_engine(engine, workers, address) as opened:
        from pocketclip.clean.passes import clean as run

        manifest = run(source or folder / "fetched", folder, settings, listed, opened, console)
    for what, counts in (("rows", "dropped"), ("captions", "dropped_captions")):
        for reason, count in manifest[counts].items():
            console.print(f"{count:>12,} {what} dropped: {reason}", highlight=False, markup=False)
    kept = ", ".join(f"{split} {count:,}" for split, count in manifest["rows"].items())
    console.print(f"{folder}: {kept} rows", highlight=False)


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="openmoji; a folder of images, Parquet or tars; a .csv, .jsonl, .parquet, COCO .json.")
    ],
    folder: Annotated[Path | None, typer.Argument(help="Where the shards go; not for tars, indexed in place.")] = None,
    size: Annotated[int, typer.Option(help="openmoji: side of the drawn pictures, pixels.", min=8, max=1024)] = 72,
    validation: Annotated[
        bool,
        typer.Option("--validation", help="openmoji: leave the test splits out, cut train anew to choose a recipe."),
    ] = False,
    short_side: Annotated[int, typer.Option(help="Shrink larger images to it, pixels; 0: never.", min=0)] = 0,
    image_column: Annotated[str, typer.Option(help="Table: column of paths or images, if unusual.")] = "",
    caption_column: Annotated[
        list[str] | None, typer.Option(help="Table: column of captions; may be repeated.")
    ] = None,
    image_folder: Annotated[Path | None, typer.Option(help="Table: where its paths begin; else beside it.")] = None,
    test: Annotated[float, typer.Option(help="Share of the rows that become split test.", min=0, max=0.99)] = 0.0,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Turn images with captions into shards."""
    from pocketclip.data.pack import OPENMOJI, PackOptions
    from pocketclip.data.pack import pack as run
    from pocketclip.engine import open_engine

    columns = tuple(caption_column or ())
    options = PackOptions(size, validation, short_side, image_column, columns, image_folder, test)
    # What is drawn is drawn here. For all else the workers are forked when this import is done, not each its own.
    with nullcontext() if source == OPENMOJI else open_engine(engine, workers, address) as opened:
        manifest = run(source, folder, options, console, opened)
    rows = ", ".join(f"{split} {count:,}" for split, count in manifest["rows"].items())
    licence = f" ({manifest['attribution']['licence']})" if "attribution" in manifest else ""
    console.print(f"{folder or source}: {rows} rows{licence}", highlight=False)


@app.command()
def tokenizer(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Learn the vocabulary from the captions of the training split."""
    from pocketclip.data.shards import Split
    from pocketclip.recipe.toml import load_recipe
    from pocketclip.tokenizer import learn_tokenizer, save_tokenizer

    settings = load_recipe(recipe, overrides or ())
    split = Split(settings.data.folder, settings.data.split)
    learned = learn_tokenizer(split.every_caption(), settings.tokenizer)
    path = Path(settings.data.folder) / "tokenizer.json"
    save_tokenizer(learned, path)
    console.print(f"{path}: {learned.get_vocab_size():,} entries", highlight=False)


@app.command()
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(help="Imagine so many rows; 0: those of data.folder.", min=0)] = 0,
    caption_tokens: Annotated[int, typer.Option(help="Of each imagined caption.", min=3)] = 12,
    chip: Annotated[str, typer.Option(help="A GPU whose time is estimated, such as H100.")] = "",
) -> None:
    """Print what a recipe will cost: parameters, FLOPs, memory and time on this machine."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.train.check import CHIPS, Imagined, describe
    from pocketclip.train.check import check as estimate

    if chip and chip not in CHIPS:
        raise RecipeError(f"--chip {chip}: no figures of it; known are {', '.join(CHIPS)}")
    for what, value in describe(estimate(settings, Imagined(rows, caption_tokens) if rows else None), chip):
        console.print(f"{what:<14} {value}", highlight=False)


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, runs: RunsFolder = Path("runs")) -> None:
    """Train a model, or go on with a run that was stopped."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.train.loop import train as run

    bundle = run(settings, runs / settings.name, console)
    console.print(f"{bundle}: the trained model", highlight=False)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A trained model: runs/NAME/bundle.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="data.folder=... or evaluate.KEY=..., else as its recipe says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the results go; else `evaluation` beside the bundle.")
    ] = None,
) -> None:
    """Measure a trained model: zero-shot accuracy and retrieval on the splits that its recipe names."""
    from pocketclip.bundle import load
    from pocketclip.evaluate.splits import evaluate_splits
    from pocketclip.recipe.toml import override

    loaded = load(bundle)
    settings = override(loaded.recipe, overrides or (), ("data.folder", "evaluate."))
    if not settings.evaluate.splits:
        raise RecipeError(
            f"{bundle}: its recipe names no split to evaluate on; add, for example, 'evaluate.splits=[\"test\"]'"
        )
    folder = output or bundle.resolve().parent / "evaluation"
    for result in evaluate_splits(
        loaded, Path(settings.data.folder), settings.evaluate.splits, folder, console, str(bundle)
    ):
        console.print(
            f"{result.benchmark}: top-1 {result.top_1:.1f} %, top-5 {result.top_5:.1f} % of {result.images:,} images "
            f"against {result.candidates:,} captions (chance {result.chance_top_1:.2f} %, {result.chance_top_5:.2f} %)",
            highlight=False,
        )
        if result.dropped:
            console.print(f"{result.benchmark}: dropped {result.dropped}", highlight=False)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A bundle; a folder of OpenCLIP's or Hugging Face's; a file of CLIP's weights.")
    ],
    destination: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    to: Annotated[
        Literal["bundle", "open_clip", "huggingface", "onnx"] | None,
        typer.Option(help="The format to write; else a bundle.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json or OpenAI's merges, if SOURCE has none.", show_default=False)
    ] = None,
    activation: Annotated[
        Literal["gelu", "quick_gelu"] | None,
        typer.Option(help="If SOURCE does not say.", show_default=False),
    ] = None,
) -> None:
    """Turn others' weights into a bundle, or a bundle into an OpenCLIP, Hugging Face or ONNX folder."""
    from pocketclip.convert.convert import convert as run

    converted = run(source, destination, to, tokenizer, activation)
    compared = ", ".join(f"{difference:.1e} ({who})" for who, difference in converted.differences.items())
    console.print(f"{destination}: {converted.format}; embeddings differ by at most {compared}", highlight=False)


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(help="Runs' folders; one alone has to be trained and evaluated.")],
    output: Annotated[
        Path | None, typer.Option(help="The page that compares several; else compare.html beside the first run.")
    ] = None,
) -> None:
    """Draw the figures of a run and put them into one page; of several runs, a page that compares them."""
    if len(run) == 1 and output is None:
        from pocketclip.show.report import write_report

        page = write_report(run[0])
    else:
        from pocketclip.show.compare import write_comparison

        page = write_comparison(run, output or run[0].resolve().parent / "compare.html")
    console.print(f"{page}: open it in a browser", highlight=False)


@app.command()
def runs(
    folder: RunsFolder = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a run, for programs.")] = False,
) -> None:
    """List all runs with their state and key numbers, the newest last."""
    from pocketclip.show.runs import list_runs, runs_table, to_json

    found = list_runs(folder)
    if as_json:
        for run in found:
            print(to_json(run))
        return
    console.print(runs_table(found))
    for run in found:
        if run.problem:
            errors.print(f"[bold red]damaged:[/] {escape(run.problem)}", highlight=False)


@app.command()
def quickstart(recipe: RecipeFile = "quickstart", overrides: Overrides = None, runs: RunsFolder = Path("runs")) -> None:
    """The whole pipeline on the embedded data set, from nothing to a report; stages already done are kept."""
    if "=" in recipe:  # `pocketclip quickstart seed=1` means the recipe that the verb is named after
        recipe, overrides = "quickstart", [recipe, *(overrides or ())]
    from pocketclip.data.shards import splits_in
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    folder, run = Path(settings.data.folder), runs / settings.name
    if not splits_in(folder):
        pack("openmoji", folder)
    if not (folder / "tokenizer.json").exists():
        tokenizer(recipe, overrides)
    if not run.exists():
        check(recipe, overrides)
    train(recipe, overrides, runs)
    evaluate(run / "bundle")
    report([run])


def main() -> None:
    """Run the command line: a mistake is one line on stderr and exit code 2, a stopped training exit code 130."""
    for argument in sys.argv[1:]:
        if argument != argument.encode(errors="replace").decode():
            _fail(f"{argument!r}: not UTF-8, in which names are kept here; give it another name")
    try:
        app()
    except PocketCLIPError as error:
        if error.said:
            sys.exit(2)
        _fail(str(error))
    except OSError as error:  # no permission, no room, no such path: the machine's answer, not a fault of ours
        _fail(
            f"{error.filename or 'file system'}: {error.strerror or error}; choose another place, or make it writable"
        )
    except Stopped as stopped:
        console.print(escape(str(stopped)), highlight=False)
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    rank = "" if FIRST_RANK else f"rank {os.environ['RANK']}: "
    errors.print(f"[bold red]error:[/] {rank}{escape(message)}", highlight=False)
    sys.exit(2)
