"""The verbs that make a model and look at it; each imports its stage only when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pocketclip.cli.app import Overrides, RecipeFile, app, console, errors
from pocketclip.cli.data import pack, tokenizer
from pocketclip.errors import RecipeError

RunsFolder = Annotated[Path, typer.Option("--runs", help="Folder that holds all runs.")]


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
        console.print(f"{what:<14} {value}", highlight=False, markup=False)


@app.command()
def teach(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Embed the training split by train.teacher, once: data.folder/teacher, which train.distillation learns from."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.train.teach import teach as run

    console.print(f"{run(settings, console)}: the teacher's embeddings", highlight=False, markup=False)


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, runs: RunsFolder = Path("runs")) -> None:
    """Train a model, or go on with a run that was stopped."""
    from pocketclip.recipe.toml import load_recipe

    settings = load_recipe(recipe, overrides or ())
    from pocketclip.train.loop import train as run

    bundle = run(settings, runs / settings.name, console)
    console.print(f"{bundle}: the trained model", highlight=False, markup=False)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="A trained model: runs/NAME/bundle.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="data.folder=... or evaluate.KEY=..., else as its recipe says.")
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks instead: NAME, NAME=PATH, or a PATH of your own; several with commas."),
    ] = None,
    robustness: Annotated[
        bool, typer.Option("--robustness", help="Also on damaged images, and with words written on them.")
    ] = False,
    bias: Annotated[
        str,
        typer.Option(help="Groups and attributes instead: `emoji`, or a TOML file of your own.", show_default=False),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the results go; else `evaluation` beside a run's bundle, NAME-evaluation beside another."
        ),
    ] = None,
) -> None:
    """Measure a trained model: zero-shot accuracy and retrieval on its recipe's splits, or on benchmarks."""
    from pocketclip.bundle import load
    from pocketclip.evaluate.before import compare_with_start
    from pocketclip.evaluate.everything import evaluate_all
    from pocketclip.recipe.toml import override

    if bias and (on or robustness):
        raise RecipeError("--bias measures nothing else: call it once more, without --on and --robustness")
    loaded = load(bundle)
    settings = override(loaded.recipe, overrides or (), ("data.folder", "evaluate."))
    changes: dict[str, object] = {"robustness": True} if robustness else {}
    if on:
        split = (some.split(",") if not Path(some).exists() else [some] for some in on)
        names = tuple(name for some in split for name in some if name)
        changes |= {"splits": (), "benchmarks": names}
    settings = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update=changes)})
    beside = bundle.resolve()  # a run's folder has one bundle, another may hold several
    folder = output or beside.with_name("evaluation" if beside.name == "bundle" else f"{beside.name}-evaluation")
    if bias:
        from pocketclip.evaluate.bias import evaluate_bias

        loaded.recipe = settings
        console.print(str(evaluate_bias(loaded, bias, folder, console)), highlight=False, markup=False)
        return
    if not settings.evaluate.splits and not settings.evaluate.benchmarks:
        raise RecipeError(
            f"{bundle}: its recipe names nothing to evaluate on; add, for example, 'evaluate.splits=[\"test\"]', or "
            "--on cifar10"
        )
    loaded.recipe = settings
    for result in evaluate_all(loaded, folder, console, str(bundle)):
        console.print(str(result), highlight=False, markup=False)
    if settings.train.start_from and settings.evaluate.splits:
        compare_with_start(loaded, folder, console)


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
    console.print(
        f"{destination}: {converted.format}; embeddings differ by at most {compared}", highlight=False, markup=False
    )


@app.command()
def report(
    run: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, or of evaluations alone; one run alone has to be trained and evaluated."),
    ],
    output: Annotated[
        Path | None, typer.Option(help="The page that compares several; else compare.html beside the first run.")
    ] = None,
) -> None:
    """Draw the figures of a run, or of an evaluation, into one page; of several runs, a page that compares them."""
    if len(run) == 1 and output is None and run[0].suffix != ".json":
        from pocketclip.show.evaluation import is_evaluation
        from pocketclip.show.report import write_evaluation_report, write_report

        page = (write_evaluation_report if is_evaluation(run[0]) else write_report)(run[0])
    else:
        from pocketclip.show.compare import write_comparison

        page = write_comparison(run, output or run[0].resolve().parent / "compare.html")
    console.print(f"{page}: open it in a browser", highlight=False, markup=False)


@app.command()
def export_results(
    source: Annotated[list[Path], typer.Argument(help="Folders of evaluated runs, or results.json files.")],
    output: Annotated[
        Path | None, typer.Option(help="Where the tables go; else `evaluation` of the first run.", show_default=False)
    ] = None,
) -> None:
    """Write results as CSV and as a Markdown table, and a model card into each run's bundle."""
    from pocketclip.show.export import export_results as run

    beside = source[0] / "evaluation" if source[0].is_dir() else source[0].parent
    for path in run(source, output or beside):
        console.print(str(path), highlight=False, markup=False)


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
