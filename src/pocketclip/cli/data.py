"""The verbs that make a data set; each imports its stage only when it runs."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from pocketclip.cli.app import Overrides, RecipeFile, app, console
from pocketclip.errors import CollectError

EngineName = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Where the work is done: this machine's processes, or Ray.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one a core unless said.", show_default=False)]
Address = Annotated[
    str | None, typer.Option(help="Of a Ray cluster that is running; else one starts here.", show_default=False)
]


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
        console.print(f"{path}: {count:,} words of wordfreq's list", highlight=False, markup=False)
        return
    with open_engine(engine, workers, address) as opened:
        count, read = count_words(Path(settings.words.dump), path, settings.words, opened, console)
    console.print(f"{path}: {count:,} words of {read.articles:,} articles", highlight=False, markup=False)


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
        console.print(f"{count:>12,} {reason}", highlight=False, markup=False)
    for (host, reason), count in fetched.hosts.most_common(10):
        console.print(f"{count:>12,} {reason} at {host}", highlight=False, markup=False)


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
    console.print(f"{folder}: {kept} rows", highlight=False, markup=False)


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
    console.print(f"{folder or source}: {rows} rows{licence}", highlight=False, markup=False)


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
    console.print(f"{path}: {learned.get_vocab_size():,} entries", highlight=False, markup=False)
