"""What all verbs share: the app, where it speaks, and the arguments that are the same everywhere."""

import os
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    name="pocketclip",
    help="Train a CLIP of your own, from scratch, on one machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
FIRST_RANK = os.environ.get("RANK", "0") == "0"  # of the processes that `torchrun` starts one speaks
console = Console(soft_wrap=True, quiet=not FIRST_RANK, emoji=False)
errors = Console(stderr=True, soft_wrap=True, emoji=False)

RecipeFile = Annotated[str, typer.Argument(help="Recipe file (TOML), or the name of one that comes with PocketCLIP.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings that differ, as key=value.", show_default=False)]
